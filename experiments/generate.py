"""Generates audio with the models of a workdir.

  python -m experiments.generate --prompt=voice.wav --seconds=7 --output=out/     the voice goes on
  python -m experiments.generate --mode=acoustic --prompt=voice.wav --output=out/ the same words, acoustics sampled anew
  python -m experiments.generate --mode=unconditional --seconds=10 --output=out/
  python -m experiments.generate --acoustic=soundstorm --prompt=voice.wav --output=out/  SoundStorm for coarse and fine

Several --prompt flags make one batch. Temperatures and filters: --set sampling.semantic.temperature=0.6,
--set sampling.coarse.top_k=50, --set sampling.soundstorm.iterations=(8,1) and so on.
"""

import pathlib

import jax
import numpy as np

from audiolm_jax import audio, files, generation
from experiments import recipe as recipe_lib
from experiments import workspace

MODES = ('continuation', 'acoustic', 'unconditional')


def main():
  parser = workspace.parser(__doc__)
  parser.add_argument('--mode', default='continuation', help=f'one of: {", ".join(MODES)} (continuation)')
  parser.add_argument(
      '--acoustic', default='autoregressive', help=f'one of: {", ".join(generation.ACOUSTIC)} (autoregressive)'
  )
  parser.add_argument('--prompt', action='append', default=[], type=pathlib.Path, metavar='FILE', dest='prompts')
  parser.add_argument('--seconds', type=workspace.SECONDS, default=7.0, help='of new audio (7)')
  parser.add_argument('--count', type=workspace.COUNT, default=1, help='how many unconditional clips (1)')
  parser.add_argument('--output', type=pathlib.Path, required=True, metavar='FOLDER')
  parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
  parser.add_argument('--seed', type=workspace.SEED, default=0, help='(0)')
  args = parser.parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  if args.mode not in MODES:
    raise ValueError(f'--mode={args.mode}: choose one of {", ".join(MODES)}')
  if args.acoustic not in generation.ACOUSTIC:
    raise ValueError(f'--acoustic={args.acoustic}: choose one of {", ".join(generation.ACOUSTIC)}')
  if (args.mode == 'unconditional') == bool(args.prompts):
    raise ValueError('continuation and acoustic need at least one --prompt=FILE; unconditional takes none')
  if missing := [str(path) for path in args.prompts if not path.is_file()]:
    raise ValueError(f'--prompt: no such file: {", ".join(missing)}')
  stems = [path.stem for path in args.prompts] or [f'{index:03d}' for index in range(args.count)]
  if len(set(stems)) < len(stems):
    raise ValueError(f'prompts share a name, so their outputs would too: {sorted(stems)}; rename one')
  targets = [args.output / f'{stem}_{args.mode}.wav' for stem in stems]
  if present := [str(path) for path in targets if path.exists() and not args.overwrite]:
    raise ValueError(f'{", ".join(present)} exists: choose another --output, or pass --overwrite')
  models = workspace.load_models(args.workdir)
  codec_config = models.soundstream[0]
  prompts = [audio.load(path, codec_config.sample_rate) for path in args.prompts]
  for path, prompt_T in zip(args.prompts, prompts, strict=True):
    if len(prompt_T) < codec_config.hop_length:
      raise ValueError(
          f'{path} has {len(prompt_T)} samples at {codec_config.sample_rate} Hz, less than one codec frame of '
          f'{codec_config.hop_length}: give about 3 seconds'
      )
  waves = generate(args, recipe, models, prompts)
  args.output.mkdir(parents=True, exist_ok=True)
  for path, wave_T in zip(targets, waves, strict=True):
    audio.save(path, wave_T, codec_config.sample_rate, overwrite=args.overwrite)
    print(files.printable(path))


def generate(args, recipe: recipe_lib.Recipe, models: generation.Models, prompts: list[np.ndarray]) -> list[np.ndarray]:
  """Returns one waveform [T] for each prompt, or `--count` of them without."""
  key = jax.random.key(args.seed)
  rate = models.soundstream[0].sample_rate
  options = dict(
      sampling=recipe.sampling, carry_seconds=recipe.evaluation.carry_seconds, acoustic=args.acoustic
  )
  if args.mode == 'unconditional':
    result = generation.generate_unconditional(models, key, args.count, args.seconds, **options)
    return list(np.asarray(result.wave_BT))
  prompt_BT, num_samples_B = workspace.stacked(prompts)
  if args.mode == 'continuation':
    result = generation.continue_audio(
        models, key, prompt_BT, num_samples_B, seconds=args.seconds, **options
    )
    new = round(args.seconds * rate)
  else:
    semantic_BS, _ = generation.tokenize(models, prompt_BT)
    result = generation.generate_acoustics(models, key, semantic_BS, **options)
    new = 0
  return [np.asarray(row_T)[: n + new] for row_T, n in zip(result.wave_BT, num_samples_B, strict=True)]


if __name__ == '__main__':
  workspace.run(main)
