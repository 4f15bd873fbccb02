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


@pytest.mark.parametrize('arguments, remedy', [
    (['utter-project/mHuBERT-147'], '--allow-non-commercial'),
    (['some_folder', '--licence=CC-BY-NC-4.0'], '--allow-non-commercial'),
    (['some_folder'], '--licence=MIT'),
    (['utter-project/mHuBERT-147', '--licence=MIT'], '--allow-non-commercial'),  # the list knows better
])  # fmt: skip
def test_licences_are_asked_for_first(tmp_path, arguments, remedy):
  with pytest.raises(ValueError, match=remedy):
    pretrained.main(['import', *arguments, f'--output={tmp_path / "out"}'])


def test_list_has_a_licence_for_everything(capsys):
  pretrained.main(['list'])
  header, *rows = capsys.readouterr().out.splitlines()
  assert header.split() == ['REPOSITORY', 'LICENCE', 'WHAT']
  assert [row.split()[:2] for row in rows] == [[entry.repository, entry.licence] for entry in hub.CATALOGUE]
  asked_for = [entry.repository for entry, row in zip(hub.CATALOGUE, rows) if '--allow-non-commercial' in row]
  assert asked_for == ['facebook/encodec_24khz', 'utter-project/mHuBERT-147']
