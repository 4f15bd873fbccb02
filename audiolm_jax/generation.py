"""The pipelines: prompt -> tokens -> semantic language model -> acoustic stages -> codec decoder.

The acoustic stages are the coarse and fine language models (`acoustic='autoregressive'`), or
SoundStorm in place of both (`acoustic='soundstorm'`), which needs frame-aligned semantic tokens.

Source: AudioLM (arXiv 2209.03143), sections III-C and IV; SoundStorm (arXiv 2305.09636). What the
papers leave open:

- Windows. Past a model's trained crop, generation goes in rounds. A row keeps its whole past where
  past and future fit the crop together, otherwise the last `carry_seconds` of it (SoundStorm: at
  least those, and as many as fit); the window gets the semantic tokens that overlap it.
- Alignment. Deduplicated semantic tokens have no durations. Those of the prompt are measured;
  generated ones are taken to last the prompt's mean duration (without a prompt: UNKNOWN_DURATION
  frames), so the number of tokens for `seconds` of audio follows from the prompt's speaking rate.
- Compilation. Waveforms are padded to whole seconds, sequences and rows as windows.py says. Padding
  of autoregressive sequences is on the left, where relative positions make it invisible.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import audio, checks, kmeans, tokens, windows
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import ParallelRule, Rule, check_parallel
from audiolm_jax.stages.base import Variables
from audiolm_jax.tokens import PAD

ACOUSTIC = ('autoregressive', 'soundstorm')
# semantic frames of 40 ms that a deduplicated token lasts when no prompt tells
UNKNOWN_DURATION = 2.0


class Models(NamedTuple):
  """(config, variables) of every stage, variables unboxed; the acoustic ones that a pipeline does
  not use may be None.

  w2v_bert has a `kmeans.SemanticEncoder` for a config. fine is None, too, where the coarse levels
  are all (piano).
  """

  soundstream: tuple[Any, Variables]
  w2v_bert: tuple[kmeans.SemanticEncoder, Variables]
  semantic_quantizer: kmeans.SemanticQuantizer
  semantic: tuple[Any, Variables]
  coarse: tuple[Any, Variables] | None = None
  fine: tuple[Any, Variables] | None = None
  soundstorm: tuple[Any, Variables] | None = None


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Rules of the language models (the paper's temperatures, no filters: section IV-B) and of
  SoundStorm.
  """

  semantic: Rule = Rule(0.6)
  coarse: Rule = Rule(0.8)
  fine: Rule = Rule(0.6)
  soundstorm: ParallelRule = ParallelRule()

  def __post_init__(self):
    a_rule = checks.Legal('a sampling.Rule', lambda value: isinstance(value, Rule))
    parallel = checks.Legal(
      'a sampling.ParallelRule', lambda value: isinstance(value, ParallelRule)
    )
    checks.fields(self, semantic=a_rule, coarse=a_rule, fine=a_rule, soundstorm=parallel)


class Continuation(NamedTuple):
  """Audio and the tokens it was made from; rows are padded on the right (wave with 0, tokens with
  PAD).

  semantic_BS is frame-aligned, or (autoregressive) deduplicated where the semantic model is.
  num_frames_B: codec frames of each row, the first prompt_frames_B of which are the prompt's own.
  """

  wave_BT: np.ndarray
  semantic_BS: np.ndarray
  codes_BFQ: np.ndarray
  num_frames_B: np.ndarray
  prompt_frames_B: np.ndarray


class Timed(NamedTuple):
  """The semantic tokens of one row and the semantic frame (fractional, where assumed) at which each
  begins.
  """

  token_N: np.ndarray
  start_N: np.ndarray


