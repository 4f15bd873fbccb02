"""From clips to a table, a picture and scores of files; networks are untrained or made by
hand.
"""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from audiolm_jax import audio, files, generation
from audiolm_jax.data import folders, token_shards
from audiolm_jax.stages import detector
from audiolm_jax.stages.base import Model, Variables
from experiments import detect, detector_clips, inputs, sources, workspace
from experiments.evaluations import detection
from experiments.recipe import DetectorClipsConfig
from experiments.recipes import tiny

RATE = 16_000
CONFIG = detector.Config(channels=(4, 8), num_mels=16, crop_seconds=0.1)
PRINTS = {'soundstream': 'abc'}


@pytest.fixture(scope='module')
def variables():
  return Variables(meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)).params), {})


def write(workdir, split, pairs, fingerprints=PRINTS):
  """Pairs of noise, the generated one louder after the prompt of 0.1 s."""
  random = np.random.default_rng(len(split))
  records = []
  for n in range(pairs):
    prompt_T, rest_T = 0.01 * random.normal(size=(2, 1600))
    for label, gain in ((detector.ORIGINAL, 1), (detector.GENERATED, 10)):
      wave_T = np.concatenate([prompt_T, gain * rest_T, gain * rest_T])
      records.append(inputs.clip_record(wave_T, 1600, label, n))
  token_shards.write_shard(workdir / 'detector_clips', split, 0, 1, records)
  token_shards.write_manifest(
    workdir / 'detector_clips', split, 1, {'fingerprints': fingerprints, 'sample_rate': RATE}
  )


def test_clips_are_what_follows_the_prompt_and_lots_are_even(tmp_path):
  write(tmp_path, 'test', 20)
  records = inputs.load_clips(tmp_path, 'test')
  clips = inputs.LabelledClips(records)
  assert [int(clips[n]['label']) for n in range(len(clips))] == [0, 1] * 20
  np.testing.assert_allclose(clips[6]['waveform'], inputs.whole_clip(records[6])[1600:])
  assert np.std(clips[7]['waveform']) > 5 * np.std(clips[6]['waveform'])
  lots = inputs.LabelledClips(records, random_labels=True, seed=1)
  labels = [int(lots[n]['label']) for n in range(len(lots))]
  assert len(labels) == 20 and sum(labels) == 10 and labels != [0, 1] * 10
  for n in range(20):  # originals alone, whatever the lot
    np.testing.assert_array_equal(lots[n]['waveform'], clips[2 * n]['waveform'])


def test_clips_of_older_workdirs_are_found(tmp_path):
  write(tmp_path, 'test', 2)
  (tmp_path / 'detector_clips').rename(tmp_path / 'forgeries')
  assert inputs.clip_folder(tmp_path) == tmp_path / 'forgeries'
  assert len(inputs.load_clips(tmp_path, 'test')) == 4


def test_training_names_the_program_that_makes_its_clips(tmp_path):
  with pytest.raises(ValueError, match='run `python -m experiments.detector_clips --workdir='):
    inputs.of_stage(tiny.RECIPE, 'detector', tmp_path)


def test_every_voice_belongs_to_one_side():
  corpus = [{'waveform': np.zeros(10 + n % 3), 'speaker': n % 40} for n in range(400)]
  train, validation = (
    set(detector_clips.choose(corpus, split, 20, 11, 0)) for split in ('train', 'validation')
  )
  assert len(train) == len(validation) == 20
  assert not {n % 40 for n in train} & {n % 40 for n in validation}
  assert all(len(corpus[n]['waveform']) >= 11 for n in train | validation)
  assert detector_clips.choose(corpus, 'train', 20, 11, 1) != detector_clips.choose(
    corpus, 'train', 20, 11, 0
  )
  with pytest.raises(ValueError, match='there are 133: --set detector_clips.num_test=133'):
    detector_clips.choose(corpus, 'test', 200, 12, 0)


def test_folders_of_speakers_are_split_by_speaker(tmp_path):
  for voice in range(24):
    (tmp_path / f'voice{voice:02d}').mkdir()
    for index in range(3):
      wave_T = np.full(1600, 0.1, np.float32)
      audio.save(tmp_path / f'voice{voice:02d}' / f'{index}.wav', wave_T, RATE)
  corpus = folders.examples(tmp_path, RATE, speaker_folders=True)
  voices = {
    split: {
      corpus.parts[index].path.split('/')[-2]
      for index in detector_clips.choose(corpus, split, count, 1600, 0)
    }
    for split, count in (('train', 40), ('validation', 6))
  }
  assert not voices['train'] & voices['validation'] and min(map(len, voices.values())) > 1


