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

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, decoding, storage, tokens
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import OwnRule, ParallelRule, Rule, as_pytree, check_parallel, draw
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import Tokenizer, load_tokenizer
from audiolm_jax.tokens import PAD
from audiolm_jax.training import checkpoints

ACOUSTIC = ('autoregressive', 'soundstorm')
CARRY_SECONDS = 3.0  # of the past in each later window, but at most half of the crop
UNKNOWN_DURATION = 2.0  # semantic frames (of 40 ms) per deduplicated token, without a prompt
STREAM_SECONDS = 0.2  # decoded per call of a codec's stream: one shape to compile


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Configures the sampling rule of each model.

  Defaults are the temperatures of AudioLM, section IV-B, without filters. A custom rule is a
  function (key, logits_BV, past_BN) -> token_B, see `sampling.OwnRule`. Example (min-p):

    def min_p(key, logits_BV, past_BN):
      least_B1 = logits_BV.max(axis=-1, keepdims=True) + math.log(0.05)
      return jax.random.categorical(key, jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV))

    SamplingConfig(coarse=min_p)
  """

  semantic: Rule | OwnRule = Rule(0.6)
  coarse: Rule | OwnRule = Rule(0.8)
  fine: Rule | OwnRule = Rule(0.6)
  soundstorm: ParallelRule = ParallelRule()

  def __post_init__(self):
    a_rule = checks.Legal(
      'a sampling.Rule or a function', lambda value: isinstance(value, Rule) or callable(value)
    )
    parallel = checks.Legal(
      'a sampling.ParallelRule', lambda value: isinstance(value, ParallelRule)
    )
    checks.fields(self, semantic=a_rule, coarse=a_rule, fine=a_rule, soundstorm=parallel)


class Models(NamedTuple):
  """Holds the tokenizer, the language models and their sampling rules.

  Acoustic models that are not used may be None. `fine` is also None if the coarse model generates
  all levels (piano).
  """

  tokenizer: Tokenizer
  semantic: Model
  coarse: Model | None = None
  fine: Model | None = None
  soundstorm: Model | None = None
  sampling: SamplingConfig = SamplingConfig()


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


class Segments(NamedTuple):
  """Holds the conditions of new audio, one segment after another.

  Fields:
    tokens_BGN: tokens of each segment G of each row.
    seconds: length of a segment; the last one has no end.
  """

  tokens_BGN: Int[np.ndarray, 'B G N']
  seconds: float = float('inf')

  def number(self, seconds: float) -> int:
    """Returns the segment of a time in seconds since the start of the new audio."""
    return min(int(seconds // self.seconds), self.tokens_BGN.shape[1] - 1)


class Timed(NamedTuple):
  """Holds the semantic tokens of a row, and the semantic frame at which each starts.

  Starts computed from an assumed duration may be fractional.
  """

  token_N: np.ndarray
  start_N: np.ndarray


class _Semantic:
  """Holds the semantic tokens of each row, and generates more of them when they are read."""

  def __init__(self, timed: list[Timed], more: Iterator[list[Timed]] | None = None):
    self._timed, self._more = timed, iter(()) if more is None else more

  def until(self, row: int, frame: int | float) -> Timed:
    """Returns the tokens of a row, complete for the semantic frames before `frame`."""
    # A token ends where the next one starts, so one more is needed.
    while not (self._timed[row].start_N >= frame).any() and self._grow():
      pass
    return self._timed[row]

  def whole(self) -> list[Timed]:
    """Returns all tokens of all rows."""
    while self._grow():
      pass
    return self._timed

  def _grow(self) -> bool:
    grown = next(self._more, None)
    self._timed = self._timed if grown is None else grown
    return grown is not None


class _How(NamedTuple):
  """Holds the options of a pipeline, see `continue_audio`."""

  rules: SamplingConfig
  carry_seconds: float | None
  acoustic: str
  condition: Segments | None
  guidance: float

  def guided(self, config, condition: decoding.GetCondition) -> dict[str, Any]:
    """Returns the options of decoding.py for a model: a condition if there is one that it reads."""
    if self.condition is None or config.condition is None:
      return {}
    return dict(condition=condition, guidance=self.guidance)


class _Work(NamedTuple):
  """Holds input of acoustic models: tokens, codes [F, Q] of prompts, numbers of new frames."""

  semantic: _Semantic
  prompts: list[np.ndarray]
  new_frames: list[int]


def load_models(
  workdir: str | os.PathLike,
  *,
  coarse: str = 'coarse',
  stages: Collection[str] | None = None,
  remedy: str = 'fit the clusters again',
) -> Models:
  """Returns the models of a workdir or release, after checking that they belong together.

  Args:
    workdir: folder of the stages.
    coarse: name of the folder of the coarse stage.
    stages: acoustic stages to read, of `coarse`, 'fine' and 'soundstorm'; None reads those present.
    remedy: last words of the error message if the clusters are missing or damaged.

  Raises:
    UserError: if the tokenizer, the semantic stage or one of `stages` is missing; if there is
      neither `coarse` nor soundstorm; if fingerprints differ.
  """
  folder, names = storage.path(workdir), (coarse, 'fine', 'soundstorm')
  if unknown := sorted(set(stages or ()) - set(names)):
    raise UserError(f'stages={unknown}: choose from {", ".join(names)}')
  acoustic = [name for name in names if (folder / name).is_dir()]
  if stages is not None:
    if missing := [name for name in stages if name not in acoustic]:
      raise UserError(f'{folder} has no stage {missing[0]}: it has {", ".join(acoustic)}')
    acoustic = [name for name in acoustic if name in stages]
  needed = ['semantic'] + ([] if {coarse, 'soundstorm'} & set(acoustic) else [coarse])
  if missing := [name for name in needed if not (folder / name).is_dir()]:
    raise UserError(f'{folder} has no stage {missing[0]}: train it first')
  tokenizer = load_tokenizer(folder, remedy)
  found = {name: checkpoints.load_variables(folder / name) for name in ('semantic', *acoustic)}
  for name, model in found.items():
    for part, expected in tokenizer.fingerprints.items():
      trained_on = model.metadata['fingerprints'].get(part)
      if trained_on != expected:
        raise UserError(
          f'stage {name} was trained on tokens of {part} {trained_on}, but {folder} holds {part} '
          f'{expected}: train it again, or use the workdir of its training'
        )
  return Models(
    tokenizer,
    found['semantic'],
    coarse=found.get(coarse),
    fine=found.get('fine'),
    soundstorm=found.get('soundstorm'),
  )


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

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  how = _How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  _check(models, how)
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
  when it is taken; closing the iterator ends the computation. Arguments are those of
  `continue_audio`, for one prompt.

  Returns:
    Waveforms [T] whose concatenation equals the row of `continue_audio` for the same key, except
    that a code may differ where rounding decides a draw.

  Raises:
    UserError: as `continue_audio`; if the codec has no stream.
  """
  checks.shapes(prompt_T=prompt_T)
  how = _How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  _check(models, how)
  _check_stream(models, how)
  work = _continuation(models, key, np.asarray(prompt_T)[None], None, seconds, how)
  return _stream(models, key, work, how)


