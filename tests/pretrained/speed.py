"""Encoding and decoding beside `transformers`, both on one core, random weights at full width.

  taskset -c 0 python -m tests.pretrained.speed dac encodec mimi

Seconds are of the processor (other work on the machine counts little), the least of several runs.
"""

import sys
import tempfile
import time

import jax
import numpy as np
import torch
import transformers

from audiolm_jax.pretrained import hub

REPEATS = 5
SECONDS = 1.0
MODELS = {
    'dac': lambda: transformers.DacModel(
        transformers.DacConfig(sampling_rate=16_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12)
    ),
    'encodec': lambda: transformers.EncodecModel(transformers.EncodecConfig()),
    'mimi': lambda: transformers.MimiModel(transformers.MimiConfig()),
}


def seconds(function) -> float:
  function()  # compiles, allocates
  taken = []
  for _ in range(REPEATS):
    start = time.process_time()
    function()
    taken.append(time.process_time() - start)
  return min(taken)


def measure(name: str, num_quantizers: int):
  model = MODELS[name]().eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config, variables = hub.from_pretrained(folder)
  codec = config.codec()
  num_samples = round(SECONDS * config.sample_rate) // config.hop_length * config.hop_length
  wave_BT = np.random.default_rng(0).uniform(-0.5, 0.5, (1, num_samples)).astype(np.float32)
  encode = jax.jit(codec.encode, static_argnums=2)
  decode = jax.jit(codec.decode)
  codes_BFQ = encode(variables, wave_BT, num_quantizers)
  tensor = torch.tensor(wave_BT)[:, None]
  codes = torch.tensor(np.asarray(codes_BFQ)).swapaxes(1, 2)
  theirs = {
      'dac': (lambda: model.encode(tensor, n_quantizers=num_quantizers), lambda: model.decode(audio_codes=codes)),
      'encodec': (lambda: model.encode(tensor, bandwidth=num_quantizers * 0.75), lambda: model.decode(codes[None], [None])),
      'mimi': (lambda: model.encode(tensor, num_quantizers=num_quantizers), lambda: model.decode(codes)),
  }[name]
  ours = (
      lambda: encode(variables, wave_BT, num_quantizers).block_until_ready(),
      lambda: decode(variables, codes_BFQ).block_until_ready(),
  )
  with torch.no_grad():
    for what, our, their in zip(('encode', 'decode'), ours, theirs):
      mine, other = seconds(our), seconds(their)
      print(f'{name} {what} {num_samples / config.sample_rate:.2f} s: {mine:.3f} s, transformers {other:.3f} s, '
            f'{other / mine:.2f} times as fast', flush=True)


if __name__ == '__main__':
  torch.set_num_threads(1)
  for name in sys.argv[1:]:
    measure(name, {'dac': 12, 'encodec': 8, 'mimi': 8}[name])
