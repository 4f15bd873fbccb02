"""What is compiled ahead of time: on eight fake CPU devices always, for TPUs where libtpu is (`make
test-tpu`).
"""

import dataclasses
import functools
import inspect
import math
import time
import types

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from audiolm_jax import codec, decoding, tokenizer
from audiolm_jax.costs import goodput, hlo, roofline
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import ParallelRule
from audiolm_jax.stages import coarse, detector, soundstorm, soundstream
from audiolm_jax.training import loop, sharding
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.optimizers import OptimizerConfig
from experiments import compile as compile_program
from experiments import recipe as recipe_lib
from experiments.inputs import Tokens
from experiments.recipe import SemanticTokens
from notebooks import build
from tests import toys
from tests.test_notebooks import SCRIPT, shown, sized  # noqa: F401 (a fixture)

# Activations of a device, 4 x 60 x 32, are larger than any parameter: what is larger than these is
# no parameter.
TRANSFORMER = TransformerConfig(num_layers=3, num_heads=4, width=32, mlp_width=64, max_distance=32)
COARSE = coarse.Config(
  crop_seconds=0.48, num_clusters=30, num_quantizers=2, codebook_size=32, transformer=TRANSFORMER
)
STORM = soundstorm.Config(
  crop_seconds=1.2,
  num_clusters=30,
  num_quantizers=2,
  codebook_size=32,
  num_layers=3,
  num_heads=4,
  width=32,
  mlp_width=64,
)
LARGEST_PARAMETER = 3 * 32 * 64


def stage_recipe(model, mesh: sharding.MeshConfig, batch_size: int = 32) -> recipe_lib.StageRecipe:
  optimizer = OptimizerConfig(name='adafactor', clip_norm=1.0)
  return recipe_lib.StageRecipe(
    model=model,
    data=Tokens(),
    train=TrainConfig(batch_size=batch_size, num_steps=1, optimizer=optimizer, mesh=mesh),
  )


def elements(shape: str) -> int:
  return math.prod(int(n) for n in shape[shape.index('[') + 1 : -1].split(',') if n)


def check_collectives(program: compile_program.Lowered, text: str, tensor: int):
  """In the layers nothing as large as an activation moves but what tensor parallelism sums."""
  found = hlo.collectives(hlo.parse(text), program.num_devices)
  large = [one for one in found if elements(one.shape) > LARGEST_PARAMETER and len(one.group) > 1]
  # Once a step: the gradient of the relative bias, which has L x L entries where there is no TPU
  # kernel.
  bias = [
    one for one in large if one.shape == f'f32[{4 // tensor},60,60]' and one.kind == 'all-reduce'
  ]
  assert len(bias) <= 1, bias
  layers = [one for one in large if one not in bias and (tensor == 1 or '/layers' in one.source)]
  assert tensor == 1 or layers
  assert all(one.kind == 'all-reduce' and len(one.group) == tensor for one in layers), layers
  # Each layer's parameters are gathered once forward and once or twice backward, and so are the
  # tables; the halves of a gated layer's kernel over `tensor`, too.
  gathered = sum(one.rounds * one.size for one in found if one.kind == 'all-gather')
  assert 0 < gathered <= 3 * 4 * program.num_parameters / tensor * 1.25


@pytest.mark.parametrize(
  'model, tensor',
  [(COARSE, 1), (COARSE, 2), (STORM, 1), pytest.param(STORM, 2, marks=pytest.mark.slow)],
)
def test_activations_are_not_gathered(model, tensor):
  program = compile_program.lower_train_step(
    stage_recipe(model, sharding.MeshConfig(fsdp=4, tensor=tensor)), jax.devices()[:8]
  )
  compiled = program.lowered.compile()
  check_collectives(program, compiled.as_text(), tensor)
  if model is COARSE and tensor == 1:
    check_report(program, compiled)


def check_report(program, compiled):
  report = compile_program.describe(program, compiled, roofline.CHIPS['v5e'], 1)
  layers = 3 * (4 * 32**2 + 2 * 32 * 64)
  tokens_predicted, length = 48, 12 + 48
  forward = 32 * (2 * length * layers + 3 * 2 * length**2 * 32 + 2 * tokens_predicted * 32 * 32)
  bias = 2 * 2 * (2 * length) * 32 * 4
  assert report['model_flops'] * 8 == 3 * forward + bias
  assert (
    report['hbm_bytes'] > 0
    and report['hbm_traffic'] > 0
    and report['collective_bytes']['all-gather'] > 0
  )
  report |= {
    'stage': 'coarse',
    'recipe': 'test',
    'program': 'train step',
    'topology': 'v5e:2x4',
    'slices': 1,
  }
  assert 'MFU' in compile_program.table(
    report
  ) and f'jax {jax.__version__}' in compile_program.table(report)


