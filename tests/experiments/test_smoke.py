"""The check of a machine, on this one: kernels in Pallas' interpreter, and what its report says."""

import copy

import jax.numpy as jnp
import pytest

from audiolm_jax.nn import block_attention
from experiments import smoke

GOOD = {
  'machine': {'devices': '1 x TPU v5 lite'},
  'stages': {'coarse': {'losses': [4.0, 3.5], 'step_ms': 20.0, 'predicted_ms': 10.0}},
  'generate_seconds': {'soundstorm': 5.0},
  'kernel_errors': {'output': 0.004},
  'seconds': 100.0,
}


def test_the_kernels_agree_in_bfloat16():
  errors = smoke.kernel_errors(interpret=True)
  assert set(errors) == {'output', 'queries', 'keys', 'values', 'bias'}
  assert all(2**-12 < error < smoke.TOLERANCE for error in errors.values()), errors


def test_a_wrong_kernel_is_found(monkeypatch):
  right = block_attention.attend

  def without_the_last_block(query, key, value, valid_BL, tiles, interpret):
    valid_BL &= jnp.arange(valid_BL.shape[1]) < 256
    return right(query, key, value, valid_BL, tiles, interpret=interpret)

  monkeypatch.setattr(block_attention, 'attend', without_the_last_block)
  report = GOOD | {'kernel_errors': smoke.kernel_errors(interpret=True)}
  assert any('kernels differ' in fault for fault in smoke.found_faults(report))


def test_faults_of_a_report():
  assert smoke.found_faults(GOOD) == []
  assert 'predicted 10.00 ms' in smoke.table(GOOD)
  bad = copy.deepcopy(GOOD)
  bad['stages']['coarse']['losses'][1] = float('nan')
  bad['kernel_errors']['keys'] = float('nan')
  faults = smoke.found_faults(bad)
  assert len(faults) == 2 and 'coarse' in faults[0] and 'keys' in faults[1]


@pytest.mark.slow
def test_the_whole_check_passes_here(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['smoke', f'--workdir={tmp_path}'])
  smoke.main()
  assert 'soundstorm: loss' in capsys.readouterr().out
  assert (tmp_path / 'smoke.json').is_file()