def _continuation(models, key, prompt_BT, num_samples_B, seconds, how: _How) -> _Work:
  """Returns what the acoustic models of a continuation read."""
  _check_condition(models, how, len(prompt_BT))
  num_new = _whole_frames(models, seconds)
  semantic_BS, codes_BFQ = models.tokenizer.encode(prompt_BT, num_samples_B)
  timed = [_timed(row_S, models.semantic.config.deduplicate) for row_S in semantic_BS]
  prompts = [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in codes_BFQ]
  return _extended(models, key, timed, (semantic_BS != PAD).sum(axis=1), prompts, num_new, how)


def _extended(
  models, key, timed: list[Timed], frames_B, prompts: list[np.ndarray], num_new: int, how: _How
) -> _Work:
  """Returns what the acoustic models read, with `num_new` semantic frames appended to each row."""
  more = None
  if _reads_semantic(models, how.acoustic):
    more = _extend_semantic(models, jax.random.fold_in(key, 0), timed, frames_B, num_new, how)
  new_frames = _codec_frames(models, [num_new] * len(prompts))
  return _Work(_Semantic(timed, more), prompts, new_frames)


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
) -> Continuation:
  """Returns new audio for given semantic tokens: the same words in another voice.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    semantic_BS: frame-aligned semantic tokens, PAD on the right.
    prompt_BFQ: codes of the first frames, PAD on the right, which are kept, and whose voice
      continues; None: no prompt.
    sampling: sampling rules; None takes those of `models`.
    carry_seconds: past in later windows, see the module's docstring.
    acoustic: one of ACOUSTIC, see the module's docstring.
    condition: conditions of the new audio; None: no condition.
    guidance: strength of classifier-free guidance, see decoding.py; 1: off.

  Raises:
    UserError: if the models do not match one another or the rules, an argument is out of range, or
      a prompt is longer than its semantic tokens.
  """
  how = _How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  _check(models, how, semantic_given=True)
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

  Pieces are those of `continue_stream`. Arguments are those of `generate_acoustics`, for one row.

  Raises:
    UserError: as `generate_acoustics`; if the codec has no stream.
  """
  checks.shapes(semantic_S=semantic_S, **({} if prompt_FQ is None else {'prompt_FQ': prompt_FQ}))
  how = _How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  _check(models, how, semantic_given=True)
  _check_stream(models, how)
  prompt_BFQ = None if prompt_FQ is None else np.asarray(prompt_FQ)[None]
  work = _given(models, np.asarray(semantic_S)[None], prompt_BFQ, how)
  return _stream(models, key, work, how)


def _given(models, semantic_BS, prompt_BFQ, how: _How) -> _Work:
  """Returns what the acoustic models read, for given semantic tokens.

  Raises:
    UserError: if tokens, codes or the condition are out of range, or a prompt is longer than its
      tokens.
  """
  semantic_BS = np.asarray(semantic_BS)
  checks.shapes(semantic_BS=semantic_BS)
  _check_condition(models, how, len(semantic_BS))
  num_clusters = _acoustic_model(models, how.acoustic).config.num_clusters
  checks.ids('semantic_BS', semantic_BS, num_clusters)
  prompts = _prompt_rows(prompt_BFQ, len(semantic_BS), models.tokenizer.codec)
  whole = _codec_frames(models, (semantic_BS != PAD).sum(axis=1))
  new_frames = [frames - len(row) for frames, row in zip(whole, prompts, strict=True)]
  if min(new_frames, default=0) < 0:
    raise UserError(
      f'a prompt is {-min(new_frames)} frames longer than its semantic tokens: cut it'
    )
  deduplicate = models.semantic.config.deduplicate and how.acoustic == 'autoregressive'
  timed = [_timed(row_S, deduplicate) for row_S in semantic_BS]
  return _Work(_Semantic(timed), prompts, new_frames)


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
) -> Continuation:
  """Returns audio generated without a prompt.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    batch_size: number of rows.
    seconds: length of each row; rounded to whole semantic frames (of 40 ms).
    sampling: sampling rules; None takes those of `models`.
    carry_seconds: past in later windows, see the module's docstring.
    acoustic: one of ACOUSTIC, see the module's docstring.
    condition: conditions of the new audio; None: no condition.
    guidance: strength of classifier-free guidance, see decoding.py; 1: off.

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  how = _How(sampling or models.sampling, carry_seconds, acoustic, condition, guidance)
  _check(models, how)
  checks.values(batch_size=(batch_size, checks.WHOLE))
  _check_condition(models, how, batch_size)
  num_new = _whole_frames(models, seconds)
  timed = [Timed(np.zeros(0, np.int32), np.zeros(0))] * batch_size
  prompts = _prompt_rows(None, batch_size, models.tokenizer.codec)
  work = _extended(models, key, timed, np.zeros(batch_size, int), prompts, num_new, how)
  return _acoustics(models, key, work, how)


