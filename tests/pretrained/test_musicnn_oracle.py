"""Compares musicnn with its original graph in TensorFlow, on the weights of the package."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

tensorflow = pytest.importorskip(
  'tensorflow', reason='tensorflow is not installed: `make test-music` installs it'
)
if importlib.util.find_spec('musicnn') is None:
  pytest.skip('musicnn is not installed: `make test-music` does it', allow_module_level=True)

from audiolm_jax.pretrained import musicnn
from tests.pretrained.parity import report

pytestmark = pytest.mark.oracle
TOLERANCE = 1e-6


@pytest.fixture(scope='module')
def weights():
  """Returns the weights as TensorFlow reads them, by name."""
  reader = tensorflow.compat.v1.train.NewCheckpointReader(f'{musicnn.folder()}/')
  names = reader.get_variable_to_shape_map()
  return {name: reader.get_tensor(name) for name in names if 'Adam' not in name and '/' in name}


def test_parameters_are_those_that_tensorflow_reads(weights):
  params = musicnn.load()
  assert params.keys() == weights.keys() and len(params) == 64
  for name, array in params.items():
    np.testing.assert_array_equal(array, weights[name])


def original(weights, mel_BFM):
  """Returns the probabilities of tags by the graph that was trained."""
  v1 = tensorflow.compat.v1
  meta = v1.MetaGraphDef()
  meta.ParseFromString((musicnn.folder() / '.meta').read_bytes())
  for node in meta.graph_def.node:
    node.attr.pop('_output_shapes', None)  # those of gradients are wrong for later versions
  [name] = [
    node.name
    for node in meta.graph_def.node
    if node.name.endswith('dense_1/BiasAdd') and node.op == 'BiasAdd'
  ]
  with v1.Session(graph=v1.Graph()) as session:
    with session.graph.as_default():
      v1.import_graph_def(v1.graph_util.extract_sub_graph(meta.graph_def, [name]), name='')
    inputs = [op.outputs[0] for op in session.graph.get_operations() if op.type == 'Placeholder']
    [mel] = [tensor for tensor in inputs if tensor.dtype == tensorflow.float32]
    [is_training] = [tensor for tensor in inputs if tensor.dtype == tensorflow.bool]
    given = {f'{name}/read:0': array for name, array in weights.items()}
    logits_BV = session.run(f'{name}:0', {mel: mel_BFM, is_training: False, **given})
  return 1 / (1 + np.exp(-logits_BV))


def test_tags_of_noise_and_tones(weights):
  random = np.random.default_rng(0)
  time_T = np.arange(6 * musicnn.RATE) / musicnn.RATE
  tones_T = 0.1 * np.sin(2 * np.pi * 440 * time_T) + 0.02 * random.normal(size=len(time_T))
  noise_BFM = 3 * random.random((2, musicnn.WINDOW_FRAMES, 96))
  mel_BFM = np.concatenate([musicnn.windows(tones_T.astype(np.float32), musicnn.RATE), noise_BFM])
  mel_BFM = mel_BFM.astype(np.float32)
  want_BV = original(weights, mel_BFM)
  got_BV, _ = musicnn.logits_and_features(musicnn.load(), jnp.asarray(mel_BFM))
  got_BV = np.asarray(jax.nn.sigmoid(got_BV))
  error = np.abs(got_BV - want_BV).max()
  assert np.ptp(want_BV, axis=1).min() > 0.1
  report('musicnn, probabilities of tags, real weights', error)
  assert error < TOLERANCE
