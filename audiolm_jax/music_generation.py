"""Generates music from texts, like MusicLM (arXiv 2301.11325).

  made = from_texts(models, key, ['a slow piece for solo piano', 'a lively tune for flute'], 30.0)
  made = from_texts(models, key, [['time to meditate', 'time to wake up', 'time to run']], 45.0)
  made = from_texts(models, key, ['a string quartet'], 10.0, melody_T=hummed_T)

The tokens of a text take the place of those of the audio that the models were trained with (see
`tokenizer.MusicTokenizer`). Music longer than the crop of the semantic model is generated with half
of the crop as the past, and each text of a story has its own segment, both as in the paper.

A melody is heard in the first ten seconds of a recording, and asked for in all of the music.

The paper generates up to five minutes, and chooses among no candidates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from audiolm_jax import audio, checks, embedding_tokens, generation
from audiolm_jax import stories as story_checks
from audiolm_jax.chain import Models, SamplingConfig
from audiolm_jax.errors import UserError
from audiolm_jax.generation import Continuation
from audiolm_jax.metrics import music as metrics
from audiolm_jax.token_generation import Segments
from audiolm_jax.tokenizer import Tokenizer

_SILENCE = 1e-3  # largest sample of what is no melody
_NOISE = 0.2  # spectral flatness from which on there is no pitch


class Music(NamedTuple):
  """Holds generated music and the cosine of the vectors of its audio and of its texts."""

  audio: Continuation
  similarity_B: np.ndarray


def from_texts(
  models: Models,
  key: jax.Array,
  texts: Sequence[str | Sequence[str]],
  seconds: float,
  *,
  story_seconds: float = story_checks.SEGMENT_SECONDS,
  num_candidates: int = 1,
  guidance: float = 1.0,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  melody_T: Float[np.ndarray, 'T'] | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> Music:
  """Returns music of a length in seconds for each text or story.

  Args:
    models: from `load_models` or `from_pretrained`, with a joint embedding of audio and texts.
    key: PRNG key.
    texts: for each row a text, or the texts of a story, one per segment.
    seconds: length of each row, at most `stories.MAX_SECONDS`.
    story_seconds: length of the segments of stories; the last one lasts until the end.
    num_candidates: number of rows that are generated for each text; the most similar one is kept.
    guidance: see `generation.continue_audio`.
    sampling: see `generation.continue_audio`.
    carry_seconds: see `generation.continue_audio`.
    acoustic: see `generation.continue_audio`.
    melody_T: recording of a melody that all rows should have, at the sample rate of the tokenizer.
    progress: see `generation.continue_audio`.

  Raises:
    UserError: if the models cannot be controlled by texts, or by the melody; if the melody has no
      pitch, as silence and noise have none; if a text is blank or too long, or has no word
      of the training texts; if a story has a text whose segment would start after the end; as
      `generation.continue_audio`.
  """
  checks.values(num_candidates=(num_candidates, checks.WHOLE))
  if isinstance(texts, str):
    raise UserError(f'texts={texts[:40]!r} is a single text: put it into a list')
  stories = [[row] if isinstance(row, str) else list(row) for row in texts]
  story_checks.check(stories, seconds, story_seconds)
  music = models.tokenizer.music
  if music is None:
    raise UserError(
      'the models have no joint embedding of audio and texts (stage mulan), so that texts cannot '
      'control them: use models of a recipe with that stage, such as tiny_music'
    )
  known = list(dict.fromkeys(text for story in stories for text in story))
  music.check_words(known)
  if melody_T is not None:
    _check_melody(models.tokenizer, melody_T)
  num_segments = max(map(len, stories))
  # The last text of a row lasts until the end.
  filled = [story + story[-1:] * (num_segments - len(story)) for story in stories]
  number = {text: n for n, text in enumerate(known)}
  chosen_BG = np.array([[number[text] for text in story] for story in filled])
  vectors_ND = music.embedding.texts(known)
  text_NQ = np.asarray(embedding_tokens.text_tokens(music.quantizer, vectors_ND))
  melody_NM = None
  if melody_T is not None:
    melody_1M = music.melody.encode(melody_T, models.tokenizer.sample_rate)
    melody_NM = melody_1M.repeat(len(known), axis=0)
  tokens_BGN = music.joined(text_NQ, melody_NM)[chosen_BG]
  condition = Segments(
    tokens_BGN.repeat(num_candidates, axis=0), story_seconds if num_segments > 1 else float('inf')
  )
  made = generation.generate_unconditional(
    models,
    key,
    len(stories) * num_candidates,
    seconds,
    sampling=sampling,
    carry_seconds=carry_seconds,
    acoustic=acoustic,
    condition=condition,
    guidance=guidance,
    progress=progress,
  )
  vectors_BGD = vectors_ND[chosen_BG].repeat(num_candidates, axis=0)
  similarity_B = similarity(models.tokenizer, made, vectors_BGD, condition.seconds)
  best_B = similarity_B.reshape(len(stories), num_candidates).argmax(axis=1)
  best_B += num_candidates * np.arange(len(stories))
  return Music(Continuation(*(field[best_B] for field in made)), similarity_B[best_B])


def _check_melody(tokenizer: Tokenizer, melody_T: Float[np.ndarray, 'T']) -> None:
  """Checks a melody before anything is computed.

  Raises:
    UserError: if there is no embedding of melodies, or the melody has no pitch.
  """
  checks.shapes(melody_T=melody_T)
  if tokenizer.music.melody is None:
    raise UserError(
      'the models have no embedding of melodies (stage melody): leave the melody out, or use '
      'models of a recipe with that stage, such as tiny_melody'
    )
  if not len(melody_T) or not np.isfinite(melody_T).all():
    raise UserError('the melody is empty or has samples that are not finite: check its file')
  if np.abs(melody_T).max() < _SILENCE:
    raise UserError('the melody is silent: give a recording of a melody')
  if (heard := metrics.flatness(melody_T)) > _NOISE:
    raise UserError(
      f'the melody has no pitch, its spectrum is as flat ({heard:.2f}) as that of noise: give a '
      'recording of one voice or instrument'
    )


def similarity(
  tokenizer: Tokenizer,
  made: Continuation,
  vectors_BGD: Float[np.ndarray, 'B G D'],
  segment_seconds: float,
) -> Float[np.ndarray, 'B']:
  """Returns the cosine of each segment's audio and text, averaged over the time of each row.

  Args:
    tokenizer: with a joint embedding.
    made: audio without a prompt.
    vectors_BGD: unit vectors of the texts of the segments.
    segment_seconds: length of a segment; the last one lasts until the end.
  """
  rate, hop = tokenizer.sample_rate, tokenizer.codec.hop_length
  embedding = tokenizer.music.embedding
  total_B = np.zeros(len(vectors_BGD))
  for b, (wave_T, num_frames) in enumerate(zip(made.wave_BT, made.num_frames_B, strict=True)):
    wave_T = wave_T[: num_frames * hop]
    starts = [round(g * segment_seconds * rate) if g else 0 for g in range(len(vectors_BGD[b]))]
    ends = [*starts[1:], len(wave_T)]
    for vector_D, start, end in zip(vectors_BGD[b], starts, ends, strict=True):
      part_T = wave_T[start : min(end, len(wave_T))]
      if len(part_T):
        part_1T = audio.resample(np.asarray(part_T)[None], rate, embedding.sample_rate)
        cosine = float(embedding.audio(part_1T)[0] @ vector_D)
        total_B[b] += cosine * len(part_T) / len(wave_T)
  return total_B