def num_levels(models: Models, acoustic: str = 'autoregressive') -> int:
  """Returns the number of levels that the models generate, which is lower without a fine model.

  Raises:
    UserError: if the models do not match one another.
  """
  if acoustic == 'soundstorm':
    return models.soundstorm.config.num_quantizers
  return _check_autoregressive(models)


def _check(models, how: _How, semantic_given=False):
  """Checks that the models needed for `how.acoustic` match one another, and the rules match them.

  Raises:
    UserError: if not.
  """
  acoustic = how.acoustic
  if acoustic not in ACOUSTIC:
    raise UserError(f'acoustic={acoustic!r}: choose one of {", ".join(ACOUSTIC)}')
  stage = _acoustic_model(models, acoustic)
  if stage is None:
    raise UserError(
      f'acoustic={acoustic!r} needs the stage {_acoustic_name(acoustic)}, which is not among the '
      'models: train it first'
    )
  levels = num_levels(models, acoustic)
  if acoustic == 'soundstorm':
    check_parallel(how.rules.soundstorm, levels)
    if models.semantic.config.deduplicate and not semantic_given:
      raise UserError(
        'SoundStorm needs frame-aligned semantic tokens, but the semantic model is deduplicated: '
        'its tokens lack the durations that align them with the codec. Train it again with '
        'semantic.model.deduplicate=False (the coarse model need not be trained again), or use '
        "acoustic='autoregressive'"
      )
  readers = {'semantic': models.semantic, _acoustic_name(acoustic): stage}
  if acoustic == 'autoregressive' and models.fine is not None:
    readers['fine'] = models.fine
  for name, model in readers.items():
    if wrong := model.config.spec.differences(models.tokenizer.spec):
      raise UserError(
        f'stage {name} was trained on other tokens: {"; ".join(wrong)}: train it on these'
      )


