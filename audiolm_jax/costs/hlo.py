"""Reads costs of a compiled program from its text: loops, memory traffic, kernels, collectives.

XLA's `cost_analysis` counts the body of a loop once, but scanned layers are loops.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 'bf16': 2, 'token': 0, 'opaque': 0}  # other names contain the number of bits
# Opcodes without memory traffic.
_FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'while',
  'conditional',
  'call',
  'copy-done',
  'slice-done',
  'async-done',
  'async-update',
  'opt-barrier',
  'iota',
  'all-gather-done',
  'all-reduce-done',
  'collective-permute-done',
  'send',
  'send-done',
  'recv',
  'recv-done',
  'domain',
  'add-dependency',
}


class Shape(NamedTuple):
  """Describes one array of a program."""

  text: str  # as in the program: type and dimensions
  size: int  # bytes
  in_hbm: bool  # not in VMEM


class Instruction(NamedTuple):
  """Describes one instruction of a program."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]  # of the result; several if it is a tuple
  operands: tuple[str, ...]
  arguments: str  # text of the operands, or the number of a parameter
  attributes: str


class Collective(NamedTuple):
  """Describes one collective.

  Between slices, all devices are one group, and `size` is the part that a device exchanges through
  its host.
  """

  kind: str
  shape: str  # of the largest operand or result
  size: int  # bytes of the whole array: after gathering, or before scattering
  group: tuple[int, ...]  # devices of the first group
  rounds: int  # runs per step
  # Cycles of the computation that hides it: 0 if it stops the cores, infinite if asynchronous.
  hidden_by: float
  source: str  # operation in the JAX program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """Holds the instructions of each computation, and how often a step runs it.

  `rounds` excludes computations inside fusions and the fit of codebooks in the first step; it
  includes all branches of other conditionals.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  rounds: Mapping[str, int]
  unknown_loops: int  # loops whose number of iterations is unknown; counted as one iteration

  def instructions(self) -> Iterator[tuple[Instruction, int]]:
    """Yields every instruction outside of fusions, and how often a step runs it."""
    for name, rounds in self.rounds.items():
      for instruction in self.computations[name].values():
        yield instruction, rounds


def parse(text: str) -> Program:
  """Returns the program in the text of `compiled.as_text()`.

  Raises:
    UserError: if the text is not a compiled program.
  """
  computations, entry, current = {}, None, None
  for line in _lines(text):
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif line == '}':
      current = None
    elif current is not None and ' = ' in line:
      instruction = _instruction(line)
      current[instruction.name] = instruction
  if entry is None:
    raise UserError('no ENTRY computation: this is not the text of a compiled program')
  rounds, unknown = {}, 0

  def visit(name, times):
    nonlocal unknown
    rounds[name] = rounds.get(name, 0) + times
    for instruction in computations[name].values():
      inner, attributes = times, instruction.attributes
      if instruction.opcode == 'while':
        known = _trip_count(computations, attributes)
        unknown += known is None
        inner *= known or 1
      elif instruction.opcode not in ('conditional', 'call') and not instruction.opcode.startswith(
        'async'
      ):
        continue
      if instruction.opcode == 'conditional' and quantizer.FIT in attributes:
        continue
      for called in _called(attributes):
        visit(called, inner)

  visit(entry, 1)
  return Program(computations=computations, rounds=rounds, unknown_loops=unknown)


def _lines(text: str) -> Iterator[str]:
  """Yields lines of one instruction each; joins lines, because metadata of kernels has several."""
  begins = re.compile(r'  (ROOT )?%?[\w.\-]+ = |ENTRY |%?[\w.\-]+ \(|HloModule|\}$|$')
  line = ''
  for part in text.splitlines():
    if begins.match(part):
      yield line
      line = part.rstrip()
    else:
      line += part
  yield line


def _trip_count(computations, attributes: str) -> int | None:
  """Returns the number of iterations of a while loop, or None if unknown.

  It is noted by the compiler, or the constant in a condition `counter < constant`.
  """
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes):
    return int(known[1])
  condition = computations.get(re.search(r'condition=%?([\w.\-]+)', attributes)[1], {}).values()
  constants = [
    one.arguments for one in condition if one.opcode == 'constant' and one.arguments.isdigit()
  ]
  counts = any(one.opcode == 'compare' and 'direction=LT' in one.attributes for one in condition)
  return int(constants[0]) if counts and len(constants) == 1 else None


def _instruction(line: str) -> Instruction:
  name, rest = line.strip().removeprefix('ROOT ').split(' = ', 1)
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ')
  kind, rest = rest[:end], rest[end:].lstrip()
  opcode, arguments = rest.split('(', 1)
  end = _closing('(' + arguments, 0) - 1
  inside, attributes = arguments[: end - 1], arguments[end:]
  operands = tuple(re.findall(r'%([\w.\-]+)', inside))
  return Instruction(name.lstrip('%'), opcode, _shapes(kind), operands, inside, attributes)


