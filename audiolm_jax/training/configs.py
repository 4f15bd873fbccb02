"""Converts frozen configs to JSON-compatible data and back, and compares them."""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import audiolm_jax
from audiolm_jax.errors import UserError

_ROOMS, _PACKAGE = ('audiolm_jax.stages.', 'audiolm_jax.pretrained.'), 'audiolm_jax.'
_MOVED = {'audiolm_jax.generation.SamplingConfig': 'audiolm_jax.chain.SamplingConfig'}
_SOUNDSTREAM = 'audiolm_jax.stages.soundstream.Config'
# Fields that were added to classes, with the values that give the behaviour of earlier versions.
_ADDED = {
  'audiolm_jax.nn.frame_rate.FrameRate': {'lookahead': 0},
  'audiolm_jax.stages.base.Condition': {'melody_levels': 0, 'melody_dropout': 0.0},
  'audiolm_jax.stages.coarse.Config': {'aligned': False},
  'audiolm_jax.stages.mulan.Config': {'equal_texts': 'negatives'},
}
# Flat fields of SoundStream configs up to version 0.1, and their names in today's nested configs.
_SEANET_FIELDS = {
  name: name
  for name in ('strides', 'stem_stride', 'encoder_channels', 'decoder_channels', 'mel_encoder')
}
_RVQ_FIELDS = {
  'num_quantizers': 'num_quantizers',
  'codebook_size': 'codebook_size',
  'embedding_dim': 'embedding_dim',
  'quantizer_dropout': 'dropout',
  'codebook_decay': 'decay',
  'dead_code_threshold': 'dead_code_threshold',
}
_WEIGHT_FIELDS = {
  f'{name}_weight': name
  for name in ('spectral', 'waveform', 'commitment', 'adversarial', 'feature')
}
_DISCRIMINATOR_FIELDS = {
  'adversarial_start': 'start',
  'spectral_channels': 'spectral_channels',
  'spectral_window_length': 'spectral_window_length',
  'num_waveform_critics': 'num_waveform',
  'waveform_channels': 'waveform_channels',
  'waveform_max_channels': 'waveform_max_channels',
}
_MISSING = '(absent)'
_MAX_DEPTH, _MAX_ITEMS = 32, 4096  # limits for stored configs; real ones have 6 and some dozens