def _check_condition(models, how: _How, batch_size):
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
    _acoustic_name(how.acoustic): _acoustic_model(models, how.acoustic),
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


def _check_autoregressive(models) -> int:
  """Returns the number of levels that the coarse and fine models generate.

  Raises:
    UserError: if they do not match one another.
  """
  coarse = models.coarse.config
  if models.semantic.config.deduplicate and coarse.condition_on_semantic and not coarse.deduplicate:
    raise UserError(
      'the coarse model needs frame-aligned semantic tokens, but the semantic model is '
      'deduplicated: train one of them again with the same deduplicate as the other'
    )
  if models.fine is None:
    return coarse.num_quantizers
  if models.fine.config.num_coarse != coarse.num_quantizers:
    raise UserError(
      f'fine.num_coarse={models.fine.config.num_coarse} and '
      f'coarse.num_quantizers={coarse.num_quantizers} differ: train one of these stages again'
    )
  return models.fine.config.total_quantizers


def _acoustic_model(models, acoustic):
  """Returns the model that reads the semantic tokens; None if it is missing."""
  return getattr(models, _acoustic_name(acoustic))


def _acoustic_name(acoustic) -> str:
  return 'soundstorm' if acoustic == 'soundstorm' else 'coarse'


def _reads_semantic(models, acoustic) -> bool:
  return acoustic == 'soundstorm' or models.coarse.config.condition_on_semantic


def _whole_frames(models, seconds):
  checks.values(seconds=(seconds, checks.POSITIVE))
  frames = round(seconds * models.semantic.config.semantic_rate)
  if frames < 1:
    raise UserError(f'seconds={seconds} is less than one semantic frame: choose a larger value')
  return frames


def _codec_frames(models, semantic_frames) -> list[int]:
  return [models.tokenizer.frames_per_semantic * int(frames) for frames in semantic_frames]


def _timed(semantic_S, deduplicate):
  """Returns the tokens of a row, without repeats if `deduplicate`, and their first frames."""
  semantic_S = semantic_S[semantic_S != PAD]
  keep_S = tokens.first_of_run(semantic_S[None])[0] if deduplicate else semantic_S != PAD
  return Timed(semantic_S[keep_S], np.flatnonzero(keep_S).astype(float))


def _extend_semantic(
  models, key, timed: list[Timed], frames_B, num_new: int, how: _How
) -> Iterator[list[Timed]]:
  """Yields the rows after each window, in all extended by `num_new` semantic frames.

  A conditioned model starts a new window with each segment.
  """
  config, condition = models.semantic.config, how.condition
  num_segments = 1
  if condition is not None and config.condition is not None:
    num_segments = condition.tokens_BGN.shape[1]
  done = 0
  for g in range(num_segments):
    end = num_new
    if g < num_segments - 1:
      end = min(num_new, round((g + 1) * condition.seconds * config.semantic_rate))
    if end <= done:
      continue
    segment_key = jax.random.fold_in(key, done) if done else key
    parts = _extend_segment(models, segment_key, timed, frames_B + done, end - done, g, how)
    for timed in parts:
      yield timed
    done = end


