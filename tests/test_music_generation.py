"""Music from texts, with the models of test_generation.py and an embedding computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import generation, music_generation, stories, tokenizer, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.generation import Continuation
from audiolm_jax.stages import melody
from audiolm_jax.stages.base import Variables
from tests import toy_embedding
from tests.test_generation import HOP, conditioned, models  # noqa: F401

LEVELS = (0.0, 0.125, 0.25)


@pytest.fixture
def seen(monkeypatch):
  """Replaces generation: keeps its arguments; the audio of the rows has the samples LEVELS in turn."""
  calls = []

  def fake(models, key, batch_size, seconds, *, condition, **options):
    calls.append((batch_size, seconds, condition, options))
    frames = round(seconds * 50)
    wave_BT = np.repeat(np.resize(LEVELS, batch_size)[:, None], frames * HOP, axis=1)
    return Continuation(
      wave_BT.astype(np.float32),
      np.zeros((batch_size, 1), np.int32),
      np.zeros((batch_size, frames, 3), np.int32),
      np.full(batch_size, frames),
      np.zeros(batch_size, int),
    )

  monkeypatch.setattr(generation, 'generate_unconditional', fake)
  return calls


@pytest.fixture
def texted(models):  # noqa: F811
  own = models.tokenizer
  return models._replace(
    tokenizer=tokenizer.Tokenizer(own.codec, own.semantic, toy_embedding.tokenizer(3))
  )


def go(models, texts, seconds, **options):  # noqa: F811
  return music_generation.from_texts(models, jax.random.key(0), texts, seconds, **options)


def test_each_row_has_the_tokens_of_its_own_text(texted, seen):
  go(texted, ['high', 'low', 'high'], 4.0, guidance=3.0, acoustic='soundstorm')
  [(batch_size, seconds, condition, options)] = seen
  assert (batch_size, seconds) == (3, 4.0)
  np.testing.assert_array_equal(condition.tokens_BGN, [[[2, 0, 0]], [[0, 0, 0]], [[2, 0, 0]]])
  assert condition.seconds == np.inf
  assert options['guidance'] == 3.0 and options['acoustic'] == 'soundstorm'


def test_stories_have_a_segment_for_each_text_and_the_last_goes_on(texted, seen):
  go(texted, [['low', 'middle', 'high'], 'middle'], 7.0, story_seconds=3.0)
  [(_, _, condition, _)] = seen
  np.testing.assert_array_equal(condition.tokens_BGN[..., 0], [[0, 1, 2], [1, 1, 1]])
  assert condition.seconds == 3.0
  assert [condition.number(t) for t in (0.0, 2.9, 3.0, 6.5, 299.0)] == [0, 0, 1, 2, 2]


def test_the_candidate_most_similar_to_the_text_is_kept(texted, seen):
  """Candidates of each text are 0, 1, 2 eighths in turn: the right one is known."""
  made = go(texted, ['middle', 'high', 'low'], 4.0, num_candidates=3)
  np.testing.assert_array_equal(made.audio.wave_BT[:, 0], [0.125, 0.25, 0.0])
  np.testing.assert_allclose(made.similarity_B, 1.0, atol=1e-6)
  assert made.audio.num_frames_B.tolist() == [200] * 3
  [(batch_size, _, condition, _)] = seen
  assert batch_size == 9
  assert condition.tokens_BGN[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]


def test_similarity_is_the_cosine_of_each_segment_weighted_by_its_time(texted, seen):
  """Audio at 0 for 8 s: the cosine with `low` is 1, with `high` (a quarter of 45 degrees) less."""
  made = go(texted, [['low', 'high']], 8.0, story_seconds=6.0)
  expected = (6 * 1 + 2 * np.cos(np.pi / 16)) / 8
  np.testing.assert_allclose(made.similarity_B, [expected], atol=1e-6)


def test_windows_of_a_second_are_averaged_as_the_crop_has_them():
  """Windows of 2 s of a clip of 5.5 s start at 0, 1, 2, 3 s with the samples 0, 2, 4, 6 eighths."""
  second_S = np.array([0, 2, 4, 6, 6, 6]) / 8
  wave_T = second_S.repeat(200)[:1100].astype(np.float32)
  found = toy_embedding.tokenizer().seconds(wave_T, 200, (1, 2, 4, 9))
  first = {number: tokens_SN[:, 0].tolist() for number, tokens_SN in found.items()}
  assert first[1] == [0, 2, 4, 6, 6, 6]
  assert first[2] == [1, 3, 5, 6, 6, 6]  # the mean of two windows; the last ones are alone
  assert first[4] == first[9] == [3, 4, 5, 6, 6, 6]
  assert all(tokens_SN.shape == (6, 2) for tokens_SN in found.values())
  short = toy_embedding.tokenizer().seconds(wave_T[:100], 200, (1, 21))
  assert [tokens_SN[:, 0].tolist() for tokens_SN in short.values()] == [[0], [0]]


@pytest.mark.parametrize(
  'texts, seconds, options, message',
  [
    ('low', 4.0, {}, "texts='low' is a single text: put it into a list"),
    ([], 4.0, {}, 'no texts: give at least one'),
    ([['low'], []], 4.0, {}, 'no texts: give at least one'),
    (
      [['low', 'high']],
      15.0,
      {},
      'give at most 1 texts, lower story_seconds, or give seconds above 15',
    ),
    ([['low', 'high', 'low']], 30.0, {}, '3 texts of 15 s each, but seconds=30'),
    (['low'], 301.0, {}, 'seconds=301: music has at most 300 s'),
    (['low', ' '], 4.0, {}, 'a text is blank'),
    (['low'], 0.0, {}, 'seconds=0.0: must be'),
    (['low'], 4.0, dict(num_candidates=0), 'num_candidates=0: must be'),
    (['low'], 4.0, dict(story_seconds=0.0), 'story_seconds=0.0: must be'),
  ],
)
def test_wrong_requests_are_named(texted, seen, texts, seconds, options, message):
  with pytest.raises(ValueError, match=message):
    go(texted, texts, seconds, **options)
  assert not seen


def test_texts_that_are_no_strings_or_no_unicode_are_named():
  for text, message in ((7, 'the text 7 is of type int'), ('\udcff', 'is not Unicode')):
    with pytest.raises(ValueError, match=message):
      stories.check([['low', text]], 40.0, 15.0)


def unusable():
  """Returns an embedding that fails the test when it computes anything."""

  def encode(captions):
    raise AssertionError(f'{captions} are embedded')

  return dataclasses.replace(toy_embedding.EMBEDDING, encode=encode)


@pytest.mark.parametrize('text', ['langsames Klavier', '慢钢琴', '!?'])
def test_texts_without_a_word_of_the_training_texts_are_refused_before_anything_is_computed(
  texted, seen, text
):
  own = texted.tokenizer
  music = dataclasses.replace(own.music, words=frozenset({'low', 'middle', 'high', 'é'}))
  music = dataclasses.replace(music, embedding=unusable())
  known = texted._replace(tokenizer=tokenizer.Tokenizer(own.codec, own.semantic, music))
  with pytest.raises(UserError, match='has no word of the texts .*, such as middle, high, low, é'):
    go(known, ['low', text], 4.0)
  music.check_words(['a LOW hum', 'éveil'])
  own.music.check_words([text])  # no words are known
  assert not seen


def test_models_without_mulan_or_condition_say_so(models, texted):  # noqa: F811
  with pytest.raises(ValueError, match='no joint embedding of audio and texts'):
    go(models, ['low'], 4.0)
  with pytest.raises(ValueError, match='were trained without a condition'):
    go(texted, ['low'], 0.4)


def test_music_is_made_by_conditioned_models(models):  # noqa: F811
  """From texts to audio through all stages."""
  own = conditioned(models, coarse=1)
  own = own._replace(
    tokenizer=tokenizer.Tokenizer(
      models.tokenizer.codec, models.tokenizer.semantic, toy_embedding.tokenizer(2)
    )
  )
  made = music_generation.from_texts(
    own, jax.random.key(0), ['low', 'high'], 0.4, carry_seconds=0.12, num_candidates=2
  )
  assert made.audio.wave_BT.shape == (2, 80) and made.audio.num_frames_B.tolist() == [20, 20]
  assert np.all(np.abs(made.similarity_B) <= 1)


def test_a_tokenizer_with_music_has_a_third_fingerprint_and_states_its_levels(texted, models):  # noqa: F811
  prints = texted.tokenizer.fingerprints
  assert set(prints) == {'soundstream', 'semantic_tokens', 'music_tokens'}
  assert set(models.tokenizer.fingerprints) == {'soundstream', 'semantic_tokens'}
  assert dataclasses.asdict(texted.tokenizer.spec)['condition_levels'] == 3
  assert dataclasses.asdict(texted.tokenizer.spec)['condition_size'] == 8
  assert models.tokenizer.spec.condition_levels is None


class Melodies:
  """An embedding of melodies of which only the cut windows count."""

  config = melody.Config(sample_rate=1000, crop_seconds=0.5, starts=(0.0, 1.0))


@pytest.fixture
def melodies(monkeypatch):
  """The tokens of a window are a tenth of a second for each of its start, and 7."""

  def tokens_of(config, variables, vectors_QKD, wave_BT):
    assert wave_BT.shape == (tokenizer.MELODY_ROWS, 500)
    starts_B = np.rint(100 * wave_BT[:, 0]).astype(int)
    return np.stack([starts_B, np.full(len(starts_B), 7)], axis=1)

  monkeypatch.setattr(tokenizer, '_melody_tokens', tokens_of)
  vectors_QKD = jnp.zeros((2, 64, 3))
  return tokenizer.MelodyTokenizer(Melodies.config, Variables({}, {}), vectors_QKD)


def test_windows_of_a_melody_start_where_they_should_as_far_as_there_are_some(melodies):
  wave_T = np.arange(2200) / 10_000  # a hundredth for a tenth of a second
  assert melodies.codebook == tokens.Codebook(4, 64)
  found_SN = melodies.encode(wave_T, 1000, (0.0, 1.0, 2.0))
  np.testing.assert_array_equal(found_SN, [[0, 7, 10, 7], [10, 7, 17, 7], [17, 7, 17, 7]])
  np.testing.assert_array_equal(melodies.encode(wave_T[:300], 1000), [[0, 7, 0, 7]])
  many_SN = melodies.encode(np.arange(12_500) / 10_000, 1000, np.arange(12.0).tolist())
  assert many_SN[:, 0].tolist() == list(range(0, 120, 10))


def test_tokens_of_a_melody_come_before_those_of_clips_and_texts(texted, melodies):
  music = dataclasses.replace(texted.tokenizer.music, melody=melodies)
  assert music.codebook == tokens.Codebook(4 + 3, 64)
  np.testing.assert_array_equal(music.texts(['high']), [[-1, -1, -1, -1, 2, 0, 0]])
  clip_T = np.full(800, 0.125, np.float32)  # 4 s, of which the melody reads 1000 samples a second
  found = music.seconds(clip_T, 200, (1,))[1]
  np.testing.assert_array_equal(found[0], [12, 7, 12, 7, 1, 0, 0])
  np.testing.assert_array_equal(music.clips(clip_T[None], 200), [[-1] * 4 + [1, 0, 0]])
  assert music.fingerprint != texted.tokenizer.music.fingerprint


@pytest.fixture
def hummed(texted, melodies):
  """Returns models that read melodies, and a tone at their rate."""
  own = texted.tokenizer
  music = dataclasses.replace(own.music, melody=melodies)
  tone_T = 0.2 * np.cos(2 * np.pi * 0.05 * np.arange(4 * own.sample_rate))
  both = tokenizer.Tokenizer(own.codec, own.semantic, music)
  return texted._replace(tokenizer=both), tone_T


def test_all_rows_have_the_melody(hummed, seen):
  models, tone_T = hummed  # noqa: F811
  go(models, [['low', 'high'], 'middle'], 4.0, story_seconds=2.0, melody_T=tone_T)
  [(_, _, condition, _)] = seen
  assert condition.tokens_BGN.shape == (2, 2, 7)
  assert (condition.tokens_BGN[..., :4] == condition.tokens_BGN[0, 0, :4]).all()
  assert (condition.tokens_BGN[..., 1] == 7).all()
  np.testing.assert_array_equal(condition.tokens_BGN[..., 4], [[0, 2], [1, 1]])


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda tone_T: 0 * tone_T, 'the melody is silent'),
    (lambda tone_T: tone_T[:0], 'the melody is empty'),
    (lambda tone_T: tone_T / 0, 'samples that are not finite'),
    (
      lambda tone_T: 0.1 * np.random.default_rng(0).normal(size=4096),
      r'no pitch, its spectrum is as flat \(0.5\d\) as that of noise',
    ),
  ],
)
def test_melodies_without_a_pitch_are_refused(hummed, seen, change, message):
  models, tone_T = hummed  # noqa: F811
  own = models.tokenizer
  unused = dataclasses.replace(own.music, embedding=unusable())
  models = models._replace(tokenizer=tokenizer.Tokenizer(own.codec, own.semantic, unused))
  with np.errstate(all='ignore'), pytest.raises(UserError, match=message):
    go(models, ['low'], 4.0, melody_T=change(tone_T))
  assert not seen


def test_models_without_melodies_say_so(texted, seen):
  with pytest.raises(UserError, match='no embedding of melodies .* such as tiny_melody'):
    go(texted, ['low'], 4.0, melody_T=np.ones(400))
