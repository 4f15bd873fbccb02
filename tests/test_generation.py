"""The pipelines with a fake codec and a fake semantic tokenizer: both write what they saw where it
can be checked.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import audio, decoding, generation, kmeans, token_generation, tokenizer
from audiolm_jax import codec as codec_lib
from audiolm_jax.chain import ACOUSTIC, Models, SamplingConfig
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import base, coarse, fine, semantic, soundstorm
from audiolm_jax.stages.base import Model, Variables
from audiolm_jax.tokenizer import SemanticEncoder, SemanticTokenizer, Tokenizer
from tests import toys

HOP, K = 4, 8
TINY = TransformerConfig(
  num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
)
GREEDY = SamplingConfig(Rule(0.0), Rule(0.0), Rule(0.0), ParallelRule(Rule(0.0), 0.0, (3, 1)))


@dataclasses.dataclass(frozen=True)
class Features:
  """A frame's feature is its first sample, times 8; that of the cluster is the cluster's number."""

  sample_rate: int = 200
  hop_length: int = 2 * HOP
  frame_rate: float = 25.0

  def semantic_features(self, variables, wave_BT, layer):
    return 8 * wave_BT[:, :: self.hop_length, None]


CLUSTERS = kmeans.SemanticQuantizer(jnp.zeros(1), jnp.ones(1), jnp.arange(float(K))[:, None])


def tokenizer_of(codec, features=Features()):
  empty = Variables({}, {})
  encoder = SemanticEncoder(config=features, variables=empty, layer=0)
  return Tokenizer(codec_lib.Codec(codec, empty), SemanticTokenizer(encoder, CLUSTERS))


@dataclasses.dataclass(frozen=True)
class Codec:
  """A frame's code is 8 times its first sample, at every level; decoding repeats the sum of the
  codes.
  """

  sample_rate: int = 200
  hop_length: int = HOP
  num_quantizers: int = 3
  codebook_size: int = K
  context: int = 0

  @property
  def frame_rate(self):
    return self.sample_rate / self.hop_length

  def codec(self):
    def encode(variables, wave_BT, num_quantizers):
      codes_BF = jnp.round(wave_BT[:, :: self.hop_length] * 8).astype(jnp.int32)
      return jnp.repeat(codes_BF[..., None], 3, axis=2)

    decode = lambda variables, codes_BFQ: jnp.repeat(
      codes_BFQ.sum(-1) / 8.0, self.hop_length, axis=1
    )
    return base.CodecFunctions(encode, decode, self.context)


def with_variables(config, seed):
  params = meta.unbox(jax.jit(config.make().init)(jax.random.key(seed))).params
  return Model(config, Variables(params, {}))


@pytest.fixture(scope='module')
def models():
  return made_models()


@functools.cache
def made_models():
  """For the files that import the fixture, too."""
  shared = dict(num_clusters=K, transformer=TINY)
  return Models(
    tokenizer_of(Codec()),
    semantic=with_variables(semantic.Config(crop_seconds=0.8, **shared), 0),
    coarse=with_variables(
      coarse.Config(
        crop_seconds=0.4, codebook_size=K, num_quantizers=2, total_quantizers=3, **shared
      ),
      1,
    ),
    fine=with_variables(
      fine.Config(
        crop_seconds=0.2, num_coarse=2, total_quantizers=3, codebook_size=K, transformer=TINY
      ),
      2,
    ),
  )


@pytest.fixture(scope='module')
def parallel(models):
  """Models without coarse and fine stages; the semantic model keeps its repeats."""
  config = soundstorm.Config(
    crop_seconds=0.8,
    num_clusters=K,
    codebook_size=K,
    num_quantizers=3,
    num_layers=1,
    num_heads=2,
    width=16,
    mlp_width=16,
    dtype='float32',
    remat=False,
  )
  aligned = dataclasses.replace(models.semantic.config, deduplicate=False)
  return models._replace(
    semantic=models.semantic._replace(config=aligned),
    coarse=None,
    fine=None,
    soundstorm=with_variables(config, 4),
  )


def prompts():
  wave_BT = (
    np.random.default_rng(0).integers(0, K, (2, 20, 1)).repeat(HOP, axis=2).reshape(2, -1) / 8
  )
  # 20 and 12 codec frames (50 samples: 6 whole pairs)
  return wave_BT.astype(np.float32), np.array([80, 50])


def test_tokenize_pads_and_aligns(models):
  wave_BT, lengths_B = prompts()
  semantic_BS, codes_BFQ = models.tokenizer.encode(wave_BT, lengths_B)
  assert semantic_BS.shape == (2, 10) and codes_BFQ.shape == (2, 20, 3)
  np.testing.assert_array_equal(codes_BFQ[1, :12, 0], wave_BT[1, :48:HOP] * 8)
  assert (codes_BFQ[1, 12:] == -1).all() and (semantic_BS[1, 6:] == -1).all()
  np.testing.assert_array_equal(semantic_BS[1, :6], codes_BFQ[1, :12:2, 0])


def test_continuation_keeps_the_prompt_and_decodes_all(models):
  wave_BT, lengths_B = prompts()
  reports = []
  # 0.8 s is two windows of the coarse model and several chunks of the fine one.
  result = generation.continue_audio(
    models,
    jax.random.key(0),
    wave_BT,
    lengths_B,
    seconds=0.8,
    carry_seconds=0.12,
    progress=lambda done, total: reports.append((done, total)),
  )
  # Two rows of 40 new frames by each of two models; all chunks of the fine model are one batch.
  assert reports == sorted(reports) and reports[-2:] == [(80, 160), (160, 160)]
  assert 0 < reports[0][0] < 80
  own = models.tokenizer.encode(wave_BT, lengths_B)[1]
  np.testing.assert_array_equal(result.num_frames_B, [60, 52])
  for b in range(2):
    frames, prompt_frames = result.num_frames_B[b], result.prompt_frames_B[b]
    np.testing.assert_array_equal(result.codes_BFQ[b, :prompt_frames], own[b, :prompt_frames])
    codes_FQ = result.codes_BFQ[b, :frames]
    assert codes_FQ.min() >= 0 and codes_FQ.max() < K
    assert (result.codes_BFQ[b, frames:] == -1).all()
    np.testing.assert_allclose(result.wave_BT[b, : frames * HOP : HOP], codes_FQ.sum(-1) / 8)
    assert (result.wave_BT[b, frames * HOP :] == 0).all()


def test_a_row_alone_is_the_row_in_a_batch(models):
  wave_BT, lengths_B = prompts()
  options = dict(seconds=0.2, sampling=GREEDY, carry_seconds=0.12)
  both = generation.continue_audio(models, jax.random.key(0), wave_BT, lengths_B, **options)
  alone = generation.continue_audio(models, jax.random.key(0), wave_BT[1:, :50], None, **options)
  np.testing.assert_array_equal(alone.codes_BFQ[0], both.codes_BFQ[1, : alone.num_frames_B[0]])


def test_lengths_share_compilations(models):
  wave_BT, _ = prompts()
  decoding.sample_targets.clear_cache()
  for num_samples in (56, 64, 72, 80):  # 14 to 20 frames: one bucket
    generation.continue_audio(
      models, jax.random.key(0), wave_BT[:1, :num_samples], seconds=0.08, carry_seconds=0.08
    )
  # four lengths, three models: at most two buckets a model
  assert decoding.sample_targets._cache_size() <= 6


def test_acoustics_from_semantic_and_unconditional(models):
  semantic_BS = np.array([[1, 1, 2, 3, 3], [4, 4, 5, -1, -1]], np.int32)
  result = generation.generate_acoustics(models, jax.random.key(0), semantic_BS, carry_seconds=0.12)
  np.testing.assert_array_equal(result.num_frames_B, [10, 6])
  np.testing.assert_array_equal(result.semantic_BS, [[1, 2, 3], [4, 5, -1]])
  free = generation.generate_unconditional(models, jax.random.key(0), 2, 0.4, carry_seconds=0.12)
  assert free.codes_BFQ.shape == (2, 20, 3) and free.codes_BFQ.min() >= 0


def test_acoustic_only_and_no_fine_stage(models):
  config = dataclasses.replace(models.coarse.config, condition_on_semantic=False)
  piano = models._replace(coarse=with_variables(config, 3), fine=None)
  wave_BT, _ = prompts()
  result = generation.continue_audio(
    piano, jax.random.key(0), wave_BT, seconds=0.08, carry_seconds=0.12
  )
  assert result.codes_BFQ.shape == (2, 24, 2)


def test_what_does_not_fit_is_refused(models):
  wave_BT, _ = prompts()
  go = lambda models, **options: generation.continue_audio(
    models, jax.random.key(0), wave_BT, **options
  )
  with pytest.raises(ValueError, match='carry_seconds'):
    go(models, seconds=0.2, carry_seconds=3.0)
  with pytest.raises(ValueError, match='less than one semantic frame'):
    go(models, seconds=0.01)
  for seconds in (0.0, -1.0, float('inf'), float('nan')):
    with pytest.raises(ValueError, match=f'seconds={seconds}: must be a finite number above 0'):
      go(models, seconds=seconds)
  with pytest.raises(ValueError, match='carry_seconds=nan: must be a finite number of at least 0'):
    go(models, seconds=0.2, carry_seconds=float('nan'))
  with pytest.raises(ValueError, match='batch_size=0: must be a whole number of at least 1'):
    generation.generate_unconditional(models, jax.random.key(0), 0, 0.2)
  for code in (K, -2):
    with pytest.raises(
      ValueError, match=f'prompt_BFQ holds {code}, outside of 0 to {K - 1} and -1'
    ):
      prompt_BFQ = np.full((1, 2, 3), code, np.int32)
      generation.generate_acoustics(
        models, jax.random.key(0), np.zeros((1, 4), np.int32), prompt_BFQ
      )
  with pytest.raises(ValueError, match=f'codes_BFQ holds {K}, outside of 0 to {K - 1}'):
    models.tokenizer.decode(np.full((1, 4, 3), K, np.int32), np.array([4]))
  aligned = dataclasses.replace(models.coarse.config, deduplicate=False)
  with pytest.raises(ValueError, match='frame-aligned'):
    go(models._replace(coarse=models.coarse._replace(config=aligned)), seconds=0.2)
  with pytest.raises(ValueError, match='temperature'):
    go(models, seconds=0.2, sampling=SamplingConfig(coarse=Rule(-1.0)))


def test_soundstorm_takes_the_place_of_coarse_and_fine(parallel):
  wave_BT, lengths_B = prompts()
  # 0.8 s after 0.4 s is two windows.
  result = generation.continue_audio(
    parallel,
    jax.random.key(0),
    wave_BT,
    lengths_B,
    seconds=0.8,
    carry_seconds=0.12,
    acoustic='soundstorm',
  )
  own_semantic_BS, own = parallel.tokenizer.encode(wave_BT, lengths_B)
  np.testing.assert_array_equal(result.num_frames_B, [60, 52])
  # two frames a token, repeats and all
  np.testing.assert_array_equal((result.semantic_BS >= 0).sum(axis=1), [30, 26])
  for b in range(2):
    frames, prompt_frames = result.num_frames_B[b], result.prompt_frames_B[b]
    np.testing.assert_array_equal(result.codes_BFQ[b, :prompt_frames], own[b, :prompt_frames])
    np.testing.assert_array_equal(
      result.semantic_BS[b, : prompt_frames // 2], own_semantic_BS[b, : prompt_frames // 2]
    )
    codes_FQ = result.codes_BFQ[b, :frames]
    assert codes_FQ.min() >= 0 and codes_FQ.max() < K
    assert (result.codes_BFQ[b, frames:] == -1).all()
    np.testing.assert_allclose(result.wave_BT[b, : frames * HOP : HOP], codes_FQ.sum(-1) / 8)
    assert (result.wave_BT[b, frames * HOP :] == 0).all()


def test_a_row_alone_is_the_row_in_a_batch_by_soundstorm_too(parallel):
  wave_BT, lengths_B = prompts()
  options = dict(seconds=0.2, sampling=GREEDY, carry_seconds=0.12, acoustic='soundstorm')
  both = generation.continue_audio(parallel, jax.random.key(0), wave_BT, lengths_B, **options)
  alone = generation.continue_audio(parallel, jax.random.key(0), wave_BT[1:, :50], None, **options)
  np.testing.assert_array_equal(alone.codes_BFQ[0], both.codes_BFQ[1, : alone.num_frames_B[0]])


def test_both_paths_share_the_semantic_tokens(models, parallel):
  """Models that hold all stages make the same semantic tokens, whichever stages make the codes of
  them.
  """
  both = models._replace(semantic=parallel.semantic, soundstorm=parallel.soundstorm)
  wave_BT, lengths_B = prompts()
  options = dict(seconds=0.2, carry_seconds=0.12)
  results = [
    generation.continue_audio(
      both, jax.random.key(0), wave_BT, lengths_B, acoustic=acoustic, **options
    )
    for acoustic in ACOUSTIC
  ]
  np.testing.assert_array_equal(results[0].semantic_BS, results[1].semantic_BS)
  assert (results[0].codes_BFQ != results[1].codes_BFQ).any()


@pytest.mark.parametrize('acoustic', ACOUSTIC)
def test_a_continuation_is_acoustics_of_its_semantic_tokens_after_its_prompt(
  models, parallel, acoustic
):
  both = models._replace(semantic=parallel.semantic, soundstorm=parallel.soundstorm)
  wave_BT, lengths_B = prompts()
  options = dict(carry_seconds=0.12, acoustic=acoustic)
  whole = generation.continue_audio(
    both, jax.random.key(0), wave_BT, lengths_B, seconds=0.2, **options
  )
  own = both.tokenizer.encode(wave_BT, lengths_B)[1]
  again = generation.generate_acoustics(both, jax.random.key(0), whole.semantic_BS, own, **options)
  for field in ('codes_BFQ', 'num_frames_B', 'prompt_frames_B'):
    np.testing.assert_array_equal(getattr(again, field), getattr(whole, field))
  with pytest.raises(ValueError, match='a prompt is 16 frames longer than its semantic tokens'):
    generation.generate_acoustics(both, jax.random.key(0), whole.semantic_BS[:, :2], own, **options)
  with pytest.raises(
    ValueError, match='it needs 2 rows, like the semantic tokens, of all 3 levels'
  ):
    generation.generate_acoustics(
      both, jax.random.key(0), whole.semantic_BS, own[..., :2], **options
    )


def test_soundstorm_from_semantic_tokens_and_from_nothing(models, parallel):
  semantic_BS = np.array([[1, 1, 2, 3, 3], [4, 4, 5, -1, -1]], np.int32)
  # which is not asked: the tokens are given
  deduplicated = parallel._replace(semantic=models.semantic)
  result = generation.generate_acoustics(
    deduplicated, jax.random.key(0), semantic_BS, carry_seconds=0.12, acoustic='soundstorm'
  )
  np.testing.assert_array_equal(result.num_frames_B, [10, 6])
  np.testing.assert_array_equal(result.semantic_BS, semantic_BS)
  free = generation.generate_unconditional(
    parallel, jax.random.key(0), 2, 0.4, carry_seconds=0.12, acoustic='soundstorm'
  )
  assert free.codes_BFQ.shape == (2, 20, 3) and free.codes_BFQ.min() >= 0


def test_what_soundstorm_cannot_use_is_refused(models, parallel):
  wave_BT, _ = prompts()
  go = lambda models, acoustic='soundstorm', **options: generation.continue_audio(
    models, jax.random.key(0), wave_BT, seconds=0.2, acoustic=acoustic, **options
  )
  deduplicated = parallel._replace(semantic=models.semantic)
  for make in (
    go,
    lambda m: generation.generate_unconditional(
      m, jax.random.key(0), 1, 0.2, acoustic='soundstorm'
    ),
  ):
    with pytest.raises(
      ValueError, match='deduplicated: its tokens lack the durations.*deduplicate=False'
    ):
      make(deduplicated)
  with pytest.raises(ValueError, match='needs the stage soundstorm'):
    go(models)
  with pytest.raises(ValueError, match='needs the stage coarse'):
    go(parallel, acoustic='autoregressive')
  with pytest.raises(ValueError, match="'diffusion': choose one of autoregressive, soundstorm"):
    go(parallel, acoustic='diffusion')
  with pytest.raises(ValueError, match='iterations'):
    go(parallel, sampling=SamplingConfig(soundstorm=ParallelRule(iterations=(16, 1, 1, 1))))
  with pytest.raises(
    ValueError, match='soundstorm was trained on.* num_quantizers=3, the tokens have 2'
  ):
    go(parallel._replace(tokenizer=tokenizer_of(Codec(num_quantizers=2))))


@pytest.mark.parametrize('acoustic', ACOUSTIC)
def test_three_codec_frames_for_each_semantic_frame(models, parallel, acoustic):
  """A codec of 75 frames/s that looks ahead: the alignment, the silence it sees, and a decoder that
  is held.
  """
  seen = {}

  class LooksAhead(Codec):
    def codec(self):
      functions = super().codec()

      def decode(variables, codes_BFQ):
        seen['frames'] = codes_BFQ.shape[1]
        return functions.decode(variables, codes_BFQ)

      return functions._replace(decode=decode)

  codec = LooksAhead(sample_rate=300, context=5)
  fitted = models if acoustic == 'autoregressive' else parallel
  changed = {'tokenizer': tokenizer_of(codec)}
  for name in ('coarse', 'fine', 'soundstorm'):
    if getattr(fitted, name) is not None:
      changed[name] = with_variables(
        dataclasses.replace(getattr(fitted, name).config, frame_rate=75.0), 5
      )
  fitted = fitted._replace(**changed)
  # 8 semantic frames of 3, far from where resampling would overshoot
  levels_F = np.arange(24) % 4 + 2
  wave_BT = (levels_F.repeat(HOP) / 8)[None].astype(np.float32)
  semantic_BS, codes_BFQ = fitted.tokenizer.encode(wave_BT[:, :-1])  # less than the last one
  assert semantic_BS.shape == (1, 7) and codes_BFQ.shape == (1, 21, 3)
  result = generation.continue_audio(
    fitted, jax.random.key(0), wave_BT, seconds=0.2, carry_seconds=0.12, acoustic=acoustic
  )
  np.testing.assert_array_equal([result.num_frames_B, result.prompt_frames_B], [[39], [24]])
  assert result.wave_BT.shape == (1, 39 * HOP) and seen['frames'] == 75
  with pytest.raises(
    ValueError, match='trained on other tokens: frame_rate=50.0, the tokens have 75.0'
  ):
    generation.generate_unconditional(
      fitted._replace(
        **{
          name: getattr(models if name != 'soundstorm' else parallel, name)
          for name in changed
          if name != 'tokenizer'
        }
      ),
      jax.random.key(0),
      1,
      0.2,
      carry_seconds=0.12,
      acoustic=acoustic,
    )


def test_the_past_that_is_carried_follows_from_the_crop(models):
  config = soundstorm.Config(crop_seconds=30.0)
  frames = token_generation.carry_frames
  assert frames(config, None) == 150 == frames(config, 3.0)  # 3 s
  assert frames(dataclasses.replace(config, crop_seconds=4.0), None) == 100
  assert frames(dataclasses.replace(config, crop_seconds=0.04), None) == 0
  wave_BT, _ = prompts()
  options = dict(seconds=0.8, sampling=GREEDY)  # two windows of 0.4 s
  found = generation.continue_audio(models, jax.random.key(0), wave_BT, **options)
  same = generation.continue_audio(models, jax.random.key(0), wave_BT, carry_seconds=0.2, **options)
  np.testing.assert_array_equal(found.codes_BFQ, same.codes_BFQ)


def test_a_rule_of_ones_own_sees_the_past_and_draws(models, parallel):
  """Coarse codes count on from the last code of the prompt, whatever the model thinks of it."""
  count_on = lambda key, logits_BV, past_BN: (past_BN.max(axis=1) + 1) % logits_BV.shape[-1]
  semantic_BS, prompt_BFQ = np.zeros((1, 4), np.int32), np.full((1, 2, 3), 1, np.int32)
  result = generation.generate_acoustics(
    models, jax.random.key(0), semantic_BS, prompt_BFQ, sampling=SamplingConfig(coarse=count_on)
  )
  np.testing.assert_array_equal(result.codes_BFQ[0, 2:5, :2], [[2, 3], [4, 5], [6, 7]])
  greedy = lambda key, logits_BV, past_BN: logits_BV.argmax(axis=-1)
  for fitted, acoustic in ((models, 'autoregressive'), (parallel, 'soundstorm')):
    own = SamplingConfig(greedy, greedy, greedy, ParallelRule(greedy, 0.0, (3, 1)))
    rows = [
      generation.continue_audio(
        fitted, jax.random.key(0), prompts()[0], seconds=0.08, sampling=rule, acoustic=acoustic
      ).codes_BFQ
      for rule in (own, GREEDY)
    ]
    np.testing.assert_array_equal(*rows)


def test_files_become_tokens(tmp_path):
  hop = 80  # at 4 kHz, of 50 frames a second
  codec = Codec(sample_rate=4000, hop_length=hop)
  bound = tokenizer_of(codec, Features(sample_rate=4000, hop_length=2 * hop))
  code_F = np.random.default_rng(0).integers(0, K, 20)
  wave_T = (code_F.repeat(hop) / 8).astype(np.float32)
  paths = [tmp_path / 'a.wav', str(tmp_path / 'b.wav')]
  for path, length in zip(paths, (20 * hop, 13 * hop - 1), strict=True):
    audio.save(path, wave_T[:length], 4000)
  found = list(tokenizer.files(bound, paths))
  assert [path for path, _, _ in found] == paths
  for (_, semantic_S, codes_FQ), frames in zip(found, (20, 12), strict=True):
    np.testing.assert_array_equal(codes_FQ, code_F[:frames, None].repeat(3, axis=1))
    np.testing.assert_array_equal(semantic_S, code_F[:frames:2])
  audio.save(tmp_path / 'c.wav', wave_T[:7], 4000)
  with pytest.raises(
    ValueError, match='c.wav: a waveform has 7 samples, less than one semantic frame'
  ):
    next(tokenizer.files(bound, [tmp_path / 'c.wav']))


def conditioned(models, **stages):
  """Returns models of which some stages read 2 levels of a condition, with other random weights."""
  one = base.Condition(levels=2, size=K, dropout=0.1)
  changed = {
    name: with_variables(dataclasses.replace(getattr(models, name).config, condition=one), seed)
    for name, seed in stages.items()
  }
  codec = models.tokenizer.codec

  class Tokens(type(models.tokenizer)):
    spec = dataclasses.replace(models.tokenizer.spec, condition_levels=12, condition_size=K)

  return models._replace(tokenizer=Tokens(codec, models.tokenizer.semantic), **changed)


def story(num_rows=1):
  """Returns three segments of 0.4 s with tokens [b, g], [b, g] ... for row b and segment g."""
  tokens_BGN = np.stack(
    [np.full((3, 12), b) + np.arange(3)[:, None] for b in range(num_rows)]
  ).astype(np.int32)
  return token_generation.Segments(tokens_BGN, 0.4)


def test_windows_read_the_condition_of_the_segment_of_their_first_new_frame(models, monkeypatch):
  seen = {'semantic': [], 'coarse': [], 'fine': []}

  def spy(model, params, key, prefix, prompt_BFQ, num_steps, rule, guidance, *, capacity):
    parts = model.vocabulary.parts
    name = 'fine' if parts[0].rate else 'semantic' if len(parts) == 1 else 'coarse'
    seen[name].append((np.asarray(prefix[0])[:2, 0].tolist(), prompt_BFQ.shape[1], guidance))
    return np.zeros((len(prompt_BFQ), capacity), np.int32)

  monkeypatch.setattr(decoding, 'sample_targets', spy)
  both = conditioned(models, semantic=0, coarse=1)
  for name in ('semantic', 'coarse'):
    stage = getattr(both, name)
    aligned = dataclasses.replace(stage.config, deduplicate=False)
    both = both._replace(**{name: stage._replace(config=aligned)})
  generation.generate_unconditional(
    both, jax.random.key(0), 2, 1.2, carry_seconds=0.12, condition=story(2), guidance=2.0
  )
  segment = lambda g: [[g, g], [1 + g, 1 + g]]
  # 25 frames/s: a window of 10 frames for each segment.
  assert [tokens for tokens, _, _ in seen['semantic']] == [segment(0), segment(1), segment(2)]
  # 50 frames/s, crops of 20 of which 6 are carried: new from frames 0, 20, 34 and 48.
  assert [tokens for tokens, _, _ in seen['coarse']] == [segment(g) for g in (0, 1, 1, 2)]
  assert {scale for _, _, scale in seen['semantic'] + seen['coarse']} == {2.0}
  assert {scale for _, _, scale in seen['fine']} == {None}


def test_segments_start_after_the_prompt_and_the_last_has_no_end():
  segments = story()
  assert [segments.number(t) for t in (0.0, 0.39, 0.4, 0.81, 7.0)] == [0, 0, 1, 2, 2]
  assert token_generation.Segments(segments.tokens_BGN[:, :1]).number(300.0) == 0


def test_both_paths_run_with_a_condition_and_differ_by_it(models, parallel):
  for names, acoustic in ((('coarse',), 'autoregressive'), (('soundstorm',), 'soundstorm')):
    fitted = conditioned(
      models if acoustic == 'autoregressive' else parallel, **dict.fromkeys(names, 1)
    )
    semantic_BS = np.array([[1, 4, 2, 3, 3]] * 2, np.int32)
    tokens_BGN = np.zeros((2, 1, 2), np.int32)
    tokens_BGN[1] = 5
    go = lambda condition, guidance=1.0: (
      generation.generate_acoustics(
        fitted,
        jax.random.key(0),
        semantic_BS,
        sampling=GREEDY,
        carry_seconds=0.12,
        acoustic=acoustic,
        condition=condition,
        guidance=guidance,
      ).codes_BFQ
    )
    first, second = go(token_generation.Segments(tokens_BGN), 4.0)
    assert (first != second).any()
    free = go(None)
    np.testing.assert_array_equal(free[0], free[1])


def test_conditions_that_cannot_be_are_refused(models):
  one = conditioned(models, coarse=1)
  go = lambda models, condition, **options: generation.generate_unconditional(
    models, jax.random.key(0), 2, 0.2, condition=condition, **options
  )
  with pytest.raises(ValueError, match='stages semantic and coarse were trained without a cond'):
    go(models, story(2))
  with pytest.raises(ValueError, match=r'shape \(1, 3, 12\): it needs 2 rows'):
    go(one, story(1))
  with pytest.raises(ValueError, match='at least 2 tokens each'):
    go(one, token_generation.Segments(np.zeros((2, 1, 1), np.int32)))
  with pytest.raises(ValueError, match='condition.seconds=0.0'):
    go(one, story(2)._replace(seconds=0.0))
  with pytest.raises(ValueError, match='guidance=2.0 needs a condition'):
    go(one, None, guidance=2.0)
  never = dataclasses.replace(one.coarse.config.condition, dropout=0.0)
  config = dataclasses.replace(one.coarse.config, condition=never)
  with pytest.raises(ValueError, match='coarse was trained without condition.dropout'):
    go(one._replace(coarse=one.coarse._replace(config=config)), story(2), guidance=2.0)
  with pytest.raises(ValueError, match='condition_levels=2, the tokens have no condition'):
    go(one._replace(tokenizer=models.tokenizer), story(2))


@pytest.fixture(scope='module')
def chain():
  """All stages, with a codec that streams; crops of 2 s (semantic), 1 s (coarse) and 0.4 s (fine)."""
  return toys.models()


@pytest.fixture
def computed(monkeypatch):
  """The programs that ran, in order: 'tokens', 'masked' or 'decode'."""
  names = []
  for home, name, label in (
    (decoding, 'sample_targets', 'tokens'),
    (decoding, 'fill_window', 'masked'),
    (codec_lib, '_decode_step', 'decode'),
  ):
    original = getattr(home, name)

    def spy(*arguments, original=original, label=label, **options):
      names.append(label)
      return original(*arguments, **options)

    monkeypatch.setattr(home, name, spy)
  return names


@pytest.mark.parametrize('acoustic', ACOUSTIC)
def test_pieces_of_a_stream_are_the_continuation(chain, acoustic):
  """1.1 s and 1.5 s: several windows of both kinds, chunks of 0.4 s that end within windows, and a
  last piece that is shorter than the others.
  """
  prompt_T, options = toys.noise(1.1), dict(seconds=1.5, acoustic=acoustic)
  whole = generation.continue_audio(chain, jax.random.key(3), prompt_T[None], **options)
  pieces = list(generation.continue_stream(chain, jax.random.key(3), prompt_T, **options))
  assert len(pieces) >= 4 and all(len(piece_T) for piece_T in pieces)
  np.testing.assert_allclose(np.concatenate(pieces), whole.wave_BT[0], atol=1e-5)


@pytest.mark.parametrize('acoustic', ACOUSTIC)
def test_pieces_of_given_words_are_the_acoustic_generation(chain, acoustic):
  semantic_BS, codes_BFQ = chain.tokenizer.encode(toys.noise(1.6)[None])
  arguments = chain, jax.random.key(3)
  for prompt_BFQ in (codes_BFQ[:, :20], None):
    whole = generation.generate_acoustics(*arguments, semantic_BS, prompt_BFQ, acoustic=acoustic)
    prompt_FQ = None if prompt_BFQ is None else prompt_BFQ[0]
    pieces = generation.acoustics_stream(*arguments, semantic_BS[0], prompt_FQ, acoustic=acoustic)
    np.testing.assert_allclose(np.concatenate(list(pieces)), whole.wave_BT[0], atol=1e-5)


@pytest.mark.parametrize('acoustic', ACOUSTIC)
def test_pieces_of_a_stream_with_a_story_are_the_conditioned_continuation(
  chain, computed, acoustic
):
  """Segments of 10, 10 and 18 semantic frames, each a window, which is drawn when it is heard."""
  name = 'soundstorm' if acoustic == 'soundstorm' else 'coarse'
  fitted, prompt_T = conditioned(chain, **{'semantic': 0, name: 1}), toys.noise(0.8)
  options = dict(seconds=1.5, acoustic=acoustic, guidance=4.0)
  go = lambda condition: generation.continue_audio(
    fitted, jax.random.key(3), prompt_T[None], condition=condition, **options
  )
  whole, other = go(story()), go(story()._replace(tokens_BGN=story().tokens_BGN[:, ::-1]))
  assert (whole.semantic_BS != other.semantic_BS).any()
  assert (whole.codes_BFQ != other.codes_BFQ).any()
  pieces = generation.continue_stream(
    fitted, jax.random.key(3), prompt_T, condition=story(), **options
  )
  first = [next(pieces)]
  computed.clear()
  first.append(next(pieces))
  window = ['masked'] if acoustic == 'soundstorm' else ['tokens'] * 2
  assert [name for name in computed if name != 'decode'] == ['tokens'] * 2 + window
  np.testing.assert_allclose(np.concatenate([*first, *pieces]), whole.wave_BT[0], atol=1e-5)


def test_a_piece_comes_before_the_next_window_and_closing_ends_the_computation(chain, computed):
  """After 0.8 s of prompt, 1.6 s: coarse windows of 0.5 s (of a crop of 1 s, half is carried)."""
  pieces = generation.continue_stream(
    chain, jax.random.key(0), toys.noise(0.8), seconds=1.6, acoustic='autoregressive'
  )
  assert len(next(pieces)) == 0.8 * toys.RATE
  assert computed == ['decode'] * 4  # calls of 0.2 s; nothing was generated
  computed.clear()
  assert len(next(pieces)) == 0.4 * toys.RATE
  # Semantic tokens, a window of coarse codes, a chunk of fine ones.
  assert computed == ['tokens'] * 3 + ['decode'] * 2
  computed.clear()
  pieces.close()
  assert next(pieces, None) is None and not computed


def test_semantic_tokens_are_computed_as_far_as_they_are_heard(chain, computed):
  """After 1 s of prompt, 6 s: semantic windows of 1 s (of a crop of 2 s, half is carried), while
  SoundStorm's windows are of 0.5 s.
  """
  pieces = generation.continue_stream(
    chain, jax.random.key(0), toys.noise(1.0), seconds=6.0, acoustic='soundstorm'
  )
  next(pieces), next(pieces), pieces.close()
  assert computed.count('masked') == 1 and computed.count('tokens') <= 2


def test_what_cannot_be_streamed_is_refused(models, chain):
  prompt_T = prompts()[0][0]
  with pytest.raises(ValueError, match='needs whole clips: use continue_audio or generate_acou'):
    generation.continue_stream(models, jax.random.key(0), prompt_T, seconds=0.2)
  with pytest.raises(ValueError, match='carry_seconds=3.0 must be shorter than the crop, 1.0 s'):
    generation.continue_stream(
      chain, jax.random.key(0), toys.noise(1.0), seconds=0.2, carry_seconds=3.0
    )


def test_draws_of_the_fine_model_do_not_depend_on_the_batch(chain):
  """A chunk alone is the chunk in a batch, also where tokens are drawn by chance."""
  coarse_FQ = np.random.default_rng(0).integers(0, toys.CODES, (60, 2)).astype(np.int32)
  rule = SamplingConfig().fine
  go = lambda parts: np.concatenate(
    [part for [part] in token_generation._fine(chain, jax.random.key(0), parts, [60], rule)]
  )
  np.testing.assert_array_equal(go([[coarse_FQ]]), go([[coarse_FQ[:25]], [coarse_FQ[25:]]]))


def test_a_part_of_the_semantic_tokens_tells_what_overlaps_a_window_as_all_of_them_do():
  """Tokens of 1.5 semantic frames, in windows of 4 tokens, of which those needed are drawn."""
  token_N, start_N = np.arange(12), 1.5 * np.arange(12)
  parts = [token_generation.Timed(token_N[:n], start_N[:n]) for n in (4, 8, 12)]

  def overlapping(row, start, stop):
    ends_N = np.append(row.start_N[1:], np.inf)
    return row.token_N[(row.start_N < stop) & (ends_N > start)].tolist()

  for start in range(18):
    for stop in range(start + 1, 19):
      drawn = iter([[part] for part in parts])
      found = token_generation.Semantic([token_generation.Timed(token_N[:0], start_N[:0])], drawn)
      assert overlapping(found.until(0, stop), start, stop) == overlapping(parts[-1], start, stop)
      assert len(list(drawn)) == (2 if stop <= 4 else 1 if stop <= 10 else 0)