def tokenize(
  models: Models,
  wave_BT: Float[Array | np.ndarray, 'B T'],
  num_samples_B: Int[Array | np.ndarray, 'B'] | None = None,
) -> tuple[Int[np.ndarray, 'B S'], Int[np.ndarray, 'B F Q']]:
  """Returns frame-aligned semantic tokens and codec codes, F = r S, of the whole semantic frames of
  each waveform.

  r: codec frames that last as long as a semantic frame. wave_BT: at the rate of the codec.
  num_samples_B: samples of each row, the rest is padding; None: all. What lies beyond is PAD.
  """
  checks.shapes(wave_BT=wave_BT)
  codec, ratio = models.soundstream[0], _frames_per_semantic(models)
  hop = ratio * codec.hop_length
  lengths_B = (
    np.full(len(wave_BT), wave_BT.shape[1]) if num_samples_B is None else np.asarray(num_samples_B)
  )
  checks.shapes(wave_BT=wave_BT, num_samples_B=lengths_B)
  if lengths_B.max(initial=0) > wave_BT.shape[1]:
    raise UserError(
      f'num_samples_B says {lengths_B.max()} samples, the waveforms have {wave_BT.shape[1]}'
    )
  frames_B = lengths_B // hop
  if frames_B.min() < 1:
    raise UserError(
      f'a prompt has {lengths_B.min()} samples, less than one semantic frame of {hop}: use a longer one'
    )
  second, silence = (
    max(1, round(codec.frame_rate / ratio)) * hop,
    codec.codec().context * codec.hop_length,
  )
  wave_BT = np.asarray(wave_BT, np.float32) * (
    np.arange(wave_BT.shape[1]) < frames_B[:, None] * hop
  )
  padding = silence + -(frames_B.max() * hop + silence) % second
  wave_BT = np.pad(wave_BT[:, : frames_B.max() * hop], ((0, 0), (0, padding)))
  semantic_BS = _semantic_tokens(
    *models.w2v_bert,
    models.semantic_quantizer,
    audio.resample(wave_BT, codec.sample_rate, models.w2v_bert[0].sample_rate),
  )
  semantic_BS = np.asarray(semantic_BS)
  codes_BFQ = np.asarray(_encode(codec, models.soundstream[1], wave_BT))
  inside_BS = np.arange(frames_B.max()) < frames_B[:, None]
  semantic_BS = np.where(inside_BS, semantic_BS[:, : frames_B.max()], PAD)
  inside_BF = np.repeat(inside_BS, ratio, axis=1)
  return semantic_BS, np.where(inside_BF[..., None], codes_BFQ[:, : ratio * frames_B.max()], PAD)


def continue_audio(
  models: Models,
  key: jax.Array,
  prompt_BT: Float[Array | np.ndarray, 'B T'],
  num_samples_B: Int[Array | np.ndarray, 'B'] | None = None,
  *,
  seconds: float,
  sampling: SamplingConfig = SamplingConfig(),
  carry_seconds: float = 3.0,
  acoustic: str = 'autoregressive',
) -> Continuation:
  """Returns each prompt followed by `seconds` of new audio (rounded to whole semantic frames of 40
  ms).

  The prompt's codes are kept as they are. Prompts of different lengths: pad on the right, tell
  num_samples_B.
  acoustic: one of ACOUSTIC, see the module's docstring.
  """
  _check(models, sampling, acoustic)
  semantic_BS, codes_BFQ = tokenize(models, prompt_BT, num_samples_B)
  num_new = _whole_frames(models, seconds)
  timed = [_timed(row_S, models.semantic[0].deduplicate) for row_S in semantic_BS]
  if _reads_semantic(models, acoustic):
    timed = _extend_semantic(
      models, jax.random.fold_in(key, 0), timed, (semantic_BS != PAD).sum(1), num_new, sampling
    )
  prompts = [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in codes_BFQ]
  new_frames = _codec_frames(models, [num_new] * len(prompts))
  return _acoustics(models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic)


def generate_acoustics(
  models: Models,
  key: jax.Array,
  semantic_BS: Int[Array | np.ndarray, 'B S'],
  prompt_BFQ: Int[Array | np.ndarray, 'B F Q'] | None = None,
  *,
  sampling: SamplingConfig = SamplingConfig(),
  carry_seconds: float = 3.0,
  acoustic: str = 'autoregressive',
) -> Continuation:
  """Returns new audio for given frame-aligned semantic tokens (PAD on the right): another voice,
  the same words.

  prompt_BFQ: codes of the first frames, PAD on the right, which are kept and whose voice goes on;
  None: of no frame.
  """
  _check(models, sampling, acoustic, semantic_given=True)
  semantic_BS = np.asarray(semantic_BS)
  checks.shapes(semantic_BS=semantic_BS)
  checks.ids('semantic_BS', semantic_BS, _acoustic_model(models, acoustic)[0].num_clusters)
  prompts = _prompt_rows(prompt_BFQ, len(semantic_BS), models.soundstream[0])
  whole = _codec_frames(models, (semantic_BS != PAD).sum(axis=1))
  new_frames = [frames - len(row) for frames, row in zip(whole, prompts, strict=True)]
  if min(new_frames, default=0) < 0:
    raise UserError(f'a prompt has {-min(new_frames)} frames more than its semantic tokens: cut it')
  deduplicate = models.semantic[0].deduplicate and acoustic == 'autoregressive'
  timed = [_timed(row_S, deduplicate) for row_S in semantic_BS]
  return _acoustics(models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic)


