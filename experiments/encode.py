"""Encodes the corpus: fits the k-means of semantic tokens, then writes shards of all tokens.

  python -m experiments.encode --recipe=tiny --workdir=runs/tiny

If the recipe has a stage `mulan`, the quantizer of its vectors is fitted after the k-means, and the
shards also contain its tokens.

Finished shards are kept: after a kill or SIGTERM, the same command resumes. On a pod, run it on
every host. The hosts divide the samples to fit and the shards among themselves through the
workdir, which all hosts must see. Each uses all of its own devices, and waits for the others only
at the end of the k-means and of each split.

Clips that cannot be read are left out, counted, and listed with the reason in
WORKDIR/corpus/skipped.jsonl. Shards belong to the list of files that they were made of
(WORKDIR/tokens/SPLIT.corpus.json): a corpus that changed before its encoding was finished is
refused.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from audiolm_jax import arrays_file, audio, embedding_tokens, kmeans, parts, storage, tokens
from audiolm_jax.codec import Codec
from audiolm_jax.data import inventory, pipeline, token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.stages import melody
from audiolm_jax.stages.base import CONDITION_RATE, condition_name
from audiolm_jax.tokenizer import (
  MusicTokenizer,
  SemanticEncoder,
  Tokenizer,
  clusters_path,
  encode_rows,
  load_music_tokenizer,
  melody_path,
  music_path,
  spec_of,
)
from audiolm_jax.tokens import Spec
from audiolm_jax.training import lock, sharding

from . import corpora, inputs, sources, workspace
from . import recipe as recipe_lib
from .cli import command_line, pod

SHARD_EXAMPLES = 64  # in a shard, or as many as keep a split to MAX_SHARDS
MAX_SHARDS = 1000  # readers keep all open: 60,000 hours at 12 codes a frame are shards of 270 MB
# what np.load raises, by the place of the damage
_NO_ARRAYS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
# Function: waveform at the codec's rate -> further tokens by name, such as music_21.
MoreTokens = Callable[[np.ndarray], dict[str, np.ndarray]]
LABELS = ('speaker', 'phones')  # stored with the tokens if the corpus has them


def main():
  parser = command_line.parser(__doc__, buckets=True)
  command_line.add_compilation_cache(parser)
  args = parser.parse_args()
  command_line.keep_compiled(args)
  pod.join_pod()
  pod.leave_on_sigterm()
  recipe = workspace.recipe_of(args)
  pod.check_shared(args.workdir)
  workspace.require_imports(recipe, args.workdir)
  with only_encoder(args.workdir / 'tokens'):
    encode_corpus(recipe, args.workdir)


@contextlib.contextmanager
def only_encoder(folder: storage.Path) -> Iterator[None]:
  """Holds a folder for this run; ValueError, naming the process, where another run writes there.

  On a pod process 0 does so for all.
  """
  if jax.process_index():
    yield
    return
  storage.make_folder(folder)
  with lock.held(folder):
    yield


def encode_corpus(recipe: recipe_lib.Recipe, workdir: storage.Path):
  """Fits the k-means and the quantizer if they are missing, and encodes both splits."""
  codec = workspace.load_codec(workdir)
  embedding = workspace.load_embedding(workdir) if 'mulan' in recipe.stages else None
  condition = None
  if embedding is not None:
    settings = recipe.music_tokens
    sizes = [one.codebook_size for one in (settings, settings.melody) if one is not None]
    condition = tokens.Codebook(settings.num_quantizers + recipe.melody_levels, max(sizes))
  encoder = workspace.load_semantic_encoder(workdir, recipe.semantic_tokens)
  if not clusters_path(workdir).is_file():
    made = spec_of(codec, encoder, recipe.semantic_tokens.num_clusters, condition)
    check_stages(recipe, made)  # before the clusters are fitted in vain
    fit_semantic_tokens(recipe, workdir, encoder)
  if embedding is not None and not music_path(workdir).is_file():
    fit_music_tokens(recipe, workdir, embedding)
  if recipe.melody_levels and not melody_path(workdir).is_file():
    fit_melody_tokens(recipe, workdir)
  music = None
  if embedding is not None:
    music = load_music_tokenizer(workdir, embedding)
    check_music_settings(workdir, music, recipe.music_tokens)
  tokenizer = Tokenizer(codec, workspace.load_semantic_tokenizer(workdir, encoder), music)
  check_settings(workdir, tokenizer.semantic.encoder, recipe.semantic_tokens)
  check_stages(recipe, tokenizer.spec)
  fingerprints = tokenizer.fingerprints
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.local_devices())
  rows = sharding.batch_sharding(mesh)
  both = Tokenizer(tokenizer.codec, tokenizer.semantic)
  placed = jax.device_put(both, sharding.replicated(mesh))

  def encode_batch(wave_BT):
    semantic_wave_BT = audio.resample(wave_BT, both.sample_rate, both.semantic.sample_rate)
    waves = jax.device_put((wave_BT, semantic_wave_BT), rows)
    with sharding.activations(mesh, trains=False):
      return encode_rows(placed, *waves)

  def more_tokens(wave_T):
    if music is None:
      return {}
    found = music.seconds(wave_T, codec.sample_rate, recipe.condition_windows)
    return {condition_name(number): tokens_SN for number, tokens_SN in found.items()}

  for split in ('train', 'test'):
    encode_split(
      recipe, workdir, split, encode_batch, codec, tokenizer.spec, fingerprints, more_tokens
    )


def check_settings(
  workdir: storage.Path, encoder: SemanticEncoder, settings: recipe_lib.SemanticTokens
):
  """Compares existing clusters with the recipe.

  Raises:
    UserError: if they are of other features.
  """
  for name in ('layer', 'frames_per_token'):
    there, wanted = getattr(encoder, name), getattr(settings, name)
    if there != wanted:
      raise UserError(
        f'{workdir}/semantic_tokens holds clusters of {name}={there}, the recipe has {wanted}: '
        f'move it and {workdir}/tokens away, or keep them with --set semantic_tokens.{name}={there}'
      )


def check_music_settings(
  workdir: storage.Path, music: MusicTokenizer, settings: recipe_lib.MusicTokens
):
  """Compares a quantizer that exists with the recipe.

  Raises:
    UserError: if it has other sizes, or a map of texts where the recipe has none, or none.
  """
  levels, size = music.quantizer.vectors_QKD.shape[:2]
  there = {
    'num_quantizers': levels,
    'codebook_size': size,
    'text_map': music.quantizer.map_ED is not None,
    'melody': music.melody is not None,
  }
  wanted_of = {name: getattr(settings, name) for name in there}
  wanted_of['melody'] = settings.melody is not None
  if there['melody'] and wanted_of['melody']:
    levels, size = music.melody.vectors_QKD.shape[:2]
    there |= {'melody.num_quantizers': levels, 'melody.codebook_size': size}
    wanted_of |= {
      f'melody.{name}': getattr(settings.melody, name)
      for name in ('num_quantizers', 'codebook_size')
    }
  for name, value in there.items():
    if value != (wanted := wanted_of[name]):
      raise UserError(
        f'{workdir}/music_tokens holds a quantizer of {name}={value}, the recipe has {wanted}: '
        f'move it and {workdir}/tokens away, or keep them with --set music_tokens.{name}={value}'
      )


def check_stages(recipe: recipe_lib.Recipe, made: Spec):
  """Raises ValueError where the tokens cannot be aligned, or a stage is made for others."""
  tokens.frames_per_semantic(made.frame_rate, made.semantic_rate)
  for name, stage in recipe.trained.items():
    if isinstance(stage.data, inputs.Tokens):
      sources.check_tokens(name, stage.model, made)


def fit_semantic_tokens(recipe: recipe_lib.Recipe, workdir: storage.Path, encoder: SemanticEncoder):
  """Fits the k-means to features of a sample of the training split."""
  settings, path = recipe.semantic_tokens, clusters_path(workdir)
  extract = functools.partial(sources.map_parts, encoder)
  corpus = sources.corpus(recipe, 'train', workdir, encoder.sample_rate)
  batches = sources.FrameBatches(extract, corpus, encoder.sample_rate, settings.seed)
  wanted = sources.num_sample_frames(encoder, settings)
  made_of = f'layer {encoder.layer}, {encoder.frames_per_token} a token, of {encoder.fingerprint}'

  def fit(frames_ND):
    quantizer = kmeans.fit(frames_ND, settings.num_clusters, settings.seed)
    kmeans.save(
      path,
      quantizer,
      layer=encoder.layer,
      frames_per_token=encoder.frames_per_token,
      model=encoder.fingerprint,
    )
    print(f'k-means: {settings.num_clusters} clusters of {len(frames_ND)} frames; {path}')

  fit_to_sample(path, batches, corpus, wanted, made_of, fit)


def fit_music_tokens(recipe: recipe_lib.Recipe, workdir: storage.Path, embedding: JointEmbedding):
  """Fits the quantizer to vectors of windows of a sample of the training split, with its map."""
  settings, path = recipe.music_tokens, music_path(workdir)
  extract = functools.partial(sources.map_windows, embedding, with_texts=settings.text_map)
  corpus = sources.corpus(recipe, 'train', workdir, embedding.sample_rate)
  batches = sources.FrameBatches(extract, corpus, embedding.sample_rate, settings.seed)
  wanted = round(settings.sample_seconds * CONDITION_RATE)
  made_of = f'text_map={settings.text_map}, of {embedding.fingerprint}'

  def fit(vectors_ND):
    audio_ND, text_ND = np.split(vectors_ND, [embedding.embedding_dim], axis=1)
    fitted = embedding_tokens.Quantizer(
      embedding_tokens.fit(
        audio_ND, settings.num_quantizers, settings.codebook_size, settings.seed
      ),
      embedding_tokens.fit_map(text_ND, audio_ND) if settings.text_map else None,
    )
    words = sources.training_words(recipe, workdir)
    embedding_tokens.save(path, fitted, embedding.fingerprint, words)
    print(
      f'music tokens: {settings.num_quantizers} levels of {settings.codebook_size} codes of '
      f'{len(audio_ND)} windows; {path}'
    )

  fit_to_sample(path, batches, corpus, wanted, made_of, fit)


def fit_melody_tokens(recipe: recipe_lib.Recipe, workdir: storage.Path):
  """Fits the quantizer of melodies to windows of a sample of the training split."""
  settings, path = recipe.music_tokens.melody, melody_path(workdir)
  config, variables, _ = workspace.load_stage(workdir, 'melody')
  model = arrays_file.fingerprint(variables.params)
  embed = jax.jit(lambda wave_BT: melody.embeddings(config, variables, wave_BT))
  length = config.crop_length

  def extract(examples, sample_rate):
    for example in (example for example in examples if example is not None):
      wave_T = np.pad(example['waveform'], (0, max(0, length - len(example['waveform']))))
      firsts = range(0, len(wave_T) - length + 1, sample_rate)
      vectors = [embed(wave_T[None, first : first + length]) for first in firsts]
      yield np.concatenate([np.asarray(vector_1D) for vector_1D in vectors])

  corpus = sources.corpus(recipe, 'train', workdir, config.sample_rate)
  seed = recipe.music_tokens.seed
  batches = sources.FrameBatches(extract, corpus, config.sample_rate, seed)
  wanted = round(settings.sample_seconds * CONDITION_RATE)

  def fit(vectors_ND):
    fitted = embedding_tokens.fit(vectors_ND, settings.num_quantizers, settings.codebook_size, seed)
    embedding_tokens.save(path, embedding_tokens.Quantizer(fitted), model)
    print(
      f'melody tokens: {settings.num_quantizers} levels of {settings.codebook_size} codes of '
      f'{len(vectors_ND)} windows; {path}'
    )

  fit_to_sample(path, batches, corpus, wanted, f'melodies, of {model}', fit)


def fit_to_sample(
  path: storage.Path,
  batches: sources.FrameBatches,
  corpus,
  wanted: int,
  made_of: str,
  fit: Callable[[np.ndarray], object],
):
  """Calls `fit`, which writes `path`, with a sample of frames [N, D] of the training split.

  Each process extracts its share of the sample into a file. Process 0 joins the shares in the order
  in which a single process would have drawn them, so that the number of processes has no influence,
  and fits. Shares of another corpus or of frames `made_of` something else are not used.
  """
  count, listed = jax.process_count(), inventory.digest(inventory.of(corpus))
  sample = f'{wanted} frames of {made_of}, of {listed}'
  shares = [path.with_name(f'sample-{index:05d}-of-{count:05d}.npz') for index in range(count)]
  mine = shares[jax.process_index()]
  if not _is_sample(mine, sample):
    share = sources.sample_frames(batches, wanted, jax.process_index(), count)
    held = [frames_SD for batch in share for frames_SD in batch]
    storage.make_folder(mine.parent)
    with storage.atomically(mine) as partial, open(partial, 'wb') as file:
      np.savez(
        file,
        frames=np.concatenate(held) if held else np.zeros((0, 0), np.float32),
        lengths=[sum(map(len, batch)) for batch in share],
        sample=sample,
      )
  if jax.process_index() == 0:
    pod.wait_for(
      'the samples of other hosts',
      functools.partial(_unfinished, shares, sample, set()),
      poll_seconds=storage.poll_seconds(path),
    )
    fit(sources.joined([_read_sample(share) for share in shares], wanted, batches))
    for name in storage.files_below(path.parent):
      if re.fullmatch(r'sample-[^/]*\.npz', name):
        (path.parent / name).unlink()
  pod.wait_for(
    f'{path.name}, which process 0 makes',
    lambda: storage.missing([str(path)]),
    poll_seconds=storage.poll_seconds(path),
  )


def _unfinished(shares: list[storage.Path], sample: str, finished: set[storage.Path]) -> list[str]:
  """Returns the paths of the shares that are not finished; adds the others to `finished`."""
  left = [share for share in shares if share not in finished]
  absent = set(storage.missing(map(str, left)))
  finished.update(share for share in left if str(share) not in absent and _is_sample(share, sample))
  return [str(share) for share in left if share not in finished]


def _is_sample(path: storage.Path, sample: str) -> bool:
  """Returns whether a process has finished its share of this sample; that of another model, or a
  torn file, is none.
  """
  try:
    with storage.local(path) as local, np.load(local, allow_pickle=False) as stored:
      return str(stored['sample']) == sample
  except _NO_ARRAYS:
    return False


def _read_sample(path: storage.Path) -> list[list[np.ndarray]]:
  """Returns the batches of frames of a share. Raises ValueError where the file is damaged."""
  try:
    with storage.local(path) as local, np.load(local, allow_pickle=False) as stored:
      frames_ND, ends_I = stored['frames'], np.cumsum(stored['lengths'], dtype=int)
  except _NO_ARRAYS as error:
    raise UserError(
      f'{path} is damaged ({error}): run `{storage.removal(path)}`, and start all again'
    ) from error
  pieces = np.split(frames_ND, ends_I)[: len(ends_I)]
  return [[part_ND] if len(part_ND) else [] for part_ND in pieces]


def encode_split(
  recipe,
  workdir,
  split,
  encode_batch,
  codec: Codec,
  spec: Spec,
  fingerprints,
  more_tokens: MoreTokens = lambda wave_T: {},
):
  """Writes the missing shards of a split, and then, on process 0, the manifest.

  Args:
    recipe: recipe of the run.
    workdir: folder of the run.
    split: 'train' or 'test'.
    encode_batch: function wave_BT -> (codes_BFQ, semantic_BS).
    codec: codec of the codes.
    spec: rates and sizes of the tokens.
    fingerprints: fingerprints of what makes the tokens, by name.
    more_tokens: see `MoreTokens`.
  """
  folder = workdir / 'tokens'
  workspace.claim(folder, fingerprints)
  manifest = folder / f'{split}.json'
  if manifest.is_file():
    print(f'{split}: already encoded; {folder}{corpus_changes(recipe, workdir, split)}')
    return
  made = token_shards.written(folder, split)
  corpus = sources.corpus(recipe, split, workdir, codec.sample_rate)
  inventory.bind(
    inventory_path(workdir, split),
    inventory.of(corpus),
    made,
    f'put the corpus back as it was, or begin again: {encode_again_command(workdir)}',
  )
  shard_examples = max(SHARD_EXAMPLES, -(-len(corpus) // MAX_SHARDS))
  num_shards = -(-len(corpus) // shard_examples)
  paths = [token_shards.shard_path(folder, split, shard, num_shards) for shard in range(num_shards)]
  if others := sorted(set(made) - set(paths)):
    raise UserError(
      f'{others[0]} is not one of the {num_shards} shards of this split, an earlier version of the '
      f'program cut it in others: {encode_again_command(workdir)}'
    )
  missing = set(storage.missing(paths))
  with workspace.progress(len(corpus), f'encode {split}', 'clip') as bar:
    for shard in range(jax.process_index(), num_shards, jax.process_count()):
      indices = range(shard * shard_examples, min((shard + 1) * shard_examples, len(corpus)))
      if paths[shard] not in missing:
        bar.update(len(indices))
      else:
        token_shards.write_shard(
          folder,
          split,
          shard,
          num_shards,
          encoded(corpus, indices, encode_batch, codec, spec, bar.update, more_tokens),
        )
  # It is no error of this process if another one is late, or has to be restarted: it waits, and
  # says for what.
  pause = storage.poll_seconds(folder)
  pod.wait_for('shards of other hosts', lambda: storage.missing(paths), poll_seconds=pause)
  if jax.process_index() == 0:
    num_encoded = token_shards.count(paths)
    if not num_encoded:
      raise UserError(
        f'{split}: none of {len(corpus)} clips could be read; why is in '
        f'{corpora.listing(workdir / "corpus")}: mend '
        f'them, or give others, and begin again: {encode_again_command(workdir)}'
      )
    metadata = {'fingerprints': fingerprints, **dataclasses.asdict(spec)}
    token_shards.write_manifest(folder, split, num_shards, metadata)
  pod.wait_for(
    'the manifest, which process 0 writes',
    lambda: storage.missing([str(manifest)]),
    poll_seconds=pause,
  )
  if jax.process_index() == 0:
    print(f'{split}: {num_encoded} clips in {num_shards} shards; {folder}')
    print(
      left_out(corpus, len(corpus) - num_encoded, corpora.listing(sources.corpus_folder(workdir))),
      end='',
    )


def left_out(corpus, num_clips: int, listing: str) -> str:
  """Returns lines on clips that are not encoded, and files that may be truncated; '' if none."""
  lines = []
  if num_clips:
    lines.append(
      f'  {num_clips} of {len(corpus)} clips could not be read; they and the reasons: {listing}\n'
    )
  elif os.path.isfile(listing):
    lines.append(f'  files that were left out, and the reasons: {listing}\n')
  if unchecked := corpus.unchecked() if hasattr(corpus, 'unchecked') else 0:
    lines.append(
      f'  {unchecked} files have no header that tells their length: a cut end would not be '
      'noticed\n'
    )
  return ''.join(lines)


def inventory_path(workdir: storage.Path, split: str) -> storage.Path:
  return workdir / 'tokens' / f'{split}.corpus.json'


def corpus_changes(recipe: recipe_lib.Recipe, workdir: storage.Path, split: str) -> str:
  """Returns the corpus's changes since it was encoded, and how to encode it again; '' if none."""
  before = inventory.load(inventory_path(workdir, split))
  try:
    corpus = sources.corpus(recipe, split, workdir)
  except (ValueError, OSError):  # tokens can be used without their corpus
    return ''
  if before is None or not (changes := inventory.difference(before, inventory.of(corpus))):
    return ''
  return f'\n  since then: {changes}; to encode it as it is now: {encode_again_command(workdir)}'