def test_the_hours_of_the_whole_training():
  spot = goodput.Spot(hours_between=6.0)
  for seconds, interval in ((None, 360.0), (100.0, 100.0)):
    train = TrainConfig(batch_size=1, num_steps=20_000, save_every_seconds=seconds)
    found = compile_program.whole_training({'step_seconds': 0.36, 'devices': 16}, train, spot)
    share = goodput.share(spot, interval)
    assert found == {
      'num_steps': 20_000,
      'training_hours': 2.0,
      'training_chip_hours': 32.0,
      'save_interval_seconds': interval,
      'hours_between_preemptions': 6.0,
      'spot_goodput': share,
      'spot_hours': 2.0 / share,
    }


def test_the_hours_of_encoding():
  """8 rows of 28 s in 2 s: 112 times faster than real time on each of 16 chips."""
  report = {'step_seconds': 2.0, 'batch_size': 8}
  found = compile_program.whole_encoding(report, 28.0, num_chips=16, audio_hours=60_000.0)
  assert found == {
    'audio_hours': 60_000.0,
    'times_real_time': 112.0,
    'encoding_hours': 60_000 / 112 / 16,
    'encoding_chip_hours': 60_000 / 112,
  }


def test_a_batch_of_encoding_is_one_program_of_rows_of_one_length():
  recipe = dataclasses.replace(
    recipe_lib.load('librilight'),
    stages={
      name: dataclasses.replace(recipe_lib.load('librilight').stages[name], model=model)
      for name, model in toys.CONFIGS.items()
      if name in ('soundstream', 'w2v_bert')
    },
    semantic_tokens=SemanticTokens(layer=1, num_clusters=30),
  )
  program, seconds = compile_program.lower_encode(recipe, jax.devices()[:1])
  text = program.lowered.as_text()
  # 8 rows of 32 s at 50 frames of 4 levels, and at 25 tokens; 2 s at each end are shared.
  assert 'tensor<8x1600x4xi32>' in text and 'tensor<8x800xi32>' in text
  assert seconds == 28.0 and program.batch_size == 8 and program.model_flops > 0
  with pytest.raises(ValueError, match='the recipe trains no soundstream'):
    compile_program.lower_encode(recipe_lib.load('librilight_pretrained'), jax.devices()[:1])


def test_a_window_has_the_frames_that_the_rates_say():
  """75 codec frames/s beside 25 semantic tokens/s: three of one for each of the other."""
  config = dataclasses.replace(STORM, frame_rate=75.0)
  program = compile_program.lower_decode(
    config, jax.devices()[:1], 1, ParallelRule(iterations=(1, 1))
  )
  assert 'tensor<1x90x2xi32>' in program.lowered.as_text() and config.num_semantic == 30


def test_the_report_says_which_compiler_predicted(monkeypatch):
  monkeypatch.setattr(compile_program.importlib.metadata, 'version', {'libtpu': '0.0.99'}.get)
  assert compile_program.compiler() == f'libtpu 0.0.99, jax {jax.__version__}'


def test_decoding_programs():
  devices = jax.devices()[:1]
  step = compile_program.lower_decode(COARSE, devices, 2, ParallelRule())
  layer = 4 * 32**2 + 2 * 32 * 64
  # One token a row reads the whole cache of 12 + 48 columns.
  assert step.model_flops == 2 * (2 * (3 * layer + 32 * 32) + 3 * 4 * 60 * 32)
  depth = dataclasses.replace(TRANSFORMER, num_layers=1, num_heads=2, width=16, mlp_width=32)
  frame = compile_program.lower_decode(
    dataclasses.replace(COARSE, depth=depth), devices, 2, ParallelRule()
  )
  # One frame a row reads a cache of 12 + 24 columns, and runs the depth model once for each level.
  inner = 4 * 16**2 + 2 * 16 * 32 + 2 * 32 * 16
  expected = 2 * (2 * (3 * layer + 2 * inner) + 3 * 4 * 36 * 32 + 3 * 2 * 16)
  assert frame.model_flops == pytest.approx(expected, rel=0.02)
  # Aligned tokens are read from a table, without products.
  aligned = dataclasses.replace(COARSE, depth=depth, aligned=True, deduplicate=False)
  same = compile_program.lower_decode(aligned, devices, 2, ParallelRule())
  assert same.model_flops == frame.model_flops
  storm = compile_program.lower_decode(STORM, devices, 1, ParallelRule(iterations=(4, 1)))
  once = compile_program.lower_decode(STORM, devices, 1, ParallelRule(iterations=(1, 1)))
  assert storm.model_flops * 2 == once.model_flops * 5  # passes
  with pytest.raises(ValueError, match='does not decode'):
    compile_program.lower_decode(soundstream.Config(), devices, 1, ParallelRule())


