"""Turns the corpus into tokens: fits the k-means of the semantic tokens, then writes shards of both kinds of tokens.

  python -m experiments.encode --recipe=tiny --workdir=runs/tiny

Finished shards are kept, so that the same command goes on after a kill; several processes (a pod) share the shards.
"""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import kmeans
from audiolm_jax.data import token_shards
from audiolm_jax.stages import soundstream, w2v_bert
from audiolm_jax.stages.base import Variables
from experiments import sources, workspace
from experiments import recipe as recipe_lib

SHARD_EXAMPLES = 64
LABELS = ('speaker', 'phones')  # kept beside the tokens where the corpus knows them


def main():
  args = workspace.parser(__doc__).parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  codec_config, codec_variables, _ = workspace.load_stage(args.workdir, 'soundstream')
  w2v_config, w2v_variables, _ = workspace.load_stage(args.workdir, 'w2v_bert')
  if not workspace.semantic_quantizer_path(args.workdir).is_file():
    fit_semantic_tokens(recipe, args.workdir, w2v_config, w2v_variables)
  quantizer, metadata = workspace.load_semantic_quantizer(args.workdir)
  if metadata['w2v_bert'] != workspace.fingerprint(w2v_variables.params):
    raise ValueError(
        f'{workspace.semantic_quantizer_path(args.workdir)} was fitted on another w2v_bert: move it and '
        f'{args.workdir}/tokens away, then encode again'
    )
  layer = int(metadata['layer'])
  fingerprints = {
      'soundstream': workspace.codec_fingerprint(codec_variables),
      'semantic_tokens': metadata['digest'],
  }

  @jax.jit
  def encode(codec_variables, w2v_variables, wave_BT):
    features_BSD = w2v_bert.features(w2v_config, w2v_variables, wave_BT, layer)
    return soundstream.encode(codec_config, codec_variables, wave_BT), kmeans.assign(quantizer, features_BSD)

  def encode_batch(wave_BT):
    return encode(codec_variables, w2v_variables, wave_BT)

  for split in ('train', 'test'):
    encode_split(recipe, args.workdir, split, encode_batch, codec_config, fingerprints)


def fit_semantic_tokens(
    recipe: recipe_lib.Recipe, workdir: pathlib.Path, config: w2v_bert.Config, variables: Variables
):
  """Fits the k-means on features of a sample of the training split."""
  settings = recipe.semantic_tokens
  extract = functools.partial(
      sources.map_frames, jax.jit(lambda wave_BT: w2v_bert.features(config, variables, wave_BT, settings.layer)),
      hop_length=config.hop_length,
  )
  quantizer = sources.fit_clusters(extract, sources.corpus(recipe, 'train', workdir), config, settings)
  path = workspace.semantic_quantizer_path(workdir)
  workspace.save_semantic_quantizer(path, quantizer, settings.layer, workspace.fingerprint(variables.params))
  print(f'k-means: {settings.num_clusters} clusters; {path}')


def encode_split(recipe, workdir, split, encode_batch, config: soundstream.Config, fingerprints):
  """Writes the shards of a split that are not there yet, then the manifest."""
  folder = workdir / 'tokens'
  workspace.claim(folder, fingerprints)
  if (folder / f'{split}.json').is_file():
    print(f'{split}: already encoded; {folder}')
    return
  corpus = sources.corpus(recipe, split, workdir)
  num_shards = -(-len(corpus) // SHARD_EXAMPLES)
  mine = range(jax.process_index(), num_shards, jax.process_count())
  with workspace.progress(len(corpus), f'encode {split}', 'clip') as bar:
    for shard in mine:
      indices = range(shard * SHARD_EXAMPLES, min((shard + 1) * SHARD_EXAMPLES, len(corpus)))
      if not os.path.exists(token_shards.shard_path(folder, split, shard, num_shards)):
        token_shards.write_shard(folder, split, shard, num_shards, encoded(corpus, indices, encode_batch, config))
      bar.update(len(indices))
  if jax.process_index() == 0:
    rates = {'frame_rate': config.frame_rate, 'semantic_rate': config.frame_rate / 2}
    token_shards.write_manifest(folder, split, num_shards, {'fingerprints': fingerprints, **rates})
  print(f'{split}: {len(corpus)} clips in {num_shards} shards; {folder}')


def encoded(corpus, indices, encode_batch, config: soundstream.Config):
  """Yields the encoded examples; clips that cannot be read are left out (the corpus lists them)."""
  examples = [corpus[index] for index in indices]
  for batch, wave_BT in sources.padded_batches(examples, config.sample_rate):
    codes_BFQ, semantic_BS = (np.asarray(array) for array in encode_batch(jnp.asarray(wave_BT)))
    for example, codes_FQ, semantic_S in zip(batch, codes_BFQ, semantic_BS):
      num_samples = len(example['waveform'])
      labels = {name: example[name] for name in LABELS if name in example}
      num_semantic = -(-num_samples // (2 * config.hop_length))
      yield {'codes': codes_FQ[: 2 * num_semantic], 'semantic': semantic_S[:num_semantic], **labels}


if __name__ == '__main__':
  workspace.run(main)