def test_both_of_a_pair_take_the_same_way_to_sound(tmp_path, monkeypatch, capsys):
  """Models are stubs: a code is its frame of 320 samples, held; what is sampled is negative."""
  frames = lambda wave_BT: np.round(wave_BT[:, ::320, None] * 1000).astype(np.int32)
  asked = []

  def continue_audio(models, key, prompt_BT, *, seconds, sampling, carry_seconds):
    asked.append(len(prompt_BT))
    codes_BFQ = np.concatenate(
      [frames(prompt_BT), np.full((len(prompt_BT), round(50 * seconds), 1), -100)], axis=1
    )
    return generation.Continuation(None, None, codes_BFQ, None, None)

  monkeypatch.setattr(generation, 'continue_audio', continue_audio)
  corpus = [
    {'waveform': np.full(RATE + n, 0.1 + n / 100), 'speaker': np.int32(n)} for n in range(10)
  ]
  monkeypatch.setattr(sources, 'corpus', lambda recipe, split, workdir, rate: corpus)
  recipe = dataclasses.replace(
    tiny.RECIPE,
    evaluation=dataclasses.replace(
      tiny.RECIPE.evaluation, prompt_seconds=0.4, seconds=0.4, carry_seconds=0.0
    ),
    detector_clips=DetectorClipsConfig(num_test=6, batch_size=4),
  )
  tokenizer = types.SimpleNamespace(
    sample_rate=RATE,
    encode=lambda wave_BT: (None, np.repeat(frames(wave_BT), 2, axis=2)),
    decode=lambda codes_BFQ, _: np.repeat(codes_BFQ.mean(axis=2) / 1000, 320, axis=1),
  )
  models = types.SimpleNamespace(tokenizer=tokenizer)
  make = lambda workdir: detector_clips.write_split(recipe, workdir, 'test', models, PRINTS)
  make(tmp_path)
  records = inputs.load_clips(tmp_path, 'test')
  assert len(records) == 12 and asked == [4, 2]
  for n in range(0, 12, 2):
    original, sampled = records[n], records[n + 1]
    voice = int(original['speaker'])
    assert (int(original['label']), int(sampled['label']), int(sampled['speaker'])) == (0, 1, voice)
    assert int(original['start']) == int(sampled['start']) == 6400
    np.testing.assert_allclose(
      inputs.whole_clip(original), np.full(12_800, 0.1 + voice / 100), atol=1e-3
    )
    # the prompt
    np.testing.assert_allclose(
      inputs.whole_clip(sampled)[:6400], inputs.whole_clip(original)[:6400]
    )
    np.testing.assert_allclose(inputs.whole_clip(sampled)[6400:], -0.1, atol=1e-3)
  assert len({int(records[n]['speaker']) for n in range(12)}) == 6
  make(tmp_path)  # what is there is left alone
  assert len(asked) == 2 and 'already there' in capsys.readouterr().out
  (tmp_path / 'detector_clips' / 'test.json').unlink()  # stopped before the end
  next((tmp_path / 'detector_clips').glob('test-00001*')).unlink()
  before = next((tmp_path / 'detector_clips').glob('test-00000*')).read_bytes()
  corpus.append(corpus[0])
  with pytest.raises(ValueError, match='the corpus differs from .*: 1 added'):
    make(tmp_path)
  corpus.pop()
  make(tmp_path)
  assert (
    asked == [4, 2, 2]
    and next((tmp_path / 'detector_clips').glob('test-00000*')).read_bytes() == before
  )


def test_seconds_are_scored_alone_and_the_last_one_ends_with_the_clip(variables):
  waves = [
    np.random.default_rng(n).normal(size=size).astype(np.float32)
    for n, size in enumerate((1600, 4000, 3200))
  ]
  found = detection.log_odds(CONFIG, variables, waves)
  crops = [
    waves[0],
    waves[1][:1600],
    waves[1][1600:3200],
    waves[1][2400:],
    waves[2][:1600],
    waves[2][1600:],
  ]
  expected = [
    float(detector.log_odds(CONFIG, variables, jnp.asarray(crop[None]))[0]) for crop in crops
  ]
  assert [len(seconds) for seconds in found] == [1, 3, 2]
  np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match='1599 samples, the detector needs 1600'):
    detection.log_odds(CONFIG, variables, [waves[0][:-1]])


