"""The kit in a headless Chromium, and what is made of its answers."""

import csv
import html.parser
import json
import pathlib
import re
import wave

import numpy as np
import pytest

from audiolm_jax.data import token_shards
from audiolm_jax.stages import detector
from experiments import evaluations, inputs
from experiments.evaluations import listening
from tests import browser

RATE = 16_000


def write_clips(workdir, pairs=6, seconds=0.4):
  """Tones of a pitch for each utterance; a continuation has twice the pitch after the prompt."""
  time_T = np.arange(round(seconds * RATE)) / RATE
  start = len(time_T) // 2
  records = []
  for n in range(pairs):
    pitch = 200 + 20 * n
    original_T = 0.3 * np.sin(2 * np.pi * pitch * time_T)
    sampled_T = np.where(
      np.arange(len(time_T)) < start, original_T, 0.3 * np.sin(4 * np.pi * pitch * time_T)
    )
    records.append(inputs.clip_record(original_T, start, detector.ORIGINAL, n))
    records.append(inputs.clip_record(sampled_T, start, detector.GENERATED, n))
  folder = workdir / 'detector_clips'
  token_shards.write_shard(folder, 'test', 0, 1, records)
  token_shards.write_manifest(folder, 'test', 1, {'sample_rate': RATE, 'fingerprints': {}})


@pytest.fixture
def kit(tmp_path):
  write_clips(tmp_path)
  return tmp_path, listening.build(tmp_path, tmp_path / 'page', num_clips=4, seed=3)


