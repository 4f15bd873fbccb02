"""The pipelines: prompt -> tokens -> semantic language model -> acoustic stages -> codec decoder.

The acoustic stages are the coarse and fine language models (`acoustic='autoregressive'`), or
SoundStorm in place of both (`acoustic='soundstorm'`), which needs frame-aligned semantic tokens.

Source: AudioLM (arXiv 2209.03143), sections III-C and IV; SoundStorm (arXiv 2305.09636). What the
papers leave open:

- Windows. Past a model's trained crop, generation goes in rounds. A row keeps its whole past where
  past and future fit the crop together, otherwise the last `carry_seconds` of it (SoundStorm: at
  least those, and as many as fit; None: CARRY_SECONDS, or half of the crop where that is less); the
  window gets the semantic tokens that overlap it.
- Alignment. Deduplicated semantic tokens have no durations. Those of the prompt are measured;
  generated ones are taken to last the prompt's mean duration (without a prompt: UNKNOWN_DURATION
  frames), so the number of tokens for `seconds` of audio follows from the prompt's speaking rate.
- Compilation. Waveforms are padded to whole seconds, sequences and rows as windows.py says. Padding
  of autoregressive sequences is on the left, where relative positions make it invisible.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, tokens, windows
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import OwnRule, ParallelRule, Rule, check_parallel
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import Tokenizer, load_tokenizer
from audiolm_jax.tokens import PAD
from audiolm_jax.training import checkpoints

ACOUSTIC = ('autoregressive', 'soundstorm')
CARRY_SECONDS = 3.0  # of the past that a later window keeps, but at most half of the crop
# semantic frames of 40 ms that a deduplicated token lasts when no prompt tells
UNKNOWN_DURATION = 2.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Rules of the language models (the paper's temperatures, no filters: section IV-B) and of
  SoundStorm.

  A rule of one's own is a function (key, logits_BV, past_BN) -> token_B (`sampling.OwnRule`). Min-p:

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
  """The tokenizer, the language models, and how to sample from them.

  Acoustic models that a pipeline does not use may be None. `fine` is also None where the coarse
  levels are all (piano).
  """

  tokenizer: Tokenizer
  semantic: Model
  coarse: Model | None = None
  fine: Model | None = None
  soundstorm: Model | None = None
  sampling: SamplingConfig = SamplingConfig()


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
    coarse: the folder of the coarse stage.
    stages: acoustic stages to read, of `coarse`, 'fine' and 'soundstorm'; None reads those present.
    remedy: for clusters that are missing or damaged.

  Raises:
    UserError: if the tokenizer, the semantic stage or one of `stages` is missing; if there is
      neither `coarse` nor soundstorm; for stages of other fingerprints.
  """
  folder, names = pathlib.Path(workdir), (coarse, 'fine', 'soundstorm')
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
          f'{expected}: train it again, or use the workdir it comes from'
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
) -> Continuation:
  """Returns each prompt followed by `seconds` of new audio (rounded to whole semantic frames of 40
  ms).

  The prompt's codes are kept as they are.

  Args:
    models: from `load_models` or `from_pretrained`.
    key: PRNG key.
    prompt_BT: prompts, padded on the right.
    num_samples_B: samples of each prompt; None for all.
    seconds: length of the new audio.
    sampling: sampling rules; None takes those of `models`.
    carry_seconds: past that a later window keeps, see the module's docstring.
    acoustic: one of ACOUSTIC, see the module's docstring.
  """
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic)
  semantic_BS, codes_BFQ = models.tokenizer.encode(prompt_BT, num_samples_B)
  num_new = _whole_frames(models, seconds)
  timed = [_timed(row_S, models.semantic.config.deduplicate) for row_S in semantic_BS]
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
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
) -> Continuation:
  """Returns new audio for given frame-aligned semantic tokens (PAD on the right): another voice,
  the same words.

  prompt_BFQ: codes of the first frames, PAD on the right, which are kept and whose voice goes on;
  None: of no frame.
  """
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic, semantic_given=True)
  semantic_BS = np.asarray(semantic_BS)
  checks.shapes(semantic_BS=semantic_BS)
  checks.ids('semantic_BS', semantic_BS, _acoustic_model(models, acoustic).config.num_clusters)
  prompts = _prompt_rows(prompt_BFQ, len(semantic_BS), models.tokenizer.codec)
  whole = _codec_frames(models, (semantic_BS != PAD).sum(axis=1))
  new_frames = [frames - len(row) for frames, row in zip(whole, prompts, strict=True)]
  if min(new_frames, default=0) < 0:
    raise UserError(f'a prompt has {-min(new_frames)} frames more than its semantic tokens: cut it')
  deduplicate = models.semantic.config.deduplicate and acoustic == 'autoregressive'
  timed = [_timed(row_S, deduplicate) for row_S in semantic_BS]
  return _acoustics(models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic)


def _prompt_rows(prompt_BFQ, batch_size, codec: Codec) -> list[np.ndarray]:
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
  sampling: SamplingConfig | None = None,
  carry_seconds: float | None = None,
  acoustic: str = 'autoregressive',
) -> Continuation:
  """Returns `seconds` of audio a row, sampled from nothing."""
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic)
  checks.values(batch_size=(batch_size, checks.WHOLE))
  num_new = _whole_frames(models, seconds)
  timed = [Timed(np.zeros(0, np.int32), np.zeros(0))] * batch_size
  if _reads_semantic(models, acoustic):
    empty = np.zeros(batch_size, int)
    timed = _extend_semantic(models, jax.random.fold_in(key, 0), timed, empty, num_new, sampling)
  prompts = _prompt_rows(None, batch_size, models.tokenizer.codec)
  new_frames = _codec_frames(models, [num_new] * batch_size)
  return _acoustics(models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic)


