import io

import numpy as np
import pytest
import soundfile

from audiolm_jax.data import tfds as ours

RATE = 16_000
WAVES = [
  (0.1 * np.random.default_rng(i).normal(size=RATE + 100 * i)).clip(-1, 1).astype(np.float32)
  for i in range(5)
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tones(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'none'

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          'audio': tfds.features.Tensor(shape=(), dtype=np.object_),
          'samples': tfds.features.Tensor(shape=(None,), dtype=np.int16),
          'speaker': tfds.features.Scalar(np.int32),
        }
      )
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, wave in enumerate(WAVES):
        file = io.BytesIO()
        soundfile.write(file, wave, RATE, format='FLAC')
        encoded = file.getvalue() if i != 3 else file.getvalue()[:5000]
        yield (
          i,
          {'audio': encoded, 'samples': np.round(wave * 32767).astype(np.int16), 'speaker': i % 2},
        )

  root = tmp_path_factory.mktemp('tfds')
  (root / 'manual').mkdir()
  (root / 'manual/readme').write_text('TFDS wants it to hold something')
  builder = Tones(data_dir=str(root), file_format='array_record')
  config = tfds.download.DownloadConfig(manual_dir=str(root / 'manual'))
  builder.download_and_prepare(download_config=config)
  return builder.data_dir


@pytest.mark.parametrize('audio_name', ['audio', 'samples'])
def test_reads_what_was_prepared(folder, audio_name):
  source = ours.examples(
    folder, 'train', RATE, audio_name=audio_name, speaker_name='speaker', max_bad_fraction=0.2
  )
  found = {}
  for i in range(len(source)):
    if (example := source[i]) is not None:
      found[len(example['waveform'])] = example
  assert len(found) == (4 if audio_name == 'audio' else 5)  # one FLAC is cut short
  assert len(source.bad) == 5 - len(found)
  for i, wave in enumerate(WAVES):
    if len(wave) in found:
      np.testing.assert_allclose(found[len(wave)]['waveform'], wave, atol=1e-4)
      assert found[len(wave)]['speaker'] == i % 2


def test_wrong_names(folder):
  with pytest.raises(ValueError, match=r"no split 'test': choose from \['train'\]"):
    ours.examples(folder, 'test', RATE)
  with pytest.raises(ValueError, match="'speech'"):
    ours.examples(folder, 'train', RATE, audio_name='speech')
