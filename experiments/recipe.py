"""What a recipe is, how one is loaded by name, and how `--set` changes a field of it.

A recipe is data: one frozen value per page, named `RECIPE`. Pages are in `experiments/recipes/`, or
anywhere: `--recipe=mine.py` and `--recipe=package.module` name pages of one's own.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.generation import SamplingConfig
from audiolm_jax.training.loop import TrainConfig

from . import recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRecipe:
  """A model and how it is trained. `model` is the `Config` of a stage: its type selects the
  stage.
  """

  model: Any
  train: TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
  """A model that others trained, in the place of a stage: `python -m experiments.pretrained import`
  puts it there.
  """

  source: str  # a repository of the Hugging Face hub
  revision: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticTokens:
  """How features of w2v-BERT (AudioLM, section III-B), or of an imported encoder, become semantic
  tokens.
  """

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
class Evaluation:
  """Sizes of the evaluation on held-out audio."""

  num_clips: int = 64  # held-out utterances for the codec and token numbers
  num_prompts: int = 64  # prompts continued in one batch
  num_naturalness_clips: int = 0  # of each row that DNSMOS rates, at 5 s of computing each
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
      seed=checks.SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgeries:
  """What the detector learns from and is judged by: utterances, and continuations of their
  beginnings.
  """

  # utterances of training voices; of each there is one original and one continuation
  num_train: int = 2000
  # of training voices that the detector does not hear: its scores are calibrated on them
  num_validation: int = 200
  num_test: int = 200  # of held-out voices
  batch_size: int = 32  # continued at once, and in one shard
  seed: int = 0

  def __post_init__(self):
    counts = ('num_train', 'num_validation', 'num_test', 'batch_size')
    checks.fields(self, **dict.fromkeys(counts, checks.WHOLE), seed=checks.SEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """Everything a run needs. Fields that hold a `StageRecipe` are what `--stage` accepts, in
  training order.
  """

  corpus: Any  # a config of experiments.corpora: where audio comes from
  soundstream: StageRecipe | Imported
  w2v_bert: StageRecipe | Imported
  semantic_tokens: SemanticTokens
  semantic: StageRecipe
  coarse: StageRecipe
  fine: StageRecipe | None = None  # None where coarse predicts all levels (piano)
  # in place of coarse and fine; needs semantic tokens with repeats
  soundstorm: StageRecipe | None = None
  # Ablation of AudioLM section IV: a coarse stage that sees no semantic tokens.
  acoustic_only: StageRecipe | None = None
  speaker: StageRecipe | None = None  # classifier of held-out voices, for evaluation only
  numbers: StageRecipe | None = None  # recognizer of spoken numbers, for evaluation only
  # share of damaged token records that is skipped and counted; one more stops the run
  max_bad_tokens: float = 0.0
  # of generated speech; learns from what experiments.forge makes
  detector: StageRecipe | None = None
  # the same between originals, by lot: must be at chance
  detector_control: StageRecipe | None = None
  forgeries: Forgeries = Forgeries()
  sampling: SamplingConfig = SamplingConfig()
  evaluation: Evaluation = Evaluation()

  def __post_init__(self):
    checks.fields(self, max_bad_tokens=checks.SHARE)

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the trainable stages, in the order they depend on one another."""
    return tuple(
      f.name for f in dataclasses.fields(self) if isinstance(getattr(self, f.name), StageRecipe)
    )

  @property
  def imports(self) -> dict[str, Imported]:
    """Models that others trained, by the stage whose place they take."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {name: value for name, value in fields.items() if isinstance(value, Imported)}


def names() -> list[str]:
  """Returns the names of all recipes."""
  return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def is_file(name: str) -> bool:
  """Returns whether a recipe is named by the path of its page."""
  return name.endswith('.py')


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
  """Returns the recipe `name` after `path.to.field=value` overrides.

  name: of a page of this package, the path of a page (`mine.py`), which is run, or a module that
  can be imported (`package.module`).

  Raises UserError for an unknown recipe or field, listing the legal ones, a page that fails or has
  no RECIPE, a value of the wrong type, or a URL.
  """
  recipe, settings = _page(name).RECIPE, []
  for override in overrides:
    path, separator, text = override.partition('=')
    if not separator:
      raise UserError(f'--set {override!r} has no value: write --set path.to.field=value')
    settings.append((path.split('.'), text, override))
  recipe = _replaced(recipe, settings) if settings else recipe
  for path, text in _texts(recipe):
    refuse_url(text, f'{path}=')
  return recipe


def _page(name: str) -> types.ModuleType:
  """Returns the module of a recipe's page; UserError where there is none, or it has no RECIPE."""
  if name in names():
    return importlib.import_module(f'{__package__}.recipes.{name}')
  if is_file(name):
    refuse_url(name, '--recipe=')
    page = _run_page(os.path.abspath(name))
  elif '.' in name and all(part.isidentifier() for part in name.split('.')):
    page = _import_page(name)
  else:
    raise UserError(
      f'unknown recipe {name!r}: choose one of {", ".join(names())}{_suggestion(name, names())}; a page of '
      'your own is given as a file, as in --recipe=mine.py, or as a module, as in --recipe=package.module'
    )
  if not isinstance(getattr(page, 'RECIPE', None), Recipe):
    raise UserError(
      f'--recipe={name} has no RECIPE of the class {Recipe.__module__}.Recipe: end the page with '
      '`RECIPE = Recipe(...)`, or with a copy of another, as `RECIPE = dataclasses.replace(tiny.RECIPE, ...)`'
    )
  return page


