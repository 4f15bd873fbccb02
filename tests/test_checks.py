"""What users give is checked where it enters: fields of every config, shapes and ids of arrays.

The messages hold name, value and what is legal, written out here by hand.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from audiolm_jax import checks, kmeans, tokens
from audiolm_jax.chain import SamplingConfig
from audiolm_jax.codec import Codec
from audiolm_jax.data import synthesized, synthesized_benchmark
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.pretrained import dac, encodec, hubert, mimi
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import (
  classifier,
  coarse,
  detector,
  fine,
  semantic,
  soundstorm,
  soundstream,
  w2v_bert,
)
from audiolm_jax.stages.base import Condition, Variables
from audiolm_jax.tokenizer import SemanticEncoder
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.monitor import ExpectedMetric, RollbackConfig
from audiolm_jax.training.optimizers import OptimizerConfig
from audiolm_jax.training.sharding import MeshConfig
from experiments import corpora
from experiments.recipe import DetectorClipsConfig, Evaluation, MusicTokens, SemanticTokens

NAN, INF = float('nan'), float('inf')
COUNT = 'a whole number of at least 1'
CLIP = 'above 0, and at most 86400 (a day)'
TRAIN = TrainConfig(batch_size=8, num_steps=10)
FAULTS = [  # a config that is legal, fields that are not, what is legal instead
  (
    TRAIN,
    dict(
      batch_size=-1, accumulate_steps=0, log_every=0, eval_batches=0, save_every=0, max_to_keep=0
    ),
    COUNT,
  ),
  (TRAIN, dict(eval_every=0, keep_every=-5), f'{COUNT}, or None'),
  (
    TRAIN,
    dict(num_steps=-1, max_failed_saves=-1, max_skipped_batches=-1),
    'a whole number of at least 0',
  ),
  (TRAIN, dict(seed=10**20), 'a whole number from 0 to 4294967295'),
  (
    TRAIN,
    dict(save_every_seconds=0.0, slow_seconds=NAN, timeout_seconds=-1.0),
    'above 0, and at most 1e9 (30 years), or None',
  ),
  (TRAIN, dict(ema_decay=1.0), 'at least 0 and below 1, or None'),
  (OptimizerConfig(), dict(learning_rate=-1e-3, weight_decay=INF), 'a finite number of at least 0'),
  (RollbackConfig(), dict(max_rollbacks=0, window=0), COUNT),
  (RollbackConfig(), dict(explosion=NAN), 'a finite number above 1'),
  (
    ExpectedMetric(metric='loss', step=1, low=0.0, high=1.0),
    dict(low=NAN, high=INF),
    'a finite number',
  ),
  (
    ExpectedMetric(metric='loss', step=1, low=0.0, high=1.0),
    dict(step=-1),
    'a whole number of at least 0',
  ),
  (MeshConfig(), dict(data=0, fsdp=-2), f'{COUNT}, or -1'),
  (Evaluation(), dict(num_clips=0, num_prompts=-1), COUNT),
  (Evaluation(), dict(decoder_seconds=NAN), 'a finite number above 0'),
  (Evaluation(), dict(seconds=INF, prompt_seconds=0.0), CLIP),
  (Evaluation(), dict(carry_seconds=-1.0), 'a finite number of at least 0'),
  (DetectorClipsConfig(), dict(num_train=0, num_validation=-1, num_test=0, batch_size=0), COUNT),
  (SemanticTokens(), dict(num_clusters=0, frames_per_token=0), COUNT),
  (SemanticTokens(), dict(sample_seconds=NAN), 'a finite number above 0'),
  (MusicTokens(), dict(num_quantizers=0, codebook_size=0), COUNT),
  (MusicTokens(), dict(sample_seconds=0.0), 'a finite number above 0'),
  (
    SemanticEncoder(config=hubert.Config(), variables=Variables({}, {}), layer=1),
    dict(layer=-1),
    'a whole number of at least 0',
  ),
  (Rule(), dict(temperature=NAN), 'a finite number of at least 0'),
  (ParallelRule(), dict(noise=INF), 'a finite number of at least 0'),
  (ParallelRule(), dict(iterations=(1, 0)), f'a tuple of one or more, each {COUNT}'),
  (tokens.Vocabulary(target_size=2), dict(target_size=0, target_levels=0), COUNT),
  (tokens.Codebook(1, 2), dict(levels=0, size=-1), COUNT),
  (tokens.Codebook(1, 2), dict(rate=0.0), 'a finite number above 0, or None'),
  (Condition(), dict(levels=0, size=0, windows=-1), COUNT),
  (Condition(), dict(dropout=1.0), 'at least 0 and below 1'),
  (TransformerConfig(), dict(num_layers=0, num_heads=-1, width=0, mlp_width=0), COUNT),
  (TransformerConfig(), dict(dropout_rate=1.0), 'at least 0 and below 1'),
  (
    TransformerConfig(),
    dict(dtype='int32'),
    "a floating-point type, such as 'float32' or 'bfloat16'",
  ),
  (soundstream.Config(), dict(sample_rate=0, crop_length=0), COUNT),
  (Discriminators(), dict(spectral_channels=-1, num_waveform=0), COUNT),
  (SEANet(), dict(strides=(2, 0)), f'a tuple of one or more, each {COUNT}'),
  (SEANet(), dict(stem_stride=0, encoder_channels=-1, decoder_channels=0), COUNT),
  (RVQ(), dict(num_quantizers=-1, codebook_size=0, embedding_dim=0), COUNT),
  (RVQ(), dict(dead_code_threshold=-1.0), 'a finite number of at least 0'),
  (soundstream.Config(), dict(spectral_floor=0.0), 'a finite number above 0'),
  (DenoisingSwitch(), dict(place='middle'), "one of 'encoder', 'decoder'"),
  (w2v_bert.Config(), dict(num_mels=0, feature_layer=0, num_negatives=0), COUNT),
  (w2v_bert.Config(), dict(mask_probability=1.5), 'from 0 to 1'),
  (w2v_bert.Config(), dict(contrastive_temperature=0.0), 'a finite number above 0'),
  (w2v_bert.Config(), dict(crop_seconds=INF), CLIP),
  (w2v_bert.Config(), dict(targets='words'), "one of 'gumbel', 'clusters'"),
  (semantic.Config(), dict(num_clusters=0), COUNT),
  (semantic.Config(), dict(crop_seconds=NAN), CLIP),
  (semantic.Config(), dict(semantic_rate=INF), 'a finite number above 0'),
  (coarse.Config(), dict(num_clusters=-1, num_quantizers=0, codebook_size=0), COUNT),
  (coarse.Config(), dict(code_dropout=1.0), 'at least 0 and below 1'),
  (fine.Config(), dict(num_coarse=0, codebook_size=-1), COUNT),
  (fine.Config(), dict(frame_rate=0.0), 'a finite number above 0'),
  (soundstorm.Config(), dict(num_layers=0, kernel_size=-1), COUNT),
  (classifier.Config(num_classes=2), dict(num_classes=0, num_mels=0, hop_length=0), COUNT),
  (detector.Config(), dict(channels=()), f'a tuple of one or more, each {COUNT}'),
  (detector.Config(), dict(crop_seconds=-1.0), CLIP),
  (synthesized.Config(), dict(num_train_voices=0, sample_rate=-1), COUNT),
  (synthesized.Config(), dict(train_minutes=NAN), 'a finite number above 0'),
  (synthesized_benchmark.Sizes(), dict(num_voices=0, num_phrases=0), COUNT),
  (corpora.Folder(root=''), dict(held_out=1.5), 'from 0 to 1'),
  (corpora.Folder(root=''), dict(sample_rate=0), COUNT),
  (corpora.LibriLight(root=''), dict(part_seconds=INF), 'a finite number above 0'),
  (corpora.Tfds(folder=''), dict(sample_rate=0), COUNT),
  (
    corpora.Noisy(speech=None),
    dict(snr_db=(0.0, NAN)),
    'a tuple of one or more, each a finite number',
  ),
]
ONE_BY_ONE = [
  (config, {name: value}, legal) for config, wrong, legal in FAULTS for name, value in wrong.items()
]


@pytest.fixture
def as_users_run_it(monkeypatch):
  """Without the tests' own checks of annotations, which no user has."""
  monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)


