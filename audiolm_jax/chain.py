"""The chain of trained models: how they are loaded, sampled, and checked against one another."""

import dataclasses
import os
from collections.abc import Collection
from typing import NamedTuple

from audiolm_jax import checks, storage, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import OwnRule, ParallelRule, Rule, check_parallel
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import Tokenizer, load_tokenizer
from audiolm_jax.training import checkpoints

ACOUSTIC = ('autoregressive', 'soundstorm')


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


def load_models(
  workdir: str | os.PathLike,
  *,
  coarse: str = 'coarse',
  stages: Collection[str] | None = None,
  tokenizer: Tokenizer | None = None,
  remedy: str = 'fit the clusters again',
) -> Models:
  """Returns the models of a workdir or release, after checking that they belong together.

  Args:
    workdir: folder of the stages.
    coarse: name of the folder of the coarse stage.
    stages: acoustic stages to read, of `coarse`, 'fine' and 'soundstorm'; None reads those present.
    tokenizer: the tokenizer of the workdir, if it is loaded already.
    remedy: last words of the error message if the clusters are missing or damaged.

  Raises:
    UserError: if the tokenizer, the semantic stage or one of `stages` is missing; if there is
      neither `coarse` nor soundstorm; if a stage was trained on tokens of other models.
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
  tokenizer = tokenizer or load_tokenizer(folder, remedy)
  found = {name: checkpoints.load_variables(folder / name) for name in ('semantic', *acoustic)}
  for name, model in found.items():
    trained_on, made_by = model.metadata['fingerprints'], tokenizer.fingerprints
    for part in tokens.changed_makers(trained_on, made_by, model.config.spec):
      raise UserError(
        f'stage {name} was trained on tokens of {part} {trained_on.get(part)}, but {folder} holds '
        f'{part} {made_by.get(part)}: train it again, or use the workdir of its training'
      )
  return Models(
    tokenizer,
    found['semantic'],
    coarse=found.get(coarse),
    fine=found.get('fine'),
    soundstorm=found.get('soundstorm'),
  )


def num_levels(models: Models, acoustic: str = 'autoregressive') -> int:
  """Returns the number of levels that the models generate, which is lower without a fine model.

  Args:
    models: models that belong together.
    acoustic: one of ACOUSTIC.

  Raises:
    UserError: if the models do not match one another.
  """
  if acoustic == 'soundstorm':
    return models.soundstorm.config.num_quantizers
  return _check_autoregressive(models)


def check(models: Models, acoustic: str, rules: SamplingConfig, semantic_given: bool = False):
  """Checks that the models needed for `acoustic` match one another, and the rules match them.

  Args:
    models: models that belong together.
    acoustic: one of ACOUSTIC.
    rules: sampling rules.
    semantic_given: whether semantic tokens are given, so that no semantic model is needed.

  Raises:
    UserError: if not.
  """
  if acoustic not in ACOUSTIC:
    raise UserError(f'acoustic={acoustic!r}: choose one of {", ".join(ACOUSTIC)}')
  stage = acoustic_model(models, acoustic)
  if stage is None:
    raise UserError(
      f'acoustic={acoustic!r} needs the stage {acoustic_name(acoustic)}, which is not among the '
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
  readers = {'semantic': models.semantic, acoustic_name(acoustic): stage}
  if acoustic == 'autoregressive' and models.fine is not None:
    readers['fine'] = models.fine
  for name, model in readers.items():
    if wrong := model.config.spec.differences(models.tokenizer.spec):
      raise UserError(
        f'stage {name} was trained on other tokens: {"; ".join(wrong)}: train it on these'
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


def acoustic_model(models: Models, acoustic: str) -> Model | None:
  """Returns the model that reads the semantic tokens; None if it is missing.

  Args:
    models: models that belong together.
    acoustic: one of ACOUSTIC.
  """
  return getattr(models, acoustic_name(acoustic))


def acoustic_name(acoustic: str) -> str:
  """Returns the name of the stage that reads the semantic tokens.

  Args:
    acoustic: one of ACOUSTIC.
  """
  return 'soundstorm' if acoustic == 'soundstorm' else 'coarse'


def num_acoustic(models: Models, acoustic: str) -> int:
  """Returns the number of models that make the codes of a frame.

  Args:
    models: models that belong together.
    acoustic: one of ACOUSTIC.
  """
  return 2 if acoustic == 'autoregressive' and models.fine is not None else 1


def reads_semantic(models: Models, acoustic: str) -> bool:
  """Returns whether the acoustic models read semantic tokens at all.

  Args:
    models: models that belong together.
    acoustic: one of ACOUSTIC.
  """
  return acoustic == 'soundstorm' or models.coarse.config.condition_on_semantic
