"""Makes and evaluates a listening test like AudioLM's (section IV-G): original or generated?

`build` writes a static page (an HTML file and a folder of WAV files) of test clips from
`experiments.detector_clips`. A clip is a prompt of a held-out voice, followed by the original
or by a continuation at random, both decoded by the codec. The page does not contain the answers,
which are in a key outside of its folder. `analyse` reads the CSV files that the page saves.
"""

import csv
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from audiolm_jax import audio, files, storage
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import detection

from .. import inputs

MOST_CLIPS = 100  # as in the paper
ANSWERS = ('original', 'generated')  # by label (stages.detector)
COLUMNS = ('kit', 'rater', 'clip', 'answer', 'plays')
KEY = 'listening_key.json'
MAX_NAME = 200  # characters of a rater's name; the page allows 60


def build(
  workdir: pathlib.Path, folder: pathlib.Path, *, seed: int, num_clips: int | None = None
) -> dict:
  """Writes the page and its key; returns the key.

  Half of the clips are originals. No utterance appears twice, and the order is random.

  Args:
    workdir: has the clips, and gets the key.
    folder: for the page; must be empty or missing.
    seed: of the choice, the order and the originals.
    num_clips: None for all utterances, up to MOST_CLIPS.

  Raises:
    UserError: if there are too few utterances, or `folder` or the key exists.
  """
  records = inputs.load_clips(workdir, 'test')
  num_pairs = len(records) // 2
  num_clips = min(num_pairs, MOST_CLIPS) if num_clips is None else num_clips
  if not 2 <= num_clips <= num_pairs:
    raise UserError(
      f'a test of {num_clips} clips: {inputs.clip_folder(workdir)} has test utterances for 2 to '
      f'{num_pairs}'
    )
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f'{folder} is not empty: choose another folder, or move it away')
  if (workdir / KEY).exists():
    raise UserError(
      f'{workdir / KEY} is the key of an earlier test, which its answers need: move it away'
    )
  random = np.random.default_rng(seed)
  pairs = random.permutation(num_pairs)[:num_clips]
  labels = random.permutation(num_clips) % 2
  rate, found = (
    int(records.metadata['sample_rate']),
    [records[int(2 * p + l)] for p, l in zip(pairs, labels, strict=True)],
  )
  digest = hashlib.sha256()
  (folder / 'clips').mkdir(parents=True, exist_ok=True)
  names = [f'{number:0{len(str(num_clips))}d}.wav' for number in range(1, num_clips + 1)]
  for name, record in zip(names, found, strict=True):
    digest.update(record['waveform'].tobytes())
    audio.save(folder / 'clips' / name, inputs.whole_clip(record), rate)
  kit = digest.hexdigest()[:12]
  page = {
    'kit': kit,
    'prompt_seconds': int(found[0]['start']) / rate,
    'seconds': len(found[0]['waveform']) / rate,
    'clips': [f'clips/{name}' for name in names],
  }
  key = {
    'kit': kit,
    'clips': {name: ANSWERS[label] for name, label in zip(names, labels, strict=True)},
  }
  storage.write_text(workdir / KEY, json.dumps(key, indent=1))
  template = pathlib.Path(__file__).with_name('listening.html').read_text('utf-8')
  files.write_text(
    folder / 'index.html', template.replace('__KIT__', json.dumps(page).replace('<', '\\u003c'))
  )
  return key


def analyse(workdir: pathlib.Path, paths: Sequence[pathlib.Path]) -> dict:
  """Returns the accuracy of all raters together ('all') and of each ('rater NAME').

  p_value is that of a two-sided binomial test against guessing (1/2); low and high are Wilson's
  95 % interval. Ratings of a clip by several raters count as independent, as in the paper.

  Raises:
    UserError: naming file and line, for answers that do not belong to this test.
  """
  path = workdir / KEY
  if not path.is_file():
    raise UserError(
      f'{path}, the key to the answers, does not exist: restore it, or make a new test'
    )
  key = read_key(path)
  ratings = [rating for path in paths for rating in read(path, key)]
  seen = set()
  for rater, clip, _ in ratings:
    if (rater, clip) in seen:
      raise UserError(
        f'{rater!r} answers {clip} twice: give each file once, and each rater another name'
      )
    seen.add((rater, clip))
  rows = {'all': summary(ratings, key)}
  for rater in sorted({rater for rater, _, _ in ratings}):
    own = [rating for rating in ratings if rating[0] == rater]
    # The prefix avoids the name 'all', and names that spreadsheets take for formulas.
    rows[f'rater {rater}' if rater else 'without a name'] = summary(own, key)
  return {'rows': rows, 'kit': key['kit']}


def read_key(path: pathlib.Path) -> dict:
  """Returns the key that `build` wrote.

  Raises:
    UserError: if it is damaged.
  """
  key = storage.read_json(path, 'restore it from a copy, because answers cannot be read without it')
  clips = key.get('clips')
  is_key = isinstance(key.get('kit'), str) and isinstance(clips, dict)
  if not (is_key and all(kind in ANSWERS for kind in clips.values())):
    raise UserError(f'{path} is not the key of a listening test: restore it from a copy')
  return key


def read(path: pathlib.Path, key: dict) -> list[tuple[str, str, str]]:
  """Returns (rater, clip, answer) of each line of a CSV file that the page saved."""
  with files.open_csv(path, 'save it again from the page') as file:
    lines = list(csv.reader(file))
  if not lines:
    raise UserError(f'{path} is empty: save it again from the page')
  if tuple(lines[0]) != COLUMNS:
    raise UserError(
      f'{path} has the columns {", ".join(lines[0])[:200]}, not {", ".join(COLUMNS)}: '
      'save it again from the page'
    )
  ratings = []
  for number, line in enumerate(lines[1:], 2):
    if len(line) != len(COLUMNS):
      raise UserError(f'{path}, line {number}: {len(line)} columns, not {len(COLUMNS)}')
    kit, rater, clip, answer, _ = line
    if len(rater) > MAX_NAME:
      raise UserError(
        f'{path}, line {number}: a name of {len(rater)} characters: give at most {MAX_NAME}'
      )
    if kit != key['kit']:
      raise UserError(
        f'{path}, line {number}: answers the test {kit[:80]!r}, but the key is of {key["kit"]!r}'
      )
    if clip not in key['clips']:
      raise UserError(f'{path}, line {number}: the test has no clip {clip[:80]!r}')
    if answer not in ANSWERS:
      raise UserError(
        f'{path}, line {number}: the answer is {answer[:80]!r}, not one of {", ".join(ANSWERS)}'
      )
    ratings.append((rater, clip, answer))
  if not ratings:
    raise UserError(f'{path} has no answers: save it again from the page')
  return ratings


def summary(ratings: list[tuple[str, str, str]], key: dict) -> dict[str, float | int]:
  from scipy.stats import binomtest  # slow to import

  right = [answer == key['clips'][clip] for _, clip, answer in ratings]
  interval = detection.proportion_interval(sum(right), len(right))
  called = {
    kind: [answer == 'generated' for _, clip, answer in ratings if key['clips'][clip] == kind]
    for kind in ANSWERS
  }
  return {
    'correct': sum(right) / len(right),
    'low': interval.low,
    'high': interval.high,
    'p_value': float(binomtest(sum(right), len(right)).pvalue),
    # nan without answers to clips of that kind
    'false_alarms': float(np.mean(called['original'])) if called['original'] else float('nan'),
    'caught': float(np.mean(called['generated'])) if called['generated'] else float('nan'),
    'ratings': len(right),
  }
