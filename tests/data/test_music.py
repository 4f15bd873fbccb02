"""The corpus of rendered tunes, of small folders of scores; real ones with the extra `music`."""

import collections
import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from audiolm_jax.data import abc_notation, arrangements, music, musicxml
from audiolm_jax.metrics import extras
from audiolm_jax.metrics import music as judges
from audiolm_jax.stages.base import Feature
from experiments import corpora
from tests.data import toy_scores


@pytest.fixture(scope='module')
def scores(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scores')
  toy_scores.write_abc(folder)
  toy_scores.write_chorales(folder / 'bach')
  return str(folder)


@pytest.fixture
def no_font(monkeypatch, tmp_path):
  """Replaces the sound font, for tests that make no sound."""
  (tmp_path / 'font.sf2').write_bytes(b'RIFF....sfbk')
  monkeypatch.setattr(
    'audiolm_jax.data.rendering.font_path', lambda font: str(tmp_path / 'font.sf2')
  )


@pytest.fixture
def needs_sound():
  for package in ('midirenderer', 'pretty_midi'):
    pytest.importorskip(package, reason=f'{package} is not installed: no music can be rendered')


def config(scores, **fields):
  sizes = dict(train_clips=6, test_clips=4, pairs_clips=4, clip_seconds=2.0, held_out=0.3)
  return music.Config(scores=scores, **sizes | fields)


def clips(config, split):
  return music.examples(config, split)._clips


def decoded(texts_CL):
  return [bytes(row_L[row_L >= 0].astype(np.uint8)).decode() for row_L in texts_CL]


def test_splits_share_no_tune(scores, no_font):
  many = config(scores, train_clips=200, test_clips=100, pairs_clips=100)
  names = {split: {clip['tune'] for clip in clips(many, split)} for split in music.SPLITS}
  assert len(names['train']) > 20 and len(names['test']) > 5
  assert not names['train'] & (names['test'] | names['pairs'])
  piano = dataclasses.replace(many, setting='piano')
  names = {split: {clip['tune'] for clip in clips(piano, split)} for split in ('train', 'test')}
  assert not names['train'] & names['test']
  assert any('bach' in name for name in names['test'])


def test_tunes_with_the_title_or_beginning_of_a_held_out_one_are_not_trained_on(scores):
  tunes = abc_notation.tunes(scores)
  test = music.split_tunes(tunes, True, 0.3)
  train = music.split_tunes(tunes, False, 0.3)
  again = test[0]._replace(title=train[0].title)
  same_title = train[1]._replace(title=test[0].title)
  assert again not in music.split_tunes([*tunes, again], False, 0.3)
  assert len(music.split_tunes([*tunes, again], False, 0.3)) == len(train)
  held_out = music.split_tunes([*tunes, same_title], True, 0.3)
  assert len(held_out) == len(test) + 1


def test_attributes_are_balanced_and_pairs_are_held_out(scores, no_font):
  many = config(scores, train_clips=480, test_clips=240, pairs_clips=96)
  pair_of = lambda labels: [
    pair
    for pair in arrangements.HELD_OUT_PAIRS
    if all(arrangements.ATTRIBUTES[name][labels[name]] == value for name, value in pair)
  ]
  for split in music.SPLITS:
    labels = [clip['labels'] for clip in clips(many, split)]
    for name in ('register', 'dynamics', 'texture', 'mode'):
      assert abs(np.mean([one[name] for one in labels]) - 0.5) < 0.05, (split, name)
    pairs = collections.Counter(tuple(pair_of(one)) for one in labels)
    if split == 'pairs':
      assert () not in pairs and len(pairs) == len(arrangements.HELD_OUT_PAIRS)
    else:
      assert set(pairs) == {()}
  assert len(music.combinations(False)) == 6 * 2**4 * 3 - 3 * 2**4
  assert len(music.combinations(True)) == 3 * 2**4


def test_labels_texts_and_notes_agree(scores, no_font):
  for split in music.SPLITS:
    for clip in clips(config(scores), split):
      values = {
        name: named[clip['labels'][name]] for name, named in arrangements.ATTRIBUTES.items()
      }
      assert values['instrument'] in clip['texts'][0] and len(clip['texts']) == 4
      assert ('unseen_texts' in clip) == (split != 'train')
      notes_N4 = np.array(clip['notes'])
      in_key = judges.share_in_key(notes_N4, clip['labels']['tonic'], values['mode'])
      assert in_key == 1.0
      assert (notes_N4[:, 2].mean() > 67) == (values['register'] == 'high')
      assert clip['program'] == arrangements.PROGRAMS[values['instrument']]


def test_clips_do_not_depend_on_their_number_but_on_the_seed(scores, no_font):
  few, more = config(scores), config(scores, train_clips=48)
  assert clips(few, 'train') == clips(few, 'train')
  tunes = lambda of: [clip['tune'] for clip in clips(of, 'train')]
  assert tunes(few) == tunes(more)[:6]
  assert tunes(few) != tunes(dataclasses.replace(few, seed=1))


def test_piano_alternates_between_hands_and_chorales(scores, no_font):
  made = clips(config(scores, setting='piano'), 'train')
  assert [clip['labels']['setting'] for clip in made] == [0, 1, 0, 1, 0, 1]
  assert all(('bach' in clip['tune']) == bool(clip['labels']['setting']) for clip in made)
  assert all(clip['program'] == 0 and 'texts' not in clip for clip in made)


def same_melody(bare_N4, other_N4, seconds):
  """Returns whether all notes of a melody are in other notes, in some key and at some tempo."""
  ratios = other_N4[other_N4[:, 0] > 0, 0] / bare_N4[bare_N4[:, 0] > 0, 0].min()
  for ratio in ratios[(0.8 < ratios) & (ratios < 1.25)]:
    inside_N4 = bare_N4[bare_N4[:, 0] * ratio < seconds - 0.01]
    for shift in range(-48, 49):
      hits = [
        (np.abs(other_N4[:, :3] - [note[0] * ratio, 0, note[2] + shift])[:, [0, 2]] < 2e-3)
        .all(axis=1)
        .any()
        for note in inside_N4
      ]
      if all(hits):
        return True
  return False


def test_melodies_have_two_recordings_of_one_tune_by_two_instruments(scores, no_font):
  made = clips(config(scores, setting='melody', clip_seconds=3.0), 'train')
  pairs = [(np.array(clip['notes']), np.array(clip['cover'][0])) for clip in made]
  for clip, (one_N4, other_N4) in zip(made, pairs, strict=True):
    assert clip['program'] != clip['cover'][1] and clip['labels'] == {} and 'texts' not in clip
    assert len(one_N4) > len(other_N4) >= 2  # the first has chords
    assert same_melody(other_N4, one_N4, 3.0)
  shifts = {float(other_N4[0, 2] - one_N4[-1, 2]) for one_N4, other_N4 in pairs}
  assert len(shifts) > 2
  different = [same_melody(pairs[n][1], pairs[n - 1][0], 3.0) for n in range(len(pairs))]
  assert sum(different) < len(pairs)
  with pytest.raises(ValueError, match='train and test'):
    music.examples(config(scores, setting='melody'), 'pairs')


def test_both_recordings_are_stored(scores, no_font, monkeypatch, tmp_path):
  sounds = []

  def render(notes_N4, program, seconds, sample_rate, font):
    sounds.append(program)
    return np.full(round(seconds * sample_rate), program / 256, np.float32)

  monkeypatch.setattr('audiolm_jax.data.rendering.render', render)
  source = music.examples(config(scores, setting='melody'), 'test', cache_dir=tmp_path)
  clip, example = source._clips[1], source[1]
  assert sounds == [clip['program'], clip['cover'][1]]
  assert [float(example[name][0]) for name in ('waveform', 'cover')] == [n / 256 for n in sounds]
  again = source[1]
  assert len(sounds) == 2 and (again['cover'] == example['cover']).all()


def test_the_corpus_of_recipes_has_three_splits(scores, no_font, tmp_path):
  corpus = corpora.Music(config=config(scores))
  lengths = [len(corpus.examples(split, tmp_path / 'cache')) for split in music.SPLITS]
  assert lengths == [6, 4, 4] and len(list((tmp_path / 'cache').iterdir())) == 3


def test_examples_hold_what_they_promise(scores, needs_sound, tmp_path):
  source = music.examples(config(scores), 'test', cache_dir=tmp_path)
  example = source[-1]
  assert example['waveform'].shape == (32_000,) and example['waveform'].dtype == np.float32
  assert 0.003 < np.std(example['waveform']) < 0.3
  assert example['notes'].dtype == np.float32 and example['notes'].shape[1] == 4
  assert all(example[name].dtype == np.int32 for name in (*arrangements.ATTRIBUTES, 'tonic'))
  for name in ('texts', 'unseen_texts'):
    assert example[name].shape == (4, 96) and example[name].max() < 256
  assert decoded(example['texts']) == source._clips[-1]['texts']
  assert len(source.inventory()) == len(source) == 4


def test_the_pipeline_makes_batches(scores, needs_sound):
  from audiolm_jax.data import pipeline

  features = {
    'waveform': Feature(shape=(16_000,), dtype='float32', rate=16_000),
    'texts': Feature(shape=(4, 96), dtype='int32', rate=None),
    'instrument': Feature(shape=(), dtype='int32', rate=None),
  }
  source = music.examples(config(scores), 'train')
  batch = next(pipeline.batches(source, features, batch_size=2, seed=0))
  assert batch['waveform'].shape == (2, 16_000) and batch['texts'].shape == (2, 4, 96)
  assert batch['instrument'].shape == (2,)


def test_stored_clips_equal_rendered_ones(scores, needs_sound, tmp_path):
  rendered = music.examples(config(scores), 'train')
  for _ in range(2):  # made, then read
    stored = music.examples(config(scores), 'train', cache_dir=tmp_path)
    np.testing.assert_array_equal(stored[2]['waveform'], rendered[2]['waveform'])
    np.testing.assert_array_equal(stored[2]['notes'], rendered[2]['notes'])
  [folder] = tmp_path.iterdir()
  assert {path.name for path in folder.iterdir()} == {'clips.json', '000002.flac'}
  music.examples(config(scores, seed=1), 'train', cache_dir=tmp_path)
  assert len(list(tmp_path.iterdir())) == 2
  (folder / '000002.flac').write_bytes(b'damaged')
  with pytest.raises(ValueError, match=r'Delete .*000002.flac to render it again'):
    stored[2]


def test_damaged_lists_are_named(scores, no_font, tmp_path):
  cache = tmp_path / 'cache'
  music.examples(config(scores), 'train', cache_dir=cache)
  [folder] = cache.iterdir()
  for text in ('{', json.dumps({'clips': None})):
    (folder / 'clips.json').write_text(text)
    with pytest.raises(ValueError, match=f'delete {folder} to render it again'):
      music.examples(config(scores), 'train', cache_dir=cache)


@pytest.mark.parametrize(
  'fields, split, message',
  [
    ({}, 'dev', "split is 'dev'.*train, test and pairs"),
    ({'setting': 'piano'}, 'pairs', "split is 'pairs'.*train and test"),
    ({'held_out': 1e-6}, 'test', 'none of 40 tunes is held out with held_out=1e-06'),
  ],
)
def test_splits_without_clips_are_explained(scores, no_font, fields, split, message):
  with pytest.raises(ValueError, match=message):
    music.examples(config(scores, **fields), split)


def test_wrong_values_and_missing_packages_are_named(no_font, monkeypatch):
  with pytest.raises(ValueError, match="setting='organ': must be one of 'captioned', 'piano'"):
    music.Config(setting='organ')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  music._tunes.cache_clear()
  with pytest.raises(
    ValueError, match=r"music21 is not installed: run `pip install -e '.\[music\]'"
  ):
    music.examples(music.Config(), 'train')


def test_real_scores(needs_sound):
  if importlib.util.find_spec('music21') is None:
    pytest.skip('music21 is not installed: its scores are not read')
  corpus = extras.folder('music21', 'music21', extra='music') / 'corpus'
  # Ryan's Mammoth Collection, in A: vA2(Ac) "4"eAc"0"e | ace"1"a "3"Tc'2("2"b"1"a)
  text = (corpus / 'ryansMammoth/7thRegimentReel.abc').read_text()
  [regiment] = abc_notation.read(text, 'regiment')
  assert (regiment.tonic, regiment.is_minor, regiment.bar) == (9, False, 2)
  wanted = [69, 69, 73, 76, 69, 73, 76, 81, 73, 76, 81, 85, 83, 81]
  assert regiment.voices[0][:14, 2].tolist() == wanted
  # Bach, BWV 66.6, in F sharp minor: the soprano begins c#'' b' a' b' c#''.
  bach = musicxml.read(corpus / 'bach/bwv66.6.mxl', 'bach')
  assert (bach.tonic, bach.is_minor, len(bach.voices)) == (6, True, 4)
  assert bach.voices[0][:5].tolist() == [
    [3, 0.5, 73],
    [3.5, 0.5, 71],
    [4, 1, 69],
    [5, 1, 71],
    [6, 1, 73],
  ]
  ryan = str(corpus / 'ryansMammoth')
  example = music.examples(music.Config(scores=ryan, test_clips=2), 'test')[0]
  assert len(example['waveform']) == 80_000 and np.std(example['waveform']) > 0.003


def test_the_collections_are_found_in_the_package(no_font, monkeypatch):
  read = []
  monkeypatch.setattr(abc_notation, 'tunes', lambda root: read.append(root.name) or [])
  monkeypatch.setattr(
    extras, 'folder', lambda package, name, extra: pathlib.Path('/packages') / package
  )
  music._tunes.cache_clear()
  with pytest.raises(ValueError, match='none of 0 tunes'):
    music.examples(music.Config(), 'train')
  assert read == ['ryansMammoth', 'oneills1850', 'airdsAirs']
