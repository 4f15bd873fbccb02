"""What the Beam builders write is what `data.tfds` reads: every part, of the right split, with the
right samples.
"""

import hashlib
import json

import numpy as np
import pytest
import soundfile

from audiolm_jax import storage
from audiolm_jax.data import librilight, tfds
from experiments import corpora, prepare

pytestmark = [
  pytest.mark.beam,
  # TFDS asks protobuf for labels of fields in the old way.
  pytest.mark.filterwarnings(r'ignore:label\(\) is deprecated:DeprecationWarning'),
]
RATE = 16_000


def wave(seed: int, seconds: float) -> np.ndarray:
  return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


def read(folder, split):
  """Returns {id: (waveform, speaker)} through our reader, after checking the digests."""
  import tensorflow_datasets

  stored = tensorflow_datasets.builder_from_directory(folder).as_data_source(split)
  source = tfds.examples(folder, split, RATE, speaker_name='speaker')
  found = {}
  for record, example in zip(
    (stored[i] for i in range(len(stored))), (source[i] for i in range(len(source)))
  ):
    content = record['audio'].item() if isinstance(record['audio'], np.ndarray) else record['audio']
    name, digest = (bytes(np.asarray(record[key]).item()).decode() for key in ('id', 'sha256'))
    assert hashlib.sha256(content).hexdigest() == digest and record['num_samples'] == len(
      example['waveform']
    )
    found[name] = example['waveform'], int(example.get('speaker', -1))
  return found


def run(capsys, *arguments) -> str:
  prepare.main([str(argument) for argument in arguments])
  return capsys.readouterr().out.split('; ')[-1].strip()


def test_a_folder(tmp_path, capsys):
  root = tmp_path / 'audio'
  for i in range(30):
    (root / f'voice{i % 3}').mkdir(parents=True, exist_ok=True)
    soundfile.write(root / f'voice{i % 3}' / f'{i}.wav', wave(i, 0.2 + 0.01 * i), RATE)
  (root / 'voice0' / '0.wav').write_text('no audio')
  folder = run(capsys, 'folder', f'--root={root}', f'--output={tmp_path / "out"}', '--num_shards=2')
  found = {split: read(folder, split) for split in ('train', 'test')}
  assert sum(map(len, found.values())) == 29
  for split, examples in found.items():
    # the recipes hold out the same files
    recipe = corpora.Folder(root=str(root)).examples(split, None)
    assert (
      set(examples) | {'voice0/0.wav'}
      >= {part.path.removeprefix(f'{root}/') for part in recipe.parts}
      >= set(examples)
    )
    for name, (wave_T, speaker) in examples.items():
      expected_T, _ = soundfile.read(root / name, dtype='float32')
      np.testing.assert_array_equal(wave_T, expected_T)
      assert speaker == -1
  # left alone
  assert run(capsys, 'folder', f'--root={root}', f'--output={tmp_path / "out"}') == folder


def test_a_data_set_in_a_bucket(tmp_path, bucket, capsys):
  root = tmp_path / 'audio'
  root.mkdir()
  for i in range(12):
    soundfile.write(root / f'{i}.wav', wave(i, 0.2 + 0.01 * i), RATE)
  flags = 'folder', f'--root={root}', f'--output={bucket}/out', '--num_shards=2'
  folder = run(capsys, *flags)
  names = storage.files_below(bucket / 'out')
  assert not [name for name in names if 'incomplete' in name]
  assert sum(name.endswith('.array_record') or '.array_record-' in name for name in names) >= 2
  found = read(folder, 'train')
  for name, (wave_T, _) in found.items():
    np.testing.assert_array_equal(wave_T, soundfile.read(root / name, dtype='float32')[0])
  source = corpora.Tfds(folder=folder, speaker_name='speaker').examples('train', None)
  assert len(source) == len(found) and len(source[0]['waveform']) > 0
  assert run(capsys, *flags) == folder and storage.files_below(bucket / 'out') == names


def test_libri_light(tmp_path, capsys):
  root = tmp_path / 'libri'
  for speaker in range(6):
    book = root / 'unlab-600' / str(100 + speaker) / 'book'
    book.mkdir(parents=True)
    soundfile.write(book / 'chapter.flac', wave(speaker, 4.0), RATE)
    (book / 'chapter.json').write_text(json.dumps({'voice_activity': [[0.5, 1.5], [2.0, 3.75]]}))
  folder = run(capsys, 'librilight', f'--root={root}', f'--output={tmp_path / "out"}')
  found = read(folder, 'train') | read(folder, 'test')  # one of these speakers is held out
  expected = librilight.examples(root).parts
  assert len(found) == len(expected) == 6
  for part in expected:
    wave_T, speaker = found[f'{part.path.removeprefix(f"{root}/")}@{part.start_seconds:.3f}']
    whole_T, _ = soundfile.read(part.path, dtype='float32')
    start = round(part.start_seconds * RATE)
    np.testing.assert_array_equal(wave_T, whole_T[start : start + round(part.num_seconds * RATE)])
    assert speaker == part.speaker


def test_maestro(tmp_path, capsys):
  root = tmp_path / 'maestro'
  (root / '2004').mkdir(parents=True)
  lines = ['canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration']
  for i, split in enumerate(('train', 'train', 'validation', 'test')):
    soundfile.write(root / '2004' / f'{i}.wav', wave(i, 0.3), 44_100)
    lines.append(f'A,"B, in C",{split},2004,2004/{i}.midi,2004/{i}.wav,0.3')
  (root / 'maestro-v3.0.0.csv').write_text('\n'.join(lines))
  folder = run(capsys, 'maestro', f'--root={root}', f'--output={tmp_path / "out"}')
  for split, names in (
    ('train', {'2004/0.wav', '2004/1.wav'}),
    ('validation', {'2004/2.wav'}),
    ('test', {'2004/3.wav'}),
  ):
    source = tfds.examples(folder, split, RATE)
    assert len(source) == len(names)
    for i in range(len(source)):
      assert abs(len(source[i]['waveform']) - round(0.3 * RATE * RATE / 44_100)) <= 1


def test_mistakes_are_named(tmp_path):
  with pytest.raises(ValueError, match='is not a folder'):
    prepare.main(['folder', f'--root={tmp_path / "nothing"}', f'--output={tmp_path / "out"}'])
  with pytest.raises(ValueError, match='maestro-\\*.csv'):
    prepare.main(['maestro', f'--root={tmp_path}', f'--output={tmp_path / "out"}'])