def _closing(text: str, start: int) -> int:
  """Returns the index after the bracket that closes the bracket at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  raise UserError(f'a bracket does not close: {text[:80]}')


def _shapes(kind: str) -> tuple[Shape, ...]:
  shapes = []
  for match in re.finditer(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?', kind):
    dtype, sizes, layout = match[1], match[2], match[3] or ''
    bits = re.search(r'\d+', dtype)
    size = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 4)
    count = math.prod(int(n) for n in sizes.split(',')) if sizes else 1
    shapes.append(Shape(f'{dtype}[{sizes}]', math.ceil(count * size), 'S(' not in layout))
  return tuple(shapes)


def _called(attributes: str) -> list[str]:
  called = re.findall(
    r'(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)', attributes
  )
  for branches in re.findall(r'branch_computations=\{([^}]*)\}', attributes):
    called += re.findall(r'%?([\w.\-]+)', branches)
  return called


def collectives(program: Program, num_devices: int) -> list[Collective]:
  """Returns the collectives of a step.

  Between slices, TPU programs send arrays to the hosts. Some collectives are in fusions: a
  reduce-scatter is an all-reduce and a slice, and an asynchronous all-gather is one fusion that
  starts it, some that overlap it with products, and one that ends it, all with the same channel.
  Unrolled layers share channels.

  Args:
    program: the program.
    num_devices: number of devices of the program.

  Raises:
    UserError: if groups of devices have an unknown format.
  """
  found, begun = [], {}
  for instruction, rounds in program.instructions():
    sends = instruction.opcode == 'send'
    if sends and (
      between := re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    ):
      kind, sent = between[1].lower().replace('_', '-'), instruction.shapes[0]
      found.append(
        Collective(kind, sent.text, sent.size, tuple(range(num_devices)), rounds, math.inf, '')
      )
      continue
    called = _called(instruction.attributes)[:1] if instruction.opcode == 'fusion' else []
    inner = [one for name in called for one in program.computations.get(name, {}).values()]
    for one in inner or [instruction]:
      kind = one.opcode.removesuffix('-start')
      if kind not in COLLECTIVES or instruction.name.startswith('async-collective-done'):
        continue
      channel = re.search(r'channel_id=(\d+)|$', one.attributes)[1]
      if channel in begun and any('async_collective_fusion' in name for name in called):
        first = begun[channel]
        found[first] = found[first]._replace(
          hidden_by=found[first].hidden_by + _estimated_cycles(instruction)
        )
        continue
      if instruction.name.startswith('async-collective-start'):
        begun[channel] = len(found)
      shapes = [*one.shapes]
      for operand in one.operands:
        shapes += _operand(program, one, operand)
      largest = max(shapes, key=lambda shape: shape.size)
      source = re.search(r'op_name="([^"]*)"', one.attributes)
      hidden_by = math.inf if one.opcode.endswith('-start') else 0
      size = _payload(kind, one, largest)
      kind = 'reduce-scatter' if any('all-reduce-scatter' in name for name in called) else kind
      group = _group(one.attributes, num_devices)
      found.append(
        Collective(kind, largest.text, size, group, rounds, hidden_by, source[1] if source else '')
      )
  return found


def _payload(kind: str, instruction: Instruction, largest: Shape) -> int:
  """Returns the bytes of the whole array, or of all arrays of a combined all-reduce."""
  if kind in ('all-reduce', 'collective-permute') and not instruction.opcode.endswith('-start'):
    return sum(shape.size for shape in instruction.shapes)
  return largest.size


def _operand(program: Program, instruction: Instruction, operand: str) -> tuple[Shape, ...]:
  for computation in program.computations.values():
    if instruction.name in computation and operand in computation:
      return computation[operand].shapes
  return ()


def _group(attributes: str, num_devices: int) -> tuple[int, ...]:
  """Returns the first group of devices, in any of HLO's four formats; all if none is given."""
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    return _numbers(listed[1])
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes):
    return tuple(_iota(iota[3]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
  if meshed := re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}', attributes
  ):
    names = re.findall(r"'([^']+)'=(\d+)", meshed[1])
    sizes, chosen = [int(size) for _, size in names], re.findall(r"'([^']+)'", meshed[3])
    if ':' in meshed[3]:
      raise UserError(
        f'a collective runs over a part of a mesh axis, which is not supported: {meshed[0]}'
      )
    devices = _iota(meshed[2] or f'[{math.prod(sizes)}]').reshape(sizes)
    return tuple(
      devices[tuple(slice(None) if name in chosen else 0 for name, _ in names)].ravel().tolist()
    )
  if pairs := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', attributes):
    return (int(pairs[1]), int(pairs[2]))
  if 'replica_groups=' in attributes and 'replica_groups={}' not in attributes:
    raise UserError(f'groups of devices in an unknown format: {attributes[:200]}')
  return tuple(range(num_devices))