@pytest.fixture
def workdir(tmp_path, variables, monkeypatch):
  """A workdir whose detector says how loud a crop is."""
  for split in ('validation', 'test'):
    write(tmp_path, split, 30)
  for name in ('detector', 'detector_control'):
    (tmp_path / name).mkdir()
  monkeypatch.setattr(
    workspace,
    'load_stage',
    lambda workdir, name: Model(CONFIG, variables, {'fingerprints': PRINTS}),
  )
  loudness = lambda config, variables, wave_BT: 20 * np.log10(np.std(wave_BT, axis=1) + 1e-9) + 30
  monkeypatch.setattr(detection, '_score', loudness)
  return tmp_path


def test_a_perfect_cue_is_found_and_lots_are_at_chance(workdir):
  found = detection.measure(tiny.RECIPE, workdir)
  for unit, scored in (('second', 120), ('clip', 60)):
    row = found['rows'][f'detector, {unit}']
    assert (
      row['accuracy'] == row['area_under_curve'] == 1
      and row['equal_error_rate'] == 0
      and row['scored'] == scored
    )
    assert 0.9 < row['low'] < row['high'] == 1 and row['calibration_error'] < 0.1
  control = found['rows']['control: random labels, clip']
  assert (
    control['scored'] == 30
    and 0.3 < control['area_under_curve'] < 0.7
    and control['accuracy'] == 0.5
  )
  assert (workdir / 'evaluation' / found['roc']).stat().st_size > 5000


def test_other_models_clips_are_refused_and_without_a_detector_there_are_no_rows(
  workdir, tmp_path_factory
):
  empty = tmp_path_factory.mktemp('empty')
  found = detection.measure(tiny.RECIPE, empty)
  assert found['rows'] == {} and list(found['left_out']) == ['detector']
  files.write_text(empty / 'evaluation' / 'detection.json', json.dumps(found))
  with pytest.raises(ValueError, match='was written without a detector'):
    detection.load_calibrations(empty, None)
  write(workdir, 'test', 2, fingerprints={'soundstream': 'xyz'})
  with pytest.raises(ValueError, match='train it again'):
    detection.measure(tiny.RECIPE, workdir)


def run_detect(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['detect', *map(str, arguments)])
  detect.main()


def test_files_get_probabilities_by_the_file_and_by_the_second(workdir, monkeypatch, capsys):
  random, paths = np.random.default_rng(0), [workdir / 'quiet.wav', workdir / 'loud.flac']
  for path, gain in zip(paths, (0.01, 0.1)):
    audio.save(path, (gain * random.normal(size=4000)).astype(np.float32), RATE)
  flags = (f'--workdir={workdir}', '--as_is', f'--output={workdir / "scores.json"}')
  with pytest.raises(ValueError, match='evaluate --suite=detection'):  # no calibration yet
    run_detect(monkeypatch, *paths, *flags)
  files.write_text(
    workdir / 'evaluation' / 'detection.json', json.dumps(detection.measure(tiny.RECIPE, workdir))
  )
  run_detect(monkeypatch, *paths, *flags)
  quiet, loud = json.loads((workdir / 'scores.json').read_text())['files'].values()
  assert quiet['generated'] < 0.05 and loud['generated'] > 0.95
  assert len(quiet['seconds']) == 3 and max(quiet['seconds']) < 0.1 and min(loud['seconds']) > 0.9
  assert 'loud.flac' in capsys.readouterr().out
  with pytest.raises(ValueError, match='scores.json exists'):
    run_detect(monkeypatch, *paths, *flags)
  coded = []
  monkeypatch.setattr(
    sources, 'reconstructions', lambda examples, workdir: coded.extend(examples) or examples
  )
  run_detect(monkeypatch, *paths, f'--workdir={workdir}')
  assert len(coded) == 2  # through the codec, unless told otherwise


@pytest.mark.parametrize(
  'name, samples, message',
  [
    (
      'short.wav',
      np.full(1500, 0.1),
      'short.wav has 1500 samples at 16000 Hz, the detector needs 1600',
    ),
    ('silent.wav', np.zeros(4000), 'silent.wav is silent'),
    ('text.wav', None, 'text.wav: begins with'),
    ('missing.wav', None, 'missing.wav'),
  ],
)
def test_bad_files_are_named(name, samples, message, workdir, monkeypatch):
  files.write_text(
    workdir / 'evaluation' / 'detection.json', json.dumps(detection.measure(tiny.RECIPE, workdir))
  )
  if samples is not None:
    audio.save(workdir / name, samples.astype(np.float32), RATE)
  elif name == 'text.wav':
    (workdir / name).write_text('not audio')
  with pytest.raises((ValueError, OSError), match=message):
    run_detect(monkeypatch, workdir / name, f'--workdir={workdir}')