@pytest.mark.parametrize('config, wrong, legal', ONE_BY_ONE)
def test_every_config_names_field_value_and_legal_range_when_it_is_made(config, wrong, legal):
  [(name, value)] = wrong.items()
  with pytest.raises(ValueError) as caught:
    dataclasses.replace(config, **wrong)
  assert str(caught.value) == f'{name}={value!r}: must be {legal}'


def test_sampling_takes_rules_alone(as_users_run_it):
  with pytest.raises(ValueError, match='coarse=0.8: must be a sampling.Rule'):
    SamplingConfig(coarse=0.8)


def test_a_vocabulary_takes_codebooks_alone(as_users_run_it):
  parts = (tokens.Codebook(1, 2), (2, 4))
  with pytest.raises(ValueError, match=r'part=\(2, 4\): must be a tokens.Codebook'):
    tokens.Vocabulary(target_size=1, parts=parts)


@pytest.mark.parametrize(
  'wrong, legal',
  [
    (dict(network=None), 'a SEANet or FrameRate config'),
    (dict(quantizer=12), 'a RVQ or FSQ config'),
    (dict(loss_weights=1.0), 'a dict'),
  ],
)
def test_a_codec_takes_configs_of_its_parts(wrong, legal, as_users_run_it):
  with pytest.raises(ValueError, match=f'must be {legal}'):
    soundstream.Config(**wrong)


