"""Generates audio: prompt -> tokens -> semantic model -> acoustic models -> codec decoder.

The acoustic models are the coarse and fine language models (`acoustic='autoregressive'`), or
SoundStorm instead of both (`acoustic='soundstorm'`), which needs frame-aligned semantic tokens.

Source: AudioLM (arXiv 2209.03143), sections III-C and IV; SoundStorm (arXiv 2305.09636). Details
that the papers leave open:

- Windows. Rows longer than the crop of a model are generated window by window. If past and future
  of a row fit the crop, the window contains all of its past, otherwise only the last
  `carry_seconds` (with SoundStorm, as much as fits, but at least those). The default is
  CARRY_SECONDS, but at most half of the crop. The model is conditioned on the semantic tokens that
  overlap the window.
- Alignment. Deduplicated semantic tokens have no durations. Durations in the prompt are measured.
  Generated tokens are assumed to have the mean duration of the prompt's tokens (without a prompt,
  UNKNOWN_DURATION), so the speaking rate of the prompt determines the number of tokens.
- Streams. `continue_stream` and `acoustics_stream` compute the semantic tokens and codes of a
  window when the waveform before it is taken, and decode them by the codec's stream. The draws are
  those of the whole clip.
- Compilation. To limit the number of compiled shapes, waveforms are padded to whole seconds, and
  sequences and batches as described in decoding.py. Autoregressive sequences are padded on the
  left, where padding has no effect because positions are relative.
- Conditions (MusicLM, arXiv 2301.11325). New audio may follow tokens of texts, each for a segment
  of it (`Segments`). A window reads the condition of the segment of its first new frame. The
  semantic model starts a new window with each segment. A conditioned model without a condition
  reads PAD, which needs training with `Condition.dropout`.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, decoding
from audiolm_jax.chain import (
  Models,
  SamplingConfig,
  acoustic_model,
  acoustic_name,
  check,
  num_levels,
  reads_semantic,
)
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.token_generation import (
  How,
  Segments,
  Semantic,
  Timed,
  Work,
  carry_frames,
  extend_semantic,
  new_codes,
  timed_tokens,
)
from audiolm_jax.tokens import PAD

STREAM_SECONDS = 0.2  # decoded per call of a codec's stream: one shape to compile


class Continuation(NamedTuple):
  """Holds generated audio and its tokens; rows are padded on the right.

  Fields:
    wave_BT: prompt and continuation; padding is 0.
    semantic_BS: semantic tokens, frame-aligned, or deduplicated for autoregressive generation with
      a deduplicated semantic model; padding is PAD.
    codes_BFQ: codes; padding is PAD.
    num_frames_B: codec frames of each row.
    prompt_frames_B: codec frames of each row that are the prompt's.
  """

  wave_BT: np.ndarray
  semantic_BS: np.ndarray
  codes_BFQ: np.ndarray
  num_frames_B: np.ndarray
  prompt_frames_B: np.ndarray


def continue_audio(
  models: Models,
  key: jax.Array,
  prompt_BT: Float[Array | np.ndarray, 'B T'],
  num_samples_B: Int[Array | np.ndarray, 'B'] | None = None,
  *,
  seconds: float,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  condition: Segments | None = None,
  guidance: float = 1.0,
  progress: Callable[[int, int], Any] | None = None,
) -> Continuation:
  """Returns each prompt, through the codec, followed by new audio.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    prompt_BT: prompts in [-1, 1] at the sample rate of the tokenizer, padded on the right.
    num_samples_B: number of samples of each prompt; None for all.
    seconds: length of the new audio; rounded to whole semantic frames (of 40 ms).
    sampling: sampling rules; None takes those of `models`.
    carry_seconds: past in later windows, see the module's docstring.
    acoustic: one of ACOUSTIC, see the module's docstring.
    condition: conditions of the new audio; None: no condition.
    guidance: strength of classifier-free guidance, see decoding.py; 1: off.
    progress: called after each window with the number of codec frames that the acoustic models have
      made, each one counted by its own, and the number that they will make in all rows.

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  how = How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance, progress)
  check(models, acoustic, how.rules)
  work = _continuation(models, key, prompt_BT, num_samples_B, seconds, how)
  return _acoustics(models, key, work, how)


