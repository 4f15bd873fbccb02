"""Times SoundStream against EnCodec and DAC of `transformers` at matched sizes, and its streaming.

  make benchmark-codec
  python -m experiments.benchmark codec --channels=16 --seconds=2

All have random weights, 16 kHz, strides 2, 4, 5, 8, 12 levels of 1024 codes, and the same width at
the waveform. EnCodec has one residual unit of half width per block; `EnCodec-S` is EnCodec with
SoundStream's three of full width, which makes the work equal (except for an LSTM, which its counter
omits). GFLOP count products and convolutions. The train step is the codec without discriminators:
encode, quantize, decode, multi-scale mel loss, commitment, gradients, clipping, Adam; SoundStream's
also updates codebooks (the others have no update in `transformers`) and drops levels. Models take
turns in one process on the same cores, and the fastest turn counts, after compilation. Without
torch and transformers (tests/requirements-oracle.txt) only SoundStream is timed.
"""

import argparse
import dataclasses
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from audiolm_jax import audio, losses
from audiolm_jax.codec import Codec
from audiolm_jax.costs import flops
from audiolm_jax.errors import UserError
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import base, soundstream
from audiolm_jax.training import optimizers, sharding
from audiolm_jax.training import step as step_lib

from ..cli import command_line

RATE = 16_000
BANDWIDTH = 6.0  # kbit/s
FLOOR = soundstream.AUDIOLM.spectral_floor
LEARNING_RATE = 3e-4
CLIP_NORM = 10.0
STREAMED_FRAMES = 50

OPERATIONS = ('encode', 'decode', 'train step')  # of all models

Operations = Mapping[str, Callable[[], None]]  # by name; each blocks until its work is done


class Model(NamedTuple):
  millions: float  # of the generator's parameters
  operations: Operations
  flops: Mapping[str, int]  # of OPERATIONS: products and convolutions; a multiply-add counts two


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument(
    '--channels',
    type=command_line.COUNT,
    default=32,
    help='width of the layers next to the waveform (32)',
  )
  parser.add_argument(
    '--seconds', type=command_line.SECONDS, default=4.0, help='of the clip to encode and decode (4)'
  )
  parser.add_argument(
    '--batch', type=command_line.COUNT, default=4, help='clips of one second in a train step (4)'
  )
  parser.add_argument(
    '--repeats', type=command_line.COUNT, default=5, help='turns; the fastest counts (5)'
  )


def run(args: argparse.Namespace) -> str:
  if args.seconds * RATE < 320:
    raise UserError(f'--seconds={args.seconds}: must be at least 0.02, a frame')
  config = soundstream.Config(
    network=SEANet(encoder_channels=args.channels, decoder_channels=args.channels),
    discriminators=UNUSED,
  )
  length = round(args.seconds * RATE) // config.hop_length * config.hop_length
  random = np.random.default_rng(0)
  wave_1T = 0.1 * random.normal(size=(1, length)).astype(np.float32)
  wave_BT = 0.1 * random.normal(size=(args.batch, RATE)).astype(np.float32)
  models = {'SoundStream': ours(config, wave_1T, wave_BT)}
  lines = []
  if importlib.util.find_spec('torch') and importlib.util.find_spec('transformers'):
    import torch

    torch.manual_seed(0)
    for name, make in (
      ('EnCodec', _encodec),
      ('EnCodec-S', _encodec_with_our_units),
      ('DAC', _dac),
    ):
      models[name] = theirs(make(args.channels, config), wave_1T, wave_BT)
  else:
    lines.append(
      'torch and transformers are not installed: `make benchmark-codec` also times EnCodec and DAC'
    )
  seconds = fastest({name: model.operations for name, model in models.items()}, args.repeats)
  cores = len(os.sched_getaffinity(0))
  header = f'{cores} cores, {args.seconds:g} s to encode and decode, batch of {args.batch} x 1 s'
  lines.append(f'{header} to train; seconds, in brackets: relative to SoundStream')
  line = lambda title, cells: lines.append(
    f'{title:<20}' + ''.join(f'{cell:>16}' for cell in cells)
  )
  line('', models)
  line('parameters, M', [f'{model.millions:.1f}' for model in models.values()])
  for operation in OPERATIONS:
    row = {name: seconds[name, operation] for name in models}
    line(operation, [f'{value:.3f} ({value / row["SoundStream"]:.2f})' for value in row.values()])
    line('  GFLOP', [f'{model.flops[operation] / 1e9:.1f}' for model in models.values()])
    line('  GFLOP/s', [f'{models[name].flops[operation] / 1e9 / row[name]:.0f}' for name in models])
  for operation in ('encode_step', 'decode_step'):
    frame = seconds['SoundStream', operation] / STREAMED_FRAMES
    lines.append(
      f'{operation}: {1000 * frame:.2f} ms for a frame of {1000 / config.frame_rate:.0f} ms, '
      f'real-time factor {frame * config.frame_rate:.2f}'
    )
  return '\n'.join(lines)


