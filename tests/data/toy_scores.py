"""Writes small folders of scores: invented tunes in ABC, and chorales in MusicXML."""

import pathlib
import zipfile

import numpy as np


def write_abc(folder: pathlib.Path, number: int = 40):
  """Writes tunes of 8 bars in several keys, two files of them."""
  folder.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng(0)
  parts = []
  for n in range(number):
    bars = [''.join(random.choice(list('GABcdefg'), 8)) for _ in range(8)]
    key = ('G', 'D', 'Am', 'Edor')[n % 4]
    parts.append(f'X:{n}\nT:Tune {n}\nM:4/4\nL:1/8\nK:{key}\n{" | ".join(bars)} |]\n')
  (folder / 'first.abc').write_text('\n'.join(parts[: number // 2]))
  (folder / 'second.abc').write_text('\n'.join(parts[number // 2 :]))


def note(step: str, octave: int, duration: int, alter: int = 0, tie: str = '') -> str:
  tie = f'<tie type="{tie}"/>' if tie else ''
  return (
    f'<note><pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>'
    f'<duration>{duration}</duration>{tie}</note>'
  )


def chorale(parts: list[list[str]], fifths: int = 0) -> str:
  """Returns a score in 4/4; a part is its measures, each a text of notes of 2 divisions."""
  head = (
    f'<attributes><divisions>2</divisions><key><fifths>{fifths}</fifths></key>'
    '<time><beats>4</beats><beat-type>4</beat-type></time></attributes>'
  )
  made = ''
  for measures in parts:
    texts = [head + measures[0], *measures[1:]]
    made += f'<part>{"".join(f"<measure>{text}</measure>" for text in texts)}</part>'
  return f'<score-partwise>{made}</score-partwise>'


def write_chorales(folder: pathlib.Path, number: int = 20):
  """Writes chorales of 4 bars in C major, compressed."""
  folder.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng(1)
  for n in range(number):
    parts = []
    for octave in (5, 4, 3, 2):
      bars = [''.join(note(random.choice(list('CDEFGAB')), octave, 2) for _ in range(4))] * 3
      parts.append([*bars, note('C', octave, 8)])
    with zipfile.ZipFile(folder / f'{n}.mxl', 'w') as file:
      file.writestr('META-INF/container.xml', '<container/>')
      file.writestr('score.xml', chorale(parts))
