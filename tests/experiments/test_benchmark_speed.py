"""The benchmarks lm, decode and gpu in their smallest form, and the clock that they share."""

import re

import pytest

from audiolm_jax.errors import UserError
from experiments import benchmark
from experiments.benchmarks import acoustic, gpu, peers, timing

TOY = ['--width=16', '--layers=1', '--heads=2', '--repeats=1']


def output(monkeypatch, capsys, *arguments) -> str:
  monkeypatch.setattr('sys.argv', ['benchmark', *arguments])
  benchmark.main()
  return capsys.readouterr().out


def test_functions_take_turns_after_a_warm_up_and_medians_count():
  """The clock advances by what each function takes in that turn."""
  now, log = [0.0], []
  takes = {'a': iter([9, 1, 2, 4]), 'b': iter([9, 3, 2, 2])}

  def step(name):
    log.append(name)
    now[0] += next(takes[name])

  steps = {name: lambda name=name: step(name) for name in takes}
  seconds, ratios = timing.in_turns(steps, 3, clock=lambda: now[0])
  assert log == ['a', 'b'] * 4
  assert seconds == {'a': 2, 'b': 2}
  assert ratios == {'a': 1, 'b': 1}  # median of 3, 1 and 0.5


def test_blocks_need_less_memory_than_plain_products(monkeypatch, capsys):
  text = output(monkeypatch, capsys, 'lm', '--lengths=600x1', *TOY)
  found = re.findall(r'600x1 +(\w+) +([\d.]+) +([\d.]+) +(\d+)$', text, re.MULTILINE)
  assert [row[0] for row in found] == ['blocks', 'plain']
  assert float(found[0][2]) == 1 and float(found[1][1]) > 0
  # 2 heads of 600 x 600 weights are 2.7 MiB, and as many are kept for the backward pass.
  assert int(found[1][3]) - int(found[0][3]) >= 4
  assert (peers.MISSING in text) == (not peers.installed())
  with pytest.raises(UserError, match="'600' is not LENGTHxROWS"):
    benchmark.BENCHMARKS['lm'].run(parsed('lm', '--lengths=600'))


def parsed(name, *arguments):
  parser = benchmark.command_line.Parser()
  benchmark.BENCHMARKS[name].add_arguments(parser)
  return parser.parse_args(arguments)


def test_decoding_is_timed_by_the_step(monkeypatch, capsys):
  text = output(monkeypatch, capsys, 'decode', '--rows=2', '--steps=2', *TOY)
  pattern = (
    r'^ +2 +(250 semantic|400 coarse after 50|the same, depth model) +([\d.]+) +(\d+) +([\d.]+)$'
  )
  found = re.findall(pattern, text, re.MULTILINE)
  assert len(found) == 3
  for name, step, rate, whole in found:
    assert 2000 / float(step) == pytest.approx(float(rate), rel=0.1)
    assert float(whole) == pytest.approx(
      (250 if 'semantic' in name else 400) * float(step) / 1000, abs=0.02, rel=0.1
    )
  with pytest.raises(UserError, match='--rows=0: give positive numbers'):
    benchmark.BENCHMARKS['decode'].run(parsed('decode', '--rows=0'))


def test_a_stage_is_trained_and_its_share_of_the_peak_shown(monkeypatch, capsys):
  monkeypatch.setattr(acoustic, 'run', lambda args: f'acoustic for {args.seconds:g} s')
  text = output(
    monkeypatch,
    capsys,
    'gpu',
    '--recipe=tiny',
    '--stages=semantic',
    '--batch=2',
    '--seconds=4',
    '--repeats=1',
    '--peak=1',
  )
  found = re.search(r'^semantic +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)%$', text, re.M)
  seconds, examples, _, rate, share = map(float, found.groups())
  assert examples * seconds == pytest.approx(2, rel=0.05)
  assert share == pytest.approx(100 * rate, abs=0.2)  # of a peak of 1 TFLOP/s
  assert text.endswith('acoustic for 4 s\n')
  with pytest.raises(UserError, match='mulan is not among soundstream'):
    gpu.run(parsed('gpu', '--recipe=tiny', '--stages=mulan'))


def test_parts_that_time_is_over_for_are_named():
  parts = {'one': lambda: 'done', 'two': lambda: 'never'}
  assert gpu.within(parts, 1000) == ['done', 'never']
  assert gpu.within(parts, 0)[1] == 'two: not run, because the time is over (--minutes)'


def test_peaks_are_found_by_a_part_of_the_name():
  assert gpu.peak_of('NVIDIA H200') == 989e12 and gpu.peak_of('Tesla T4') == 65e12
  assert gpu.peak_of('cpu') is None
