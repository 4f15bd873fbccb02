"""Compiles a stage's train step for a TPU topology, without a TPU, and predicts its speed.

  python -m experiments.compile --stage=coarse --recipe=librilight --topology=v5e:16x16
  python -m experiments.compile --stage=all --recipe=librilight --topology=v5e:4x4 --json=out.json
  python -m experiments.compile --stage=soundstorm --recipe=librilight --topology=v5e:4x4 --decode
  python -m experiments.compile --stage=semantic --recipe=librilight --topology=v4:2x2x4 --slices=2
  python -m experiments.compile --stage=encode --recipe=librilight --topology=v5e:4x4

Needs libtpu: the extra `compile`. The topology is the shape of one slice, in chips. With --decode,
compiles decoding on one chip: a step of a language model (with a depth model, a whole frame), or
SoundStorm's whole window. --stage=encode compiles a batch of `experiments.encode`, which each chip
runs alone. Meanings and assumptions of the numbers are in audiolm_jax/costs/roofline.py and
goodput.py.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from audiolm_jax import decoding, files, kmeans, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.costs import flops, goodput, hlo, roofline
from audiolm_jax.errors import UserError, install
from audiolm_jax.nn import language_model
from audiolm_jax.stages import soundstorm
from audiolm_jax.training import sharding
from audiolm_jax.training import step as step_lib
from audiolm_jax.training.loop import TrainConfig

from . import recipe as recipe_lib
from . import sources
from .cli import command_line


def main():
  parser = command_line.parser(__doc__)
  parser.add_argument('--stage', required=True, help='a stage of the recipe, all, or encode')
  parser.add_argument(
    '--hours_between_preemptions',
    type=command_line.HOURS,
    default=6.0,
    help='mean hours for which spot capacity stays, an assumption (6)',
  )
  parser.add_argument(
    '--audio_hours',
    type=command_line.HOURS,
    default=60_000.0,
    help='with --stage=encode: hours of audio of the corpus (60000)',
  )
  parser.add_argument(
    '--topology',
    required=True,
    metavar='CHIP:SHAPE',
    help='v5e:4x4, v5e:16x16, v4:2x2x4, v6e:8x8, ...',
  )
  parser.add_argument(
    '--slices', type=command_line.COUNT, default=1, help='number of slices of that topology (1)'
  )
  parser.add_argument(
    '--decode', action='store_true', help='compile decoding instead of the train step'
  )
  parser.add_argument(
    '--rows', type=command_line.COUNT, default=1, help='clips decoded at once on each chip (1)'
  )
  parser.add_argument(
    '--json', type=command_line.path, metavar='FILE', help='also write the numbers there'
  )
  parser.add_argument(
    '--hlo',
    type=command_line.path,
    metavar='FILE',
    help='write the text of the compiled program there',
  )
  args = parser.parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  if args.stage not in (*recipe.trained, 'all', 'encode'):
    raise UserError(
      f'--stage={args.stage}: recipe {args.recipe!r} has the stages {", ".join(recipe.trained)}; '
      'choose one, all, or encode'
    )
  for flag, path in (('--json', args.json), ('--hlo', args.hlo)):
    if path is not None:
      command_line.check_files([path], flag)
  chip, devices = load_topology(args.topology, args.slices)
  names = recipe.trained if args.stage == 'all' else (args.stage,)
  reports = []
  say = lambda text: print(text, file=sys.stderr, flush=True)
  for name in names:
    stage_recipe = recipe.stages.get(name)
    started = time.monotonic()
    say(f'{name}: tracing for {args.slices} x {args.topology}')
    if name == 'encode':
      program, row_seconds = lower_encode(recipe, devices)
    elif args.decode:
      program = lower_decode(stage_recipe.model, devices, args.rows, recipe.sampling.soundstorm)
    else:
      program = lower_train_step(stage_recipe, devices)
    say(f'{name}: traced in {time.monotonic() - started:.0f} s; compiling, which takes minutes')
    compiled = compile_for(program, chip)
    report = {
      'stage': name,
      'recipe': args.recipe,
      'program': 'batch' if name == 'encode' else 'decode' if args.decode else 'train step',
    }
    report |= {
      'topology': args.topology,
      'slices': args.slices,
      **describe(program, compiled, chip, args.slices),
    }
    if name == 'encode':
      report |= whole_encoding(report, row_seconds, len(devices), args.audio_hours)
    elif not args.decode:
      spot = goodput.Spot(hours_between=args.hours_between_preemptions)
      report |= whole_training(report, stage_recipe.train, spot)
    report['compile_seconds'] = time.monotonic() - started
    reports.append(report)
    print(table(report), flush=True)
    if args.hlo is not None:
      files.write_text(args.hlo, compiled.as_text())
    if args.json is not None:
      files.write_text(args.json, json.dumps(reports, indent=2) + '\n')


def compiler() -> str:
  """Returns the versions of the compiler, on which predictions depend."""
  try:
    return f'libtpu {importlib.metadata.version("libtpu")}, jax {jax.__version__}'
  except importlib.metadata.PackageNotFoundError:  # preinstalled, as on a TPU VM
    return f'libtpu of this machine, jax {jax.__version__}'


def load_topology(name: str, num_slices: int = 1) -> tuple[roofline.Chip, list[jax.Device]]:
  """Returns the chip and its devices, which can only be compiled for.

  Raises:
    UserError: if the topology is unknown, or libtpu is missing.
  """
  kind = name.split(':')[0]
  if kind not in roofline.CHIPS or not re.fullmatch(r'\w+:\d+(x\d+)+', name):
    raise UserError(
      f'--topology={name}: write a chip ({", ".join(roofline.CHIPS)}) and a shape, as in v5e:4x4'
    )
  chip = roofline.CHIPS[kind]
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no TPU to query
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # no TPU to lock
  try:
    options = dict(chip.topology_options) | ({'num_slices': num_slices} if num_slices > 1 else {})
    return chip, list(topologies.get_topology_desc(name, 'tpu', **options).devices)
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'--topology={name}: libtpu does not know it, or is missing ({install("compile")}): {reason}'
    ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
  """A traced program, with its properties that need no compiler."""

  lowered: Any
  largest_array: jax.core.ShapedArray  # of the arrays that it computes, over all devices
  num_devices: int
  num_parameters: int
  model_flops: int  # of one run over all devices, without recomputation
  batch_size: int
  mesh: dict[str, int]


def lower_train_step(stage_recipe: recipe_lib.StageRecipe, devices: list[jax.Device]) -> Lowered:
  """Traces the train step that `experiments.train` runs."""
  config, train = stage_recipe.model, stage_recipe.train
  mesh = sharding.make_mesh(train.mesh, devices)
  sharding.check_batch_size(train.batch_size, mesh)
  stage = config.make()
  _, shapes, shardings = step_lib.make_init(
    stage,
    train.optimizer,
    mesh,
    accumulate_steps=train.accumulate_steps,
    keep_ema=train.ema_decay is not None,
  )
  step = step_lib.make_train_step(
    stage,
    train.optimizer,
    mesh,
    shardings,
    seed=train.seed,
    accumulate_steps=train.accumulate_steps,
    ema_decay=train.ema_decay,
  )
  place = lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
  state = jax.tree.map(place, shapes, shardings)
  batch = {
    name: jax.ShapeDtypeStruct(
      (train.batch_size, *feature.shape), feature.dtype, sharding=sharding.batch_sharding(mesh)
    )
    for name, feature in stage.batch.items()
  }
  number = place(jax.ShapeDtypeStruct((), jnp.int32), sharding.replicated(mesh))
  rate = place(jax.ShapeDtypeStruct((), jnp.float32), sharding.replicated(mesh))
  plain = flops.without_remat(config).make()

  # Traced without a mesh, because padding in TPU kernels is no work of the model.
  def loss(params, rest, batch):
    return jax.value_and_grad(plain.loss, has_aux=True)(params, rest, batch, jax.random.key(0))

  traced = step.trace(state, batch, number, rate)
  return Lowered(
    lowered=traced.lower(),
    largest_array=flops.largest_array(traced.jaxpr),
    num_devices=len(devices),
    num_parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)),
    model_flops=flops.count(loss, shapes.params, shapes.state, batch),
    batch_size=train.batch_size,
    mesh=dict(mesh.shape),
  )


def lower_decode(config: Any, devices: list[jax.Device], rows: int, how) -> Lowered:
  """Traces decoding on one chip: a language model's step at a full cache, or SoundStorm's window.

  Raises:
    UserError: for other stages.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1), devices[:1])
  where = NamedSharding(mesh, PartitionSpec())
  place = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
  )
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)
  params = sharding.unbox(jax.eval_shape(lambda: config.make().init(jax.random.key(0)))).params
  if isinstance(config, soundstorm.Config):
    # Not the jitted function, whose trace does not depend on the mesh.
    decode = lambda params, key, semantic, codes: decoding.fill_window.__wrapped__(
      config, params, key, semantic, codes, how.rule, how.noise, iterations=how.iterations
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
      key,
      ints(rows, config.num_semantic),
      ints(rows, config.num_frames, config.num_quantizers),
    )
    donated = ()
  elif hasattr(config, 'language_model'):
    model = config.language_model
    batch = {name: ints(rows, *feature.shape) for name, feature in config.make().batch.items()}
    prefix, target = jax.eval_shape(config.prefix_and_target, batch)
    ids, times = jax.eval_shape(
      lambda *codes: language_model.sequence(model, *codes), prefix, target
    )
    columns = ids.shape[1] - 1  # START is read in place of the last code
    params = jax.eval_shape(lambda params: language_model.decoding_params(model, params), params)
    first, time_s = (jax.ShapeDtypeStruct((rows, 1, *x.shape[2:]), x.dtype) for x in (ids, times))
    with sharding.activations(mesh):
      _, cache = jax.eval_shape(
        lambda *args: language_model.prefill(model, *args, columns), params, first, time_s
      )

    # With a depth model, all codes of a frame. An aligned model reads its prefix again.
    def decode(params, cache, prefix, code, first, n):
      for step in language_model.turn(model, prefix):
        logits, cache = step(params, cache, code, first, n)
      return logits, cache

    arguments, donated = (cache, prefix, ints(rows), ints(rows), ints()), 1
  else:
    raise UserError(
      f'--decode: {type(config).__module__} does not decode; '
      'use it with a language model or soundstorm'
    )
  params, arguments = place(params), place(arguments)

  def function(*args):
    with sharding.activations(mesh):
      return decode(*args)

  traced = jax.jit(function, donate_argnums=donated, out_shardings=where).trace(params, *arguments)
  return Lowered(
    lowered=traced.lower(),
    # Without the mesh, for which tables are constrained, though not copied.
    largest_array=flops.largest_array(jax.make_jaxpr(decode)(params, *arguments).jaxpr),
    num_devices=1,
    num_parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
    model_flops=flops.count(decode, params, *arguments),
    batch_size=rows,
    mesh=dict(mesh.shape),
  )