def test_whole_numbers_are_no_floats_and_no_booleans_and_fit_int32():
  assert [checks.WHOLE.holds(value) for value in (1, np.int64(7), 2**31 - 1)] == [True] * 3
  assert not any(checks.WHOLE.holds(value) for value in (0, 1.0, True, '1', None, 2**31))
  assert not any(checks.NUMBER.holds(value) for value in (NAN, INF, -INF, 10**400, True, '1', None))


@pytest.mark.parametrize(
  'rule, inside, outside',
  [
    (checks.NUMBER, (-1e300, 0, 2.5), ()),
    (checks.POSITIVE, (1e-300, 7), (0, -1)),
    (checks.NOT_NEGATIVE, (0, 1e-300), (-1e-300,)),
    (checks.ABOVE_ONE, (1.001, 7), (1, 0.5)),
    (checks.SHARE, (0, 0.5, 1), (-1e-9, 1.001)),
    (checks.POSITIVE_SHARE, (1e-9, 1), (0, -0.5, 1.001)),
    (checks.BELOW_ONE, (0, 0.999), (-1e-9, 1)),
    (checks.BETWEEN, (1e-9, 0.999), (0, 1)),
    (checks.SEED, (0, 2**32 - 1), (-1, 2**32)),
  ],
)
def test_ranges_end_where_their_texts_say(rule, inside, outside):
  assert all(map(rule.holds, inside))
  assert not any(map(rule.holds, (*outside, NAN, INF, -INF, 10**400, True, '1', None)))


def test_a_scalar_for_levels_is_refused(as_users_run_it):
  vectors_QKD, x_BFD = jnp.zeros((2, 3, 4)), jnp.zeros((5, 6, 4))
  with pytest.raises(ValueError, match=r'levels_B has shape \(\): add the batch axis'):
    quantizer.quantize(vectors_QKD, x_BFD, 4)
  with pytest.raises(
    ValueError, match=r'levels_B has shape \(2,\): its axis B is 2, but 5 in x_BFD'
  ):
    quantizer.quantize(vectors_QKD, x_BFD, jnp.zeros(2, int))
  with pytest.raises(
    ValueError, match=r'x_BFD has shape \(5, 6, 3\): its axis D is 3, but 4 in vectors_QKD'
  ):
    quantizer.encode(vectors_QKD, x_BFD[..., :3])


@pytest.mark.parametrize('module', [soundstream, dac, encodec, mimi])
def test_codecs_ask_for_the_batch_axis(as_users_run_it, module):
  config = module.Config()
  with pytest.raises(ValueError, match=r'wave_BT has shape \(80000,\): add the batch axis'):
    module.encode(config, None, np.zeros(80_000, np.float32))
  with pytest.raises(ValueError, match=r'codes_BFQ has shape \(9, 2\): add the batch axis'):
    module.decode(config, None, np.zeros((9, 2), np.int32))


def test_other_public_functions_name_the_letters(as_users_run_it):
  wave_T = np.zeros(16_000, np.float32)
  with pytest.raises(ValueError, match='wave_BT has shape .*: add the batch axis'):
    Codec(soundstream.Config(), Variables({}, {})).encode(wave_T)
  with pytest.raises(ValueError, match='wave_BT has shape .*: add the batch axis'):
    w2v_bert.features(w2v_bert.Config(), None, wave_T)
  with pytest.raises(ValueError, match=r'features_ND has shape \(2, 3, 4\): must be \[N, D\]'):
    kmeans.fit(np.zeros((2, 3, 4)), 2, 0)
  with pytest.raises(ValueError, match=r'semantic_BS has shape \(7,\): add the batch axis'):
    tokens.deduplicate(np.zeros(7, np.int32))
  with pytest.raises(ValueError, match=r'codes_BFQ has shape \(7, 2\): add the batch axis'):
    tokens.flatten(np.zeros((7, 2), np.int32), 4)