def describe(value: Any) -> Any:
  """Returns a config as JSON-compatible data.

  Dataclasses become {'class', 'fields'}, tuples become lists, dtypes become {'dtype'}.

  Raises:
    UserError: if a value has another type.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {
      field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)
    }
    return {'class': f'{type(value).__module__}.{type(value).__qualname__}', 'fields': fields}
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, (tuple, list)):
    return [describe(item) for item in value]
  if isinstance(value, Mapping):
    return {str(name): describe(item) for name, item in value.items()}
  try:
    return {'dtype': jnp.dtype(value).name}
  except TypeError as error:
    raise UserError(
      f'config value {value!r} cannot be stored: use numbers, strings, tuples, dtypes, dataclasses'
    ) from error


def upgraded(data: Any) -> Any:
  """Returns a described config in the form of this version, whichever version described it.

  Up to version 0.1, SoundStream configs had flat fields instead of nested configs of network,
  quantizer, discriminators and denoising switch, and a mapping of loss weights. Some classes lacked
  fields (`_ADDED`).

  Raises:
    UserError: if this version has no equivalent of the config.
  """
  data = _with_added_fields(data)
  is_codec = isinstance(data, Mapping) and data.get('class') == _SOUNDSTREAM
  fields = data.get('fields') if is_codec else None
  if not isinstance(fields, Mapping):
    return data
  if {'quantizer', 'discriminators', 'denoising'} <= set(fields):
    return data
  fields = dict(fields)
  if 'denoising' not in fields:
    place = fields.pop('film', None)
    switch = {'class': 'audiolm_jax.nn.denoising.DenoisingSwitch', 'fields': {'place': place}}
    fields['denoising'] = None if place is None else switch
  take = lambda names: {new: fields.pop(old) for old, new in names.items() if old in fields}
  if 'discriminators' not in fields:
    fields['discriminators'] = {
      'class': 'audiolm_jax.nn.discriminators.Discriminators',
      'fields': take(_DISCRIMINATOR_FIELDS),
    }
  if 'quantizer' in fields:  # nested before the discriminators and the switch were
    return {**data, 'fields': fields}
  seanet, rvq, weights = take(_SEANET_FIELDS), take(_RVQ_FIELDS), take(_WEIGHT_FIELDS)
  levels = fields.pop('fsq_levels', None)
  if fields.get('network') is None:
    fields['network'] = {'class': 'audiolm_jax.nn.seanet.SEANet', 'fields': seanet}
  elif seanet.get('mel_encoder'):
    raise UserError(
      'checkpoint has a mel encoder before a network at the frame rate, which this version cannot '
      'make: load it with the version that wrote it'
    )
  kind, own = ('RVQ', rvq) if levels is None else ('FSQ', {'levels': levels})
  fields['quantizer'] = {'class': f'audiolm_jax.nn.quantizer.{kind}', 'fields': own}
  fields['loss_weights'] = weights | {'discriminator': 1.0}
  return {**data, 'fields': fields}


def _with_added_fields(data: Any, depth: int = 0) -> Any:
  is_class = isinstance(data, Mapping) and isinstance(data.get('fields'), Mapping)
  if not is_class or depth > _MAX_DEPTH:
    return data
  fields = {name: _with_added_fields(value, depth + 1) for name, value in data['fields'].items()}
  return {**data, 'fields': _ADDED.get(data.get('class'), {}) | fields}


def rebuild(data: Mapping[str, Any], version: str) -> Any:
  """Returns the stage config that `describe` converted.

  A checkpoint must not run foreign code. Therefore the only classes imported are
  `audiolm_jax.stages.<module>.Config` and `audiolm_jax.pretrained.<module>.Config`, and for nested
  configs frozen dataclasses of this package.

  Args:
    data: result of `describe`, in the form of this version (see `upgraded`).
    version: version of this package that described the config, for error messages.

  Raises:
    UserError: for another class, or for fields that this version does not have.
  """
  path = data.get('class')
  is_path = isinstance(path, str) and path.startswith(_ROOMS)
  if not (is_path and path.count('.') == 3 and path.endswith('.Config')):
    allowed = ' and '.join(f'{room}<module>.Config' for room in _ROOMS)
    shown = str(path)[:200]
    raise UserError(
      f'checkpoint names the config class {shown!r}: only {allowed} are imported; for a stage of '
      'your own pass its config: checkpoints.load_variables(directory, config=...)'
    )
  if set(data) != {'class', 'fields'}:
    raise UserError(f'checkpoint has a config of unknown form: {str(data)[:200]!r}')
  return rebuild_any(data, version)


def rebuild_any(data: Any, version: str) -> Any:
  """Returns the value that `describe` converted: as `rebuild`, but any dataclass of the package."""
  return _rebuild(data, version, _MAX_DEPTH)


def _rebuild(data: Any, version: str, depth: int) -> Any:
  if depth == 0:
    raise UserError(f'checkpoint has a config nested deeper than {_MAX_DEPTH}: it is damaged')
  if isinstance(data, (list, Mapping)) and len(data) > _MAX_ITEMS:
    raise UserError(f'checkpoint has a config with {len(data):,} items in a list: it is damaged')
  if isinstance(data, list):
    return tuple(_rebuild(item, version, depth - 1) for item in data)
  if not isinstance(data, Mapping):
    return data
  if set(data) == {'dtype'}:
    return _dtype(data['dtype'])
  if set(data) != {'class', 'fields'}:
    return {name: _rebuild(item, version, depth - 1) for name, item in data.items()}
  if not (isinstance(data['class'], str) and isinstance(data['fields'], Mapping)):
    raise UserError(f'checkpoint has a config of unknown form: {str(data)[:200]!r}')
  kind = _import_class(data['class'], version)
  known = {field.name for field in dataclasses.fields(kind)}
  unknown = sorted(set(data['fields']) - known)
  if unknown:
    raise UserError(
      f'checkpoint of audiolm_jax {version} sets {data["class"]} fields {str(unknown)[:200]}, '
      f'which audiolm_jax {audiolm_jax.__version__} does not have: load it with the version that '
      'wrote it'
    )
  fields = {name: _rebuild(item, version, depth - 1) for name, item in data['fields'].items()}
  try:
    return kind(**fields)
  except TypeError as error:  # a missing field, or a field of another type
    raise UserError(
      f'checkpoint of audiolm_jax {version} has wrong fields for {data["class"]}: {error}'
    ) from error


def _dtype(name: Any) -> Any:
  """Returns the scalar type with this name, such as jnp.bfloat16, which configs use as dtype."""
  kind = getattr(jnp, name, None) if isinstance(name, str) and name.isidentifier() else None
  if not (hasattr(kind, 'dtype') and isinstance(kind.dtype, np.dtype) and kind.dtype.name == name):
    raise UserError(
      f'checkpoint has a config of dtype {str(name)[:200]!r}, which JAX does not have'
    )
  return kind


def _import_class(path: str, version: str) -> type:
  path = _MOVED.get(path, path)
  module_name, _, name = path.rpartition('.')
  if not module_name.startswith(_PACKAGE):
    raise UserError(
      f'checkpoint names the class {path!r}: only classes of {_PACKAGE[:-1]} are allowed'
    )
  try:
    kind = getattr(importlib.import_module(module_name), name)
  except (ImportError, AttributeError) as error:
    raise UserError(
      f'checkpoint of audiolm_jax {version} needs {path}, which audiolm_jax '
      f'{audiolm_jax.__version__} does not have: load it with the version that wrote it'
    ) from error
  if not (
    isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
  ):
    raise UserError(f'checkpoint names {path!r}, which is not a frozen dataclass')
  return kind


def differences(saved: Any, given: Any) -> list[str]:
  """Returns one line per field that differs between two results of `describe`.

  An absent field equals None, so that checkpoints from before an optional field was added continue.
  """
  old, new = dict(_leaves(saved)), dict(_leaves(given))
  return [
    f'{name}: checkpoint {old.get(name, _MISSING)!r}, now {new.get(name, _MISSING)!r}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]


def _leaves(data: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  if isinstance(data, Mapping) and set(data) == {'class', 'fields'}:
    yield f'{prefix}class', data['class']
    data = data['fields']
  if isinstance(data, Mapping):
    for name, item in data.items():
      yield from _leaves(item, f'{prefix}{name}.')
  else:
    yield prefix.rstrip('.'), data
