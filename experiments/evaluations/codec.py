"""Evaluates the codec on held-out speech, at several numbers of levels, and Opus for comparison."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.codec import Codec
from audiolm_jax.data import pipeline
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import perceptual
from audiolm_jax.stages.base import Feature

from .. import sources, workspace
from ..recipe import Recipe
from . import external_judges, lyra, opus

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
  off and on. PESQ, STOI, ViSQOL and DNSMOS need the `eval` extra, Whisper and d-vectors the extra
  `judges`, Opus needs opus-tools; what is not there is named.
  """
  codec = workspace.load_codec(workdir)
  rate, wave_BT, noise_BT = codec.sample_rate, *held_out(recipe, workdir, codec)
  judge = judges(wave_BT, rate, recipe.evaluation.num_naturalness_clips)
  codes_BFQ = _by_batches(codec.encode, wave_BT)
  judged = judge(wave_BT)
  rows = {'original': judged} if judged else {}
  for n in (n for n in LEVELS if n <= codec.num_quantizers):
    estimate_BT = _by_batches(codec.decode, codes_BFQ[..., :n])
    rows[f'{n} levels'] = row(rate, wave_BT, estimate_BT, codec.bit_rate(n), judge)
  for name, kbit_per_second, round_trip in _others(recipe, rate):
    estimate_BT = np.stack([round_trip(wave_T, kbit_per_second) for wave_T in wave_BT])
    rows[f'{name} {kbit_per_second:g} kbit/s'] = row(
      rate, wave_BT, estimate_BT, 1000 * kbit_per_second, judge
    )
  untrained = Codec(codec.config, jax.jit(codec.config.make().init)(jax.random.key(1)))
  rows['untrained, all levels'] = row(rate, wave_BT, _through(untrained, wave_BT), codec.bit_rate())
  rows['silence'] = row(rate, wave_BT, np.zeros_like(wave_BT), 0.0)
  if noise_BT is not None:
    clean_NT, noisy_NT = (x_BT[noise_BT.any(axis=1)] for x_BT in (wave_BT, wave_BT + noise_BT))
    denoising = dataclasses.replace(codec, denoise=True)
    rows['noisy input'] = row(rate, clean_NT, noisy_NT, 0.0)
    for name, coder in (('noisy', codec), ('denoised', denoising)):
      estimate_NT = _through(coder, noisy_NT)
      rows[f'{name}, all levels'] = row(rate, clean_NT, estimate_NT, codec.bit_rate())
  left_out = {}
  if recipe.evaluation.lyra and rate != lyra.SAMPLE_RATE:
    left_out['Lyra'] = f'it codes {lyra.SAMPLE_RATE} Hz, the codec {rate}'
  lacks_noise = noise_BT is None and codec.functions.switch is not None
  left_out |= {'noise': 'the corpus has no noise'} if lacks_noise else {}
  perplexity_Q = codec_metrics.codebook_perplexity(jnp.asarray(codes_BFQ), codec.codebook_size)
  return {
    'rows': rows,
    'perplexity': [float(x) for x in perplexity_Q],
    'codebook_size': codec.codebook_size,
    'visqol_mapper': perceptual.visqol_mapper(),
    'not_installed': [
      *(set(perceptual.MODULES) - set(perceptual.available())),
      *external_judges.missing(),
      *opus.missing(),
    ],
    'left_out': left_out,
  }


def _others(recipe: Recipe, sample_rate: int) -> list[tuple[str, float, Callable]]:
  """Returns (name, kbit/s, function of a waveform and that rate) of the codecs to compare with."""
  found = []
  if not opus.missing():
    round_trip = lambda wave_T, rate: opus.round_trip(wave_T, sample_rate, rate)
    found += [('Opus', rate, round_trip) for rate in OPUS_RATES]
  if recipe.evaluation.lyra and sample_rate == lyra.SAMPLE_RATE:
    found += [('Lyra', rate, lyra.Lyra(recipe.evaluation.lyra).round_trip) for rate in lyra.LEVELS]
  return found


def held_out(
  recipe: Recipe, workdir: pathlib.Path, codec: Codec
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns clips [B, T] of CROP_SECONDS from the test split, zeros behind what is shorter, and the
  noise beside them.

  The noise is None for a codec without a denoising switch, and where the corpus has none.
  """
  length = round(CROP_SECONDS * codec.sample_rate) // codec.hop_length * codec.hop_length
  source, names = sources.corpus(recipe, 'test', workdir, codec.sample_rate), ('waveform',)
  if codec.functions.switch is not None:
    first = next(
      (example for example in map(source.__getitem__, range(len(source))) if example is not None),
      {},
    )
    names += ('noise',) if 'noise' in first else ()
  batches = list(
    pipeline.evaluation_batches(
      source,
      {name: Feature((length,), np.float32, codec.sample_rate) for name in names},
      batch_size=BATCH_SIZE,
      num_batches=-(-recipe.evaluation.num_clips // BATCH_SIZE),
      seed=recipe.evaluation.seed,
    )
  )
  waves = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
  return waves['waveform'], waves.get('noise')


def _through(codec: Codec, wave_BT: np.ndarray) -> np.ndarray:
  """Returns the clips through all levels of a codec."""
  return _by_batches(codec.decode, _by_batches(codec.encode, wave_BT))


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


def judges(
  wave_BT: np.ndarray, sample_rate: int, num_naturalness_clips: int
) -> Callable[[np.ndarray], dict]:
  """Returns a function from estimates of the clips to columns, by models trained on people.

  Of the first PERCEPTUAL_CLIPS clips `external_judges.whisper_words` and `d_vector_similarity`, of
  the first `num_naturalness_clips` DNSMOS.
  """
  originals = list(wave_BT[:PERCEPTUAL_CLIPS])
  words = external_judges.whisper_words(originals, sample_rate)
  similarity = external_judges.d_vector_similarity(originals, sample_rate)

  def judge(estimate_BT: np.ndarray) -> dict:
    estimates = list(estimate_BT[:PERCEPTUAL_CLIPS])
    rated = estimate_BT[:num_naturalness_clips]
    naturalness = external_judges.naturalnesses(rated, sample_rate)
    return words(estimates) | similarity(estimates) | naturalness

  return judge


def row(
  sample_rate: int,
  wave_BT: np.ndarray,
  estimate_BT: np.ndarray,
  bit_rate: float,
  judge: Callable[[np.ndarray], dict] = lambda estimate_BT: {},
) -> dict:
  """Returns means over the clips: SI-SDR (dB), log-mel and STFT distance (nats), estimates of
  perceived quality, and the columns of `judge` (see `judges`).

  Estimates are means over the first PERCEPTUAL_CLIPS clips, or None if no clip has one. `scored`
  counts the clips that have all estimates.
  """
  distances = _by_batches(functools.partial(_distances, sample_rate), wave_BT, estimate_BT)
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
      getattr(perceptual, name)(*pair, sample_rate) for pair in pairs
    )
    counts.append(count)
  return result | ({'scored': min(counts)} if counts else {}) | judge(estimate_BT)