def lower_encode(recipe: recipe_lib.Recipe, devices: list[jax.Device]) -> tuple[Lowered, float]:
  """Traces a batch of the longest rows of `experiments.encode`, on one chip.

  Returns:
    The program, and the seconds of audio that a row adds to a long clip.

  Raises:
    UserError: if the recipe imports codec or semantic encoder, whose sizes are then not known.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1), devices[:1])
  where = sharding.replicated(mesh)
  place = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
  )
  if missing := [name for name in ('soundstream', 'w2v_bert') if name not in recipe.trained]:
    raise UserError(
      f'--stage=encode: the recipe trains no {missing[0]}: use one that does, such as librilight'
    )
  models = {name: recipe.stages[name].model for name in ('soundstream', 'w2v_bert')}
  shapes = {
    name: place(sharding.unbox(jax.eval_shape(model.make().init, jax.random.key(0))))
    for name, model in models.items()
  }
  codec = Codec(models['soundstream'], shapes['soundstream'])
  settings = recipe.semantic_tokens
  encoder = tokenizer.SemanticEncoder(
    config=models['w2v_bert'],
    variables=shapes['w2v_bert'],
    layer=settings.layer,
    frames_per_token=settings.frames_per_token,
  )
  spec = tokenizer.spec_of(codec, encoder, settings.num_clusters)
  cut = sources.row_cut(codec, spec)
  seconds = cut.lengths[-1] / spec.semantic_rate
  waves = [
    jax.ShapeDtypeStruct(
      (sources.BATCH_SIZE, round(seconds * rate)),
      jnp.float32,
      sharding=sharding.batch_sharding(mesh),
    )
    for rate in (codec.sample_rate, encoder.sample_rate)
  ]

  # Without the jitted functions, whose traces do not depend on the mesh.
  def plain(codec, encoder, wave_BT, semantic_wave_BT):
    features_BSD = encoder.config.semantic_features(
      encoder.variables, semantic_wave_BT, encoder.layer
    )
    return codec.functions.encode(codec.variables, wave_BT, None), features_BSD

  width = jax.eval_shape(plain, codec, encoder, *waves)[1].shape[-1]
  numbers = lambda *shape: place(jax.ShapeDtypeStruct(shape, jnp.float32))
  clusters = kmeans.SemanticQuantizer(
    numbers(width), numbers(width), numbers(settings.num_clusters, width)
  )
  both = tokenizer.Tokenizer(codec, tokenizer.SemanticTokenizer(encoder, clusters))
  with sharding.activations(mesh, trains=False):
    traced = tokenizer.encode_rows.trace(both, *waves)
  program = Lowered(
    lowered=traced.lower(),
    largest_array=flops.largest_array(traced.jaxpr),
    num_devices=1,
    num_parameters=sum(
      math.prod(leaf.shape) for name in models for leaf in jax.tree.leaves(shapes[name].params)
    ),
    model_flops=flops.count(plain, codec, encoder, *waves),
    batch_size=sources.BATCH_SIZE,
    mesh=dict(mesh.shape),
  )
  return program, (cut.lengths[-1] - 2 * cut.context) / spec.semantic_rate


def compile_for(program: Lowered, chip: roofline.Chip) -> Any:
  """Returns the compiled program.

  Raises:
    UserError: naming the largest array and remedies, if the program needs too much memory.
  """
  try:
    return program.lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise UserError(does_not_fit(str(error), program, chip)) from error


def does_not_fit(message: str, program: Lowered, chip: roofline.Chip) -> str:
  """Returns an error message for a program that needs too much memory, from the compiler's."""
  sizes = re.search(r'\(([\d.]+\w)\) exceeds available \w+ \(([\d.]+\w)\)', message)
  need = (
    f'needs {sizes[1]} of {sizes[2]}'
    if sizes
    else f'needs more than the {chip.hbm_bytes / 2**30:.0f} GiB'
  )
  largest = program.largest_array
  size = largest.size * largest.dtype.itemsize / 2**30
  return (
    f'does not fit: {need} of memory on each chip; the largest array is {largest.str_short()}, '
    f'{size:.2f} GiB over all {program.num_devices} chips. Recompute more (remat=True), shard '
    'parameters and optimizer over more chips (train.mesh.fsdp), reduce train.batch_size '
    '(with accumulate_steps), or use more chips'
  )


