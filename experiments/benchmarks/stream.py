"""Times `continue_stream`: the first sound, and gaps in its playback.

  python -m experiments.benchmark stream

Continues an example of a release, or --prompt, as the page of `serve` plays it. The prompt through
the codec sounds first, so the first new sound is needed when it ends. `gaps` is the time that a
listener who starts at the first sound waits later, `start` when a listener must start to hear no
gap. The first run, which compiles, is not counted.

Rows of `wall` are what this machine does with its other load; rows of `processor` count the seconds
of processor time instead, which is what one idle core takes.
"""

import argparse
import pathlib
import time
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from audiolm_jax import audio, generation, release

from ..cli import command_line, compilation_cache
from ..serving import jobs

CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}
COLUMNS = 'first sound, s|first new|whole|real-time factor|gaps|gaps, s|start, s'.split('|')


class Timing(NamedTuple):
  """Holds seconds from the request on, except `real_time_factor`."""

  first_sound: float
  first_new_sound: float
  whole: float
  real_time_factor: float  # of the new audio
  num_gaps: int
  gaps: float
  start: float


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument('--release', default=release.PACKAGED, metavar='NAME', help='(speech)')
  parser.add_argument('--prompt', type=command_line.path, metavar='FILE', help='(an example)')
  parser.add_argument('--prompt_seconds', type=command_line.SECONDS, default=3.0, help='(3)')
  parser.add_argument('--seconds', type=command_line.SECONDS, default=5.0, help='of new audio (5)')
  parser.add_argument('--runs', type=command_line.COUNT, default=3, help='(3); the median counts')


def run(args: argparse.Namespace) -> str:
  """Returns a table of all acoustic paths of the release."""
  compilation_cache.keep_for_user()
  folder = release.fetch(args.release)
  models = release.from_pretrained(folder)
  path = args.prompt or sorted((folder / 'examples').glob('*.flac'))[0]
  rate = models.tokenizer.sample_rate
  prompt_T = audio.load(pathlib.Path(path), rate)[: round(args.prompt_seconds * rate)]
  lines = ['| | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 1) + '|']
  for acoustic in jobs.paths(models):
    runs = []
    for seed in range(args.runs + 1):
      begun = [clock() for clock in CLOCKS.values()]
      arrivals = []  # of each piece: seconds by each clock, and of its sound
      for piece_T in generation.continue_stream(
        models, jax.random.key(seed), prompt_T, seconds=args.seconds, acoustic=acoustic
      ):
        now = [clock() - start for clock, start in zip(CLOCKS.values(), begun)]
        arrivals.append((*now, len(piece_T) / rate))
      runs.append([timing([(row[n], row[-1]) for row in arrivals]) for n in range(len(CLOCKS))])
    for clock, median in zip(CLOCKS, np.median(runs[1:], axis=0)):
      cells = ' | '.join(f'{value:.2f}' for value in median)
      lines.append(f'| {acoustic}, {clock} | {cells} |')
  return '\n'.join(lines)


def timing(arrivals: Iterable[tuple[float, float]]) -> Timing:
  """Returns the timing of pieces.

  Args:
    arrivals: time of arrival and duration of each piece, in seconds; the first is the prompt.
  """
  arrivals = list(arrivals)
  first, prompt = arrivals[0]
  played, gaps, begins, start = first, [], 0.0, 0.0  # `played`: until when there is sound
  for at, duration in arrivals:
    if at > played:
      gaps.append(at - played)
    played = max(played, at) + duration
    start = max(start, at - begins)  # a later start would not need to wait for this piece
    begins += duration
  whole = arrivals[-1][0]
  return Timing(
    first, arrivals[1][0], whole, (whole - first) / (begins - prompt), len(gaps), sum(gaps), start
  )