def test_the_page_is_blind_balanced_and_fair(kit):
  workdir, key = kit
  assert sorted(key['clips'].values()) == ['generated'] * 2 + ['original'] * 2
  files = {
    path.relative_to(workdir / 'page').as_posix()
    for path in (workdir / 'page').rglob('*')
    if path.is_file()
  }
  assert files == {'index.html', *(f'clips/{n}.wav' for n in range(1, 5))}  # the key is elsewhere
  prompts = set()
  for name, kind in key['clips'].items():
    with wave.open(str(workdir / 'page' / 'clips' / name)) as file:
      samples_T = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert len(samples_T) == round(0.4 * RATE)
    crossings = [
      np.sum(np.diff(np.sign(half_T)) != 0) for half_T in np.split(samples_T.astype(int), 2)
    ]
    assert (crossings[1] > 1.5 * crossings[0]) == (kind == 'generated')
    prompts.add(samples_T[: len(samples_T) // 2].tobytes())
  assert len(prompts) == 4  # of four utterances

  class Scripts(html.parser.HTMLParser):
    kit, outside, inside = '', [], False

    def handle_starttag(self, tag, attributes):
      attributes = dict(attributes)
      self.inside = attributes.get('type') == 'application/json'
      self.outside += [attributes[name] for name in ('src', 'href') if name in attributes]

    def handle_data(self, data):
      self.kit += data if self.inside else ''

  scripts = Scripts()
  scripts.feed((workdir / 'page' / 'index.html').read_text())
  assert not scripts.outside  # nothing is fetched
  page = json.loads(scripts.kit)
  assert set(page) == {'kit', 'prompt_seconds', 'seconds', 'clips'}  # and no answers
  assert (page['prompt_seconds'], page['seconds'], page['kit']) == (0.2, 0.4, key['kit'])


def test_same_seed_same_page_and_nothing_is_overwritten(kit, tmp_path_factory):
  workdir, key = kit
  with pytest.raises(ValueError, match='is not empty'):
    listening.build(workdir, workdir / 'page', num_clips=4, seed=3)
  with pytest.raises(ValueError, match='key of an earlier test'):
    listening.build(workdir, workdir / 'other', num_clips=4, seed=3)
  with pytest.raises(ValueError, match='a test of 7 clips: .* 2 to 6'):
    listening.build(workdir, workdir / 'other', num_clips=7, seed=3)
  again = tmp_path_factory.mktemp('again')
  write_clips(again)
  assert listening.build(again, again / 'page', num_clips=4, seed=3) == key
  (again / listening.KEY).unlink()
  assert listening.build(again, again / 'next', num_clips=4, seed=4) != key


def write(path, key, right, rater='ann', columns=listening.COLUMNS):
  """Answers every clip, the first `right` of them rightly."""
  other = {'original': 'generated', 'generated': 'original'}
  with path.open('w', newline='') as file:
    lines = csv.writer(file)
    lines.writerow(columns)
    for n, (clip, kind) in enumerate(key['clips'].items()):
      lines.writerow([key['kit'], rater, clip, kind if n < right else other[kind], 1])
  return path


def test_analysis_is_the_exact_binomial_test(tmp_path):
  key = {'kit': 'abc', 'clips': {f'{n:02d}.wav': listening.ANSWERS[n % 2] for n in range(10)}}
  (tmp_path / listening.KEY).write_text(json.dumps(key))
  paths = [write(tmp_path / 'a.csv', key, 9), write(tmp_path / 'b.csv', key, 4, rater='bob, "jr"')]
  found = listening.analyse(tmp_path, paths)['rows']
  # Two-sided: 9 or 10 of 10 right, or 0 or 1.
  assert found['rater ann']['p_value'] == pytest.approx(2 * (10 + 1) / 2**10)
  ann = found['rater ann']
  assert ann['correct'] == 0.9 and ann['caught'] == 0.8 and ann['false_alarms'] == 0
  assert found['rater bob, "jr"']['correct'] == 0.4
  assert found['all']['correct'] == 13 / 20 and found['all']['ratings'] == 20
  assert found['all']['low'] < 0.5 < 13 / 20 < found['all']['high']


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda text: '', 'is empty'),
    (lambda text: text.splitlines()[0], 'has no answers'),
    (
      lambda text: text.replace('kit,', 'test,', 1),
      'has the columns test, rater, clip, answer, plays',
    ),
    (
      lambda text: text.replace('abc', 'xyz'),
      "line 2: answers the test 'xyz', but the key is of 'abc'",
    ),
    (lambda text: text.replace('1.wav', '7.wav'), "line 3: the test has no clip '7.wav'"),
    (lambda text: text.replace('original', 'both', 1), "line 2: the answer is 'both'"),
    (lambda text: text.replace(',1\n', '\n', 1), 'line 2: 4 columns, not 5'),
    (lambda text: text + text.splitlines()[1] + '\n', "'ann' answers 0.wav twice"),
    (lambda text: text.replace('ann', 'a' * 2**18), 'a.csv is not CSV .field larger than'),
    (
      lambda text: text.replace('ann', 'a' * 300),
      'line 2: a name of 300 characters: give at most 200',
    ),
    (lambda text: text.replace('ann', 'a' * 2**27), 'a.csv has more than 67,108,864 bytes'),
  ],
)
def test_files_that_are_no_answers_are_named(spoil, message, tmp_path):
  key = {'kit': 'abc', 'clips': {'0.wav': 'original', '1.wav': 'generated'}}
  (tmp_path / listening.KEY).write_text(json.dumps(key))
  path = write(tmp_path / 'a.csv', key, 2)
  path.write_text(spoil(path.read_text()), newline='')
  with pytest.raises(ValueError, match=message):
    listening.analyse(tmp_path, [path])


def test_names_of_raters_take_no_other_row_and_steer_no_terminal(tmp_path):
  key = {'kit': 'abc', 'clips': {f'{n}.wav': listening.ANSWERS[n % 2] for n in range(4)}}
  (tmp_path / listening.KEY).write_text(json.dumps(key))
  right = {'all': 0, '': 1, 'without a name': 2, '(no name)': 3, '=1+1': 4, '\x1b[2Jx\ny': 4}
  paths = [
    write(tmp_path / f'{n}.csv', key, count, rater=name)
    for n, (name, count) in enumerate(right.items())
  ]
  result = listening.analyse(tmp_path, paths)
  rows = {'all': 14 / 24, 'without a name': 1 / 4}
  rows |= {f'rater {name}': count / 4 for name, count in right.items() if name}
  assert {name: row['correct'] for name, row in result['rows'].items()} == pytest.approx(rows)
  shown = evaluations.table({'listening': result})
  assert '\x1b' not in shown and 'rater \\x1b[2Jx\\ny' in shown
  # An empty line, the title, the columns; below ours the paper's row and source.
  assert len(shown.splitlines()) == 3 + len(rows) + 2