def _prompt_rows(prompt_BFQ, batch_size, codec) -> list[np.ndarray]:
  if prompt_BFQ is None:
    return [np.zeros((0, codec.num_quantizers), np.int32)] * batch_size
  prompt_BFQ = np.asarray(prompt_BFQ)
  if prompt_BFQ.ndim != 3 or prompt_BFQ.shape[::2] != (batch_size, codec.num_quantizers):
    raise UserError(
      f'prompt_BFQ has shape {prompt_BFQ.shape}: it needs {batch_size} rows, as the semantic tokens have, of all '
      f'{codec.num_quantizers} levels'
    )
  checks.ids('prompt_BFQ', prompt_BFQ, codec.codebook_size)
  return [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in prompt_BFQ]


def generate_unconditional(
  models: Models,
  key: jax.Array,
  batch_size: int,
  seconds: float,
  *,
  sampling: SamplingConfig = SamplingConfig(),
  carry_seconds: float = 3.0,
  acoustic: str = 'autoregressive',
) -> Continuation:
  """Returns `seconds` of audio a row, sampled from nothing."""
  _check(models, sampling, acoustic)
  checks.values(batch_size=(batch_size, checks.WHOLE))
  num_new = _whole_frames(models, seconds)
  timed = [Timed(np.zeros(0, np.int32), np.zeros(0))] * batch_size
  if _reads_semantic(models, acoustic):
    empty = np.zeros(batch_size, int)
    timed = _extend_semantic(models, jax.random.fold_in(key, 0), timed, empty, num_new, sampling)
  prompts = _prompt_rows(None, batch_size, models.soundstream[0])
  new_frames = _codec_frames(models, [num_new] * batch_size)
  return _acoustics(models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic)


def num_levels(models: Models, acoustic: str = 'autoregressive') -> int:
  """Returns how many levels of codes a path makes: fewer than the codec's where the fine stage is
  missing.

  Raises UserError where its stages do not fit one another.
  """
  if acoustic == 'soundstorm':
    return models.soundstorm[0].num_quantizers
  return _check_autoregressive(models)


def _check(models, rules, acoustic, semantic_given=False):
  """Raises ValueError where a rule cannot draw, or the models of the `acoustic` path do not fit one
  another.
  """
  if acoustic not in ACOUSTIC:
    raise UserError(f'acoustic={acoustic!r}: choose one of {", ".join(ACOUSTIC)}')
  stage, total = _acoustic_model(models, acoustic), models.soundstream[0].num_quantizers
  if stage is None:
    name = 'soundstorm' if acoustic == 'soundstorm' else 'coarse'
    raise UserError(
      f'acoustic={acoustic!r} needs the stage {name}, which is not among the models: train it first'
    )
  levels = num_levels(models, acoustic)
  if acoustic == 'soundstorm':
    check_parallel(rules.soundstorm, levels)
    if models.semantic[0].deduplicate and not semantic_given:
      raise UserError(
        'SoundStorm needs frame-aligned semantic tokens, and the semantic model is deduplicated: its tokens have '
        'lost the durations that align them with the codec. Train it again with semantic.model.deduplicate=False '
        "(the coarse model may stay as it is), or use acoustic='autoregressive'"
      )
  _check_rates(models, stage[0])
  if levels > total:
    raise UserError(f'the stages make {levels} levels, the codec has num_quantizers={total}')


def _check_rates(models, acoustic_config):
  """Raises ValueError where the stages were made for other rates than those of the codec and the
  semantic tokens.
  """
  codec, own = models.soundstream[0], models.w2v_bert[0].frame_rate
  found = {
    'the codec': (codec.frame_rate, acoustic_config.frame_rate),
    'the semantic tokens': (own, acoustic_config.semantic_rate),
    'the tokens of the semantic model': (own, models.semantic[0].semantic_rate),
  }
  if wrong := {name: rates for name, rates in found.items() if rates[0] != rates[1]}:
    texts = [
      f'{name}: {rates[0]} Hz, but the stage was made for {rates[1]} Hz'
      for name, rates in wrong.items()
    ]
    raise UserError(f'{"; ".join(texts)}: train the stage for these models')


