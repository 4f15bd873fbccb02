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
- Compilation. To limit the number of compiled shapes, waveforms are padded to whole seconds, and
  sequences and batches as described in windows.py. Autoregressive sequences are padded on the left,
  where padding has no effect because positions are relative.
- Conditions (MusicLM, arXiv 2301.11325). New audio may follow tokens of texts, each for a segment of
  it (`Segments`). A window reads the condition of the segment of its first new frame. The semantic
  model starts a new window with each segment. A conditioned model that gets no condition reads PAD,
  which is of use if it was trained with `Condition.dropout`.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, storage, tokens, windows
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import OwnRule, ParallelRule, Rule, check_parallel
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import Tokenizer, load_tokenizer
from audiolm_jax.tokens import PAD
from audiolm_jax.training import checkpoints

ACOUSTIC = ('autoregressive', 'soundstorm')
CARRY_SECONDS = 3.0  # of the past in each later window, but at most half of the crop
UNKNOWN_DURATION = 2.0  # semantic frames (of 40 ms) per deduplicated token, without a prompt


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
    guidance: strength of classifier-free guidance, see windows.py; 1: off.

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic)
  _check_condition(models, acoustic, condition, guidance, len(prompt_BT))
  semantic_BS, codes_BFQ = models.tokenizer.encode(prompt_BT, num_samples_B)
  num_new = _whole_frames(models, seconds)
  timed = [_timed(row_S, models.semantic.config.deduplicate) for row_S in semantic_BS]
  if _reads_semantic(models, acoustic):
    frames_B = (semantic_BS != PAD).sum(axis=1)
    timed = _extend_semantic(
      models, jax.random.fold_in(key, 0), timed, frames_B, num_new, sampling, condition, guidance
    )
  prompts = [row_FQ[row_FQ[:, 0] != PAD] for row_FQ in codes_BFQ]
  new_frames = _codec_frames(models, [num_new] * len(prompts))
  return _acoustics(
    models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic, condition, guidance
  )


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
    guidance: strength of classifier-free guidance, see windows.py; 1: off.

  Raises:
    UserError: if the models do not match one another or the rules, an argument is out of range, or
      a prompt is longer than its semantic tokens.
  """
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic, semantic_given=True)
  semantic_BS = np.asarray(semantic_BS)
  checks.shapes(semantic_BS=semantic_BS)
  _check_condition(models, acoustic, condition, guidance, len(semantic_BS))
  checks.ids('semantic_BS', semantic_BS, _acoustic_model(models, acoustic).config.num_clusters)
  prompts = _prompt_rows(prompt_BFQ, len(semantic_BS), models.tokenizer.codec)
  whole = _codec_frames(models, (semantic_BS != PAD).sum(axis=1))
  new_frames = [frames - len(row) for frames, row in zip(whole, prompts, strict=True)]
  if min(new_frames, default=0) < 0:
    raise UserError(
      f'a prompt is {-min(new_frames)} frames longer than its semantic tokens: cut it'
    )
  deduplicate = models.semantic.config.deduplicate and acoustic == 'autoregressive'
  timed = [_timed(row_S, deduplicate) for row_S in semantic_BS]
  return _acoustics(
    models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic, condition, guidance
  )


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
    guidance: strength of classifier-free guidance, see windows.py; 1: off.

  Raises:
    UserError: if the models do not match one another or the rules, or an argument is out of range.
  """
  sampling = sampling or models.sampling
  _check(models, sampling, acoustic)
  checks.values(batch_size=(batch_size, checks.WHOLE))
  _check_condition(models, acoustic, condition, guidance, batch_size)
  num_new = _whole_frames(models, seconds)
  timed = [Timed(np.zeros(0, np.int32), np.zeros(0))] * batch_size
  if _reads_semantic(models, acoustic):
    empty = np.zeros(batch_size, int)
    timed = _extend_semantic(
      models, jax.random.fold_in(key, 0), timed, empty, num_new, sampling, condition, guidance
    )
  prompts = _prompt_rows(None, batch_size, models.tokenizer.codec)
  new_frames = _codec_frames(models, [num_new] * batch_size)
  return _acoustics(
    models, key, timed, prompts, new_frames, sampling, carry_seconds, acoustic, condition, guidance
  )


