"""Makes the clips of `experiments.generate`, whose flags are checked before this imports jax."""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from audiolm_jax import audio, chain, files, generation, music_generation
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError

from .. import recipe as recipe_lib
from .. import workspace
from . import command_line, compilation_cache


def make(
  args: argparse.Namespace, targets: Sequence[pathlib.Path], stories: Sequence[Sequence[str]] = ()
):
  """Writes the clips that the flags of `experiments.generate` ask for to `targets`.

  Raises:
    UserError: for a wrong recipe, missing models, or a prompt that cannot be read.
  """
  workspace.use_release(args)
  recipe = workspace.recipe_of(args, writes=False)
  compilation_cache.keep_for_user()
  models = workspace.load_models(args.workdir)
  say_missing_levels(args, recipe, models)
  codec = models.tokenizer.codec
  prompts = [load_prompt(path, codec) for path in args.prompts]
  melody_T = None if args.melody is None else load_prompt(args.melody, codec)
  begun = time.monotonic()
  with workspace.progress(0, 'generate', 'frame') as bar:

    def show(done, total):
      bar.total = total
      bar.update(done - bar.n)

    waves = generate(args, recipe, models, prompts, stories, melody_T, progress=show)
  print(speed(time.monotonic() - begun, args, waves, prompts, codec.sample_rate), file=sys.stderr)
  args.output.mkdir(parents=True, exist_ok=True)
  for path, wave_T in zip(targets, waves, strict=True):
    audio.save(path, wave_T, codec.sample_rate, overwrite=args.overwrite)
    print(files.printable(path))


def speed(
  spent: float,
  args: argparse.Namespace,
  waves: Sequence[np.ndarray],
  prompts: Sequence[np.ndarray],
  sample_rate: int,
) -> str:
  """Returns a line with the seconds of new audio, of computing, and the real-time factor."""
  given = sum(map(len, prompts)) if args.mode == 'continuation' else 0
  new = (sum(map(len, waves)) - given) / sample_rate
  return (
    f'{new:.1f} s of new audio in {spent:.1f} s with compilation: real-time factor '
    f'{spent / new:.2f}'
  )


def load_prompt(path: pathlib.Path, codec: Codec) -> np.ndarray:
  """Returns a prompt [T] at the codec's rate.

  Raises:
    UserError: if it is shorter than a codec frame.
  """
  prompt_T = audio.load(path, codec.sample_rate)
  if len(prompt_T) < codec.hop_length:
    raise UserError(
      f'{path} has {len(prompt_T)} samples at {codec.sample_rate} Hz, less than one codec '
      f'frame of {codec.hop_length}: give about 3 seconds'
    )
  return prompt_T


def say_missing_levels(args: argparse.Namespace, recipe: recipe_lib.Recipe, models: chain.Models):
  """Warns on stderr if only coarse levels are made, because the fine stage is not trained."""
  if (
    args.acoustic == 'autoregressive'
    and models.coarse is not None
    and models.fine is None
    and 'fine' in recipe.stages
  ):
    made, total = chain.num_levels(models), models.tokenizer.codec.num_quantizers
    remedy = command_line.how_to_make('fine', args.workdir)
    print(
      f'the fine stage is missing: {made} of {total} levels are made, which sounds coarse; '
      f'for all levels, {remedy}',
      file=sys.stderr,
    )


def generate(
  args,
  recipe: recipe_lib.Recipe,
  models: chain.Models,
  prompts: list[np.ndarray],
  stories: Sequence[Sequence[str]] = (),
  melody_T: np.ndarray | None = None,
  progress: Callable[[int, int], Any] | None = None,
) -> list[np.ndarray]:
  """Returns one waveform [T] per story or prompt, or `--count` waveforms without either.

  `progress` is called as by `generation.continue_audio`.
  """
  key = jax.random.key(args.seed)
  codec = models.tokenizer.codec
  options = dict(
    sampling=recipe.sampling,
    carry_seconds=recipe.evaluation.carry_seconds,
    acoustic=args.acoustic,
    progress=progress,
  )
  if stories:
    made = music_generation.from_texts(
      models,
      key,
      stories,
      args.seconds,
      story_seconds=args.story_seconds,
      num_candidates=args.candidates,
      guidance=args.guidance,
      melody_T=melody_T,
      **options,
    )
    for story, cosine in zip(stories, made.similarity_B, strict=True):
      print(files.printable(f'similarity {cosine:.2f}: {" | ".join(story)}'))
    return list(np.asarray(made.audio.wave_BT)[:, : round(args.seconds * codec.sample_rate)])
  if args.mode == 'unconditional':
    result = generation.generate_unconditional(models, key, args.count, args.seconds, **options)
    return list(np.asarray(result.wave_BT))
  prompt_BT, num_samples_B = audio.stacked(prompts)
  new = 0
  if args.mode == 'continuation':
    result = generation.continue_audio(
      models, key, prompt_BT, num_samples_B, seconds=args.seconds, **options
    )
    new = round(args.seconds * codec.sample_rate)
  else:
    semantic_BS, _ = models.tokenizer.encode(prompt_BT, num_samples_B)
    result = generation.generate_acoustics(models, key, semantic_BS, **options)
  # Rows end with their last whole frame, before the padding, and at the requested length.
  ends_B = np.minimum(result.num_frames_B * codec.hop_length, num_samples_B + new)
  return [np.asarray(row_T)[:end] for row_T, end in zip(result.wave_BT, ends_B, strict=True)]