def continue_stream(
  models: Models,
  key: jax.Array,
  prompt_T: Float[Array | np.ndarray, 'T'],
  *,
  seconds: float,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  condition: Segments | None = None,
  guidance: float = 1.0,
) -> Iterator[np.ndarray]:
  """Returns an iterator over the waveform of `continue_audio`, computed window by window.

  The prompt through the codec comes first, before anything is generated. A later piece is computed
  when it is taken; closing the iterator ends the computation.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    prompt_T: prompt in [-1, 1] at the sample rate of the tokenizer.
    seconds: length of the new audio; rounded to whole semantic frames (of 40 ms).
    sampling, carry_seconds, acoustic, condition, guidance: see `continue_audio`.

  Returns:
    Waveforms [T] whose concatenation equals the row of `continue_audio` for the same key, except
    that a code may differ where rounding decides a draw.

  Raises:
    UserError: as `continue_audio`; if the codec has no stream.
  """
  checks.shapes(prompt_T=prompt_T)
  how = How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  check(models, acoustic, how.rules)
  _check_stream(models, how)
  work = _continuation(models, key, np.asarray(prompt_T)[None], None, seconds, how)
  return _stream(models, key, work, how)


def _continuation(models, key, prompt_BT, num_samples_B, seconds, how: How) -> Work:
  """Returns what the acoustic models of a continuation read."""
  _check_condition(models, how, len(prompt_BT))
  num_new = _whole_frames(models, seconds)
  semantic_BS, codes_BFQ = models.tokenizer.encode(prompt_BT, num_samples_B)
  timed = [timed_tokens(row_S, models.semantic.config.deduplicate) for row_S in semantic_BS]
  prompts = [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in codes_BFQ]
  return _extended(models, key, timed, (semantic_BS != PAD).sum(axis=1), prompts, num_new, how)


def _extended(
  models, key, timed: list[Timed], frames_B, prompts: list[np.ndarray], num_new: int, how: How
) -> Work:
  """Returns what the acoustic models read, with `num_new` semantic frames appended to each row."""
  more = None
  if reads_semantic(models, how.acoustic):
    more = extend_semantic(models, jax.random.fold_in(key, 0), timed, frames_B, num_new, how)
  new_frames = _codec_frames(models, [num_new] * len(prompts))
  return Work(Semantic(timed, more), prompts, new_frames)


def generate_acoustics(
  models: Models,
  key: jax.Array,
  semantic_BS: Int[Array | np.ndarray, 'B S'],
  prompt_BFQ: Int[Array | np.ndarray, 'B F Q'] | None = None,
  *,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  condition: Segments | None = None,
  guidance: float = 1.0,
  progress: Callable[[int, int], Any] | None = None,
) -> Continuation:
  """Returns new audio for given semantic tokens: the same words in another voice.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    semantic_BS: frame-aligned semantic tokens, PAD on the right.
    prompt_BFQ: codes of the first frames, PAD on the right, which are kept, and whose voice
      continues; None: no prompt.
    sampling, carry_seconds, acoustic, condition, guidance, progress: see `continue_audio`.

  Raises:
    UserError: if the models do not match one another or the rules, an argument is out of range, or
      a prompt is longer than its semantic tokens.
  """
  how = How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance, progress)
  check(models, acoustic, how.rules, semantic_given=True)
  work = _given(models, semantic_BS, prompt_BFQ, how)
  return _acoustics(models, key, work, how)


def acoustics_stream(
  models: Models,
  key: jax.Array,
  semantic_S: Int[Array | np.ndarray, 'S'],
  prompt_FQ: Int[Array | np.ndarray, 'F Q'] | None = None,
  *,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  condition: Segments | None = None,
  guidance: float = 1.0,
) -> Iterator[np.ndarray]:
  """Returns an iterator over the waveform of `generate_acoustics`, computed window by window.

  Pieces are those of `continue_stream`.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    semantic_S: frame-aligned semantic tokens.
    prompt_FQ: codes of the prompt; None: no prompt, the voice is sampled.
    sampling, carry_seconds, acoustic, condition, guidance: see `continue_audio`.

  Raises:
    UserError: as `generate_acoustics`; if the codec has no stream.
  """
  checks.shapes(semantic_S=semantic_S, **({} if prompt_FQ is None else {'prompt_FQ': prompt_FQ}))
  how = How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  check(models, acoustic, how.rules, semantic_given=True)
  _check_stream(models, how)
  prompt_BFQ = None if prompt_FQ is None else np.asarray(prompt_FQ)[None]
  work = _given(models, np.asarray(semantic_S)[None], prompt_BFQ, how)
  return _stream(models, key, work, how)


