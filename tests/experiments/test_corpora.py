"""The held-out split of a folder, and what a recipe without audio says."""

import dataclasses
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import skipped
from experiments import corpora


def fill(root, names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def split_names(root, split, held_out=0.3):
  found = corpora.Folder(root=str(root), held_out=held_out).examples(split, None)
  return {part.path.removeprefix(f'{root}/') for part in found.parts}


def test_checksums_of_paths_split_a_folder(tmp_path):
  names = {f'voice{index % 5}/{index}.wav' for index in range(60)}
  fill(tmp_path, names)
  train, test = (split_names(tmp_path, split) for split in ('train', 'test'))
  assert train | test == names and not train & test
  assert test == {name for name in names if zlib.crc32(name.encode()) % 10_000 < 3_000}
  assert 5 < len(test) < 35


def test_more_files_or_another_root_move_no_file_across(tmp_path):
  names = [f'{index}.wav' for index in range(40)]
  fill(tmp_path / 'one', names)
  before = split_names(tmp_path / 'one', 'test')
  fill(tmp_path / 'two', names + [f'more/{index}.flac' for index in range(40)])
  assert before == {
    name for name in split_names(tmp_path / 'two', 'test') if not name.startswith('more/')
  }


def test_held_out_files_may_have_a_folder_of_their_own(tmp_path):
  fill(tmp_path, ['here/0.wav', 'here/1.wav', 'there/2.wav'])
  folder = corpora.Folder(root=str(tmp_path / 'here'), test_root=str(tmp_path / 'there'))
  found = {
    split: [part.path for part in folder.examples(split, None).parts] for split in ('train', 'test')
  }
  assert found == {
    'train': [str(tmp_path / 'here' / name) for name in ('0.wav', '1.wav')],
    'test': [str(tmp_path / 'there' / '2.wav')],
  }


def test_a_split_without_files_is_explained(tmp_path):
  fill(tmp_path, ['0.wav'])
  with pytest.raises(ValueError, match="split 'test' with held_out=0.0"):
    split_names(tmp_path, 'test', held_out=0.0)


@pytest.mark.parametrize('make', [corpora.Folder, corpora.LibriLight])
def test_a_missing_root_names_the_flag(make):
  with pytest.raises(ValueError, match='add --set corpus.root=FOLDER'):
    make(root='').examples('train', None)
  with pytest.raises(ValueError, match="'nowhere' is not a folder: --set corpus.root=FOLDER"):
    make(root='nowhere').examples('train', None)


def test_both_splits_of_librilight_take_one_listing(tmp_path, monkeypatch):
  fill(tmp_path, [f'unlab-600/{speaker}/a/x.wav' for speaker in range(8)])
  listed, list_parts = [], corpora.librilight.examples
  monkeypatch.setattr(
    corpora.librilight, 'examples', lambda *a, **k: listed.append(1) or list_parts(*a, **k)
  )
  corpus = corpora.LibriLight(root=str(tmp_path), held_out=0.5)
  splits = [{part.speaker for part in corpus.examples(s, None).parts} for s in ('train', 'test')]
  assert splits[0] | splits[1] == set(range(8)) and splits[0].isdisjoint(splits[1])
  assert len(listed) == 1


def test_a_subset_is_fixed_and_in_order():
  source = np.arange(100)
  chosen = corpora.Subset(source, 10, seed=1)
  got = [chosen[index] for index in range(len(chosen))]
  assert len(set(got)) == 10 and got == sorted(got)
  again = corpora.Subset(source, 10, seed=1)
  assert got == [again[index] for index in range(10)]
  assert got != [corpora.Subset(source, 10, seed=2)[index] for index in range(10)]


@pytest.mark.parametrize(
  'train, test', [('data', 'data/test'), ('data', 'link'), ('.', 'data/test')]
)
def test_a_test_file_never_trains_however_folders_nest_or_link(tmp_path, train, test):
  fill(tmp_path, ['data/0.wav', 'data/1.wav', 'data/test/2.wav', 'data/test/deep/3.wav'])
  (tmp_path / 'link').symlink_to(tmp_path / 'data/test')
  (tmp_path / 'data/4.wav').symlink_to(tmp_path / 'data/test/2.wav')
  (tmp_path / 'data/5.wav').hardlink_to(tmp_path / 'data/test/deep/3.wav')
  folder = corpora.Folder(root=str(tmp_path / train), test_root=str(tmp_path / test))
  found = {
    split: {os.path.realpath(part.path) for part in folder.examples(split, None).parts}
    for split in ('train', 'test')
  }
  assert found['train'] == {str(tmp_path / f'data/{name}.wav') for name in (0, 1)}
  assert len(found['test']) == 2


def test_a_test_folder_that_holds_all_is_refused(tmp_path):
  fill(tmp_path, ['data/0.wav', 'data/more/1.wav'])
  folder = corpora.Folder(root=str(tmp_path / 'data/more'), test_root=str(tmp_path / 'data'))
  with pytest.raises(ValueError, match='nothing is left to train on'):
    folder.examples('train', None)


def test_folders_of_speakers_are_held_out_whole(tmp_path):
  fill(tmp_path, [f'voice{voice}/{index}.wav' for voice in range(40) for index in range(3)])
  folder = corpora.Folder(root=str(tmp_path), held_out=0.3, speaker_folders=True)
  voices = {}
  for split in ('train', 'test'):
    parts = folder.examples(split, None).parts
    voices[split] = {os.path.basename(os.path.dirname(part.path)) for part in parts}
    assert len(parts) == 3 * len(voices[split])
  assert not voices['train'] & voices['test'] and len(voices['train'] | voices['test']) == 40
  assert voices['test'] == {
    f'voice{voice}' for voice in range(40) if zlib.crc32(f'voice{voice}'.encode()) % 10_000 < 3_000
  }


LOCALES = [{'LC_ALL': 'C.UTF-8'}, {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}]


def test_names_that_are_no_text_fall_into_the_same_split_in_every_locale(tmp_path):
  names = [b'%d-\xe9\xff\xc3\xa4.wav' % index for index in range(30)]
  for name in names:
    open(os.path.join(os.fsencode(tmp_path), name), 'wb').close()
  program = (
    'import json, os, sys; from experiments import corpora; '
    'found = corpora.Folder(root=sys.argv[1], held_out=0.3).examples("test", None); '
    'names = [os.path.basename(os.fsencode(part.path)) for part in found.parts]; '
    'print(json.dumps([sorted(name.hex() for name in names), found.inventory()]))'
  )
  said = [
    subprocess.run(
      [sys.executable, '-c', program, tmp_path],
      capture_output=True,
      check=True,
      env={**os.environ, **locale},
    ).stdout
    for locale in LOCALES
  ]
  assert said[0] == said[1]
  expected = sorted(name.hex() for name in names if zlib.crc32(name) % 10_000 < 3_000)
  assert json.loads(said[0])[0] == expected and 3 < len(expected) < 20


def test_what_is_left_out_is_listed_in_the_workdir_and_its_limits_are_fields(tmp_path):
  root, cache = tmp_path / 'audio', tmp_path / 'corpus'
  for index in range(4):
    audio_of(root / f'{index}.wav', 2.0 if index == 3 else 0.5)
  (root / '1.wav').write_bytes(b'')
  (root / '._0.wav').write_bytes(b'')
  folder = corpora.Folder(
    root=str(root), test_root=str(root), max_seconds=1.0, max_bad_fraction=0.5
  )
  found = folder.examples('test', str(cache))
  assert [found[index] is None for index in range(4)] == [False, True, False, True]
  listed = skipped.read(corpora.listing(cache))
  assert [os.path.basename(path) for path, _ in listed] == ['._0.wav', '1.wav', '3.wav']
  assert 'is empty (0 bytes)' in listed[1][1] and '--set corpus.max_seconds=' in listed[2][1]
  with pytest.raises(ValueError, match='max_bad_fraction=0.05.*--set corpus.max_bad_fraction='):
    corpora.Folder(root=str(root), test_root=str(root)).examples('test', str(cache))[1]


def audio_of(path, seconds):
  path.parent.mkdir(exist_ok=True)
  audio.save(path, np.full(round(16_000 * seconds), 0.1, np.float32), 16_000)


def test_librispeech_has_its_own_splits(tmp_path):
  speakers = {'train-clean-100': 10, 'train-clean-360': 11, 'dev-clean': 12, 'train-other-500': 13}
  fill(tmp_path, [f'{name}/{number}/1/{number}-1-0000.flac' for name, number in speakers.items()])
  corpus = corpora.LibriSpeech(root=str(tmp_path))
  sources = {split: corpus.examples(split, None) for split in ('train', 'test')}
  found = {split: [part.speaker for part in source.parts] for split, source in sources.items()}
  assert found == {'train': [10, 11], 'test': [12]}
  with pytest.raises(ValueError, match='has none of dev-other: --set corpus.root=FOLDER'):
    corpora.LibriSpeech(root=str(tmp_path), test=('dev-other',)).examples('test', None)


def test_speech_joins_packages_and_librispeech_without_sharing_speakers(tmp_path):
  stamps = tmp_path / 'usr/share/tuxpaint/stamps/animals'
  stamps.mkdir(parents=True)
  time_T = np.arange(16_000) / 16_000
  for language in ('fr', 'it'):
    audio.save(stamps / f'eel_desc_{language}.ogg', 0.3 * np.sin(1000 * time_T), 16_000)
  fill(tmp_path / 'libri', ['10-1-0000.flac', '11-1-0000.flac', '12-1-0000.flac'])
  corpus = corpora.Speech(
    root=str(tmp_path), librispeech=str(tmp_path / 'libri'), packages=('tuxpaint-stamps-default',)
  )
  found = {split: corpus.examples(split, tmp_path / 'cache') for split in ('train', 'test')}
  speakers = {split: [part.speaker for part in source.parts] for split, source in found.items()}
  assert speakers == {'train': [1_000_000, 11, 12], 'test': [1_000_001, 10]}
  assert found['test'][0]['waveform'].ndim == 1
  with pytest.raises(ValueError, match="tuxpaint-stamps-default are in the split 'labelled'"):
    corpus.examples('labelled', tmp_path / 'cache')
  with pytest.raises(ValueError, match='corpus.librispeech=FOLDER must name one'):
    dataclasses.replace(corpus, librispeech='nowhere').examples('train', tmp_path / 'cache')
  alone = corpora.Speech(root='', librispeech=str(tmp_path / 'libri'), packages=())
  found = [part.speaker for part in alone.examples('test', tmp_path / 'cache').parts]
  assert found == [10]
