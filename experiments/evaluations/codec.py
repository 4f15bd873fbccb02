"""The codec: what is left of held-out speech at each number of levels, beside Opus."""

import functools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.data import pipeline
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import perceptual
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Feature
from experiments import sources, workspace
from experiments.evaluations import lyra, opus
from experiments.recipe import Recipe

# 3, 6 and 12 of 1024 codes at 50 frames/s are 1.5, 3 and 6 kbit/s; 4 are AudioLM's coarse ones.
LEVELS = (1, 3, 4, 6, 12)
OPUS_RATES = (6, 8, 12)  # kbit/s
CROP_SECONDS = 4.0
BATCH_SIZE = 8
PERCEPTUAL_CLIPS = 16  # the first ones: ViSQOL takes most of a second for each


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns what `row` measures by the number of levels, of Opus, of an untrained codec, and of
  silence.

  Of a codec with a denoising switch, too, the noisy clips as they are, and coded with the switch
  off and on. PESQ, STOI and ViSQOL need the `eval` extra, Opus needs opus-tools; what is not there
  is named.
  """
  config, variables = workspace.load_codec(workdir)
  wave_BT, noise_BT = held_out(recipe, workdir, config)
  level_rate = math.log2(config.codebook_size) * config.frame_rate  # bit/s
  codes_BFQ, decode = _coder(config, variables, wave_BT)
  rows = {}
  for n in (n for n in LEVELS if n <= config.num_quantizers):
    rows[f'{n} levels'] = row(config, wave_BT, decode(codes_BFQ[..., :n]), level_rate * n)
  for name, rate, round_trip in _others(recipe, config.sample_rate):
    estimate_BT = np.stack([round_trip(wave_T, rate) for wave_T in wave_BT])
    rows[f'{name} {rate:g} kbit/s'] = row(config, wave_BT, estimate_BT, 1000 * rate)
  untrained_BFQ, untrained_decode = _coder(
    config, jax.jit(config.make().init)(jax.random.key(1)), wave_BT
  )
  full_rate = level_rate * config.num_quantizers
  rows['untrained, all levels'] = row(config, wave_BT, untrained_decode(untrained_BFQ), full_rate)
  rows['silence'] = row(config, wave_BT, np.zeros_like(wave_BT), 0.0)
  if noise_BT is not None:
    clean_NT, noisy_NT = (x_BT[noise_BT.any(axis=1)] for x_BT in (wave_BT, wave_BT + noise_BT))
    noisy_NFQ, decode_noisy = _coder(config, variables, noisy_NT)
    denoise = jax.jit(functools.partial(soundstream.denoised, config))
    denoised_NT = _by_batches(lambda waves: denoise(variables, waves), noisy_NT)
    rows['noisy input'] = row(config, clean_NT, noisy_NT, 0.0)
    rows['noisy, all levels'] = row(config, clean_NT, decode_noisy(noisy_NFQ), full_rate)
    rows['denoised, all levels'] = row(config, clean_NT, denoised_NT, full_rate)
  left_out = {}
  if recipe.evaluation.lyra and config.sample_rate != lyra.SAMPLE_RATE:
    left_out['Lyra'] = f'it codes {lyra.SAMPLE_RATE} Hz, the codec {config.sample_rate}'
  lacks_noise = noise_BT is None and _has_switch(config)
  left_out |= {'noise': 'the corpus has no noise'} if lacks_noise else {}
  perplexity_Q = codec_metrics.codebook_perplexity(jnp.asarray(codes_BFQ), config.codebook_size)
  return {
    'rows': rows,
    'perplexity': [float(x) for x in perplexity_Q],
    'codebook_size': config.codebook_size,
    'visqol_mapper': perceptual.visqol_mapper(),
    'not_installed': [*(set(perceptual.MODULES) - set(perceptual.available())), *opus.missing()],
    'left_out': left_out,
  }


def _has_switch(config) -> bool:
  """Returns whether the codec has a denoising switch."""
  return getattr(config, 'film', None) is not None


def _others(recipe: Recipe, sample_rate: int) -> list[tuple[str, float, Callable]]:
  """Returns (name, kbit/s, function of a waveform and that rate) of the codecs to compare with."""
  found = []
  if not opus.missing():
    round_trip = lambda wave_T, rate: opus.round_trip(wave_T, sample_rate, rate)
    found += [('Opus', rate, round_trip) for rate in OPUS_RATES]
  if recipe.evaluation.lyra and sample_rate == lyra.SAMPLE_RATE:
    found += [('Lyra', rate, lyra.Lyra(recipe.evaluation.lyra).round_trip) for rate in lyra.LEVELS]
  return found


def held_out(recipe: Recipe, workdir: pathlib.Path, config) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns clips [B, T] of CROP_SECONDS from the test split, zeros behind what is shorter, and the
  noise beside them.

  The noise is None for a codec without a denoising switch, and where the corpus has none.
  """
  length = round(CROP_SECONDS * config.sample_rate) // config.hop_length * config.hop_length
  source, names = sources.corpus(recipe, 'test', workdir, config.sample_rate), ('waveform',)
  if _has_switch(config):
    first = next(
      (example for example in map(source.__getitem__, range(len(source))) if example is not None),
      {},
    )
    names += ('noise',) if 'noise' in first else ()
  batches = list(
    pipeline.evaluation_batches(
      source,
      {name: Feature((length,), np.float32, config.sample_rate) for name in names},
      batch_size=BATCH_SIZE,
      num_batches=-(-recipe.evaluation.num_clips // BATCH_SIZE),
      seed=recipe.evaluation.seed,
    )
  )
  waves = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
  return waves['waveform'], waves.get('noise')


def _coder(config, variables, wave_BT) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """Returns the codes [B, F, Q] of the clips, and the function that decodes any number of their
  levels.
  """
  codec = config.codec()
  encode, decode = (
    jax.jit(lambda variables, wave_BT: codec.encode(variables, wave_BT, None)),
    jax.jit(codec.decode),
  )

  def decode_all(codes_BFQ):
    return _by_batches(lambda codes: decode(variables, codes), codes_BFQ)

  return _by_batches(lambda waves: encode(variables, waves), wave_BT), decode_all


def _by_batches(function, *arrays: np.ndarray) -> np.ndarray:
  starts = range(0, len(arrays[0]), BATCH_SIZE)
  return np.concatenate(
    [np.asarray(function(*(a[start : start + BATCH_SIZE] for a in arrays))) for start in starts]
  )


@functools.partial(jax.jit, static_argnums=0)
def _distances(sample_rate: int, wave_BT, estimate_BT):
  return jnp.stack(
    [
      codec_metrics.si_sdr(wave_BT, estimate_BT),
      codec_metrics.log_mel_distance(wave_BT, estimate_BT, sample_rate),
      codec_metrics.multi_scale_stft_distance(wave_BT, estimate_BT),
    ],
    axis=-1,
  )


def row(config, wave_BT: np.ndarray, estimate_BT: np.ndarray, bit_rate: float) -> dict:
  """Returns means over the clips: SI-SDR (dB), log-mel and STFT distance (nats), and estimates of
  perceived quality.

  Those are of the first PERCEPTUAL_CLIPS clips; `scored` of them have all of the estimates, and
  None is of no clip.
  """
  distances = _by_batches(functools.partial(_distances, config.sample_rate), wave_BT, estimate_BT)
  si_sdr, mel, stft = (float(x) for x in distances.mean(axis=0))
  result = {
    'kbit_s': bit_rate / 1000,
    'si_sdr': si_sdr,
    'mel_distance': mel,
    'stft_distance': stft,
    'clips': len(wave_BT),
  }
  counts = []
  for name in perceptual.available():
    pairs = zip(wave_BT[:PERCEPTUAL_CLIPS], estimate_BT[:PERCEPTUAL_CLIPS])
    result[name], count = perceptual.mean(
      getattr(perceptual, name)(*pair, config.sample_rate) for pair in pairs
    )
    counts.append(count)
  return result | ({'scored': min(counts)} if counts else {})