def memory_bytes(compiled: Any) -> int:
  """Returns the bytes of memory that a compiled program takes on each device."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def describe(
  program: Lowered, compiled: Any, chip: roofline.Chip, num_slices: int
) -> dict[str, Any]:
  """Returns all numbers of a compiled program, per device unless their names say otherwise."""
  hbm = memory_bytes(compiled)
  try:
    parsed = hlo.parse(compiled.as_text())
  except jax.errors.JaxRuntimeError as error:  # jaxlib may not know libtpu's format, as for v6e
    reason = str(error).splitlines()[0][:200]
    raise UserError(
      f'the program compiles and takes {hbm / 2**30:.2f} of {chip.hbm_bytes / 2**30:.0f} GiB of '
      f'each chip, but this jaxlib cannot read it, so there is no prediction ({reason}): '
      'try another version of libtpu'
    ) from error
  found = hlo.collectives(parsed, program.num_devices)
  traffic = {}
  for one in found:
    traffic[one.kind] = traffic.get(one.kind, 0) + one.rounds * one.size
  per_device = program.model_flops / program.num_devices
  predicted = roofline.predict(
    chip,
    product_flops=per_device,
    hbm_bytes=hlo.hbm_bytes(parsed),
    cycles=hlo.cycles(parsed),
    kernels=hlo.kernels(parsed),
    collectives=found,
    devices_per_slice=program.num_devices // num_slices,
  )
  return {
    'compiler': compiler(),
    'devices': program.num_devices,
    'mesh': program.mesh,
    'batch_size': program.batch_size,
    'parameters': program.num_parameters,
    'model_flops': per_device,
    'hbm_bytes': hbm,
    'hbm_capacity': chip.hbm_bytes,
    'hbm_traffic': hlo.hbm_bytes(parsed),
    'collective_bytes': traffic,
    'unknown_loops': parsed.unknown_loops,
    **dataclasses.asdict(predicted),
    'step_seconds': predicted.step_seconds,
    'mfu': predicted.utilization,
    'bound': predicted.bound,
  }


def whole_training(
  report: dict[str, Any], train: TrainConfig, spot: goodput.Spot
) -> dict[str, float]:
  """Returns the hours and chip-hours of all steps, without saves, evaluations and input, and the
  hours on spot capacity, with saves and restarts.
  """
  hours = train.num_steps * report['step_seconds'] / 3600
  clock = math.inf if train.save_every_seconds is None else train.save_every_seconds
  interval = min(train.save_every * report['step_seconds'], clock)
  share = goodput.share(spot, interval)
  return {
    'num_steps': train.num_steps,
    'training_hours': hours,
    'training_chip_hours': hours * report['devices'],
    'save_interval_seconds': interval,
    'hours_between_preemptions': spot.hours_between,
    'spot_goodput': share,
    'spot_hours': hours / share,
  }


def whole_encoding(
  report: dict[str, Any], row_seconds: float, num_chips: int, audio_hours: float
) -> dict[str, float]:
  """Returns the hours in which all chips encode a corpus of long clips, if reading keeps up."""
  faster = report['batch_size'] * row_seconds / report['step_seconds']  # than real time, on a chip
  hours = audio_hours / faster / num_chips
  return {
    'audio_hours': audio_hours,
    'times_real_time': faster,
    'encoding_hours': hours,
    'encoding_chip_hours': hours * num_chips,
  }


def table(report: dict[str, Any]) -> str:
  """Returns the report as text."""
  mesh = ' x '.join(f'{name} {size}' for name, size in report['mesh'].items())
  traffic = ', '.join(
    f'{kind} {size / 2**20:,.0f} MiB' for kind, size in sorted(report['collective_bytes'].items())
  )
  milliseconds = lambda name: f'{1e3 * report[name]:,.2f} ms'
  rows = {
    'program': (
      f'{report["program"]} of {report["stage"]} ({report["recipe"]}), '
      f'{report["batch_size"]} examples'
    ),
    'devices': f'{report["devices"]} on {report["slices"]} x {report["topology"]}: {mesh}',
    'compiler': report['compiler'],
    'parameters': f'{report["parameters"] / 1e6:,.1f} M',
    'FLOPs': (
      f'{report["model_flops"] / 1e12:,.3f} T per device, '
      f'{milliseconds("product_seconds")} at the peak'
    ),
    'HBM': (
      f'{report["hbm_bytes"] / 2**30:.2f} of {report["hbm_capacity"] / 2**30:.0f} GiB per device'
    ),
    'HBM traffic': f'{report["hbm_traffic"] / 2**30:,.1f} GiB, {milliseconds("hbm_seconds")}',
    "compiler's estimate": (
      f'{milliseconds("compiler_seconds")}, and attention kernels {milliseconds("kernel_seconds")}'
    ),
    'collectives': traffic or 'none',
    '  hidden, exposed': (
      f'{milliseconds("hidden_collective_seconds")}, {milliseconds("exposed_collective_seconds")}'
    ),
    'predicted': (
      f'{milliseconds("step_seconds")}, MFU {report["mfu"]:.1%}, bound by {report["bound"]}'
    ),
  }
  if 'num_steps' in report:
    rows['whole training'] = (
      f'{report["num_steps"]:,} steps, {report["training_hours"]:,.1f} h, '
      f'{report["training_chip_hours"]:,.0f} chip-hours'
    )
    rows['on spot capacity'] = (
      f'{report["spot_hours"]:,.1f} h held, {report["spot_goodput"]:.1%} of them in steps that are '
      f'kept: a preemption every {report["hours_between_preemptions"]:g} h, a save every '
      f'{report["save_interval_seconds"]:,.0f} s'
    )
  if 'audio_hours' in report:
    rows['whole encoding'] = (
      f'{report["audio_hours"]:,.0f} h of audio, a chip {report["times_real_time"]:,.0f} times '
      f'faster than real time: {report["encoding_hours"]:,.2f} h, '
      f'{report["encoding_chip_hours"]:,.0f} chip-hours'
    )
  if report['unknown_loops']:
    rows['note'] = f'{report["unknown_loops"]} loops of unknown length count as one round'
  width = max(map(len, rows))
  return '\n'.join(f'{name:<{width}}  {value}' for name, value in rows.items())


if __name__ == '__main__':
  command_line.run(main)
