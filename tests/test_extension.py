"""One wish, one place (docs/architecture.md): each toy here is added from outside of the package."""

import argparse
import dataclasses
import functools
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import audiolm_jax
from audiolm_jax import codec, decoding
from audiolm_jax.data import pipeline
from audiolm_jax.errors import UserError
from audiolm_jax.nn import language_model
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import base, semantic
from audiolm_jax.training import evaluation, loop, sharding
from experiments import recipe as recipe_lib
from experiments import sources, train, workspace
from experiments.cli import command_line

# A page with a corpus (sines of one loudness each), a stage (one gain) and a recipe of its own.
PAGE = textwrap.dedent(
  '''
  import dataclasses

  import jax.numpy as jnp
  import numpy as np

  from audiolm_jax.stages import base
  from audiolm_jax.training.loop import TrainConfig
  from audiolm_jax.training.optimizers import OptimizerConfig
  from experiments.inputs import Audio
  from experiments.recipe import StageRecipe
  from experiments.recipes import tiny


  class Tones:
    sample_rate = 8000

    def __init__(self, loudness):
      self.loudness = loudness

    def __len__(self):
      return len(self.loudness)

    def __getitem__(self, index):
      tone_T = np.sin(2 * np.pi * 440 * np.arange(800) / self.sample_rate)
      return {'waveform': (self.loudness[index] * tone_T).astype(np.float32)}


  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Corpus:
    loudest: float = 0.5

    def examples(self, split, cache_dir):
      return Tones(np.linspace(0.1, self.loudest, 16 if split == 'train' else 4))


  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Halve:
    """Learns one gain: the sound at half its loudness."""

    sample_rate: int = 8000

    def make(self):
      features = {'waveform': base.Feature((400,), jnp.float32, self.sample_rate)}
      init = lambda key: base.Variables({'gain': jnp.ones(())}, {})

      def loss(params, state, batch, key):
        error = (params['gain'] - 0.5) * batch['waveform']
        return jnp.mean(error**2), base.Aux(state, {})

      return base.Stage(features, init, loss)


  OPTIMIZER = OptimizerConfig(learning_rate=0.1)
  RECIPE = tiny.RECIPE.derived(
    {
      'halve': StageRecipe(
        model=Halve(),
        data=Audio(),
        train=TrainConfig(batch_size=8, num_steps=30, optimizer=OPTIMIZER),
      )
    },
    corpus=Corpus(),
  )
  '''
)


@pytest.fixture
def page(tmp_path):
  path = tmp_path / 'pages' / 'mine.py'
  path.parent.mkdir()
  path.write_text(PAGE)
  return path


def test_a_recipe_is_a_page_anywhere(page, monkeypatch):
  recipe = recipe_lib.load(str(page), ['halve.train.num_steps=3', 'corpus.loudest=0.25'])
  assert list(recipe.stages)[-1] == 'halve' and recipe.stages['halve'].train.num_steps == 3
  assert recipe.corpus.loudest == 0.25
  assert recipe.stages['semantic'] == recipe_lib.load('tiny').stages['semantic']
  with pytest.raises(UserError, match="no field 'halv' .did you mean 'halve'"):
    recipe_lib.load(str(page), ['halv.train.num_steps=3'])
  monkeypatch.syspath_prepend(page.parents[1])
  module = recipe_lib.load('pages.mine', ['halve.train.num_steps=3'])
  assert module.stages['halve'].train == recipe.stages['halve'].train


def test_a_workdir_remembers_the_page_wherever_the_program_starts(page, monkeypatch, tmp_path):
  run = tmp_path / 'run'
  parse = lambda name, *overrides: argparse.Namespace(
    recipe=command_line.recipe_name(name), workdir=run, overrides=list(overrides)
  )
  monkeypatch.chdir(page.parent)
  workspace.recipe_of(parse('mine.py', 'corpus.loudest=0.3'))
  assert command_line.remembered(run) == (str(page), ['corpus.loudest=0.3'])
  (run / 'halve').mkdir()
  monkeypatch.chdir(tmp_path)
  workspace.recipe_of(parse('pages/mine.py'))
  with pytest.raises(UserError, match=f"'{page}', not to 'tiny': give --recipe={page}, or"):
    workspace.recipe_of(parse('tiny'))


def test_a_page_that_only_a_workdir_names_is_not_run(page, monkeypatch, tmp_path):
  """A workdir may come from others: its remembered page is advised, but not imported."""
  page.write_text('raise SystemExit("it was run")')
  run = tmp_path / 'run'
  run.mkdir()
  (run / command_line.MEMORY).write_text(f'{{"recipe": "{page}", "set": []}}')
  monkeypatch.setattr(sys, 'argv', ['codec', 'decode', 'x'])
  with pytest.raises(UserError, match=f'experiments.train --stage=soundstream --recipe={page}'):
    workspace.load_codec(run)


def test_a_corpus_is_a_class_of_the_page(page, tmp_path):
  recipe = recipe_lib.load(str(page))
  found = sources.corpus(recipe, 'train', tmp_path)
  assert len(found) == 16 and len(sources.corpus(recipe, 'test', tmp_path)) == 4
  assert np.abs(found[15]['waveform']).max() == pytest.approx(0.5, rel=1e-2)
  at_16_khz = sources.corpus(recipe, 'train', tmp_path, 16_000)
  assert len(at_16_khz[0]['waveform']) == 2 * len(found[0]['waveform'])


