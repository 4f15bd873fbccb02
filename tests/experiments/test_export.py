import json
import sys

import pytest
from safetensors.numpy import load_file

import audiolm_jax
from audiolm_jax import arrays_file, audio
from audiolm_jax.errors import UserError
from audiolm_jax.training import checkpoints, exports, saving
from experiments import demo, export
from experiments.evaluations import detection
from tests import toys

ITERATIONS = '--set=sampling.soundstorm.iterations=(2, 1, 1, 1)'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A trained workdir with a calibrated detector, and a table of measurements."""
  folder = tmp_path_factory.mktemp('run')
  toys.save_workdir(folder)
  config, variables, metadata = toys.model('detector')
  saving.save_variables(folder / 'detector', config, variables, metadata)
  calibration = {'scale': 2.0, 'offset': -0.5}
  report = {
    'rows': {'detector, clip': {'accuracy': 0.875}},
    'detector': arrays_file.fingerprint(variables.params),
    'calibration_second': calibration,
    'calibration_clip': calibration,
  }
  (folder / 'evaluation').mkdir()
  (folder / 'evaluation/detection.json').write_text(json.dumps(report))
  return folder


@pytest.fixture(scope='module')
def exported(workdir, tmp_path_factory):
  examples = tmp_path_factory.mktemp('examples')
  audio.save(examples / 'voice.flac', toys.noise(3.2), toys.RATE)
  (examples / 'README.md').write_text('Noise, CC0.\n')
  folder = tmp_path_factory.mktemp('release') / 'toy'
  run(export, ITERATIONS, f'--workdir={workdir}', f'--output={folder}', f'--examples={examples}')
  return folder


def run(program, *flags):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', [program.__name__, *flags])
    program.main()


def test_a_release_holds_models_card_examples_and_digests(exported):
  models = audiolm_jax.from_pretrained(exported)
  assert models.sampling.soundstorm.iterations == (2, 1, 1, 1)
  exports.check_all(exported)
  card = (exported / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: audiolm_jax\n')
  assert 'detector, clip' in card and '0.875' in card
  assert 'on synthesized speech' in card  # from the page of the recipe
  arrays = load_file(exported / 'semantic/model.safetensors').values()
  assert f'| semantic | {sum(array.size for array in arrays):,} |' in card
  assert (exported / 'examples/README.md').read_text() == 'Noise, CC0.\n'


def test_a_workdir_and_its_release_in_a_bucket(exported, bucket):
  toys.save_workdir(bucket / 'run')
  flags = f'--workdir={bucket}/run', f'--output={bucket}/release', '--set=detector=None'
  run(export, ITERATIONS, *flags)
  for name in ('soundstream', 'coarse'):
    path = f'{name}/model.safetensors'
    assert (bucket / 'release' / path).read_bytes() == (exported / path).read_bytes()
  exports.check_all(bucket / 'release')
  there, models = (audiolm_jax.from_pretrained(f) for f in (f'{bucket}/release', exported))
  for one, other in zip(there.tokenizer.semantic.quantizer, models.tokenizer.semantic.quantizer):
    assert (one == other).all()
  assert there.sampling == models.sampling
  with pytest.raises(UserError, match='release is a folder: choose another --output'):
    run(export, *flags)
  with pytest.raises(UserError, match='release exists: choose another folder'):
    audiolm_jax.save_pretrained(models, bucket / 'release')
  with pytest.raises(UserError, match='--push uploads files of a disk'):
    run(export, *flags, '--push=me/name')
  (bucket / 'release' / exports.DIGESTS).unlink()  # killed before the last upload
  with pytest.raises(UserError, match='digests.json cannot be read'):
    audiolm_jax.from_pretrained(f'{bucket}/release')


def test_the_detector_keeps_its_calibration(exported):
  variables = checkpoints.load_variables(exported / 'detector').variables
  found = detection.load_calibrations(exported, variables)
  assert found['clip'].scale == 2.0 and found['clip'].offset == -0.5


def test_an_existing_folder_is_kept(workdir, exported):
  with pytest.raises(UserError, match='toy is a folder: choose another --output'):
    run(export, f'--workdir={workdir}', f'--output={exported}')


def test_the_demo_continues_examples_and_an_own_recording(exported, tmp_path):
  audio.save(tmp_path / 'mine.wav', toys.noise(1.5, seed=1), toys.RATE)
  flags = f'--release={exported}', f'--output={tmp_path}/out', '--seconds=0.4'
  run(demo, *flags, f'--prompt={tmp_path}/mine.wav')
  for name, seconds in (('voice', 3.0), ('mine', 1.5)):
    prompt_T = audio.load(tmp_path / f'out/{name}_prompt.wav', toys.RATE)
    assert len(prompt_T) == seconds * toys.RATE
    for suffix in ('soundstorm', 'autoregressive'):
      wave_T = audio.load(tmp_path / f'out/{name}_{suffix}.wav', toys.RATE)
      # whole semantic frames of 40 ms
      assert abs(len(wave_T) - (seconds + 0.4) * toys.RATE) <= 640
  report = json.loads((tmp_path / 'out/report.json').read_text())
  assert set(report['paths']) == {'soundstorm', 'autoregressive'}
  assert report['paths']['soundstorm']['seconds_of_new_audio'] == 0.8
  assert (tmp_path / 'out/spectrograms.png').stat().st_size > 1000


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--prompt={}/no.wav'], 'no.wav'),
    (['--prompt={}/short.wav'], 'short.wav lasts 0.50 s: give 3 s'),
    (['--prompt={}/voice.wav'], 'prompts share a name: voice, voice'),
    (['--revision=v1'], "revision='v1' is for repositories"),
  ],
)
def test_wrong_flags_of_the_demo_are_named(exported, tmp_path, flags, message):
  audio.save(tmp_path / 'short.wav', toys.noise(0.5), toys.RATE)
  audio.save(tmp_path / 'voice.wav', toys.noise(3), toys.RATE)
  flags = [flag.format(tmp_path) for flag in flags]
  with pytest.raises((UserError, OSError), match=message):
    run(demo, f'--release={exported}', f'--output={tmp_path}/out', *flags)
  assert not list((tmp_path / 'out').glob('*'))
