"""The recipes of docs/howto.md run as printed, on tiny models with random weights."""

import doctest
import pathlib
import re

import jax
import numpy as np
import pytest

from audiolm_jax import audio, kmeans, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import coarse, fine, semantic, soundstream, w2v_bert
from audiolm_jax.training import saving, sharding

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'howto.md'
SECTIONS = dict(
  re.findall(r'^## (.*?)\n(.*?)(?=^## |\Z)', PAGE.read_text(), re.DOTALL | re.MULTILINE)
)
NUM_CLUSTERS, CODEBOOK_SIZE, RATE = 8, 8, 16_000
TRANSFORMER = TransformerConfig(
  num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
)
# Rates, crops and levels are those of the demo, whose shapes the page prints.
CONFIGS = {
  'soundstream': soundstream.Config(
    network=SEANet(strides=(5, 8), stem_stride=8, encoder_channels=2, decoder_channels=2),
    quantizer=RVQ(codebook_size=CODEBOOK_SIZE, embedding_dim=4),
    adversarial_start=None,
  ),
  'w2v_bert': w2v_bert.Config(
    num_mels=16,
    conv_channels=2,
    num_contrastive_layers=1,
    num_mlm_layers=1,
    width=16,
    num_heads=2,
    mlp_width=16,
    codebook_size=8,
    code_width=8,
    feature_layer=1,
  ),
  'semantic': semantic.Config(
    crop_seconds=8.0, num_clusters=NUM_CLUSTERS, deduplicate=False, transformer=TRANSFORMER
  ),
  'coarse': coarse.Config(
    crop_seconds=2.0,
    num_clusters=NUM_CLUSTERS,
    codebook_size=CODEBOOK_SIZE,
    num_quantizers=2,
    deduplicate=False,
    transformer=TRANSFORMER,
  ),
  'fine': fine.Config(
    crop_seconds=0.64, num_coarse=2, codebook_size=CODEBOOK_SIZE, transformer=TRANSFORMER
  ),
}


def random_variables(config, seed):
  """Returns random variables without compiling `init`."""
  shapes = sharding.unbox(jax.eval_shape(config.make().init, jax.random.key(0)))
  random = np.random.default_rng(seed)
  draw = lambda x: (0.3 * random.normal(size=x.shape)).astype(x.dtype)
  return jax.tree.map(draw, shapes)


def save_models(workdir):
  variables = {name: random_variables(config, 0) for name, config in CONFIGS.items()}
  encoder = tokenizer.SemanticEncoder(
    config=CONFIGS['w2v_bert'], variables=variables['w2v_bert'], layer=1
  )
  random = np.random.default_rng(1)
  quantizer = kmeans.SemanticQuantizer(
    np.zeros(16, np.float32),
    np.ones(16, np.float32),
    random.normal(size=(NUM_CLUSTERS, 16)).astype(np.float32),
  )
  kmeans.save(
    tokenizer.clusters_path(workdir),
    quantizer,
    layer=1,
    frames_per_token=1,
    model=encoder.fingerprint,
  )
  bound = tokenizer.Tokenizer(
    Codec(CONFIGS['soundstream'], variables['soundstream']),
    tokenizer.SemanticTokenizer(encoder, quantizer),
  )
  for name, config in CONFIGS.items():
    metadata = {'fingerprints': bound.fingerprints}
    saving.save_variables(workdir / name, config, variables[name], metadata)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('howto')
  save_models(folder / 'runs/demo')
  random = np.random.default_rng(0)
  (folder / 'recordings').mkdir()
  for name, seconds in (('recordings/one.wav', 1), ('recordings/two.flac', 2)):
    audio.save(folder / name, random.uniform(-0.5, 0.5, seconds * RATE).astype(np.float32), RATE)
  prompt_T = random.uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
  audio.save(folder / 'runs/demo/prompt.wav', prompt_T, RATE)
  return folder


@pytest.mark.parametrize('title', SECTIONS)
def test_section_runs_as_printed(title, folder, monkeypatch):
  monkeypatch.chdir(folder)
  text = ''.join(re.findall(r'^```pycon\n(.*?)^```', SECTIONS[title], re.DOTALL | re.MULTILINE))
  test = doctest.DocTestParser().get_doctest(text, {'__name__': '__main__'}, title, str(PAGE), 0)
  runner, lines = doctest.DocTestRunner(verbose=False), []
  runner.run(test, out=lines.append)
  assert test.examples and not runner.failures, ''.join(lines)