def _iota(text: str) -> np.ndarray:
  """Returns the numbers that a text stands for.

  `[4,2]T(1,0)` is 0, 1, ... in the shape [4, 2], transposed; other texts are lists of numbers.
  """
  if not text.startswith('['):
    return np.array(_numbers(text))
  shape = _numbers(text[1 : text.index(']')])
  order = re.search(r'T\(([\d,]+)\)', text)
  array = np.arange(math.prod(shape)).reshape(shape)
  return array.transpose(_numbers(order[1])) if order else array


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(','))


class Kernel(NamedTuple):
  """Describes a Pallas kernel in a program by its cost estimate."""

  name: str
  flops: int
  transcendentals: int
  rounds: int  # runs per step
  parallel_heads: int = 1  # among which the cores of a chip can be divided


def kernels(program: Program) -> list[Kernel]:
  """Returns the Pallas kernels of a step, for which the compiler estimates no cycles."""
  found = []
  for instruction, rounds in program.instructions():
    if instruction.opcode == 'custom-call' and '"tpu_custom_call"' in instruction.attributes:
      number = lambda name, text=instruction.attributes: int(
        # The metadata of a kernel are a text within the text, in quotes of their own.
        (re.search(rf'"{name}\\?":\s*(?:\\?")?(\d+)', text) or [0, 0])[1]
      )
      costs = number('flops'), number('transcendentals')
      found.append(Kernel(instruction.name, *costs, rounds, max(1, number('parallel_heads'))))
  return found


def cycles(program: Program) -> int:
  """Returns the compiler's estimate of a step's cycles on the cores of one TPU chip.

  Collectives and asynchronous copies between HBM and VMEM overlap with the cores and do not count.
  """
  total = 0
  for instruction, rounds in program.instructions():
    estimate = _estimated_cycles(instruction)
    kind = instruction.opcode.removesuffix('-start').removesuffix('-done')
    if kind not in (*COLLECTIVES, 'copy', 'slice', 'async') or instruction.opcode == 'copy':
      total += rounds * estimate
  return total


def _estimated_cycles(instruction: Instruction) -> int:
  return int((re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes) or [0, 0])[1])


def hbm_bytes(program: Program) -> int:
  """Returns the bytes that a step reads from and writes to HBM.

  Each operand and result of a fusion counts once, or only its slice if it is sliced or updated in
  place.
  """
  total = 0
  for name, rounds in program.rounds.items():
    computation = program.computations[name]
    for instruction in computation.values():
      if instruction.opcode not in _FREE:
        total += rounds * _traffic(program, computation, instruction)
  return total


def _traffic(
  program: Program, computation: Mapping[str, Instruction], instruction: Instruction
) -> int:
  shapes_of = lambda operand: computation[operand].shapes if operand in computation else ()
  inner, opcode = {}, instruction.opcode
  if opcode == 'fusion':
    inner = program.computations[_called(instruction.attributes)[0]]
  elif opcode == 'slice-start':  # ((whole), slice, context)
    return instruction.shapes[1].size * (
      instruction.shapes[0].in_hbm + instruction.shapes[1].in_hbm
    )
  elif opcode.endswith('-start'):  # the result contains the operand, too
    return _in_hbm(instruction.shapes)
  elif opcode in ('dynamic-slice', 'slice'):
    return 2 * _in_hbm(instruction.shapes)
  elif opcode == 'dynamic-update-slice':
    return 2 * _in_hbm(shapes_of(instruction.operands[1]))
  parameters = {int(one.arguments): one.name for one in inner.values() if one.opcode == 'parameter'}
  total, updated = 0, []
  for number, operand in enumerate(instruction.operands):
    users = [one for one in inner.values() if parameters.get(number) in one.operands]
    if users and all(one.opcode == 'dynamic-slice' for one in users):
      total += min(
        _in_hbm(shapes_of(operand)), sum(shape.size for one in users for shape in one.shapes)
      )
    elif users and all(
      one.opcode == 'dynamic-update-slice' and one.operands[0] == parameters[number]
      for one in users
    ):
      slices = sum(shape.size for one in users for shape in inner[one.operands[1]].shapes)
      updated.append((_in_hbm(shapes_of(operand)), slices))
    else:
      total += _in_hbm(shapes_of(operand))
  results = _in_hbm(instruction.shapes)
  for whole, part in updated:
    if whole:
      results += part - min(whole, results)
  return total + results


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.size for shape in shapes if shape.in_hbm)
