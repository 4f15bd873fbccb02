"""Encodes and decodes speech with Lyra V2, Google's trained SoundStream (16 kHz, 50 frames/s).

Runs the three TFLite models of Lyra's release (Apache-2.0) in a folder by `ai-edge-litert`.
"""

import importlib.util
import os

import numpy as np
from jaxtyping import Float

from audiolm_jax.errors import UserError

MODELS = ('soundstream_encoder', 'quantizer', 'lyragan')
SAMPLE_RATE = 16_000  # Hz
HOP_LENGTH = 320  # samples per frame
LEVELS = {3.2: 16, 6.0: 30, 9.2: 46}  # residual levels of 4 bits, by kbit/s


def check(folder: str):
  """Checks that Lyra can run.

  Raises:
    UserError: if `folder` lacks a model, or `ai-edge-litert` is not installed.
  """
  missing = [name for name in MODELS if not os.path.isfile(os.path.join(folder, f'{name}.tflite'))]
  if missing:
    raise UserError(
      f'--lyra={folder} lacks {", ".join(f"{name}.tflite" for name in missing)}: give the folder '
      "of Lyra V2's model files"
    )
  if importlib.util.find_spec('ai_edge_litert') is None:
    raise UserError("Lyra needs ai-edge-litert: run pip install -e '.[eval]'")


class Lyra:
  """Lyra's three models, for one clip at a time."""

  def __init__(self, folder: str):
    """Loads the models; raises as `check`."""
    check(folder)
    from ai_edge_litert.interpreter import Interpreter  # optional

    self._encoder, self._quantizer, self._decoder = (
      Interpreter(model_path=os.path.join(folder, f'{name}.tflite')) for name in MODELS
    )
    self._encode_levels = self._quantizer.get_signature_runner('encode')
    self._decode_levels = self._quantizer.get_signature_runner('decode')

  def round_trip(
    self, wave_T: Float[np.ndarray, 'T'], kbit_per_second: float
  ) -> Float[np.ndarray, 'T']:
    """Returns a waveform of 16 kHz, encoded and decoded at 3.2, 6 or 9.2 kbit/s.

    Raises:
      UserError: for another bit rate.
    """
    if kbit_per_second not in LEVELS:
      raise UserError(f'kbit_per_second={kbit_per_second}: Lyra has {", ".join(map(str, LEVELS))}')
    num_levels = np.int32(LEVELS[kbit_per_second])
    encode, decode = _start(self._encoder), _start(self._decoder)
    padded_FH = np.pad(wave_T, (0, -len(wave_T) % HOP_LENGTH)).reshape(-1, HOP_LENGTH)
    hops = []
    for hop_H in padded_FH.astype(np.float32):
      embedding = encode(hop_H).reshape(1, 1, -1)
      codes = self._encode_levels(input_frames=embedding, num_quantizers=num_levels)['output_0']
      hops.append(decode(self._decode_levels(encoding_indices=codes)['output_0']))
    return np.concatenate(hops)[: len(wave_T)]


def _start(interpreter):
  """Returns the model's function of one frame, after clearing its memory for a new clip."""
  interpreter.allocate_tensors()
  interpreter.reset_all_variables()
  given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

  def step(frame: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(given['index'], frame.reshape(given['shape']).astype(np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(made['index']).reshape(-1)

  return step
