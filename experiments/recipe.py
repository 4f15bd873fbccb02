"""Defines recipes and loads them by name.

A recipe is data: one frozen value per page, named `RECIPE`. Pages are in `experiments/recipes/`;
`--recipe=mine.py` and `--recipe=package.module` name other pages.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from audiolm_jax import checks, storage
from audiolm_jax.chain import SamplingConfig
from audiolm_jax.errors import UserError
from audiolm_jax.training.loop import TrainConfig

from .cli import overrides as overrides_lib
from .cli import recipe_pages
from .cli.recipe_pages import refuse_url


class Input(Protocol):
  """Training data of a stage; the kinds are in experiments/inputs.py.

  Fields:
    makers: programs that make the data, in order.
  """

  makers: tuple[str, ...]

  def sources(self, recipe: 'Recipe', name: str, workdir: pathlib.Path) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRecipe:
  """Describes one trained stage.

  Fields:
    model: the `Config` of a stage, whose type selects the stage.
    data: training data.
    train: settings of training.
    from_code_vectors: whether the tables of codes start from the vectors of the codec's codes
      (audiolm_jax/nn/code_tables.py), not from random ones; for models of codes.
  """

  model: Any
  data: Input
  train: TrainConfig
  from_code_vectors: bool = False

  def __post_init__(self):
    checks.fields(self, from_code_vectors=checks.FLAG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
  """Names a pretrained model in the place of a stage.

  `python -m experiments.pretrained import` downloads it into the workdir.
  """

  source: str  # a repository of the Hugging Face hub
  revision: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticTokens:
  """Configures semantic tokens: clusters of features (AudioLM, section III-B)."""

  layer: int = 7  # of w2v-BERT's MLM module, or of the imported encoder, counted from 1
  # features whose mean makes a token: 2 for 25 tokens/s of an encoder of 50 frames/s
  frames_per_token: int = 1
  num_clusters: int = 1024
  sample_seconds: float = 36_000.0  # audio that the clusters are fitted on
  seed: int = 0

  def __post_init__(self):
    checks.fields(
      self,
      layer=checks.whole(0),
      frames_per_token=checks.WHOLE,
      num_clusters=checks.WHOLE,
      sample_seconds=checks.POSITIVE,
      seed=checks.SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelodyTokens:
  """Configures the quantizer of the vectors of the stage 'melody' (MusicLM, section 3.3).

  Fields:
    num_quantizers: levels of the residual quantizer.
    codebook_size: codes per level.
    sample_seconds: length of the audio that the quantizer is fitted to, one window per second.
  """

  num_quantizers: int = 24
  codebook_size: int = 512
  sample_seconds: float = 360_000.0

  def __post_init__(self):
    checks.fields(
      self, num_quantizers=checks.WHOLE, codebook_size=checks.WHOLE, sample_seconds=checks.POSITIVE
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MusicTokens:
  """Configures the tokens of the joint embedding in the stage 'mulan' (MusicLM).

  Fields:
    num_quantizers: levels of the residual quantizer.
    codebook_size: codes per level.
    sample_seconds: length of the audio that the quantizer is fitted to, one window per second.
    text_map: whether vectors of texts are mapped to those of their audio before they are quantized;
      MusicLM has no map. Needs a corpus with texts.
    melody: quantizer of melodies, whose tokens then come first; needs a stage 'melody'.
    seed: seed of samples and quantizers.
  """

  num_quantizers: int = 12
  codebook_size: int = 1024
  sample_seconds: float = 360_000.0
  text_map: bool = False
  melody: MelodyTokens | None = None
  seed: int = 0

  def __post_init__(self):
    checks.fields(
      self,
      num_quantizers=checks.WHOLE,
      codebook_size=checks.WHOLE,
      sample_seconds=checks.POSITIVE,
      text_map=checks.FLAG,
      seed=checks.SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Sizes of the evaluation on held-out audio."""

  num_clips: int = 64  # held-out utterances for the codec and token numbers
  num_prompts: int = 64  # prompts continued in one batch
  num_naturalness_clips: int = 0  # of each row that DNSMOS rates, at 3 to 4 s of computing each
  prompt_seconds: float = 3.0
  seconds: float = 7.0  # of continuation
  carry_seconds: float = 3.0  # kept from one window of the coarse model to the next
  # folder of ZeroSpeech 2021, or of Libri-Light's item files and LibriSpeech; '': a synthesized
  # twin
  data: str = ''
  subset: str = 'dev'  # of `data`: its folder of sWUGGY and sBLIMP, and its item file (dev-clean)
  # Folder of a CTC recognizer of people's speech (pretrained.ctc); '': words are not judged by one.
  recognizer: str = ''
  lyra: str = ''  # folder of Lyra V2's TFLite models; '': the codec is not compared with Lyra
  decoder_seconds: float = 3600.0  # training audio that the linear decoder of Table I is fitted on
  # Sound font (SF2) other than the corpus's, on which judges of music are trained; '': no judges.
  judge_font: str = ''
  num_judge_clips: int = 720  # clips that the judges are trained on
  num_long_clips: int = 8  # clips of music on which drift is measured
  long_seconds: float = 120.0  # length of these clips
  seed: int = 0

  def __post_init__(self):
    checks.fields(
      self,
      num_clips=checks.WHOLE,
      num_prompts=checks.WHOLE,
      num_naturalness_clips=checks.whole(0),
      prompt_seconds=checks.CLIP_SECONDS,
      seconds=checks.CLIP_SECONDS,
      carry_seconds=checks.NOT_NEGATIVE,
      data=checks.TEXT,
      subset=checks.TEXT,
      recognizer=checks.TEXT,
      lyra=checks.TEXT,
      decoder_seconds=checks.POSITIVE,
      judge_font=checks.TEXT,
      num_judge_clips=checks.WHOLE,
      num_long_clips=checks.WHOLE,
      long_seconds=checks.CLIP_SECONDS,
      seed=checks.SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorClipsConfig:
  """Configures the detector's data: utterances, and continuations of their beginnings."""

  # utterances of training voices; of each there is one original and one continuation
  num_train: int = 2000
  # of training voices on which the detector is not trained: its scores are calibrated on them
  num_validation: int = 200
  num_test: int = 200  # of held-out voices
  batch_size: int = 32  # continued at once, and in one shard
  seed: int = 0

  def __post_init__(self):
    counts = ('num_train', 'num_validation', 'num_test', 'batch_size')
    checks.fields(self, **dict.fromkeys(counts, checks.WHOLE), seed=checks.SEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """Describes a run.

  Fields:
    corpus: a config of experiments.corpora.
    stages: stages in training order, by the names of their folders, which `--stage` accepts.
      Generation uses 'soundstream', 'w2v_bert', 'semantic', 'coarse', 'fine' (absent where coarse
      predicts all levels) and 'soundstorm' (in place of the two before; needs semantic tokens with
      repeats). 'mulan' is a joint embedding of audio and texts, which conditions stages whose model
      has a `condition`; 'melody' is an embedding of melodies, which does so, too, with
      `music_tokens.melody`.
    semantic_tokens: clustering of features.
    music_tokens: quantizer of the vectors of 'mulan'; not used without that stage.
    max_bad_tokens: share of damaged token records that is skipped and counted; one more stops the
      run.
    detector_clips: training data of the detector.
    sampling: sampling rules.
    evaluation: sizes of the evaluation.
  """

  corpus: Any
  stages: Mapping[str, StageRecipe | Imported]
  semantic_tokens: SemanticTokens
  music_tokens: MusicTokens = MusicTokens()
  max_bad_tokens: float = 0.0
  detector_clips: DetectorClipsConfig = DetectorClipsConfig()
  sampling: SamplingConfig = SamplingConfig()
  evaluation: Evaluation = Evaluation()

  def __post_init__(self):
    checks.fields(self, max_bad_tokens=checks.SHARE)
    if taken := sorted({field.name for field in dataclasses.fields(self)} & set(self.stages)):
      raise UserError(f'stages={taken}: a field of the recipe has that name, choose another')
    if self.condition_windows and 'mulan' not in self.stages:
      raise UserError(
        'the recipe has stages with a condition, but no stage mulan, which makes its tokens: add '
        'one, or set the condition of these stages to None'
      )
    for name, stage in self.trained.items():
      condition = getattr(stage.model, 'condition', None)
      if condition is not None and condition.melody_levels != self.melody_levels:
        raise UserError(
          f'{name}.model.condition.melody_levels={condition.melody_levels}, but the stage melody '
          f'and music_tokens.melody make {self.melody_levels} tokens: set it to that'
        )

  @property
  def trained(self) -> dict[str, StageRecipe]:
    """Stages to train, in order."""
    return {name: stage for name, stage in self.stages.items() if isinstance(stage, StageRecipe)}

  @property
  def imports(self) -> dict[str, Imported]:
    """Models that others trained, by the stage whose place they take."""
    return {name: stage for name, stage in self.stages.items() if isinstance(stage, Imported)}

  @property
  def condition_windows(self) -> tuple[int, ...]:
    """Numbers of windows in the conditions of the stages, in ascending order."""
    conditions = [getattr(stage.model, 'condition', None) for stage in self.trained.values()]
    return tuple(sorted({one.windows for one in conditions if one is not None}))

  @property
  def melody_levels(self) -> int:
    """Number of tokens of a melody; 0 without melodies.

    Raises:
      UserError: if melodies are quantized, but the recipe has no stage 'melody'.
    """
    if self.music_tokens.melody is None:
      return 0
    if 'melody' not in self.trained:
      raise UserError(
        'music_tokens.melody needs a stage melody, which the recipe lacks: add one, or set it to '
        'None'
      )
    return self.music_tokens.melody.num_quantizers * len(self.trained['melody'].model.starts)

  def with_melody(self, stage: StageRecipe, tokens: MelodyTokens) -> 'Recipe':
    """Returns this recipe with a stage `melody` first, whose tokens begin the condition of others.

    The melody is hidden in half of the training examples, so that it may be left out.

    Args:
      stage: the stage `melody`.
      tokens: quantizer of its vectors, one for each of the stage's `starts`.
    """
    levels = tokens.num_quantizers * len(stage.model.starts)

    def conditioned(one: StageRecipe) -> StageRecipe:
      condition = getattr(one.model, 'condition', None)
      if condition is None:
        return one
      both = dataclasses.replace(
        condition, levels=condition.levels + levels, melody_levels=levels, melody_dropout=0.5
      )
      return dataclasses.replace(one, model=dataclasses.replace(one.model, condition=both))

    others = {name: conditioned(one) for name, one in self.stages.items()}
    music_tokens = dataclasses.replace(self.music_tokens, melody=tokens)
    return dataclasses.replace(self, stages={'melody': stage, **others}, music_tokens=music_tokens)

  def derived(self, stages: Mapping[str, Any] | None = None, **changes: Any) -> 'Recipe':
    """Returns a copy with other fields, and with stages replaced, added, or removed by None."""
    merged = {**self.stages, **(stages or {})}
    kept = {name: stage for name, stage in merged.items() if stage is not None}
    return dataclasses.replace(self, stages=kept, **changes)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
  """Returns a recipe with overrides.

  Args:
    name: name of a page of this package, path of a page (`mine.py`), which is run, or a module that
      can be imported (`package.module`).
    overrides: texts `path.to.field=value`; `STAGE=None` removes a stage.

  Raises:
    UserError: if the recipe or a field is unknown, listing the legal ones; if the page fails or has
      no RECIPE; if a value has the wrong type or is a URL.
  """
  page = recipe_pages.load(name)
  if not isinstance(getattr(page, 'RECIPE', None), Recipe):
    raise UserError(
      f'--recipe={name} has no RECIPE of the class {Recipe.__module__}.Recipe: end the page with '
      '`RECIPE = Recipe(...)`, or with a copy of another, as `RECIPE = tiny.RECIPE.derived(...)`'
    )
  recipe = page.RECIPE
  removed = {name for name in recipe.stages if f'{name}=None' in overrides}
  recipe = recipe.derived(dict.fromkeys(removed))
  overrides = [text for text in overrides if text.removesuffix('=None') not in removed]
  settings = [_setting(recipe, override) for override in overrides]
  recipe = overrides_lib.applied(recipe, settings) if settings else recipe
  for path, text in _texts(recipe):
    refuse_url(text, f'{path.removeprefix("stages.")}=')
  return recipe


def _setting(recipe: Recipe, override: str) -> tuple[list[str], str, str]:
  """Returns the path of the field, the text of the value, and the override."""
  path, separator, text = override.partition('=')
  if not separator:
    raise UserError(f'--set {override!r} has no value: write --set path.to.field=value')
  words = path.split('.')
  known = [*recipe.stages, *(name for name in overrides_lib.fields(recipe) if name != 'stages')]
  if words[0] not in known:
    raise UserError(
      f'--set {override}: the recipe has no field {words[0]!r}'
      f'{overrides_lib.suggestion(words[0], known)}; legal fields: {", ".join(known)}'
    )
  return ['stages'] * (words[0] in recipe.stages) + words, text, override


def _texts(node: Any, path: str = '') -> Iterator[tuple[str, str]]:
  """Yields the path and the value of every text in a config, but buckets where they may be."""
  for name in overrides_lib.fields(node):
    value = node[name] if isinstance(node, dict) else getattr(node, name)
    if isinstance(value, str):
      if name in getattr(node, 'IN_BUCKETS', ()) and storage.in_bucket(value):
        continue
      yield f'{path}{name}', value
    else:
      yield from _texts(value, f'{path}{name}.')
