"""Files of captions: every format, and which names do not match."""

import json

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import captions, skipped, texts
from experiments import corpora

RATE = 16_000


def sound(path, seconds=1.0, level=0.1):
  path.parent.mkdir(parents=True, exist_ok=True)
  audio.save(path, np.full(round(seconds * RATE), level, np.float32), RATE)


@pytest.fixture
def root(tmp_path):
  for name in ('a.wav', 'deep/b.flac', 'c.ogg'):
    sound(tmp_path / 'music' / name)
  return tmp_path / 'music'


def write(root, text, name='captions.csv'):
  path = root.parent / name
  path.write_text(text, encoding='utf-8')
  return path


def matched(root, path, **options):
  found = captions.parts(root, captions.read(path), **options)
  return {part.path.removeprefix(f'{root}/'): written for part, written in found.items()}


WANTED = {'a.wav': ('a harp',), 'c.ogg': ('loud, fast', 'a "drum"'), 'deep/b.flac': ('é',)}


@pytest.mark.parametrize(
  'text, name',
  [
    (
      'file,caption,caption2\na.wav,a harp,\nc.ogg,"loud, fast","a ""drum"""\ndeep/b.flac,é,\n',
      'captions.csv',
    ),
    ('file,caption\nb,é\na,a harp\nc,"loud, fast"\nc,"a ""drum"""\n', 'captions.csv'),
    (
      ''.join(
        json.dumps(line) + '\n'
        for line in (
          {'file': 'a.wav', 'caption': 'a harp'},
          {'file': 'c.ogg', 'captions': ['loud, fast', 'a "drum"']},
          {'file': 'deep/b.flac', 'caption': 'é', 'genre': 'x'},
        )
      ),
      'captions.jsonl',
    ),
  ],
)
def test_plain_files(root, text, name):
  assert matched(root, write(root, text, name)) == WANTED


def test_musiccaps_names_and_times(tmp_path):
  root = tmp_path / 'music'
  sound(root / '-0Gj8-vB1q4.wav', 10.0)
  sound(root / '[-0SdAVK79lg]-[30-40].wav', 10.0)
  sound(root / 'track_000000.wav', 45.0)
  path = write(
    root,
    'ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id\n'
    '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'low quality\']","The low quality, slow.",4\n'
    '-0SdAVK79lg,30,40,"/m/0155w","[]",Guitar.,0\n'
    'track_000000,30,40,"/m/0155w","[]",Drums.,0\n',
  )
  found = captions.parts(root, captions.read(path))
  assert [(part.start_seconds, part.num_seconds) for part in found] == [
    (0, None),
    (0, None),
    (30, 10),
  ]
  assert list(found.values()) == [('The low quality, slow.',), ('Guitar.',), ('Drums.',)]


def test_jamendo_captions_are_tags(tmp_path):
  root = tmp_path / 'music'
  sound(root / '48/948.ogg')
  sound(root / '14/214.low.ogg')
  path = write(
    root,
    'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n'
    'track_0000948\tartist_87\talbum_149\t48/948.mp3\t212.7\tgenre---rock\tmood/theme---happy\n'
    'track_0000214\tartist_14\talbum_31\t14/214.mp3\t124.6\tgenre---punkrock\n',
    'autotagging.tsv',
  )
  assert matched(root, path) == {'48/948.ogg': ('rock, happy',), '14/214.low.ogg': ('punkrock',)}


def test_captions_without_files_and_files_without_captions_are_counted_and_named(root, tmp_path):
  path = write(root, 'file,caption\na.wav,a harp\nx.wav,none\n')
  with pytest.raises(ValueError, match=r'1 of 2 captions have no file .*: x.wav.*unmatched=0.5'):
    matched(root, path)
  path = write(root, 'file,caption\na.wav,a harp\n')
  with pytest.raises(ValueError, match=r'2 of 3 files have no caption .*c.ogg, .*b.flac.*=0.67'):
    matched(root, path)
  listing = tmp_path / 'skipped.jsonl'
  assert matched(root, path, max_unmatched=0.67, listing=listing) == {'a.wav': ('a harp',)}
  assert {name for name, _ in skipped.read(listing)} == {f'{root}/c.ogg', f'{root}/deep/b.flac'}
  path = write(root, 'file,caption\nx.wav,none\n')
  with pytest.raises(ValueError, match='1 of 1 captions have no file') as error:
    matched(root, path, max_unmatched=1.0)
  assert 'max_unmatched' not in str(error.value)