def fastest(operations: Mapping[str, Operations], repeats: int) -> dict[tuple[str, str], float]:
  """Returns the seconds of the fastest of `repeats` turns, after one warm-up turn.

  The keys are (model, operation).
  """
  seconds = {}
  for turn in range(repeats + 1):
    for model, own in operations.items():
      for name, operation in own.items():
        start = time.perf_counter()
        operation()
        if turn:
          seconds[model, name] = min(
            seconds.get((model, name), np.inf), time.perf_counter() - start
          )
  return seconds


def ours(config: soundstream.Config, wave_1T: np.ndarray, wave_BT: np.ndarray) -> Model:
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  optimizer = optimizers.OptimizerConfig(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM)
  stage = dataclasses.replace(config, crop_length=wave_BT.shape[1]).make()
  init, _, shardings = step_lib.make_init(stage, optimizer, mesh)
  train_step = step_lib.make_train_step(stage, optimizer, mesh, shardings)
  batch = sharding.global_batch({'waveform': wave_BT}, mesh)
  held = {'state': init(jax.random.key(0)), 'step': 0}
  # A separate copy, because a train step donates its state.
  variables = jax.tree.map(np.array, base.Variables(held['state'].params, held['state'].state))
  variables = jax.device_put(variables, jax.devices()[0])
  encode, decode, encode_step, decode_step = (
    jax.jit(functools.partial(function, config))
    for function in (
      soundstream.encode,
      soundstream.decode,
      soundstream.encode_step,
      soundstream.decode_step,
    )
  )
  codes_1FQ = jax.block_until_ready(encode(variables, wave_1T))
  frame_1T, codes_11Q = wave_1T[:, : config.hop_length], codes_1FQ[:, :1]

  stream = Codec(config, variables).stream
  encoder_state, decoder_state = stream.encoder_state(1), stream.decoder_state(1)

  def steps(step, state, chunk):
    for _ in range(STREAMED_FRAMES):
      out, state = step(variables, state, chunk)
    jax.block_until_ready(out)

  def train():
    held['state'], metrics = train_step(held['state'], batch, np.int32(held['step']))
    held['step'] += 1
    jax.block_until_ready((held['state'], metrics))

  millions = sum(leaf.size for leaf in jax.tree.leaves(variables.params['generator'])) / 1e6
  operations = {
    'encode': lambda: jax.block_until_ready(encode(variables, wave_1T)),
    'decode': lambda: jax.block_until_ready(decode(variables, codes_1FQ)),
    'train step': train,
    'encode_step': lambda: steps(encode_step, encoder_state, frame_1T),
    'decode_step': lambda: steps(decode_step, decoder_state, codes_11Q),
  }
  counted = {
    'encode': flops.count(encode, variables, wave_1T),
    'decode': flops.count(decode, variables, codes_1FQ),
    'train step': flops.count(train_step, held['state'], batch, np.int32(0)),
  }
  return Model(millions, operations, counted)


