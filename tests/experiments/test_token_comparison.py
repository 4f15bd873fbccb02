"""Table I with a codec of random weights: sizes, and what a decoder that knows everything makes of
the tokens.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from audiolm_jax import kmeans
from audiolm_jax.codec import Codec
from audiolm_jax.data import zerospeech
from audiolm_jax.metrics import perceptual
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables
from experiments import sources
from experiments.evaluations import token_comparison
from experiments.recipe import Evaluation

CODEC = soundstream.Config(
  crop_length=3200,
  network=SEANet(strides=(5, 8), stem_stride=8, encoder_channels=4, decoder_channels=4),
  quantizer=quantizer.RVQ(num_quantizers=4, codebook_size=8, embedding_dim=6),
  discriminators=Discriminators(
    start=None, spectral_channels=4, num_waveform=1, waveform_channels=4, waveform_max_channels=16
  ),
)


def variables() -> Variables:
  """Returns what decoding needs."""
  init = jax.jit(
    lambda key: soundstream.decoder(CODEC).init(key, jnp.zeros((1, 4, CODEC.embedding_dim)))[
      'params'
    ]
  )
  books = quantizer.init(
    jax.random.key(1), CODEC.num_quantizers, CODEC.codebook_size, CODEC.embedding_dim
  )
  # beside which the ridge of 1 is nothing
  books = books._replace(vectors_QKD=100 * books.vectors_QKD)
  return Variables(
    {'generator': {'decoder': meta.unbox(init(jax.random.key(0)))}}, {'codebooks': books}
  )


class Corpus(list):
  sample_rate = 16_000


def test_one_speakers_phones_are_compared_within_that_speaker_alone(tmp_path):
  # Phones a and b between c and d, twice each, told apart by every frame.
  items = [
    zerospeech.Item(f'{n}', 0.0, 0.1, phone, 'c', 'd', 'one') for n, phone in enumerate('abab')
  ]
  zerospeech.write_items(tmp_path / 'one.item', items)
  frames = {'a': np.array([[1.0, 0.0]] * 3), 'b': np.array([[0.0, 1.0]] * 3)}
  models = types.SimpleNamespace(
    segments=lambda source, items, root: [frames[item.phone] for item in items]
  )
  kinds = {'features': token_comparison.Kind('semantic', lambda frames_ND: frames_ND)}
  assert token_comparison._abx(kinds, models, tmp_path / 'one.item', tmp_path) == {
    'features': {'abx_within': 0.0}
  }


def test_tokens_that_hold_the_codecs_vectors_are_decoded_as_well_as_by_the_codec(monkeypatch):
  random = np.random.default_rng(0)
  corpus = Corpus(
    {'waveform': random.normal(size=length).astype(np.float32)} for length in (9000, 16_000, 70_000)
  )
  models = object.__new__(token_comparison._Models)
  models.recipe, models.workdir = types.SimpleNamespace(evaluation=Evaluation(num_clips=3)), None
  models.codec = Codec(CODEC, variables())
  arrays = np.zeros(12), np.ones(12), random.normal(size=(8, 12))
  quantizer = kmeans.SemanticQuantizer(*(jnp.asarray(array, jnp.float32) for array in arrays))
  models.semantic = types.SimpleNamespace(
    sample_rate=16_000, frame_rate=25.0, num_clusters=8, quantizer=quantizer
  )
  codes = lambda examples: [random_codes(len(e['waveform'])) for e in examples]
  random_codes = lambda length: np.random.default_rng(length).integers(0, 8, (-(-length // 320), 4))
  whole = lambda codes_FQ: token_comparison._pairs(models._code_vectors(4, codes_FQ))
  # Semantic frames that are, two by two, the codec's own vectors: a linear decoder has nothing left
  # to guess.
  made = {
    'codec': codes,
    'semantic': lambda examples: [whole(codes_FQ) for codes_FQ in codes(examples)],
  }
  monkeypatch.setattr(
    models, 'frames', lambda source, examples: made[source](examples), raising=False
  )
  monkeypatch.setattr(sources, 'corpus', lambda *_: corpus)
  monkeypatch.setattr(perceptual, 'available', lambda: ())
  monkeypatch.setattr(
    token_comparison._Models, 'training_frames', lambda self, source: made[source](corpus)
  )
  kinds = models.kinds()
  assert list(kinds) == [
    'log-mel',
    'semantic features',
    'semantic tokens, equal or not',
    'semantic tokens',
    'semantic tokens, 8 levels',
    'acoustic tokens, 1 levels',
    'acoustic tokens, 4 levels',
  ]
  assert (
    kinds['semantic tokens'].bits_per_second == 75
    and kinds['acoustic tokens, 4 levels'].bits_per_second == 600
  )
  kinds['all there is'] = token_comparison.Kind('semantic', lambda frames_ND: frames_ND, 600)
  rows = models.reconstructions(kinds)
  assert set(rows) == {
    name for name, kind in kinds.items() if kind.bits_per_second and kind.distance == 'angular'
  }
  distances = {name: row['mel_distance'] for name, row in rows.items()}
  np.testing.assert_allclose(
    distances['all there is'], distances['acoustic tokens, 4 levels'], atol=0.01
  )
  assert abs(distances['semantic tokens'] - distances['all there is']) > 0.01
  assert np.isfinite([row['si_sdr'] for row in rows.values()]).all()