def test_errors_name_the_remedy():
  for name in ('v5e', 'v9:4x4', 'v5e:4'):
    with pytest.raises(ValueError, match='v5e:4x4'):
      compile_program.load_topology(name)
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
    'temporaries (20.53G) exceeds available HBM (15.75G). HLO module: jit_train_step.'
  )
  program = compile_program.lower_decode(COARSE, jax.devices()[:1], 2, ParallelRule())
  text = compile_program.does_not_fit(message, program, roofline.CHIPS['v5e'])
  # The cache of all layers: 2 rows of 12 + 48 columns.
  for part in (
    '20.53G of 15.75G',
    'bfloat16[8,8,60]',
    'over all 1 chips',
    'remat',
    'fsdp',
    'batch_size',
  ):
    assert part in text, text


# What follows needs libtpu.


@pytest.fixture(scope='module')
def paper():
  return recipe_lib.load('librilight').stages['coarse']


def small(paper, batch_size, **mesh):
  """The paper's layers, two of them, so that a compile takes seconds."""
  model = dataclasses.replace(
    paper.model, transformer=dataclasses.replace(paper.model.transformer, num_layers=2)
  )
  train = dataclasses.replace(paper.train, batch_size=batch_size, mesh=sharding.MeshConfig(**mesh))
  return dataclasses.replace(paper, model=model, train=train)


@pytest.mark.tpu
def test_tpu_weak_scaling_and_no_gathered_activations(paper):
  counts = {}
  for topology, devices in (('v5e:2x4', 8), ('v5e:16x16', 256)):
    chip, chips = compile_program.load_topology(topology)
    assert len(chips) == devices
    program = compile_program.lower_train_step(small(paper, devices, fsdp=4), chips)
    compiled = compile_program.compile_for(program, chip)
    parsed = hlo.parse(compiled.as_text())
    assert len(hlo.kernels(parsed)) >= 2, 'attention is not in blocks'
    found = hlo.collectives(parsed, devices)
    large = [one for one in found if elements(one.shape) >= 2250 * 1024 and '/layers' in one.source]
    assert large
    # Parameters gathered, and their gradients scattered, which are padded to whole tiles of 32 rows
    # a device.
    parameters = [
      one for one in large if elements(one.shape) in (1024 * 4096, 1056 * 4096, 16 * 2 * 256 * 256)
    ]
    assert large == parameters, large
    counts[devices] = (compiled.cost_analysis()['flops'], hlo.cycles(parsed))
  np.testing.assert_allclose(counts[256], counts[8], rtol=0.02)


@pytest.mark.tpu
def test_tpu_program_that_does_not_fit(paper):
  chip, devices = compile_program.load_topology('v5e:2x2')
  program = compile_program.lower_train_step(small(paper, 4 * 256, fsdp=1), devices)
  with pytest.raises(ValueError, match=r'needs 2\d.*G of 15.*G .*largest array is .*remat'):
    compile_program.compile_for(program, chip)