def test_a_stage_is_trained_from_its_page(page, monkeypatch, tmp_path):
  run = tmp_path / 'run'
  flags = ['--stage=halve', f'--recipe={page}', f'--workdir={run}']
  monkeypatch.setattr(sys, 'argv', ['train', *flags])
  train.main()
  config = recipe_lib.load(str(page)).stages['halve'].model
  trained = audiolm_jax.load_variables(run / 'halve', config=config)
  assert trained.variables.params['gain'] == pytest.approx(0.5, abs=0.1)


@dataclasses.dataclass(frozen=True)
class Signs:
  """A codec of one bit a frame: the sign of its mean."""

  sample_rate: int = 100
  hop_length: int = 4
  num_quantizers: int = 1
  codebook_size: int = 2

  @property
  def frame_rate(self):
    return self.sample_rate / self.hop_length

  def codec(self):
    def encode(variables, wave_BT, num_quantizers):
      frames_BFT = wave_BT.reshape(len(wave_BT), -1, self.hop_length)
      return (frames_BFT.mean(axis=-1) > 0).astype(jnp.int32)[..., None]

    def decode(variables, codes_BFQ):
      return jnp.repeat(2.0 * codes_BFQ[..., 0] - 1, self.hop_length, axis=1)

    return base.CodecFunctions(encode, decode)


def test_a_codec_is_a_config():
  assert isinstance(Signs(), base.CodecConfig)
  bound = codec.Codec(Signs(), base.Variables({}, {}))
  wave_BT = np.repeat(np.array([[1, -1, 1, 1, -1]], np.float32), 4, axis=1)
  codes_BFQ = bound.encode(0.3 * wave_BT)
  np.testing.assert_array_equal(codes_BFQ[0, :, 0], [1, 0, 1, 1, 0])
  np.testing.assert_array_equal(bound.reconstruct(0.3 * wave_BT[:, :18]), wave_BT[:, :18])
  assert bound.bit_rate() == 25.0
  blocks = list(bound.encode_blocks([0.3 * wave_BT[0]]))
  np.testing.assert_array_equal(np.concatenate(blocks)[:5], codes_BFQ[0])


CONFIG = semantic.Config(
  crop_seconds=0.4,
  num_clusters=5,
  deduplicate=False,
  transformer=TransformerConfig(
    num_layers=1, num_heads=1, width=8, mlp_width=8, dtype='float32', remat=False
  ),
)


def test_a_metric_is_a_measurement(tmp_path):
  """Perplexity of the evaluation batches, which the stage does not log."""

  def measure(params, state, batch):
    prefix, codes = CONFIG.prefix_and_target(batch)
    nats = -language_model.log_likelihoods(CONFIG.language_model, params, prefix, codes).mean()
    return nats, ()

  summarize = lambda nats, samples: evaluation.Summary({'perplexity': float(np.exp(nats))})
  stage = CONFIG.make()
  examples = [{'semantic': (np.arange(10) * step) % 5} for step in range(1, 9)]
  options = dict(batch_size=8, seed=0)
  result = loop.train(
    stage,
    CONFIG,
    loop.TrainConfig(batch_size=8, num_steps=1, eval_batches=1),
    make_batches=functools.partial(pipeline.batches, examples, stage.batch, **options),
    make_eval_batches=functools.partial(
      pipeline.evaluation_batches, examples, stage.batch, num_batches=1, **options
    ),
    workdir=tmp_path,
    measurement=evaluation.Measurement(measure, summarize),
  )
  expected = np.exp(result.metrics['eval/nats'])
  assert result.metrics['eval/perplexity'] == pytest.approx(expected, rel=1e-4)


def test_a_sampling_rule_is_a_function():
  params = sharding.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0))).params

  def next_of_the_past(key, logits_BV, past_BN):
    """Counts on from the largest token so far: 2, 3, 4, 4, ..."""
    return jnp.minimum(past_BN.max(axis=-1) + 1, logits_BV.shape[-1] - 1)

  [row] = decoding.extend(
    CONFIG.language_model,
    params,
    jax.random.key(0),
    [np.array([[0], [1]], np.int32)],
    4,
    crop=10,
    carry=5,
    prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=0,
    rule=next_of_the_past,
  )
  assert row[:, 0].tolist() == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
  'text, message',
  [
    (None, r'--recipe: there is no file /.*/absent.py: give the path'),
    ('x = 1', r'has no RECIPE of the class experiments.recipe.Recipe: end the page with'),
    ('RECIPE = 3', r'has no RECIPE'),
    ('x = 1\ny = 1 +', r'the recipe /.*/bad.py, line 2 fails: invalid syntax'),
    (
      '\n\nimport nonesuch',
      r"bad.py, line 3 fails: ModuleNotFoundError: No module named 'nonesuch'",
    ),
    (
      'from audiolm_jax.stages import semantic\nsemantic.Config(crop_seconds=-1.0)',
      r'bad.py, line 2 fails: crop_seconds=-1.0: must be',
    ),
  ],
)
def test_a_page_that_is_no_recipe_is_named_with_its_line(tmp_path, text, message):
  path = tmp_path / ('absent.py' if text is None else 'bad.py')
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=message):
    recipe_lib.load(str(path))


@pytest.mark.parametrize(
  'name, message',
  [
    ('nonesuch.page', r'--recipe=nonesuch.page: there is no module nonesuch: install it'),
    ('audiolm_jax.nonesuch', r'there is no module audiolm_jax.nonesuch'),
    ('audiolm_jax.checks', r'--recipe=audiolm_jax.checks has no RECIPE'),
    ('gs://bucket/page.py', r'--recipe=gs://bucket/page.py is a URL, not a path'),
    ('..', r"unknown recipe '..': choose one of .*tiny.*; a page of your own is given as a file"),
  ],
)
def test_a_name_that_is_no_recipe_is_explained(name, message):
  with pytest.raises(UserError, match=message):
    recipe_lib.load(name)
