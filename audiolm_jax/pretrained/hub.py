"""`from_pretrained`: a folder, or a repository of the Hugging Face hub, to (config, variables)."""

import pathlib
import re
from typing import Any, NamedTuple

from audiolm_jax.pretrained import dac, encodec, hubert, mimi, tensors, w2v_bert2
from audiolm_jax.stages.base import Variables

# By `model_type` of config.json.
SOURCES = {source.MODEL_TYPE: source for source in (dac, encodec, hubert, mimi, w2v_bert2)}
FILES = [tensors.CONFIG, tensors.INDEX, '*.safetensors']
COMMERCIAL_LICENCES = ('MIT', 'Apache-2.0', 'BSD-3-Clause', 'CC0-1.0', 'CC-BY-4.0')


class Published(NamedTuple):
  """A checkpoint that we know: its repository and the licence of its weights as its authors state it, or 'unstated'."""

  repository: str
  model_type: str
  licence: str
  description: str


CATALOGUE = (
    Published('descript/dac_16khz', 'dac', 'MIT', 'codec, 16 kHz, 50 frames/s, 12 x 1024: the tokens of AudioLM'),
    Published('descript/dac_24khz', 'dac', 'MIT', 'codec, 24 kHz, 75 frames/s, 32 x 1024'),
    Published('descript/dac_44khz', 'dac', 'MIT', 'codec, 44.1 kHz, 86 frames/s, 9 x 1024'),
    Published('kyutai/mimi', 'mimi', 'CC-BY-4.0', 'codec, 24 kHz, 12.5 frames/s, 32 x 2048, the first one semantic'),
    Published('facebook/encodec_24khz', 'encodec', 'unstated', 'codec, 24 kHz, 75 frames/s, 32 x 1024'),
    Published('facebook/hubert-base-ls960', 'hubert', 'Apache-2.0', 'features, 16 kHz, 50 frames/s, 12 layers of 768'),
    Published('facebook/w2v-bert-2.0', 'wav2vec2-bert', 'MIT', 'features, 16 kHz, 50 frames/s, 24 layers of 1024'),
    Published('utter-project/mHuBERT-147', 'hubert', 'CC-BY-NC-SA-4.0', 'features, 147 languages, else as HuBERT base'),
)


def from_pretrained(name_or_path: str | pathlib.Path, *, revision: str | None = None) -> tuple[Any, Variables]:
  """Returns (config, variables) of a model that others trained; its functions are in the config's module.

  Args:
    name_or_path: a folder with config.json and model.safetensors, or a repository such as 'descript/dac_16khz', which
      `huggingface_hub` (optional) downloads; its cache is used without a network.
    revision: commit, tag or branch of the repository; a commit makes the result reproducible.

  Raises:
    ValueError: no such folder or repository, a source that we do not know, or files that `tensors.load` refuses.
  """
  folder = pathlib.Path(name_or_path)
  if not folder.is_dir():
    folder = _download(str(name_or_path), revision)
  elif revision is not None:
    raise ValueError(f'revision={revision!r} is for repositories; {folder} is a folder')
  data = tensors.read_json(folder / tensors.CONFIG)
  source = SOURCES.get(str(data.get('model_type')))
  if source is None:
    raise ValueError(
        f'{folder / tensors.CONFIG} has model_type={str(data.get("model_type"))[:80]!r}; known: {", ".join(SOURCES)}'
    )
  try:
    config = source.config_from(data)
  except ValueError as error:
    raise ValueError(f'{folder}: {error}') from error
  return config, source.load(folder, config)


def is_commercial(licence: str) -> bool:
  """Whether weights of that licence may be used commercially; False for licences that we do not know."""
  return licence in COMMERCIAL_LICENCES


def published(name: str) -> Published | None:
  """Returns what the catalogue says of a repository, or None."""
  return next((entry for entry in CATALOGUE if entry.repository == name), None)


def _download(name: str, revision: str | None) -> pathlib.Path:
  """Returns the folder of a repository's config and safetensors; nothing else of it is fetched."""
  if not re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', name):
    raise ValueError(f'{name} is neither a folder of this machine nor a repository (owner/name)')
  try:
    import huggingface_hub  # optional: a folder needs none
  except ImportError:
    raise ValueError(
        f'{name} is no folder of this machine; to download it, `pip install huggingface_hub`, or fetch '
        f'{tensors.CONFIG} and {tensors.WEIGHTS} by hand and give their folder'
    )
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
  except Exception as error:  # its HTTP, offline and cache errors have no base class of their own
    raise ValueError(f'{name} could not be downloaded: {error}') from error