def theirs(made, wave_1T: np.ndarray, wave_BT: np.ndarray) -> Model:
  """Returns the `Model` of an original from `transformers`, comparable to `ours`.

  `made` is (model, encode, decode, reconstruct in training) of a function below.
  """
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model, encode, decode, reconstruct = made
  clip, batch = (torch.from_numpy(wave)[:, None] for wave in (wave_1T, wave_BT))
  optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
  mel_loss = _torch_mel_loss(torch, batch[:, 0])

  def train():
    model.train()
    optimizer.zero_grad()
    estimate, commitment = reconstruct(batch)
    # DAC's decoder returns some samples less.
    estimate = torch.nn.functional.pad(
      estimate[:, 0], (0, max(0, batch.shape[-1] - estimate.shape[-1]))
    )
    (mel_loss(estimate[:, : batch.shape[-1]]) + commitment.mean()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()

  def inference(function, *inputs, mode=torch.inference_mode):
    model.eval()
    with mode():
      return function(*inputs)

  def count(operation):
    with FlopCounterMode(display=False) as counter:
      operation()
    return counter.get_total_flops()

  codes = inference(encode, clip)
  operations = {
    'encode': lambda: inference(encode, clip),
    'decode': lambda: inference(decode, codes),
    'train step': train,
  }
  counted = {  # the counter does not run in inference mode
    'encode': count(lambda: inference(encode, clip, mode=torch.no_grad)),
    'decode': count(lambda: inference(decode, codes, mode=torch.no_grad)),
    'train step': count(train),
  }
  return Model(sum(p.numel() for p in model.parameters()) / 1e6, operations, counted)


def _encodec_with_our_units(channels: int, config: soundstream.Config):
  return _encodec(
    channels,
    config,
    num_residual_layers=3,
    dilation_growth_rate=3,
    compress=1,
    use_conv_shortcut=False,
  )


def _encodec(channels: int, config: soundstream.Config, **units):
  from transformers import EncodecConfig, EncodecModel

  model = EncodecModel(
    EncodecConfig(
      sampling_rate=config.sample_rate,
      num_filters=channels,
      upsampling_ratios=list(config.network.strides)[::-1],
      hidden_size=config.embedding_dim,
      codebook_size=config.codebook_size,
      target_bandwidths=[BANDWIDTH],
      chunk_length_s=None,
      normalize=False,
      **units,
    )
  )
  quantizer = model.quantizer

  def reconstruct(wave):
    z = model.encoder(wave)
    quantized = quantizer.decode(quantizer.encode(z.detach(), BANDWIDTH))
    commitment = (z - quantized).square().mean()
    return model.decoder(z + (quantized - z).detach()), commitment

  encode = lambda wave: quantizer.encode(model.encoder(wave), BANDWIDTH)
  return model, encode, lambda codes: model.decoder(quantizer.decode(codes)), reconstruct


def _dac(channels: int, config: soundstream.Config):
  from transformers import DacConfig, DacModel

  model = DacModel(
    DacConfig(
      sampling_rate=config.sample_rate,
      encoder_hidden_size=channels,
      downsampling_ratios=list(config.network.strides),
      decoder_hidden_size=channels * 2 ** len(config.network.strides),
      n_codebooks=config.num_quantizers,
      codebook_size=config.codebook_size,
    )
  )

  def reconstruct(wave):
    quantized, _, _, commitment, _ = model.quantizer(model.encoder(wave))
    return model.decoder(quantized), commitment

  encode = lambda wave: model.quantizer(model.encoder(wave))[1]
  return (
    model,
    encode,
    lambda codes: model.decoder(model.quantizer.from_codes(codes)[0]),
    reconstruct,
  )


def _torch_mel_loss(torch, wave_BT):
  """Returns `losses.spectral_reconstruction` against `wave_BT`, in PyTorch."""

  def mels(wave_BT):
    for window in losses.SPECTRAL_WINDOWS:
      fft_length = max(window, 512)
      frames_BFN = wave_BT.unfold(-1, window, window // 4) * torch.hann_window(window)
      magnitude_BFN = torch.sqrt(torch.fft.rfft(frames_BFN, n=fft_length).abs().square() + 1e-12)
      yield window, magnitude_BFN @ torch.from_numpy(audio.mel_filterbank(RATE, fft_length, 64))

  targets = [mel for _, mel in mels(wave_BT)]

  def loss(estimate_BT):
    total = 0.0
    for target, (window, estimate) in zip(targets, mels(estimate_BT), strict=True):
      noise = losses.noise_magnitude(FLOOR, window, RATE)
      distance_BF = torch.sqrt(
        torch.log((target + noise) / (estimate + noise)).square().mean(-1) + 1e-8
      )
      total = total + (target - estimate).abs().mean() + (window / 2) ** 0.5 * distance_BF.mean()
    return total / len(targets)

  return loss
