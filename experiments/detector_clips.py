"""Makes clips to train the detector of generated speech, with the models of a workdir.

  python -m experiments.detector_clips --recipe=tiny --workdir=runs/tiny

Each utterance makes two clips: the original, and the models' continuation of its prompt. The codec
decodes both from codes, so that they differ only in what was sampled. Writes
WORKDIR/detector_clips/SPLIT for train, validation (other training voices) and test (held-out
voices). Finished shards are kept: the same command resumes a killed run.
"""

import zlib
from collections.abc import Iterator

import jax
import numpy as np

from audiolm_jax import chain, generation, storage
from audiolm_jax.arrays_file import fingerprint
from audiolm_jax.data import inventory, token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.stages import detector
from audiolm_jax.training import lock

from . import inputs, sources, workspace
from . import recipe as recipe_lib
from .cli import command_line

VALIDATION_SHARE = 8  # one in this many training voices


def main():
  args = command_line.parser(__doc__, buckets=True).parse_args()
  recipe = workspace.recipe_of(args)
  models = workspace.load_models(args.workdir)
  folder, fingerprints = inputs.clip_folder(args.workdir), model_fingerprints(models)
  storage.make_folder(folder)
  with lock.held(folder):
    workspace.claim(folder, fingerprints)
    for split in inputs.CLIP_SPLITS:
      write_split(recipe, args.workdir, split, models, fingerprints)


def model_fingerprints(models: chain.Models) -> dict[str, str]:
  """Returns the fingerprints of the models that clips depend on."""
  used = {name: getattr(models, name) for name in ('semantic', 'coarse', 'fine')}
  own = {n: fingerprint(model.variables.params) for n, model in used.items() if model is not None}
  return {'soundstream': models.tokenizer.codec.fingerprint, **own}


def write_split(recipe: recipe_lib.Recipe, workdir, split: str, models: chain.Models, fingerprints):
  """Writes the missing shards of a split, then its manifest."""
  folder, settings = inputs.clip_folder(workdir), recipe.detector_clips
  if (folder / f'{split}.json').is_file():
    print(f'{split}: already there; {folder}')
    return
  rate = models.tokenizer.sample_rate
  seconds = (
    recipe.evaluation.prompt_seconds,
    recipe.evaluation.prompt_seconds + recipe.evaluation.seconds,
  )
  start, end = (round(s * rate) for s in seconds)
  made = token_shards.written(folder, split)
  corpus = sources.corpus(recipe, 'test' if split == 'test' else 'train', workdir, rate)
  again = command_line.command('detector_clips', workdir)
  inventory.bind(
    folder / f'{split}.corpus.json',
    inventory.of(corpus),
    made,
    f'restore the corpus, or move {folder} away and run `{again}`',
  )
  chosen = choose(corpus, split, getattr(settings, f'num_{split}'), end, settings.seed)
  num_shards = -(-len(chosen) // settings.batch_size)
  split_key = jax.random.fold_in(jax.random.key(settings.seed), inputs.CLIP_SPLITS.index(split))
  paths = [token_shards.shard_path(folder, split, shard, num_shards) for shard in range(num_shards)]
  missing = set(storage.missing(paths))
  with workspace.progress(len(chosen), f'clips for {split}', 'clip') as bar:
    for shard in range(num_shards):
      indices = chosen[shard * settings.batch_size : (shard + 1) * settings.batch_size]
      if paths[shard] in missing:
        key, examples = jax.random.fold_in(split_key, shard), [corpus[index] for index in indices]
        pairs = make_pairs(recipe, models, key, examples, start, end)
        token_shards.write_shard(folder, split, shard, num_shards, pairs)
      bar.update(len(indices))
  token_shards.write_manifest(
    folder, split, num_shards, {'fingerprints': fingerprints, 'sample_rate': rate}
  )
  print(
    f'{split}: {len(chosen)} originals and as many continuations of {(end - start) / rate:g} s; '
    f'{folder}'
  )


def choose(corpus, split: str, count: int, num_samples: int, seed: int) -> list[int]:
  """Returns the indices of `count` random examples of the split's voices.

  Args:
    corpus: source of examples; those without a speaker count as one voice each.
    split: 'train', 'validation' or 'test'.
    count: number of examples.
    num_samples: shortest waveform.
    seed: of the choice.

  Raises:
    UserError: if there are too few.
  """
  chosen = []
  for index in np.random.default_rng(seed).permutation(len(corpus)):
    example = corpus[int(index)]
    if example is None or len(example['waveform']) < num_samples:
      continue
    voice = int(example.get('speaker', index))
    validation = split != 'test' and zlib.crc32(str(voice).encode()) % VALIDATION_SHARE == 0
    if validation == (split == 'validation'):
      chosen.append(int(index))
    if len(chosen) == count:
      return chosen
  raise UserError(
    f'the recipe asks for {count} utterances of at least {num_samples} samples for {split}, '
    f'there are {len(chosen)}: --set detector_clips.num_{split}={len(chosen)}, '
    'or shorten evaluation.prompt_seconds or evaluation.seconds'
  )


def make_pairs(recipe, models, key, examples: list[dict], start: int, end: int) -> Iterator[dict]:
  """Yields the original and the continuation of each example, up to sample `end`.

  Prompts are the samples before `start`.
  """
  wave_BT = np.stack([example['waveform'][:end] for example in examples])
  _, original_BFQ = models.tokenizer.encode(wave_BT)
  sampled_BFQ = generation.continue_audio(
    models,
    key,
    wave_BT[:, :start],
    seconds=recipe.evaluation.seconds,
    sampling=recipe.sampling,
    carry_seconds=recipe.evaluation.carry_seconds,
  ).codes_BFQ
  frames, levels = min(original_BFQ.shape[1], sampled_BFQ.shape[1]), sampled_BFQ.shape[2]
  num_frames_B = np.full(len(examples), frames)
  both = [
    models.tokenizer.decode(codes_BFQ[:, :frames, :levels], num_frames_B)[:, :end]
    for codes_BFQ in (original_BFQ, sampled_BFQ)
  ]
  for example, original_T, sampled_T in zip(examples, *both, strict=True):
    speaker = int(example.get('speaker', -1))
    yield inputs.clip_record(original_T, start, detector.ORIGINAL, speaker)
    yield inputs.clip_record(sampled_T, start, detector.GENERATED, speaker)


if __name__ == '__main__':
  command_line.run(main)