def encode_again_command(workdir: storage.Path) -> str:
  """Returns the commands that move the tokens of a workdir away and encode its corpus again."""
  return f'{move_command(workdir / "tokens")}, then `{command_line.command("encode", workdir)}`'


def move_command(folder: storage.Path) -> str:
  """Returns the command that renames a folder to an unused name."""
  names = (f'{folder.name}.old{number}' for number in itertools.count(1))
  free = next(name for name in names if not folder.with_name(name).exists())
  return f'`{storage.renaming(folder, free)}`'


def encoded(
  corpus,
  indices,
  encode_batch,
  codec: Codec,
  spec: Spec,
  done: Callable[[int], object],
  more_tokens: MoreTokens = lambda wave_T: {},
):
  """Yields the encoded examples; clips that cannot be read are omitted (the corpus lists them).

  A codec that looks ahead sees silence after a clip. Clips that are longer than a row are encoded
  in parts (`sources.cut`). Reading, computing and writing overlap.

  Args:
    corpus: source of examples.
    indices: numbers of the examples.
    encode_batch: function wave_BT -> (codes_BFQ, semantic_BS).
    codec: codec of the codes.
    spec: rates of the tokens.
    done: called with the number of clips that were read.
    more_tokens: see `MoreTokens`.
  """
  ratio = spec.frames_per_semantic

  def clips():
    for example in pipeline.read_ahead(corpus, indices):
      done(1)
      if example is not None:
        wave_T = np.asarray(example['waveform'], np.float32)
        labels = {name: example[name] for name in LABELS if name in example}
        yield {**more_tokens(wave_T), **labels}, wave_T

  found = parts.mapped(
    encode_batch,
    clips(),
    sources.row_cut(codec, spec),
    sources.BATCH_SIZE * jax.local_device_count(),
    rates=(ratio, 1),
  )
  for others, (codes_FQ, semantic_S) in found:
    yield {'codes': codes_FQ, 'semantic': semantic_S, **others}


if __name__ == '__main__':
  command_line.run(main)