def test_names_that_begin_as_formulas_are_quoted_by_the_page():
  page = pathlib.Path(listening.__file__).with_name('listening.html').read_text('utf-8')
  [pattern] = re.findall(
    r"const plain = text => /(.+)/.test\(text\) \? \"'\" \+ text : text;", page
  )
  for name in ('=1', '+1', '-1', '@sum', '\t=1', '\r=1'):
    assert re.match(pattern, name)
  for name in ('ann', 'a=1', ' x', '1-2'):
    assert not re.match(pattern, name)
  assert (
    "const quoted = text => '\"' + plain(String(text))" in page and 'quoted(state.rater)' in page
  )


@pytest.mark.parametrize(
  'text', ['{}', '{"kit": "a", "clips": []}', '[', '{"kit": "a", "clips": {"1": {}}}']
)
def test_a_damaged_key_is_named(tmp_path, text):
  (tmp_path / listening.KEY).write_text(text)
  with pytest.raises(ValueError, match='listening_key.json .*restore it from a copy'):
    listening.analyse(tmp_path, [])


@pytest.mark.browser
def test_a_listener_gets_through_by_keyboard_and_saves_the_answers(kit, tmp_path):
  assert browser.executable(), f'none of {", ".join(browser.NAMES)} is installed'
  workdir, key = kit
  with browser.page(tmp_path / 'profile') as page:
    page.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    page.open((workdir / 'page' / 'index.html').as_uri())
    assert '4 clips' in page.run('document.getElementById("welcome").innerText')
    page.run('document.getElementById("rater").focus()')
    page.call('Input.insertText', text='Zoë, "Z"')
    page.press('Enter')
    visible = lambda name: page.run(f'!document.getElementById("{name}").hidden')
    assert visible('trial') and not visible('welcome')
    page.press('o')  # before it was heard, an answer does not count
    assert page.run('answered()') == 0 and page.run('element("original").disabled')
    for n, kind in enumerate(key['clips'].values(), 1):
      assert page.run('element("trial-title").textContent') == f'Clip {n} of 4'
      page.press(' ', 'Space')
      page.wait('state.clips[state.at].heard')
      page.press('ArrowLeft')  # and back, where there is one before
      page.run(f'go({n - 1})')
      page.press(kind[0] if n != 2 else {'o': 'g', 'g': 'o'}[kind[0]])
    assert visible('done')
    page.run('window.leaving = true; location.reload()')  # answers outlive the page
    page.wait('!window.leaving && document.readyState === "complete" && answered() === 4')
    page.run('show("done"); element("save").focus()')
    page.press('Enter')
    path = tmp_path / f'listening-{key["kit"]}-Zo_Z_.csv'
    for _ in range(200):
      if path.exists() and path.read_text():
        break
      page.run('new Promise(done => setTimeout(done, 50))')
  found = listening.analyse(workdir, [path])['rows']
  assert list(found) == ['all', 'rater Zoë, "Z"'] and found['all']['correct'] == 3 / 4


@pytest.mark.browser
def test_a_missing_clip_is_said_on_the_page(kit, tmp_path):
  assert browser.executable(), f'none of {", ".join(browser.NAMES)} is installed'
  workdir, _ = kit
  (workdir / 'page' / 'clips' / '1.wav').unlink()
  with browser.page(tmp_path / 'profile') as page:
    page.open((workdir / 'page' / 'index.html').as_uri())
    page.run('element("begin").click()')
    page.wait('!element("failure").hidden')
    assert '1.wav cannot be played' in page.run('element("failure").innerText')