def _given(models, semantic_BS, prompt_BFQ, how: How) -> Work:
  """Returns what the acoustic models read, for given semantic tokens.

  Raises:
    UserError: if tokens, codes or the condition are out of range, or a prompt is longer than its
      tokens.
  """
  semantic_BS = np.asarray(semantic_BS)
  checks.shapes(semantic_BS=semantic_BS)
  _check_condition(models, how, len(semantic_BS))
  num_clusters = acoustic_model(models, how.acoustic).config.num_clusters
  checks.ids('semantic_BS', semantic_BS, num_clusters)
  prompts = _prompt_rows(prompt_BFQ, len(semantic_BS), models.tokenizer.codec)
  whole = _codec_frames(models, (semantic_BS != PAD).sum(axis=1))
  new_frames = [frames - len(row) for frames, row in zip(whole, prompts, strict=True)]
  if min(new_frames, default=0) < 0:
    raise UserError(
      f'a prompt is {-min(new_frames)} frames longer than its semantic tokens: cut it'
    )
  deduplicate = models.semantic.config.deduplicate and how.acoustic == 'autoregressive'
  timed = [timed_tokens(row_S, deduplicate) for row_S in semantic_BS]
  return Work(Semantic(timed), prompts, new_frames)


def _prompt_rows(prompt_BFQ, batch_size, codec: Codec) -> list[np.ndarray]:
  if prompt_BFQ is None:
    return [np.zeros((0, codec.num_quantizers), np.int32)] * batch_size
  prompt_BFQ = np.asarray(prompt_BFQ)
  if prompt_BFQ.ndim != 3 or prompt_BFQ.shape[::2] != (batch_size, codec.num_quantizers):
    raise UserError(
      f'prompt_BFQ has shape {prompt_BFQ.shape}: it needs {batch_size} rows, like the semantic '
      f'tokens, of all {codec.num_quantizers} levels'
    )
  checks.ids('prompt_BFQ', prompt_BFQ, codec.codebook_size)
  return [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in prompt_BFQ]