def num_levels(models: Models, acoustic: str = 'autoregressive') -> int:
  """Returns the number of levels that the models generate, which is lower without a fine model.

  Raises:
    UserError: if the models do not match one another.
  """
  if acoustic == 'soundstorm':
    return models.soundstorm.config.num_quantizers
  return _check_autoregressive(models)


def _check(models, rules, acoustic, semantic_given=False):
  """Checks that the models needed for `acoustic` match one another, and the rules match them.

  Raises:
    UserError: if not.
  """
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
    check_parallel(rules.soundstorm, levels)
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


def _check_condition(models, acoustic, condition, guidance, batch_size):
  """Checks a condition against the models that read it.

  Raises:
    UserError: if no model reads it, it has another shape, or guidance cannot be.
  """
  checks.values(guidance=(guidance, checks.NOT_NEGATIVE))
  if condition is None:
    if guidance != 1:
      raise UserError(f'guidance={guidance} needs a condition: pass one, or leave guidance out')
    return
  stages = {
    'semantic': models.semantic,
    _acoustic_name(acoustic): _acoustic_model(models, acoustic),
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
  models, key, timed: Sequence[Timed], frames_B, num_new: int, rules, condition, guidance
) -> list[Timed]:
  """Appends semantic tokens for `num_new` semantic frames to each row, segment by segment."""
  config = models.semantic.config
  if condition is None or config.condition is None:
    return _extend_segment(models, key, timed, frames_B, num_new, rules.semantic)
  done, num_segments = 0, condition.tokens_BGN.shape[1]
  for g in range(num_segments):
    end = num_new
    if g < num_segments - 1:
      end = min(num_new, round((g + 1) * condition.seconds * config.semantic_rate))
    if end > done:
      timed = _extend_segment(
        models,
        jax.random.fold_in(key, done) if done else key,
        timed,
        frames_B + done,
        end - done,
        rules.semantic,
        lambda b, start, g=g: condition.tokens_BGN[b, g],
        guidance,
      )
      done = end
  return timed


def _extend_segment(
  models, key, timed: Sequence[Timed], frames_B, num_new: int, rule, condition=None, guidance=1.0
) -> list[Timed]:
  """Appends semantic tokens for `num_new` semantic frames to each row."""
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
    rule=rule,
    condition=condition,
    guidance=guidance,
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
  models, key, timed, prompts, new_frames, rules, carry_seconds, acoustic, condition, guidance
) -> Continuation:
  """Generates codes after those of the prompts, and decodes both."""
  config = _acoustic_model(models, acoustic).config
  carry = _carry(config, carry_seconds)

  def tokens_of(b, frame):
    new_seconds = (frame - len(prompts[b])) / config.frame_rate
    return condition.tokens_BGN[b, condition.number(new_seconds)]

  guided = {}
  if condition is not None and config.condition is not None:
    guided = dict(condition=tokens_of, guidance=guidance)
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
      **guided,
    )
  else:
    rows, levels = _coarse_and_fine(models, key, timed, prompts, new_frames, rules, carry, guided)
  codes_BFQ = windows.stack(rows, max(len(row) for row in rows), levels)
  num_frames_B = np.array([len(row) for row in rows])
  wave_BT = models.tokenizer.decode(codes_BFQ, num_frames_B)
  token_rows = [row.token_N[:, None] for row in timed]
  semantic_BS = windows.stack(token_rows, max(map(len, token_rows)), 1)[..., 0]
  return Continuation(
    wave_BT, semantic_BS, codes_BFQ, num_frames_B, np.array([len(p) for p in prompts])
  )


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


def _coarse_and_fine(
  models, key, timed, prompts, new_frames, rules, carry, guided
) -> tuple[list[np.ndarray], int]:
  """Samples coarse and fine codes after those of the prompts.

  Returns:
    Rows [F, Q] and their number of levels Q.
  """
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
    **guided,
  )
  if models.fine is None:
    return rows, config.num_quantizers
  rows = _add_fine(models, jax.random.fold_in(key, 2), rows, prompts, rules.fine)
  return rows, models.fine.config.total_quantizers


def _add_fine(models, key, rows, prompts, rule):
  """Samples the fine levels of the frames after the prompts, in chunks of a crop, as one batch."""
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