def _run_page(path: str) -> types.ModuleType:
  """Runs the page in a file, once in a process: its classes stay the same."""
  stem = os.path.splitext(os.path.basename(path))[0]
  name = f'recipe_{stem}'  # classes of the page have it in their names, which checkpoints hold
  loaded = sys.modules.get(name)
  if loaded is not None and loaded.__file__ == path:
    return loaded
  if not os.path.isfile(path):
    raise UserError(f'--recipe: there is no file {path}: give the path of a page with a RECIPE')
  spec = importlib.util.spec_from_file_location(name, path)
  page = importlib.util.module_from_spec(spec)
  sys.modules[name] = page  # dataclasses look their module up
  try:
    spec.loader.exec_module(page)
  except Exception as error:
    del sys.modules[name]
    raise _fails(path, error, path) from error
  return page


def _import_page(name: str) -> types.ModuleType:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name and f'{name}.'.startswith(f'{error.name}.'):
      raise UserError(
        f'--recipe={name}: there is no module {error.name}: install it, start in the folder that holds it, '
        'or give the path of the page, as in --recipe=folder/page.py'
      ) from error
    raise _fails(name, error) from error
  except Exception as error:
    raise _fails(name, error) from error


def _fails(name: str, error: Exception, path: str | None = None) -> UserError:
  """Returns the error of a page that cannot be run, with the line of a file at `path`."""
  if isinstance(error, SyntaxError):
    where, what = f'{error.filename}, line {error.lineno}', error.msg
  else:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f'{name}, line {lines[-1]}' if lines else name
    what = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
  return UserError(f'the recipe {where} fails: {what}')


def refuse_url(text: str, where: str = ''):
  """Raises UserError for a URL, which no program reads or writes; `where`: what errors put before
  it.
  """
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', text):  # one slash, too: pathlib joins two
    raise UserError(
      f'{where}{text} is a URL, not a path: buckets and web addresses are neither read nor written; give a path on a '
      'disk (one that all hosts of a pod see, as NFS or Filestore)'
    )


def _texts(node: Any, path: str = '') -> Iterator[tuple[str, str]]:
  """Yields the path and the value of every text in a config."""
  for name in _fields(node):
    value = node[name] if isinstance(node, dict) else getattr(node, name)
    if isinstance(value, str):
      yield f'{path}{name}', value
    else:
      yield from _texts(value, f'{path}{name}.')


def _replaced(node: Any, settings: Sequence[tuple[Sequence[str], str, str]]) -> Any:
  """Returns `node` with every field at a path set to what the text says.

  Each config is made once, with all that is new in it: what goes together need not be set in any
  order.
  settings: (path, text, the whole override) of each; later ones win.
  """
  fields, below = _fields(node), {}
  values = dict(node) if isinstance(node, dict) else {name: getattr(node, name) for name in fields}
  for (name, *rest), text, override in settings:
    if name not in fields:
      raise UserError(
        f'--set {override}: {type(node).__name__} has no field {name!r}{_suggestion(name, fields)}; '
        f'legal fields: {", ".join(fields)}'
      )
    if not rest:
      values[name] = _parsed(fields[name], text, override)
      below.pop(name, None)
    elif not _fields(values[name]):
      raise UserError(
        f'--set {override}: {name!r} is {values[name]!r}, a plain value without fields'
      )
    else:
      below.setdefault(name, []).append((rest, text, override))
  values |= {name: _replaced(values[name], inner) for name, inner in below.items()}
  try:
    return values if isinstance(node, dict) else dataclasses.replace(node, **values)
  except ValueError as error:  # a config that checks itself
    raise UserError(
      f'--set {" --set ".join(override for *_, override in settings)}: {error}'
    ) from error


def _fields(node: Any) -> dict[str, Any]:
  """Returns the fields of a config and their types; a config is a dataclass or a dict."""
  if isinstance(node, dict):
    return {key: type(value) for key, value in node.items()}
  if not dataclasses.is_dataclass(node):
    return {}
  hints = typing.get_type_hints(type(node))
  return {field.name: hints[field.name] for field in dataclasses.fields(node) if field.init}


def _parsed(kind: Any, text: str, override: str) -> Any:
  """Returns `text` as a value of the annotated type `kind`."""
  options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  if str in options and text not in ('None', 'none'):
    return text
  try:
    value = ast.literal_eval(text)
  except (
    ValueError,
    SyntaxError,
    RecursionError,
    MemoryError,
  ):  # the last two: brackets within brackets
    value = text
  for option in options:
    converted = _converted(option, value)
    if converted is not _NO_MATCH:
      return converted
  wanted = ' or '.join(getattr(option, '__name__', str(option)) for option in options)
  raise UserError(f'--set {override}: {text!r} is not of type {wanted}')


_NO_MATCH = object()


def _converted(kind: Any, value: Any) -> Any:
  """Returns a literal as the type `kind`, or _NO_MATCH: ints become floats, lists tuples; nothing
  else changes.

  A float that is not finite (1e999) is no value of any field.
  """
  if kind is types.NoneType and value is None:
    return None
  if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value) if abs(value) < 1e300 else _NO_MATCH
  if kind in (bool, int) and type(value) is kind:
    return value
  if (typing.get_origin(kind) or kind) is tuple and isinstance(value, (tuple, list)):
    kinds = typing.get_args(kind) or (Any, ...)
    kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
    if len(kinds) != len(value):
      return _NO_MATCH
    items = tuple(
      item if one is Any else _converted(one, item) for one, item in zip(kinds, value, strict=True)
    )
    return _NO_MATCH if any(item is _NO_MATCH for item in items) else items
  return value if kind is str and isinstance(value, str) else _NO_MATCH


def _suggestion(name: str, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''
