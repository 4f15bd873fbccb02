"""What `transformers` saves, through the import program: codes and audio are those of
`transformers`.
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from experiments import pretrained, workspace
from tests.pretrained.parity import TOLERANCE, noise, randomize
from tests.pretrained.test_dac_oracle import published_config, random_model
from tests.pretrained.test_mimi_oracle import SHRUNK

pytestmark = pytest.mark.oracle
MODELS = {
  'dac': lambda: random_model(
    published_config('16khz', encoder_hidden_size=8, decoder_hidden_size=32)
  ),
  'encodec': lambda: randomize(
    transformers.EncodecModel(transformers.EncodecConfig(num_filters=4, hidden_size=16)), 0
  ),
  'mimi': lambda: randomize(
    transformers.MimiModel(transformers.MimiConfig(num_hidden_layers=2, **SHRUNK)), 0
  ),
}


@pytest.mark.parametrize('name', sorted(MODELS))
def test_round_trip(name, tmp_path):
  model = MODELS[name]()
  model.save_pretrained(tmp_path / 'theirs')
  pretrained.main(
    ['import', str(tmp_path / 'theirs'), '--licence=MIT', f'--workdir={tmp_path / "run"}']
  )
  codec = workspace.load_codec(tmp_path / 'run')
  wave_BT = noise(8 * codec.hop_length, batch=1)
  wave = torch.tensor(wave_BT)[:, None]
  with torch.no_grad():
    if name == 'encodec':
      codes = model.encode(wave, bandwidth=24.0).audio_codes
      want_BT, codes = model.decode(codes, [None]).audio_values[:, 0], codes[0]
    else:
      codes = model.encode(wave).audio_codes
      want_BT = model.decode(audio_codes=codes).audio_values.reshape(1, -1)
  codes_BFQ = codec.encode(wave_BT)
  np.testing.assert_array_equal(codes_BFQ, codes.numpy().swapaxes(1, 2))
  got_BT = np.asarray(codec.decode(codes_BFQ))
  assert got_BT.shape == wave_BT.shape and np.std(got_BT) > 0.01
  np.testing.assert_allclose(got_BT[:, : want_BT.shape[1]], want_BT.numpy(), atol=TOLERANCE)
