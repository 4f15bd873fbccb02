"""Releases: folders of trained models that one call loads, saves or publishes.

  models = audiolm_jax.from_pretrained()                         # the one in the package
  models = audiolm_jax.from_pretrained('owner/name', revision='v1')
  audiolm_jax.save_pretrained(models, 'mine/')
  audiolm_jax.push_to_hub('mine/', 'owner/name')

A release has the layout of a workdir: programs take its folder as `--workdir`. Its format is in
training/exports.py.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping

from audiolm_jax import chain, embedding_tokens, kmeans, storage, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError, install
from audiolm_jax.pretrained import hub
from audiolm_jax.stages import mulan
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import MusicTokenizer, SemanticEncoder, SemanticTokenizer, Tokenizer
from audiolm_jax.training import configs, exports

PACKAGED = 'speech'  # the release that is part of the package
_HOME = pathlib.Path(__file__).parent / 'releases'
_PATTERNS = ['*.json', '*.safetensors', 'README.md', 'examples/*']


def fetch(name: str | os.PathLike = PACKAGED, *, revision: str | None = None) -> storage.Path:
  """Returns the folder of a release, after downloading a repository.

  Args:
    name: 'speech' (part of the package), a folder (on a disk, or gs://BUCKET/FOLDER), or a
      repository of the Hugging Face hub.
    revision: branch, tag or commit of a repository.

  Raises:
    UserError: if there is no such folder or repository, it holds no release, or a revision is given
      for a folder.
  """
  folder = _HOME / PACKAGED if name == PACKAGED else storage.path(name)
  if storage.in_bucket(folder) or folder.is_dir():
    if revision is not None:
      raise UserError(f'revision={revision!r} is for repositories; {folder} is a folder')
  else:
    folder = hub.download(str(name), revision, _PATTERNS)
  exports.read_config(folder)
  return folder


def from_pretrained(
  name: str | os.PathLike = PACKAGED,
  *,
  revision: str | None = None,
  stages: Collection[str] | None = None,
) -> chain.Models:
  """Returns the models of a release, ready for `continue_audio`.

  Args:
    name: as `fetch`.
    revision: as `fetch`.
    stages: acoustic stages to read, of 'coarse', 'fine' and 'soundstorm'; None reads all.

  Raises:
    UserError: as `fetch`; for a damaged file; for a stage that the release does not have.
  """
  return _load(fetch(name, revision=revision), stages)


def _load(folder: storage.Path, stages: Collection[str] | None = None) -> chain.Models:
  config = exports.read_config(folder)
  sampling = configs.rebuild_any(config.get('sampling'), str(config.get('version')))
  if not isinstance(sampling, chain.SamplingConfig):
    raise UserError(f'{folder / exports.CONFIG} has no sampling rules: fetch or export it again')
  return chain.load_models(folder, stages=stages)._replace(sampling=sampling)


def save_pretrained(
  models: chain.Models,
  folder: str | os.PathLike,
  *,
  others: Mapping[str, Model] | None = None,
  texts: Mapping[str, str] | None = None,
  copies: Mapping[str, pathlib.Path] | None = None,
  dtype: str = 'float16',
) -> chain.Models:
  """Writes a release, whole or not at all, and returns its models as they are read back.

  Fingerprints are those of the rounded models.

  Args:
    models: codec, tokenizer and language models.
    folder: must not exist; may be in a bucket (gs://BUCKET/FOLDER), where digests.json, which every
      reader asks for, is written last.
    others: further stages, such as 'detector', by name.
    texts: contents of text files, such as README.md, by path.
    copies: files to copy, by path in the release.
    dtype: 'float16' or 'float32', of the weights.

  Returns:
    The models, with rounded weights.

  Raises:
    UserError: if `folder` exists; if `dtype` is another one or cannot hold a weight; for sampling
      rules of one's own, which JSON cannot hold; for a joint embedding other than MuLan.
  """
  folder = storage.path(folder)
  if storage.is_there(folder):
    raise UserError(f'{folder} exists: choose another folder')
  found, both = _rounded(models, dtype)
  stored = both.semantic
  found |= {name: exports.rounded(model, dtype) for name, model in (others or {}).items()}
  storage.make_folder(folder.parent)
  with storage.folder_atomically(folder, last=exports.DIGESTS) as partial:
    exports.write_stages(partial, found, dtype, {'sampling': configs.describe(models.sampling)})
    kmeans.save(
      tokenizer.clusters_path(partial),
      stored.quantizer,
      layer=stored.encoder.layer,
      frames_per_token=stored.encoder.frames_per_token,
      model=stored.encoder.fingerprint,
    )
    if both.music is not None:
      embedding_tokens.save(
        tokenizer.music_path(partial),
        both.music.quantizer,
        both.music.embedding.fingerprint,
        both.music.words,
      )
    for name, text in (texts or {}).items():
      (partial / name).parent.mkdir(parents=True, exist_ok=True)
      (partial / name).write_text(text, encoding='utf-8')
    for name, source in (copies or {}).items():
      (partial / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source, partial / name)
    exports.write_digests(partial)
  return _load(folder)


def _rounded(models: chain.Models, dtype: str) -> tuple[dict[str, Model], Tokenizer]:
  """Returns the rounded stages by name, bound to one another's fingerprints, and the tokenizer."""
  codec, semantic = models.tokenizer.codec, models.tokenizer.semantic
  audio_codec = exports.rounded(Model(codec.config, codec.variables), dtype)
  features = exports.rounded(Model(semantic.encoder.config, semantic.encoder.variables), dtype)
  encoder = SemanticEncoder(
    config=features.config,
    variables=features.variables,
    layer=semantic.encoder.layer,
    frames_per_token=semantic.encoder.frames_per_token,
  )
  bound = SemanticTokenizer(encoder, semantic.quantizer)
  music, joint = models.tokenizer.music, {}
  if music is not None:
    if not isinstance(music.embedding.config, mulan.Config):
      raise UserError(
        f'a release holds no {type(music.embedding.config).__module__}: train a MuLan instead'
      )
    if music.melody is not None:
      raise UserError('a release holds no melodies: train the models without music_tokens.melody')
    joint = exports.rounded(Model(music.embedding.config, music.embedding.variables), dtype)
    embedding = dataclasses.replace(music.embedding, variables=joint.variables)
    music, joint = MusicTokenizer(embedding, music.quantizer, words=music.words), {'mulan': joint}
  both = Tokenizer(Codec(audio_codec.config, audio_codec.variables), bound, music)
  readers = {
    name: exports.rounded(model, dtype)
    for name in ('semantic', 'coarse', 'fine', 'soundstorm')
    if (model := getattr(models, name)) is not None
  }
  readers = {
    name: model._replace(metadata={**model.metadata, 'fingerprints': both.fingerprints})
    for name, model in readers.items()
  }
  return {'soundstream': audio_codec, 'w2v_bert': features, **joint, **readers}, both


def push_to_hub(
  folder: str | os.PathLike,
  repo_id: str,
  *,
  private: bool | None = None,
  token: str | None = None,
  revision: str | None = None,
  commit_message: str = 'Upload models',
) -> str:
  """Uploads a release to a repository of the Hugging Face hub, made if missing; returns the URL.

  Args:
    folder: what `save_pretrained` wrote; all digests are checked first.
    repo_id: owner and name.
    private: of a new repository; None takes the owner's default.
    token: access token; None takes the one that `hf auth login` stored.
    revision: branch; None takes main.
    commit_message: message of the commit.

  Returns:
    Address of the repository.

  Raises:
    UserError: if huggingface_hub is not installed, the folder holds no whole release, or the hub
      refuses.
  """
  try:
    import huggingface_hub  # an extra
  except ImportError as error:
    raise UserError(f'push_to_hub needs huggingface_hub: {install("hub")}') from error
  folder = pathlib.Path(folder)
  exports.read_config(folder)
  exports.check_all(folder)
  api = huggingface_hub.HfApi(token=token)
  try:
    repository = api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
      api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
      repo_id=repository.repo_id,
      folder_path=folder,
      revision=revision,
      commit_message=commit_message,
    )
  except Exception as error:  # HTTP, validation and token errors have no common base class
    raise UserError(f'{repo_id} could not be written: {error}') from error
  return commit.commit_url
