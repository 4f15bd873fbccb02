"""Files of captions: every format, and which names do not match."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from audiolm_jax import audio
from audiolm_jax.data import captions, skipped, texts
from audiolm_jax.errors import UserError
from experiments import corpora

RATE = 16_000


def sound(path, seconds=1.0, level=0.1):
  path.parent.mkdir(parents=True, exist_ok=True)
  wave_T = np.full(round(seconds * RATE), level, np.float32)
  if path.suffix == '.mp3':
    soundfile.write(path, wave_T, RATE)
  else:
    audio.save(path, wave_T, RATE)


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


MUSICCAPS = (
  'ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,'
  'is_audioset_eval\n'
)


def test_musiccaps_names_and_times(tmp_path):
  root = tmp_path / 'music'
  sound(root / '-0Gj8-vB1q4.wav', 10.0)
  sound(root / '[-0SdAVK79lg]-[30-40].wav', 10.0)
  sound(root / '-0vPFx-wRRI.wav', 45.0)
  path = write(
    root,
    f'{MUSICCAPS}-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'low quality\', \'sad\']",'
    '"The low quality, slow.",4,False,True\n'
    '-0SdAVK79lg,30,40,"/m/0155w","[]",Guitar.,0,False,False\n'
    '-0vPFx-wRRI,30,40,"/m/0155w","[]","Drums,\nand a ""bass"".",0,True,True\n',
    'musiccaps-public.csv',
  )
  found = captions.parts(root, captions.read(path))
  assert [(part.start_seconds, part.num_seconds) for part in found] == [
    (0, None),
    (30, 10),
    (0, None),
  ]
  written = [('The low quality, slow.',), ('Drums,\nand a "bass".',), ('Guitar.',)]
  assert list(found.values()) == written
  source = captions.CaptionedFiles(found, RATE, num_texts=1, text_bytes=64)
  assert [len(source[n]['waveform']) for n in range(3)] == [10 * RATE] * 3
  assert texts.decode(source[1]['texts']) == ['Drums,\nand a "bass".']


def test_jamendo_captions_are_tags(tmp_path):
  root = tmp_path / 'music'
  sound(root / '48/948.mp3')
  sound(root / '14/214.low.mp3')
  path = write(
    root,
    'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n'
    'track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tgenre---rock\t'
    'mood/theme---happy\n'
    'track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock\n',
    'autotagging.tsv',
  )
  assert matched(root, path) == {'48/948.mp3': ('rock, happy',), '14/214.low.mp3': ('punkrock',)}
  source = captions.CaptionedFiles(
    captions.parts(root, captions.read(path)), RATE, num_texts=1, text_bytes=64
  )
  assert all(len(source[n]['waveform']) == pytest.approx(RATE, abs=2304) for n in range(2))


FMA = """,album,album,set,set,track,track,track,track,track
,id,title,split,subset,genre_top,genres,genres_all,tags,title
track_id,,,,,,,,,
2,1,AWOL,training,small,Hip-Hop,[21],[21],[],Food
3,1,AWOL,training,medium,,"[21, 1235]","[1235, 21]","['beats', 'hip-hop']","This
World"
20,4,Niris,training,large,,"[1235]","[1235]",[],Spiritual Level
155320,9,x,test,small,Rock,[],[],['live'],Freely
"""
GENRES = """genre_id,#tracks,parent,title,top_level
21,8389,0,Hip-Hop,21
1235,14938,0,"Instrumental, slow",1235
"""


@pytest.fixture
def fma(tmp_path):
  """The folders fma_metadata and fma_small, as in the archives."""
  for name in ('000/000002', '155/155320'):
    sound(tmp_path / f'fma_small/{name}.mp3')
  (tmp_path / 'fma_small/checksums').write_text('x')
  (tmp_path / 'fma_metadata').mkdir()
  for name, text in (('tracks', FMA), ('genres', GENRES)):
    (tmp_path / f'fma_metadata/{name}.csv').write_text(text, encoding='utf-8')
  return tmp_path


def test_fma_captions_are_genres_and_tags_of_a_subset(fma):
  entries = captions.read(fma / 'fma_metadata/tracks.csv')
  assert [entry.captions for entry in entries] == [
    ('Hip-Hop',),
    ('Hip-Hop, Instrumental, slow, beats, hip-hop',),
    ('Instrumental, slow',),
    ('Rock, live',),
  ]
  sizes = [len(captions.subset(entries, name)) for name in ('', 'small', 'medium', 'large')]
  assert sizes == [4, 2, 3, 4]
  corpus = corpora.Captioned(
    root=str(fma / 'fma_small'),
    captions=str(fma / 'fma_metadata/tracks.csv'),
    subset='small',
    sample_rate=RATE,
    held_out=0.0,
  )
  source = corpus.examples('train', None)
  names = [part.path.removeprefix(str(fma)) for part in source.parts]
  assert names == ['/fma_small/000/000002.mp3', '/fma_small/155/155320.mp3']
  assert [texts.decode(source[n]['texts']) for n in range(2)] == [['Hip-Hop'], ['Rock, live']]
  whole = dataclasses.replace(corpus, subset='')
  message = r'2 of 4 captions have no file .*: 000/000003.mp3, 000/000020.mp3. .*subset=small'
  with pytest.raises(ValueError, match=message):
    whole.examples('train', None)


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('genres', None, 'no file .*genres.csv: .* from fma_metadata.zip'),
    ('genres', ('title', 'name'), 'genres.csv has no columns genre_id and title'),
    ('genres', ('21,8389', '22,8389'), 'tracks.csv, line 4: genres.csv has no genre 21'),
    ('tracks', ('track_id,', 'id,'), 'begins as tracks.csv of FMA, but has no line track_id'),
    ('tracks', ('genres,genres_all', 'a,b'), r"has no columns \[\('track', 'genres'\)\]"),
    ('tracks', (',[21],[21],[]', ',[21],[21],[x'), 'line 4: the genres or tags of track 2 are no'),
    ('tracks', (',small,', ',tiny,'), "line 4: the subset 'tiny' is none of small, medium, large"),
  ],
)
def test_damaged_files_of_fma_are_explained(fma, name, change, message):
  path = fma / f'fma_metadata/{name}.csv'
  text = path.read_text(encoding='utf-8')
  path.unlink()
  if change:
    path.write_text(text.replace(*change, 1), encoding='utf-8')
  with pytest.raises(UserError, match=message):
    captions.read(fma / 'fma_metadata/tracks.csv')


def test_only_fma_has_subsets(root):
  entries = captions.read(write(root, 'file,caption\na.wav,a harp\n'))
  with pytest.raises(UserError, match="subset='small': .* --set corpus.subset="):
    captions.subset(entries, 'small')
  with pytest.raises(UserError, match="subset='tiny'"):
    corpora.Captioned(root='x', captions='y', subset='tiny')


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
