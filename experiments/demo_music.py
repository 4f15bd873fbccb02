"""Makes music from texts with the models of a workdir, and draws its spectrograms and notes.

  make demo-music
  python -m experiments.demo_music --recipe=tiny_music --workdir=runs/tiny_music

Writes into OUTPUT: 00.wav, 01.wav, ... (a clip for each text), heard.png (with matplotlib: a
spectrogram of each clip, and the piano roll of its notes by Basic Pitch, if it is installed) and
report.txt: texts, their similarity by MuLan, which conditions the models, and the tables of the
suite `music`, if the workdir was evaluated. The page hear.html plays all.
"""

import html
import importlib.util
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from audiolm_jax import audio, files, music_generation
from audiolm_jax.errors import UserError, install
from audiolm_jax.pretrained import basic_pitch

from . import evaluations, workspace
from .cli import command_line, compilation_cache

TEXTS = (
  'a slow, low piece for cello with single notes',
  'fast, loud, cheerful piano music with chords',
  'choir, unhurried, quiet, sad with a harmonized melody',
  'a recording of flute: high, walking, soft',
)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Music from texts</title>
<h1>Music from texts</h1>
{rows}
<img src="heard.png" alt="spectrograms and notes" style="max-width: 100%">
<pre>{report}</pre></html>
"""
ROW = '<p>{text}<br><audio controls src="{name}"></audio></p>'


def main():
  args = _parser().parse_args()
  command_line.check_folder(args.output, '--output')
  recipe = workspace.recipe_of(args, writes=False)
  compilation_cache.keep_for_user()
  models = workspace.load_models(args.workdir)
  captions = args.texts or list(TEXTS)
  acoustic = 'autoregressive' if models.soundstorm is None else 'soundstorm'
  made = music_generation.from_texts(
    models,
    jax.random.key(args.seed),
    captions,
    args.seconds,
    sampling=recipe.sampling,
    carry_seconds=recipe.evaluation.carry_seconds,
    acoustic=acoustic,
  )
  rate = models.tokenizer.sample_rate
  waves = list(np.asarray(made.audio.wave_BT)[:, : round(args.seconds * rate)])
  names = [f'{number:02d}.wav' for number in range(len(captions))]
  args.output.mkdir(parents=True, exist_ok=True)
  for name, wave_T in zip(names, waves, strict=True):
    audio.save(args.output / name, wave_T, rate, overwrite=True)
  lines = [
    f'{name}  similarity {cosine:.2f}  {text}'
    for name, cosine, text in zip(names, made.similarity_B, captions, strict=True)
  ]
  report = '\n'.join([*lines, table(args.workdir)])
  files.write_text(args.output / 'report.txt', report)
  rows = [
    ROW.format(text=html.escape(text), name=name)
    for text, name in zip(captions, names, strict=True)
  ]
  page = PAGE.format(rows='\n'.join(rows), report=html.escape(report))
  files.write_text(args.output / 'hear.html', page)
  print(command_line.printable_lines(report))
  draw(args.output / 'heard.png', captions, waves, rate)
  print(f'written to {args.output}: open {args.output}/hear.html')


def _parser():
  parser = command_line.parser(__doc__)
  parser.add_argument(
    '--text', action='append', default=[], metavar='TEXT', dest='texts', help='may be repeated'
  )
  parser.add_argument('--seconds', type=command_line.SECONDS, default=5.0, help='of each clip (5)')
  parser.add_argument(
    '--output',
    type=command_line.path,
    default=pathlib.Path('runs/demo_music'),
    help='(runs/demo_music)',
  )
  parser.add_argument('--seed', type=command_line.SEED, default=0, help='(0)')
  return parser


def table(workdir: pathlib.Path) -> str:
  """Returns the tables of the suite `music`, or how to make them."""
  found = {name: part for name, part in evaluations.load(workdir).items() if name == 'music'}
  if found:
    return evaluations.table(found)
  return f'not evaluated: run `{command_line.command("evaluate", workdir)} --suite=music`'


def draw(path: pathlib.Path, titles: Sequence[str], waves: Sequence[np.ndarray], sample_rate: int):
  """Draws spectrograms and piano rolls; says what is missing where a package is not installed."""
  if importlib.util.find_spec('matplotlib') is None:
    print(f'{path} is not drawn, which needs matplotlib: {install("plot")}')
    return
  from .evaluations import pictures  # matplotlib, an extra

  notes = None
  try:
    transcribe = basic_pitch.transcriber()
    notes = [transcribe(wave_T, sample_rate) for wave_T in waves]
  except UserError as error:
    print(f'notes are not drawn: {error}')
  pictures.save_heard(path, titles, waves, sample_rate, notes)


if __name__ == '__main__':
  command_line.run(main)
