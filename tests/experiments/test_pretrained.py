"""The import program, on a folder that the test writes."""

import jax
import numpy as np
import pytest

from audiolm_jax.pretrained import hub
from audiolm_jax.training import checkpoints
from experiments import pretrained
from tests.pretrained.test_tensors import DAC_CONFIG, dac_tensors, write


def test_import_writes_a_checkpoint_and_never_overwrites(tmp_path, capsys):
  folder = write(tmp_path / 'source', DAC_CONFIG, dac_tensors())
  command = ['import', str(folder), f'--output={tmp_path / "out"}', '--licence=MIT']
  pretrained.main(command)
  assert 'MIT' in capsys.readouterr().out
  want_config, want = hub.from_pretrained(folder)
  config, variables, metadata = checkpoints.load_variables(tmp_path / 'out')
  assert config == want_config
  assert metadata['pretrained'] == {'source': str(folder), 'revision': None, 'licence': 'MIT'}
  jax.tree.map(np.testing.assert_array_equal, variables, want)
  with pytest.raises(ValueError, match='already holds'):
    pretrained.main(command)


def test_bad_source_leaves_nothing(tmp_path):
  arrays = dac_tensors()
  del arrays['encoder.conv1.bias']
  folder = write(tmp_path / 'source', DAC_CONFIG, arrays)
  with pytest.raises(ValueError, match='encoder.conv1.bias'):
    pretrained.main(['import', str(folder), f'--output={tmp_path / "out"}', '--licence=MIT'])
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'arguments, remedy',
  [
    (['utter-project/mHuBERT-147'], '--allow-non-commercial'),
    (['some_folder', '--licence=CC-BY-NC-4.0'], '--allow-non-commercial'),
    (['some_folder'], '--licence=MIT'),
    # the list knows better
    (['utter-project/mHuBERT-147', '--licence=MIT'], '--allow-non-commercial'),
  ],
)
def test_licences_are_asked_for_first(tmp_path, arguments, remedy):
  with pytest.raises(ValueError, match=remedy):
    pretrained.main(['import', *arguments, f'--output={tmp_path / "out"}'])


def test_list_has_a_licence_for_everything(capsys):
  pretrained.main(['list'])
  header, *rows = capsys.readouterr().out.splitlines()
  assert header.split() == ['REPOSITORY', 'LICENCE', 'WHAT']
  assert [row.split()[:2] for row in rows] == [
    [entry.repository, entry.licence] for entry in hub.CATALOGUE
  ]
  asked_for = [
    entry.repository for entry, row in zip(hub.CATALOGUE, rows) if '--allow-non-commercial' in row
  ]
  assert asked_for == ['facebook/encodec_24khz', 'utter-project/mHuBERT-147']


def test_a_folder_named_as_a_repository_gets_no_licence_of_the_list(tmp_path, monkeypatch):
  write(tmp_path / 'descript/dac_16khz', DAC_CONFIG, dac_tensors())
  monkeypatch.chdir(tmp_path)
  output = f'--output={tmp_path / "out"}'
  with pytest.raises(
    ValueError, match='a repository that we know, and a folder here: write ./descript/dac_16khz'
  ):
    pretrained.main(['import', 'descript/dac_16khz', output])
  with pytest.raises(ValueError, match='the licence of ./descript/dac_16khz is not in the list'):
    pretrained.main(['import', './descript/dac_16khz', output])
  assert not (tmp_path / 'out').exists()
  pretrained.main(['import', './descript/dac_16khz', output, '--licence=CC0-1.0'])
  metadata = checkpoints.load_variables(tmp_path / 'out')[2]
  assert metadata['pretrained']['licence'] == 'CC0-1.0'


def test_links_are_not_followed_out_of_the_folder_that_is_imported(tmp_path):
  (tmp_path / 'secret').write_text('key')
  folder = tmp_path / 'models--a--b' / 'snapshots' / 'c0ffee'
  blobs = tmp_path / 'models--a--b' / 'blobs'
  folder.mkdir(parents=True), blobs.mkdir()
  (blobs / 'd1ce').write_text('{}')
  (folder / 'vocab.json').symlink_to('../../blobs/d1ce')  # as the hub's cache has them
  (folder / 'plain.txt').write_bytes('ü\r\n'.encode())
  assert pretrained.text_of(folder, 'vocab.json') == '{}'
  assert pretrained.text_of(folder, 'plain.txt') == 'ü\r\n'
  (folder / 'merges.txt').symlink_to('../../../secret')
  with pytest.raises(
    ValueError, match='merges.txt is a link to .*secret: put the file itself there'
  ):
    pretrained.text_of(folder, 'merges.txt')
  (folder / 'large').write_bytes(bytes(2**23 + 1))
  with pytest.raises(ValueError, match='large has 8,388,609 bytes'):
    pretrained.text_of(folder, 'large')