def _extend_segment(
  models, key, timed: list[Timed], frames_B, num_new: int, segment: int, how: _How
) -> Iterator[list[Timed]]:
  """Yields the rows after each window, in all extended by `num_new` frames of a segment."""
  config, variables, _ = models.semantic
  durations = [
    1.0
    if not config.deduplicate
    else n / len(row.token_N)
    if len(row.token_N)
    else UNKNOWN_DURATION
    for row, n in zip(timed, frames_B, strict=True)
  ]
  parts = decoding.extend_by_window(
    config.language_model,
    variables.params,
    key,
    [row.token_N[:, None] for row in timed],
    [int(np.ceil(num_new / duration)) for duration in durations],
    crop=config.num_semantic,
    carry=config.num_semantic // 2,
    prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=0,
    rule=how.rules.semantic,
    **how.guided(config, lambda b, start: how.condition.tokens_BGN[b, segment]),
  )
  drawn = [row.token_N[:0, None] for row in timed]
  for part in parts:
    drawn = decoding.joined(drawn, [part])
    extended = []
    for before, new_N1, frames, duration in zip(timed, drawn, frames_B, durations, strict=True):
      start_N = frames + duration * np.arange(len(new_N1))
      row_N = np.concatenate([before.token_N, new_N1[:, 0]])
      start_N = np.concatenate([before.start_N, start_N])
      keep_N = start_N < frames + num_new
      extended.append(Timed(row_N[keep_N], start_N[keep_N]))
    yield extended


def _acoustics(models, key, work: _Work, how: _How) -> Continuation:
  """Generates codes after those of the prompts, and decodes both."""
  levels = num_levels(models, how.acoustic)
  prompts = [prompt_FQ[:, :levels] for prompt_FQ in work.prompts]
  parts = _codes(models, key, work, how, at_once=True)
  rows = decoding.joined(prompts, parts)
  codes_BFQ = decoding.stack(rows, max(len(row) for row in rows), levels)
  num_frames_B = np.array([len(row) for row in rows])
  wave_BT = models.tokenizer.decode(codes_BFQ, num_frames_B)
  token_rows = [row.token_N[:, None] for row in work.semantic.whole()]
  semantic_BS = decoding.stack(token_rows, max(map(len, token_rows)), 1)[..., 0]
  return Continuation(
    wave_BT, semantic_BS, codes_BFQ, num_frames_B, np.array([len(p) for p in prompts])
  )


def _check_stream(models, how: _How):
  """Checks what `_stream` needs.

  Raises:
    UserError: if the codec has no stream, or `how.carry_seconds` is out of range.
  """
  _carry(_acoustic_model(models, how.acoustic).config, how.carry_seconds)
  if models.tokenizer.codec.stream is None:
    raise UserError(
      f'the codec {type(models.tokenizer.codec.config).__module__} needs whole clips: use '
      'continue_audio or generate_acoustics'
    )


def _stream(models, key, work: _Work, how: _How) -> Iterator[np.ndarray]:
  """Yields the waveform [T] of the only row: first the prompt, then window by window."""
  codec = models.tokenizer.codec
  prompts = [prompt_FQ[:, : num_levels(models, how.acoustic)] for prompt_FQ in work.prompts]
  parts = _codes(models, key, work, how, at_once=False)
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


