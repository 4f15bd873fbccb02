"""Loads pretrained models from a folder or a Hugging Face repository."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import byte_pairs, clap, dac, encodec, hubert, mimi, tensors, w2v_bert2
from audiolm_jax.stages.base import Variables

# Modules by `model_type` of config.json.
SOURCES = {source.MODEL_TYPE: source for source in (clap, dac, encodec, hubert, mimi, w2v_bert2)}
FILES = [tensors.CONFIG, tensors.INDEX, '*.safetensors', *byte_pairs.FILES]
COMMERCIAL_LICENCES = ('MIT', 'Apache-2.0', 'BSD-3-Clause', 'CC0-1.0', 'CC-BY-4.0')


class Published(NamedTuple):
  """Describes a known checkpoint.

  Fields:
    repository: owner and name.
    model_type: `model_type` of its config.json.
    licence: licence of the weights as stated by the authors, or 'unstated'.
    description: one line.
    not_read: reason why `from_pretrained` refuses it, or ''.
  """

  repository: str
  model_type: str
  licence: str
  description: str
  not_read: str = ''


CATALOGUE = (
  Published(
    'descript/dac_16khz',
    'dac',
    'MIT',
    'codec, 16 kHz, 50 frames/s, 12 x 1024: the tokens of AudioLM',
  ),
  Published('descript/dac_24khz', 'dac', 'MIT', 'codec, 24 kHz, 75 frames/s, 32 x 1024'),
  Published('descript/dac_44khz', 'dac', 'MIT', 'codec, 44.1 kHz, 86 frames/s, 9 x 1024'),
  Published(
    'kyutai/mimi',
    'mimi',
    'CC-BY-4.0',
    'codec, 24 kHz, 12.5 frames/s, 32 x 2048, the first one semantic',
  ),
  Published(
    'facebook/encodec_24khz', 'encodec', 'unstated', 'codec, 24 kHz, 75 frames/s, 32 x 1024'
  ),
  Published(
    'facebook/hubert-base-ls960',
    'hubert',
    'Apache-2.0',
    'features, 16 kHz, 50 frames/s, 12 layers of 768',
  ),
  Published(
    'facebook/w2v-bert-2.0',
    'wav2vec2-bert',
    'MIT',
    'features, 16 kHz, 50 frames/s, 24 layers of 1024',
  ),
  Published(
    'utter-project/mHuBERT-147',
    'hubert',
    'CC-BY-NC-SA-4.0',
    'features, 147 languages, else as HuBERT base',
  ),
  Published(
    'laion/larger_clap_music',
    'clap',
    'Apache-2.0',
    'audio and text to one space of 512, 48 kHz: for MuLan',
  ),
  Published(
    'laion/larger_clap_general',
    'clap',
    'Apache-2.0',
    'as larger_clap_music, of sounds and speech, too',
  ),
  Published(
    'laion/larger_clap_music_and_speech',
    'clap',
    'Apache-2.0',
    'as larger_clap_music, of speech, too',
  ),
  Published(
    'laion/clap-htsat-unfused', 'clap', 'Apache-2.0', 'audio and text to one space of 512, smaller'
  ),
  Published(
    'laion/clap-htsat-fused',
    'clap',
    'Apache-2.0',
    'as clap-htsat-unfused, and random crops of long clips',
    'fusion of a shrunken clip and random crops is not implemented: use laion/clap-htsat-unfused',
  ),
  Published(
    'OpenMuQ/MuQ-MuLan-large',
    'muq_mulan',
    'CC-BY-NC-4.0',
    'audio and text to one space of 512, 24 kHz',
    'its weights forbid commercial use, and neither its towers (MuQ and XLM-RoBERTa) nor its '
    'format, which names '
    'no model_type, are implemented: laion/larger_clap_music stands in for MuLan',
  ),
)


def from_pretrained(
  name_or_path: str | pathlib.Path, *, revision: str | None = None
) -> tuple[Any, Variables]:
  """Loads config and variables of a pretrained model; its functions are in the config's module.

  Args:
    name_or_path: a folder with config.json and model.safetensors, or a repository such as
      'descript/dac_16khz', which `huggingface_hub` (optional) downloads, or reads from its cache
      without a network.
    revision: commit, tag or branch of the repository; a commit makes the result reproducible.

  Raises:
    UserError: if there is no such folder or repository, the source is unknown or not read, or
      `tensors.load` refuses its files.
  """
  folder = fetch(name_or_path, revision=revision)
  data = tensors.read_json(folder / tensors.CONFIG)
  source = SOURCES.get(str(data.get('model_type')))
  if source is None:
    raise UserError(
      f'{folder / tensors.CONFIG} has model_type={str(data.get("model_type"))[:80]!r}; known: '
      f'{", ".join(SOURCES)}'
    )
  try:
    config = source.config_from(data)
  except ValueError as error:
    raise UserError(f'{folder}: {error}') from error
  return config, source.load(folder, config)


def fetch(name_or_path: str | pathlib.Path, *, revision: str | None = None) -> pathlib.Path:
  """Returns the folder of `from_pretrained`, after downloading a repository.

  Raises:
    UserError: as `from_pretrained`.
  """
  folder = pathlib.Path(name_or_path)
  if folder.is_dir():
    if isinstance(name_or_path, str) and published(name_or_path):
      raise UserError(
        f'{name_or_path} is a repository that we know, and a folder here: write ./{name_or_path} '
        'where you mean the folder, or go to another folder where you mean the repository'
      )
    if revision is not None:
      raise UserError(f'revision={revision!r} is for repositories; {folder} is a folder')
    return folder
  refuse_unread(str(name_or_path))
  return download(str(name_or_path), revision, FILES)


def refuse_unread(name: str):
  """Checks that `name` is not a known checkpoint that cannot be read.

  Raises:
    UserError: with the reason, if it is.
  """
  known = published(name)
  if known is not None and known.not_read:
    raise UserError(f'{name} ({known.licence}) is not read: {known.not_read}')


def is_commercial(licence: str) -> bool:
  """Returns whether a licence allows commercial use of weights; False for unknown licences."""
  return licence in COMMERCIAL_LICENCES


def published(name: str) -> Published | None:
  """Returns the catalogue entry of a repository, or None."""
  return next((entry for entry in CATALOGUE if entry.repository == name), None)


def download(name: str, revision: str | None, patterns: Sequence[str]) -> pathlib.Path:
  """Downloads the files of a repository whose names match patterns, and returns their folder.

  Raises:
    UserError: if `name` is no repository, cannot be downloaded, or has no safetensors.
  """
  if not re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', name):
    raise UserError(f'{name} is neither a folder of this machine nor a repository (owner/name)')
  try:
    import huggingface_hub  # optional, not needed for folders
  except ImportError as error:
    raise UserError(
      f'{name} is no folder of this machine; to download it, `pip install huggingface_hub`, or '
      f'fetch {tensors.CONFIG} and {tensors.WEIGHTS} by hand and give their folder'
    ) from error
  try:
    folder = pathlib.Path(
      huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns))
    )
  except Exception as error:  # HTTP, offline and cache errors have no common base class
    raise UserError(f'{name} could not be downloaded: {error}') from error
  if not any(folder.rglob('*.safetensors')):
    raise UserError(
      f'{name} has no safetensors at revision {revision or "main"}; for most such repositories a '
      'bot of the hub has made them in a pull request (under "Community"): give it as the '
      'revision, such as refs/pr/1'
    )
  return folder