def _check_autoregressive(models) -> int:
  """Returns how many levels the coarse and fine stages make; ValueError where they do not fit one
  another.
  """
  coarse = models.coarse[0]
  if models.semantic[0].deduplicate and coarse.condition_on_semantic and not coarse.deduplicate:
    raise UserError(
      'the coarse model wants frame-aligned semantic tokens, the semantic model is deduplicated: '
      'train one of them again with the other value of deduplicate'
    )
  if models.fine is None:
    return coarse.num_quantizers
  if models.fine[0].num_coarse != coarse.num_quantizers:
    raise UserError(
      f'fine.num_coarse={models.fine[0].num_coarse} and coarse.num_quantizers={coarse.num_quantizers} '
      'differ: these stages were not trained for each other'
    )
  return models.fine[0].total_quantizers


def _acoustic_model(models, acoustic):
  """Returns the stage that reads the semantic tokens; None where it is not there."""
  return models.soundstorm if acoustic == 'soundstorm' else models.coarse


def _reads_semantic(models, acoustic) -> bool:
  return acoustic == 'soundstorm' or models.coarse[0].condition_on_semantic


def _whole_frames(models, seconds):
  checks.values(seconds=(seconds, checks.POSITIVE))
  frames = round(seconds * models.semantic[0].semantic_rate)
  if frames < 1:
    raise UserError(f'seconds={seconds} is less than one semantic frame: ask for more')
  return frames


def _frames_per_semantic(models) -> int:
  return tokens.frames_per_semantic(models.soundstream[0].frame_rate, models.w2v_bert[0].frame_rate)


def _codec_frames(models, semantic_frames) -> list[int]:
  return [_frames_per_semantic(models) * int(frames) for frames in semantic_frames]


def _timed(semantic_S, deduplicate):
  """Returns the tokens of a row, with or without repeats, and the frames at which they begin."""
  semantic_S = semantic_S[semantic_S != PAD]
  keep_S = tokens.first_of_run(semantic_S[None])[0] if deduplicate else semantic_S != PAD
  return Timed(semantic_S[keep_S], np.flatnonzero(keep_S).astype(float))


def _extend_semantic(
  models, key, timed: Sequence[Timed], frames_B, num_new: int, rules
) -> list[Timed]:
  """Appends semantic tokens for `num_new` frames to every row."""
  config, variables = models.semantic
  durations = [
    1.0
    if not config.deduplicate
    else n / len(row.token_N)
    if len(row.token_N)
    else UNKNOWN_DURATION
    for row, n in zip(timed, frames_B, strict=True)
  ]
  wanted = [int(np.ceil(num_new / duration)) for duration in durations]
  rows = windows.extend(
    config.language_model,
    variables.params,
    key,
    [row.token_N[:, None] for row in timed],
    wanted,
    crop=config.num_semantic,
    carry=config.num_semantic // 2,
    prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=0,
    rule=rules.semantic,
  )
  extended = []
  for row, before, frames, duration, count in zip(
    rows, timed, frames_B, durations, wanted, strict=True
  ):
    start_N = frames + duration * np.arange(count)
    row_N, start_N = row[:, 0], np.concatenate([before.start_N, start_N])
    keep_N = start_N < frames + num_new
    extended.append(Timed(row_N[keep_N], start_N[keep_N]))
  return extended


def _acoustics(
  models, key, timed, prompts, new_frames, rules, carry_seconds, acoustic
) -> Continuation:
  """Makes the codes that follow the prompts' own and decodes all of it."""
  checks.values(carry_seconds=(carry_seconds, checks.NOT_NEGATIVE))
  config = _acoustic_model(models, acoustic)[0]
  carry = config.frames_per_semantic * round(carry_seconds * config.semantic_rate)
  if not 0 <= carry < config.num_frames:
    raise UserError(
      f'carry_seconds={carry_seconds} must be shorter than the crop, {config.crop_seconds} s'
    )
  if acoustic == 'soundstorm':
    levels = config.num_quantizers
    rows = windows.fill(
      config,
      models.soundstorm[1].params,
      jax.random.fold_in(key, 1),
      [row.token_N for row in timed],
      [row_FQ[:, :levels] for row_FQ in prompts],
      carry=carry,
      how=rules.soundstorm,
    )
  else:
    rows, levels = _coarse_and_fine(models, key, timed, prompts, new_frames, rules, carry)
  codes_BFQ = windows.stack(rows, max(len(row) for row in rows), levels)
  num_frames_B = np.array([len(row) for row in rows])
  wave_BT = decode_codes(models, codes_BFQ, num_frames_B)
  token_rows = [row.token_N[:, None] for row in timed]
  semantic_BS = windows.stack(token_rows, max(map(len, token_rows)), 1)[..., 0]
  return Continuation(
    wave_BT, semantic_BS, codes_BFQ, num_frames_B, np.array([len(p) for p in prompts])
  )