@pytest.mark.parametrize('module', [soundstream, dac, encodec, mimi])
@pytest.mark.parametrize('code', [-1, 5000])
def test_codes_beyond_the_codebook_do_not_decode(as_users_run_it, module, code):
  codes_BFQ = np.zeros((1, 3, 2), np.int32)
  codes_BFQ[0, 1, 1] = code
  with pytest.raises(ValueError, match=f'codes_BFQ holds {code}, outside of 0 to'):
    module.decode(module.Config(), None, codes_BFQ)
  with pytest.raises(ValueError, match=f'codes_BFQ holds {code}'):
    module.decode(module.Config(), None, jnp.asarray(codes_BFQ))


def test_compiled_code_makes_nan_of_the_frames_of_codes_beyond_and_of_no_other():
  vectors_QKD = jnp.arange(6.0).reshape(1, 3, 2)
  found_BFD = jax.jit(quantizer.decode)(vectors_QKD, jnp.array([[[0], [3], [2], [-1]]]))
  np.testing.assert_array_equal(found_BFD, [[[0, 1], [np.nan] * 2, [4, 5], [np.nan] * 2]])
  points_BFD = jax.jit(lambda codes: quantizer.fsq_decode((3, 3), codes))(
    jnp.array([[[9], [8], [-1]]])
  )
  np.testing.assert_array_equal(points_BFD, [[[np.nan] * 2, [1, 1], [np.nan] * 2]])


def test_ids_are_integers_in_range_and_padding_where_it_may_be():
  checks.ids('codes', np.array([[-1, 0, 6]]), 7)
  checks.ids('codes', np.zeros((0, 3), np.int32), 7, padding=False)
  for wrong, message in (
    (np.array([7]), 'codes holds 7, outside of 0 to 6 and -1'),
    (np.array([-2]), 'codes holds -2'),
    (np.array([0.5]), 'codes is of type float64: ids are integers'),
  ):
    with pytest.raises(ValueError, match=message):
      checks.ids('codes', wrong, 7)
  with pytest.raises(ValueError, match='codes holds -1, outside of 0 to 6: was'):
    checks.ids('codes', np.array([-1]), 7, padding=False)


@pytest.mark.parametrize(
  'kind, field, wrong, legal',
  [
    (corpora.Folder, 'max_seconds', (0, -1.0, float('nan')), 5.0),
    (corpora.Folder, 'max_bad_fraction', (-0.1, 1.5, 2**31), 0.5),
    (corpora.LibriLight, 'max_seconds', (0, -1.0, float('inf')), 5.0),
    (corpora.LibriLight, 'max_bad_fraction', (-0.1, 1.5), 1.0),
    (corpora.Tfds, 'max_bad_fraction', (-0.1, 1.5), 0.0),
  ],
)
def test_limits_of_corpora_have_ranges(kind, field, wrong, legal):
  place = {'folder': 'x'} if kind is corpora.Tfds else {'root': 'x'}
  assert getattr(kind(**place, **{field: legal}), field) == legal
  for value in wrong:
    with pytest.raises(ValueError, match=f'{field}=.*: must be '):
      kind(**place, **{field: value})


def test_lengths_of_clips_and_times_to_wait_have_ends():
  assert checks.CLIP_SECONDS.holds(86_400) and not checks.CLIP_SECONDS.holds(86_401)
  # what threads take: threading.TIMEOUT_MAX is about 9.2e9 s, and 1e30 is an OverflowError there
  assert checks.WAIT_SECONDS.holds(1e9) and not checks.WAIT_SECONDS.holds(1e30)
  for rule in (checks.CLIP_SECONDS, checks.WAIT_SECONDS):
    assert rule.holds(0.5) and not any(map(rule.holds, (0, -1, float('nan'), float('inf'), True)))


@pytest.mark.parametrize('text', ['9' * 5_000, 'int8', '(', 'float', '', '1,2'])
def test_a_name_of_a_type_is_that_of_floats_or_refused_whatever_it_is(text):
  assert checks.FLOAT_TYPE.holds(text) == (text == 'float')