def num_levels(models: Models, acoustic: str = 'autoregressive') -> int:
  """Returns how many levels of codes a path makes: fewer than the codec's where the fine stage is
  missing.

  Raises UserError where its stages do not fit one another.
  """
  if acoustic == 'soundstorm':
    return models.soundstorm.config.num_quantizers
  return _check_autoregressive(models)


def _check(models, rules, acoustic, semantic_given=False):
  """Raises ValueError where a rule cannot draw, or the models of the `acoustic` path do not fit one
  another.
  """
  if acoustic not in ACOUSTIC:
    raise UserError(f'acoustic={acoustic!r}: choose one of {", ".join(ACOUSTIC)}')
  stage = _acoustic_model(models, acoustic)
  if stage is None:
    raise UserError(
      f'acoustic={acoustic!r} needs the stage {_acoustic_name(acoustic)}, which is not among the models: train it first'
    )
  levels = num_levels(models, acoustic)
  if acoustic == 'soundstorm':
    check_parallel(rules.soundstorm, levels)
    if models.semantic.config.deduplicate and not semantic_given:
      raise UserError(
        'SoundStorm needs frame-aligned semantic tokens, and the semantic model is deduplicated: its tokens have '
        'lost the durations that align them with the codec. Train it again with semantic.model.deduplicate=False '
        "(the coarse model may stay as it is), or use acoustic='autoregressive'"
      )
  readers = {'semantic': models.semantic, _acoustic_name(acoustic): stage}
  if acoustic == 'autoregressive' and models.fine is not None:
    readers['fine'] = models.fine
  for name, model in readers.items():
    if wrong := model.config.spec.differences(models.tokenizer.spec):
      raise UserError(
        f'{name} was made for other tokens: {"; ".join(wrong)}: train it for these models'
      )


def _check_autoregressive(models) -> int:
  """Returns how many levels the coarse and fine stages make; ValueError where they do not fit one
  another.
  """
  coarse = models.coarse.config
  if models.semantic.config.deduplicate and coarse.condition_on_semantic and not coarse.deduplicate:
    raise UserError(
      'the coarse model wants frame-aligned semantic tokens, the semantic model is deduplicated: '
      'train one of them again with the other value of deduplicate'
    )
  if models.fine is None:
    return coarse.num_quantizers
  if models.fine.config.num_coarse != coarse.num_quantizers:
    raise UserError(
      f'fine.num_coarse={models.fine.config.num_coarse} and coarse.num_quantizers={coarse.num_quantizers} '
      'differ: these stages were not trained for each other'
    )
  return models.fine.config.total_quantizers


def _acoustic_model(models, acoustic):
  """Returns the stage that reads the semantic tokens; None where it is not there."""
  return getattr(models, _acoustic_name(acoustic))


def _acoustic_name(acoustic) -> str:
  return 'soundstorm' if acoustic == 'soundstorm' else 'coarse'


def _reads_semantic(models, acoustic) -> bool:
  return acoustic == 'soundstorm' or models.coarse.config.condition_on_semantic


def _whole_frames(models, seconds):
  checks.values(seconds=(seconds, checks.POSITIVE))
  frames = round(seconds * models.semantic.config.semantic_rate)
  if frames < 1:
    raise UserError(f'seconds={seconds} is less than one semantic frame: ask for more')
  return frames


def _codec_frames(models, semantic_frames) -> list[int]:
  return [models.tokenizer.frames_per_semantic * int(frames) for frames in semantic_frames]


def _timed(semantic_S, deduplicate):
  """Returns the tokens of a row, with or without repeats, and the frames at which they begin."""
  semantic_S = semantic_S[semantic_S != PAD]
  keep_S = tokens.first_of_run(semantic_S[None])[0] if deduplicate else semantic_S != PAD
  return Timed(semantic_S[keep_S], np.flatnonzero(keep_S).astype(float))


def _extend_semantic(
  models, key, timed: Sequence[Timed], frames_B, num_new: int, rules
) -> list[Timed]:
  """Appends semantic tokens for `num_new` frames to every row."""
  config, variables, _ = models.semantic
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
  config = _acoustic_model(models, acoustic).config
  carry = _carry(config, carry_seconds)
  if acoustic == 'soundstorm':
    levels = config.num_quantizers
    rows = windows.fill(
      config,
      models.soundstorm.variables.params,
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
  wave_BT = models.tokenizer.decode(codes_BFQ, num_frames_B)
  token_rows = [row.token_N[:, None] for row in timed]
  semantic_BS = windows.stack(token_rows, max(map(len, token_rows)), 1)[..., 0]
  return Continuation(
    wave_BT, semantic_BS, codes_BFQ, num_frames_B, np.array([len(p) for p in prompts])
  )


def _carry(config, carry_seconds: float | None) -> int:
  """Returns how many codec frames of the past a later window keeps, in whole semantic frames."""
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


def _coarse_and_fine(
  models, key, timed, prompts, new_frames, rules, carry
) -> tuple[list[np.ndarray], int]:
  """Samples coarse and fine codes after the prompts' own; returns the rows and their levels."""
  config, variables, _ = models.coarse
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
  return rows, models.fine.config.total_quantizers


def _add_fine(models, key, rows, prompts, rule):
  """Samples the fine levels of what follows the prompts, in chunks of the crop, as one batch."""
  config, variables, _ = models.fine
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
