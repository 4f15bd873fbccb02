"""Turns the corpus into tokens: fits the k-means of the semantic tokens, then writes shards of both kinds of tokens.

  python -m experiments.encode --recipe=tiny --workdir=runs/tiny

Finished shards are kept, so that the same command goes on after a kill; several processes (a pod) share the shards.
"""

import functools
import os
import pathlib

import jax
import numpy as np

from audiolm_jax import audio, kmeans, tokens
from audiolm_jax.data import token_shards
from audiolm_jax.stages.base import Variables
from experiments import sources, workspace
from experiments import recipe as recipe_lib

SHARD_EXAMPLES = 64
LABELS = ('speaker', 'phones')  # kept beside the tokens where the corpus knows them


def main():
  args = workspace.parser(__doc__).parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  workspace.require_imports(recipe, args.workdir)
  codec_config, codec_variables = workspace.load_codec(args.workdir)
  if not workspace.semantic_quantizer_path(args.workdir).is_file():
    encoder, encoder_variables = workspace.load_semantic_encoder(args.workdir, recipe.semantic_tokens)
    token_kinds(recipe, codec_config, encoder, recipe.semantic_tokens.num_clusters)  # or the clusters are for nothing
    fit_semantic_tokens(recipe, args.workdir, encoder, encoder_variables)
  encoder, encoder_variables, quantizer, metadata = workspace.load_semantic_tokenizer(args.workdir)
  check_settings(args.workdir, encoder, recipe.semantic_tokens)
  kinds = token_kinds(recipe, codec_config, encoder, len(quantizer.centroids_KD))
  fingerprints = {
      'soundstream': workspace.codec_fingerprint(codec_variables),
      'semantic_tokens': metadata['digest'],
  }

  @jax.jit
  def encode(codec_variables, encoder_variables, wave_BT, semantic_wave_BT):
    features_BSD = encoder.features(encoder_variables, semantic_wave_BT)
    return codec_config.codec().encode(codec_variables, wave_BT, None), kmeans.assign(quantizer, features_BSD)

  def encode_batch(wave_BT):
    semantic_wave_BT = audio.resample(wave_BT, codec_config.sample_rate, encoder.sample_rate)
    return encode(codec_variables, encoder_variables, wave_BT, semantic_wave_BT)

  for split in ('train', 'test'):
    encode_split(recipe, args.workdir, split, encode_batch, codec_config, kinds, fingerprints)


def check_settings(workdir: pathlib.Path, encoder: kmeans.SemanticEncoder, settings: recipe_lib.SemanticTokens):
  """Raises ValueError where clusters that are there already are of other features than the recipe asks for."""
  for name in ('layer', 'frames_per_token'):
    there, wanted = getattr(encoder, name), getattr(settings, name)
    if there != wanted:
      raise ValueError(
          f'{workdir}/semantic_tokens holds clusters of {name}={there}, the recipe has {wanted}: move it and '
          f'{workdir}/tokens away, or keep them with --set semantic_tokens.{name}={there}'
      )


def token_kinds(recipe: recipe_lib.Recipe, codec_config, encoder: kmeans.SemanticEncoder, num_clusters: int) -> dict:
  """Returns rates and sizes of the tokens; ValueError where they cannot be aligned, or a stage is made for others."""
  tokens.frames_per_semantic(codec_config.frame_rate, encoder.frame_rate)
  kinds = {
      'frame_rate': codec_config.frame_rate, 'num_quantizers': codec_config.num_quantizers,
      'codebook_size': codec_config.codebook_size, 'semantic_rate': encoder.frame_rate, 'num_clusters': num_clusters,
  }
  for name in recipe.stages:
    model = getattr(recipe, name).model
    if 'waveform' not in model.make().batch:
      sources.check_tokens(name, model, kinds)
  return kinds


def fit_semantic_tokens(
    recipe: recipe_lib.Recipe, workdir: pathlib.Path, encoder: kmeans.SemanticEncoder, variables: Variables
):
  """Fits the k-means on features of a sample of the training split."""
  settings = recipe.semantic_tokens
  extract = functools.partial(
      sources.map_frames, functools.partial(jax.jit(encoder.features), variables), hop_length=encoder.hop_length
  )
  corpus = sources.corpus(recipe, 'train', workdir, encoder.sample_rate)
  quantizer = sources.fit_clusters(extract, corpus, encoder, settings)
  path = workspace.semantic_quantizer_path(workdir)
  workspace.save_semantic_quantizer(path, quantizer, encoder, workspace.fingerprint(variables.params))
  print(f'k-means: {settings.num_clusters} clusters; {path}')


def encode_split(recipe, workdir, split, encode_batch, config, kinds, fingerprints):
  """Writes the shards of a split that are not there yet, then the manifest.

  config: of the codec; kinds: rates and sizes of the tokens, by which stages know theirs.
  """
  folder = workdir / 'tokens'
  workspace.claim(folder, fingerprints)
  if (folder / f'{split}.json').is_file():
    print(f'{split}: already encoded; {folder}')
    return
  corpus = sources.corpus(recipe, split, workdir, config.sample_rate)
  ratio = tokens.frames_per_semantic(kinds['frame_rate'], kinds['semantic_rate'])
  num_shards = -(-len(corpus) // SHARD_EXAMPLES)
  mine = range(jax.process_index(), num_shards, jax.process_count())
  with workspace.progress(len(corpus), f'encode {split}', 'clip') as bar:
    for shard in mine:
      indices = range(shard * SHARD_EXAMPLES, min((shard + 1) * SHARD_EXAMPLES, len(corpus)))
      if not os.path.exists(token_shards.shard_path(folder, split, shard, num_shards)):
        token_shards.write_shard(folder, split, shard, num_shards, encoded(corpus, indices, encode_batch, config, ratio))
      bar.update(len(indices))
  if jax.process_index() == 0:
    token_shards.write_manifest(folder, split, num_shards, {'fingerprints': fingerprints, **kinds})
  print(f'{split}: {len(corpus)} clips in {num_shards} shards; {folder}')


def encoded(corpus, indices, encode_batch, config, ratio: int):
  """Yields the encoded examples; clips that cannot be read are left out (the corpus lists them).

  config: of the codec; ratio: codec frames for each semantic frame. A codec that looks ahead sees silence after a clip.
  """
  examples, silence = [corpus[index] for index in indices], config.codec().context * config.hop_length
  for batch, wave_BT in sources.padded_batches(examples, config.sample_rate, silence=silence):
    codes_BFQ, semantic_BS = (np.asarray(array) for array in encode_batch(wave_BT))
    for example, codes_FQ, semantic_S in zip(batch, codes_BFQ, semantic_BS):
      num_samples = len(example['waveform'])
      labels = {name: example[name] for name in LABELS if name in example}
      num_semantic = -(-num_samples // (ratio * config.hop_length))
      yield {'codes': codes_FQ[: ratio * num_semantic], 'semantic': semantic_S[:num_semantic], **labels}


if __name__ == '__main__':
  workspace.run(main)