def _coarse_and_fine(
  models, key, timed, prompts, new_frames, rules, carry
) -> tuple[list[np.ndarray], int]:
  """Samples coarse and fine codes after the prompts' own; returns the rows and their levels."""
  config, variables = models.coarse
  ratio = config.frames_per_semantic

  def prefix(b, start, stop):
    row = timed[b]
    ends_N = np.append(row.start_N[1:], np.inf)
    token_N = row.token_N[(row.start_N < stop / ratio) & (ends_N > start / ratio)]
    if config.deduplicate:
      token_N = token_N[tokens.first_of_run(token_N[None])[0]]
    return token_N[:, None]

  rows = windows.extend(
    config.language_model,
    variables.params,
    jax.random.fold_in(key, 1),
    [row_FQ[:, : config.num_quantizers] for row_FQ in prompts],
    new_frames,
    crop=config.num_frames,
    carry=carry,
    prefix=prefix
    if config.condition_on_semantic
    else lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=config.num_semantic if config.condition_on_semantic else 0,
    rule=rules.coarse,
  )
  if models.fine is None:
    return rows, config.num_quantizers
  rows = _add_fine(models, jax.random.fold_in(key, 2), rows, prompts, rules.fine)
  return rows, models.fine[0].total_quantizers


def _add_fine(models, key, rows, prompts, rule):
  """Samples the fine levels of what follows the prompts, in chunks of the crop, as one batch."""
  config, variables = models.fine
  crop, levels = config.num_frames, config.total_quantizers - config.num_coarse
  chunks = [(b, f) for b, row in enumerate(rows) for f in range(len(prompts[b]), len(row), crop)]
  coarse = [rows[b][f : f + crop] for b, f in chunks]
  drawn = windows.extend(
    config.language_model,
    variables.params,
    key,
    [np.zeros((0, levels), np.int32)] * len(chunks),
    [len(chunk) for chunk in coarse],
    crop=crop,
    carry=0,
    prefix=lambda c, start, stop: coarse[c],
    prefix_crop=crop,
    rule=rule,
  )
  full = [[prompt_FQ[:, : config.total_quantizers]] for prompt_FQ in prompts]
  for (b, _), coarse_FQ, fine_FQ in zip(chunks, coarse, drawn, strict=True):
    full[b].append(np.concatenate([coarse_FQ, fine_FQ], axis=1))
  return [np.concatenate(parts) for parts in full]


def decode_codes(
  models: Models, codes_BFQ: Int[np.ndarray, 'B F Q'], num_frames_B: Int[np.ndarray, 'B']
) -> Float[np.ndarray, 'B T']:
  """Returns the waveforms of rows of num_frames_B frames each, 0 after them; in shapes of whole
  seconds.

  The last frame of a row is held behind its end, where a codec that looks ahead looks.
  """
  checks.shapes(codes_BFQ=codes_BFQ, num_frames_B=num_frames_B)
  config, variables = models.soundstream
  frames, second, context = (
    codes_BFQ.shape[1],
    max(1, round(config.frame_rate)),
    config.codec().context,
  )
  padded_F = np.arange(frames + context + -(frames + context) % second)
  read_BF = np.minimum(padded_F, num_frames_B[:, None] - 1)
  padded_BFQ = np.take_along_axis(codes_BFQ, read_BF[..., None], axis=1)
  checks.ids('codes_BFQ', padded_BFQ, config.codebook_size, padding=False)
  wave_BT = np.asarray(_decode(config, variables, padded_BFQ))[:, : frames * config.hop_length]
  return wave_BT * (np.arange(wave_BT.shape[1]) < num_frames_B[:, None] * config.hop_length)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, variables, wave_BT):
  return config.codec().encode(variables, wave_BT, None)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config, variables, codes_BFQ):
  return config.codec().decode(variables, codes_BFQ)


@functools.partial(jax.jit, static_argnums=0)
def _semantic_tokens(encoder, variables, semantic_quantizer, wave_BT):
  return kmeans.assign(semantic_quantizer, encoder.features(variables, wave_BT))