def _carry(config, carry_seconds: float | None) -> int:
  """Returns the number of past codec frames in later windows, a whole number of semantic frames.

  Raises:
    UserError: if it is not less than the crop.
  """
  if carry_seconds is None:
    kept = min(round(CARRY_SECONDS * config.semantic_rate), config.num_semantic // 2)
    return config.frames_per_semantic * kept
  checks.values(carry_seconds=(carry_seconds, checks.NOT_NEGATIVE))
  carry = config.frames_per_semantic * round(carry_seconds * config.semantic_rate)
  if carry >= config.num_frames:
    raise UserError(
      f'carry_seconds={carry_seconds} must be shorter than the crop, {config.crop_seconds} s'
    )
  return carry


def _codes(models, key, work: _Work, how: _How, *, at_once: bool) -> Iterator[list[np.ndarray]]:
  """Returns an iterator over the new codes [F, Q] of each row.

  at_once: whether all chunks of the fine model are one batch, which takes fewer steps; otherwise
    codes come as soon as the coarse model has made enough.
  """
  config = _acoustic_model(models, how.acoustic).config
  carry, coarse_key = _carry(config, how.carry_seconds), jax.random.fold_in(key, 1)

  def tokens_of(b, frame):
    new_seconds = (frame - len(work.prompts[b])) / config.frame_rate
    return how.condition.tokens_BGN[b, how.condition.number(new_seconds)]

  guided = how.guided(config, tokens_of)
  if how.acoustic == 'soundstorm':
    ratio = config.frames_per_semantic
    return decoding.fill_by_window(
      config,
      models.soundstorm.variables.params,
      coarse_key,
      [row_FQ[:, : config.num_quantizers] for row_FQ in work.prompts],
      work.new_frames,
      semantic=lambda b, first, stop: work.semantic.until(b, stop // ratio).token_N[
        first // ratio : stop // ratio
      ],
      carry=carry,
      how=how.rules.soundstorm,
      **guided,
    )
  parts = _coarse(models, coarse_key, work, how.rules.coarse, carry, guided)
  if models.fine is None:
    return parts
  if at_once:
    parts = [
      decoding.joined([np.zeros((0, config.num_quantizers), np.int32)] * len(work.prompts), parts)
    ]
  return _fine(models, jax.random.fold_in(key, 2), parts, work.new_frames, how.rules.fine)


def _coarse(models, key, work: _Work, rule, carry, guided) -> Iterator[list[np.ndarray]]:
  """Returns an iterator over the coarse codes [F, Q] of each row, window by window."""
  config, variables, _ = models.coarse
  ratio = config.frames_per_semantic

  def prefix(b, start, stop):
    row = work.semantic.until(b, stop / ratio)
    ends_N = np.append(row.start_N[1:], np.inf)
    token_N = row.token_N[(row.start_N < stop / ratio) & (ends_N > start / ratio)]
    if config.deduplicate:
      token_N = token_N[tokens.first_of_run(token_N[None])[0]]
    return token_N[:, None]

  return decoding.extend_by_window(
    config.language_model,
    variables.params,
    key,
    [row_FQ[:, : config.num_quantizers] for row_FQ in work.prompts],
    work.new_frames,
    crop=config.num_frames,
    carry=carry,
    prefix=prefix
    if config.condition_on_semantic
    else lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=config.num_semantic if config.condition_on_semantic else 0,
    rule=rule,
    **guided,
  )


def _fine(
  models, key, parts: Iterable[list[np.ndarray]], new_frames: list[int], rule
) -> Iterator[list[np.ndarray]]:
  """Yields new codes [F, Q] of all levels of each row.

  Rows are cut into chunks of a crop, which do not depend on one another. The complete chunks of
  each part are one batch.

  Args:
    models: models with a fine stage.
    key: PRNG key.
    parts: new coarse codes of each row.
    new_frames: number of new frames of each row in all parts.
    rule: sampling rule.
  """
  config, variables, _ = models.fine
  crop, levels = config.num_frames, config.total_quantizers - config.num_coarse
  waiting = [np.zeros((0, config.num_coarse), np.int32)] * len(new_frames)
  done = [0] * len(new_frames)
  for part in parts:
    waiting, chunks = decoding.joined(waiting, [part]), []  # chunks: (row, first frame, codes)
    for b, total in enumerate(new_frames):
      while done[b] < total and len(waiting[b]) >= (size := min(crop, total - done[b])):
        chunks.append((b, done[b], waiting[b][:size]))
        waiting[b], done[b] = waiting[b][size:], done[b] + size
    if not chunks:
      continue
    place_B2 = np.zeros((decoding.row_bucket(len(chunks)), 2), np.int32)
    place_B2[: len(chunks)] = [(b, first) for b, first, _ in chunks]
    drawn = decoding.extend(
      config.language_model,
      variables.params,
      key,
      [np.zeros((0, levels), np.int32)] * len(chunks),
      [len(coarse_FQ) for _, _, coarse_FQ in chunks],
      crop=crop,
      carry=0,
      prefix=lambda c, start, stop: chunks[c][2],
      prefix_crop=crop,
      rule=jax.tree_util.Partial(_draw_by_place, as_pytree(rule), place_B2),
    )
    made = [[np.zeros((0, config.total_quantizers), np.int32)] for _ in new_frames]
    for (b, _, coarse_FQ), fine_FQ in zip(chunks, drawn, strict=True):
      made[b].append(np.concatenate([coarse_FQ, fine_FQ], axis=1))
    yield [np.concatenate(row) for row in made]


def _draw_by_place(rule, place_B2, key, logits_BV, past_BN):
  """Draws a token per chunk by a key of its row and first frame, independent of the batch."""

  def one(place_2, logits_V, past_N):
    own = jax.random.fold_in(jax.random.fold_in(key, place_2[0]), place_2[1])
    return draw(own, logits_V[None], rule, past_N[None])[0]

  return jax.vmap(one)(place_B2, logits_BV, past_BN)