def test_a_name_of_two_files_is_refused(root):
  sound(root / 'deep/a.flac')
  with pytest.raises(ValueError, match=r"the caption of 'a' may be that of .*a.wav, .*deep/a.flac"):
    matched(root, write(root, 'file,caption\na,a harp\nb,x\nc,x\n'))


@pytest.mark.parametrize(
  'text, name, message',
  [
    (
      'file,caption\na.wav,loud, fast\n',
      'c.csv',
      'line 2 has 3 fields, the header 2: put captions',
    ),
    ('path,words\na.wav,loud\n', 'c.csv', "begins with 'path,words', no header"),
    ('file,caption\na.wav, \n', 'c.csv', 'has no captions'),
    ('', 'c.csv', "begins with '', no header"),
    ('ytid,start_s,end_s,caption\na,b,c,d\n', 'c.csv', 'line 2: could not convert'),
    ('{"file": "a.wav"}\n', 'c.jsonl', 'line 1: needs "file" and "caption"'),
    ('{"file": 1, "caption": "x"}\n', 'c.jsonl', 'line 1: needs "file" and "caption"'),
    ('{"file": "a.wav", "captions": "x"}\n', 'c.jsonl', 'line 1: needs "file" and "caption"'),
    ('[1]\n', 'c.jsonl', '1 lines are no JSON objects'),
    ('{"file": "a", "caption": "\\ud800"}\n', 'c.jsonl', "a caption of 'a' is not Unicode"),
  ],
)
def test_wrong_files_are_explained(root, text, name, message):
  with pytest.raises(ValueError, match=message):
    captions.read(write(root, text, name))


def test_a_missing_file_names_the_flag(root):
  with pytest.raises(ValueError, match="'nothing.csv': --set corpus.captions=FILE"):
    captions.read('nothing.csv')


def test_the_corpus_has_waveforms_texts_and_splits(root):
  for n in range(20):
    sound(root / f'more{n}.wav')
  names = ['a.wav', 'deep/b.flac', 'c.ogg', *(f'more{n}.wav' for n in range(20))]
  lines = '\n'.join(f'{name},text of {name}' for name in names)
  corpus = corpora.Captioned(
    root=str(root),
    captions=str(write(root, f'file,caption\n{lines}\n')),
    sample_rate=RATE,
    held_out=0.3,
    num_texts=2,
    text_bytes=24,
  )
  train, test = (corpus.examples(split, None) for split in ('train', 'test'))
  assert len(train) + len(test) == 23 and len(test) > 2
  assert not {part.path for part in train.parts} & {part.path for part in test.parts}
  for example in (test[0], test.crop(0, lambda length: (0, length // 2))):
    name = test.parts[0].path.removeprefix(f'{root}/')
    wanted = texts.encode([f'text of {name}'], 24, 2)
    np.testing.assert_array_equal(example['texts'], wanted)
  assert len(test[0]['waveform']) == RATE and len(example['waveform']) == RATE // 2
  assert all('text of' in line for line in test.inventory())


@pytest.mark.parametrize(
  'field, message', [('num_texts', 'num_texts=2, more than 1'), ('text_bytes', '=10, more than 9')]
)
def test_captions_that_do_not_fit_name_the_field(root, field, message):
  path = write(root, 'file,caption,caption2\na.wav,ten bytes.,loud\nc.ogg,x,\ndeep/b.flac,x,\n')
  sizes = {'num_texts': 2, 'text_bytes': 10} | {field: {'num_texts': 1, 'text_bytes': 9}[field]}
  with pytest.raises(
    ValueError, match=f'a.wav: its captions need .*{message}.*--set corpus.{field}'
  ):
    corpora.Captioned(root=str(root), captions=str(path), **sizes).examples('train', None)