@pytest.mark.tpu
def test_tpu_slices_talk_of_gradients_only(paper):
  chip, devices = compile_program.load_topology('v5e:2x4', num_slices=2)
  program = compile_program.lower_train_step(small(paper, 16, fsdp=4), devices)
  found = hlo.collectives(hlo.parse(compile_program.compile_for(program, chip).as_text()), 16)
  across = [one for one in found if len({device // 8 for device in one.group}) > 1]
  assert across
  size = sum(one.rounds * one.size for one in across)
  assert size <= 2 * 4 * program.num_parameters, across


WEIGHTS = ('params', 'codec', 'tokenizer', 'variables')  # arguments of the library's programs


class Calls(dict):
  """Records the jitted functions that are called, by name and shapes, and computes nothing.

  Numbers of levels of the codec, which only cut its codes, are one program.
  """

  def instead_of(self, function, *static: str):
    """Returns a function that records its calls and returns zeros; `static` are no arrays."""

    def call(*args, **kwargs):
      if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
        return function.__wrapped__(*args, **kwargs)  # part of another program
      given = inspect.signature(function).bind(*args, **kwargs).arguments
      fixed = {name: given.pop(name) for name in static if name in given}
      plain = lambda given: function.__wrapped__(**fixed, **given)
      shapes = jax.eval_shape(lambda given: given, given)
      inputs = {name: value for name, value in shapes.items() if name not in WEIGHTS}
      sizes = [str(leaf.shape) for leaf in jax.tree.leaves(inputs) if leaf.shape]
      if 'model' in fixed:
        levels = fixed['model'].vocabulary.target_levels
        sizes.append(f'{levels} levels, capacity {fixed["capacity"]}')
      self[' '.join([function.__name__, *sizes])] = plain, shapes
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(plain, shapes))

    return call


@pytest.mark.tpu
@pytest.mark.filterwarnings('ignore:divide by zero:RuntimeWarning')  # spectrograms of silence
def test_tpu_programs_of_the_notebook(shown, tmp_path, monkeypatch):
  """Every program that the notebook runs on Colab's chip compiles for it, and fits.

  Prints the rows of docs/results/tpu.md.
  """
  chip, devices = compile_program.load_topology('v5e:1x1')
  calls, steps = Calls(), {}

  def train(stage, config, train_config, **options):
    steps[config] = recipe_lib.StageRecipe(model=config, data=Tokens(), train=train_config)
    shapes = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return types.SimpleNamespace(variables=variables, step=train_config.num_steps, goodput=0.0)

  with monkeypatch.context() as patch:
    for module, name, static in (
      (decoding, 'sample_targets', ('model', 'capacity')),
      (tokenizer, '_semantic_tokens', ()),
      (codec, '_encode', ('levels',)),
      (codec, '_decode', ()),
      (codec, '_reconstruct', ('levels',)),
    ):
      patch.setattr(module, name, calls.instead_of(getattr(module, name), *static))
    log_odds = functools.wraps(detector.log_odds)(jax.jit(detector.log_odds, static_argnums=0))
    patch.setattr(detector, 'log_odds', calls.instead_of(log_odds, 'config'))
    patch.setattr(loop, 'train', train)
    patch.chdir(tmp_path)
    matplotlib.use('Agg')
    namespace = {}
    for kind, tags, source in build.cells(SCRIPT.read_text()):
      if kind == 'code' and 'colab' not in tags:
        source = sized(source, 'ON_CPU', False)
        exec(compile(source, str(SCRIPT), 'exec'), namespace)
  jax.clear_caches()  # of what was traced for a CPU
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1), devices)

  def lowered(function, shapes):
    def on_mesh(given):
      with sharding.activations(mesh):
        return function(given)

    return jax.jit(on_mesh, in_shardings=sharding.replicated(mesh)).lower(shapes)

  programs = {name: lambda call=call: lowered(*call) for name, call in calls.items()}
  for config, stage in steps.items():
    name = f'train step of {type(config).__module__.rpartition(".")[2]}, {stage.train.batch_size}'
    programs[name] = lambda stage=stage: compile_program.lower_train_step(stage, devices).lowered
  for name in ('semantic', 'coarse'):  # which `sample_targets` repeats
    config = getattr(namespace['models'], name).config
    programs[f'step of {name}'] = lambda config=config: (
      compile_program.lower_decode(config, devices, 1, None).lowered
    )
  assert len(steps) == 2 and {name.split()[0] for name in calls} == {
    'sample_targets',
    '_semantic_tokens',
    '_encode',
    '_decode',
    '_reconstruct',
    'log_odds',
  }
  print()
  for name, lower in programs.items():
    begun = time.monotonic()
    compiled = lower().compile()
    took = time.monotonic() - begun
    used = compile_program.memory_bytes(compiled)
    parsed = hlo.parse(compiled.as_text())
    milliseconds = 1e3 * hlo.cycles(parsed) / chip.clock
    once = f', {parsed.unknown_loops} loops once' if parsed.unknown_loops else ''
    row = f'{used / 2**20:.0f} MiB | {milliseconds:.3f} ms{once} | compiled in {took:.0f} s'
    print(f'| {name} | {row} |', flush=True)
    assert used < chip.hbm_bytes