def generate_unconditional(
  models: Models,
  key: jax.Array,
  batch_size: int,
  seconds: float,
  *,
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
  condition: Segments | None = None,
  guidance: float = 1.0,
  progress: Callable[[int, int], Any] | None = None,
) -> Continuation:
  """Returns audio generated without a prompt.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    batch_size: number of rows.
    seconds: length of each row; rounded to whole semantic frames (of 40 ms).
    sampling, carry_seconds, acoustic, condition, guidance, progress: see `continue_audio`.

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  how = How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance, progress)
  check(models, acoustic, how.rules)
  checks.values(batch_size=(batch_size, checks.WHOLE))
  _check_condition(models, how, batch_size)
  num_new = _whole_frames(models, seconds)
  timed = [Timed(np.zeros(0, np.int32), np.zeros(0))] * batch_size
  prompts = _prompt_rows(None, batch_size, models.tokenizer.codec)
  work = _extended(models, key, timed, np.zeros(batch_size, int), prompts, num_new, how)
  return _acoustics(models, key, work, how)


def _check_condition(models, how: How, batch_size):
  """Checks a condition against the models that read it.

  Raises:
    UserError: if no model reads it, it has another shape, or guidance cannot be.
  """
  condition, guidance = how.condition, how.guidance
  checks.values(guidance=(guidance, checks.NOT_NEGATIVE))
  if condition is None:
    if guidance != 1:
      raise UserError(f'guidance={guidance} needs a condition: pass one, or leave guidance out')
    return
  stages = {
    'semantic': models.semantic,
    acoustic_name(how.acoustic): acoustic_model(models, how.acoustic),
  }
  readers = {
    name: stage.config.condition
    for name, stage in stages.items()
    if stage.config.condition is not None
  }
  if not readers:
    raise UserError(
      f'the stages {" and ".join(stages)} were trained without a condition, so that texts cannot '
      'control them: train them with model.condition, as in the recipe tiny_music'
    )
  shape = np.shape(condition.tokens_BGN)
  levels = max(reader.levels for reader in readers.values())
  if len(shape) != 3 or shape[0] != batch_size or not shape[1] or shape[2] < levels:
    raise UserError(
      f'condition.tokens_BGN has shape {shape}: it needs {batch_size} rows of one or more segments '
      f'with at least {levels} tokens each'
    )
  if not condition.seconds > 0:
    raise UserError(f'condition.seconds={condition.seconds}: must be above 0')
  untrained = [name for name, reader in readers.items() if not reader.dropout]
  if guidance != 1 and untrained:
    raise UserError(
      f'guidance={guidance}: the stage {untrained[0]} was trained without condition.dropout, so it '
      'cannot generate without a condition, which guidance needs: leave guidance out, or train it '
      'with a dropout of 0.1'
    )


def _whole_frames(models, seconds):
  checks.values(seconds=(seconds, checks.POSITIVE))
  frames = round(seconds * models.semantic.config.semantic_rate)
  if frames < 1:
    raise UserError(f'seconds={seconds} is less than one semantic frame: choose a larger value')
  return frames


def _codec_frames(models, semantic_frames) -> list[int]:
  return [models.tokenizer.frames_per_semantic * int(frames) for frames in semantic_frames]


def _acoustics(models, key, work: Work, how: How) -> Continuation:
  """Generates codes after those of the prompts, and decodes both."""
  levels = num_levels(models, how.acoustic)
  prompts = [prompt_FQ[:, :levels] for prompt_FQ in work.prompts]
  parts = new_codes(models, key, work, how, at_once=True)
  rows = decoding.joined(prompts, parts)
  codes_BFQ = decoding.stack(rows, max(len(row) for row in rows), levels)
  num_frames_B = np.array([len(row) for row in rows])
  wave_BT = models.tokenizer.decode(codes_BFQ, num_frames_B)
  token_rows = [row.token_N[:, None] for row in work.semantic.whole()]
  semantic_BS = decoding.stack(token_rows, max(map(len, token_rows)), 1)[..., 0]
  return Continuation(
    wave_BT, semantic_BS, codes_BFQ, num_frames_B, np.array([len(p) for p in prompts])
  )


def _check_stream(models, how: How):
  """Checks what `_stream` needs.

  Raises:
    UserError: if the codec has no stream, or `how.carry_seconds` is out of range.
  """
  carry_frames(acoustic_model(models, how.acoustic).config, how.carry_seconds)
  if models.tokenizer.codec.stream is None:
    raise UserError(
      f'the codec {type(models.tokenizer.codec.config).__module__} needs whole clips: use '
      'continue_audio or generate_acoustics'
    )


def _stream(models, key, work: Work, how: How) -> Iterator[np.ndarray]:
  """Yields the waveform [T] of the only row: first the prompt, then window by window."""
  codec = models.tokenizer.codec
  prompts = [prompt_FQ[:, : num_levels(models, how.acoustic)] for prompt_FQ in work.prompts]
  parts = new_codes(models, key, work, how, at_once=False)
  state, size = codec.stream.decoder_state(1), max(1, round(STREAM_SECONDS * codec.frame_rate))
  waiting_FQ = prompts[0][:0]
  for [part_FQ] in itertools.chain([prompts], parts):
    waiting_FQ, waves = np.concatenate([waiting_FQ, part_FQ]), []
    while len(waiting_FQ) >= size:
      wave_BT, state = codec.stream.decode(state, waiting_FQ[None, :size])
      waves.append(np.asarray(wave_BT)[0])
      waiting_FQ = waiting_FQ[size:]
    if waves:
      yield np.concatenate(waves)
  if count := len(waiting_FQ):
    # A decoder with a stream is causal: what completes the last call does not change its frames.
    wave_BT, _ = codec.stream.decode(
      state, np.pad(waiting_FQ, ((0, size - count), (0, 0)), mode='edge')[None]
    )
    yield np.asarray(wave_BT)[0, : count * codec.hop_length]
