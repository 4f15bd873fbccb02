"""The codec: what is left of held-out speech at each number of levels."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.data import pipeline
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.stages.base import Feature
from experiments import sources, workspace
from experiments.recipe import Recipe

LEVELS = (1, 4, 12)
CROP_SECONDS = 4.0


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns SI-SDR (dB) and log-mel distance (nats) by the number of levels, and of an untrained codec and silence."""
  config, variables = workspace.load_codec(workdir)
  codec = config.codec()
  length = round(CROP_SECONDS * config.sample_rate) // config.hop_length * config.hop_length
  batch_size = 8
  batches = pipeline.evaluation_batches(
      sources.corpus(recipe, 'test', workdir, config.sample_rate),
      {'waveform': Feature((length,), np.float32, config.sample_rate)},
      batch_size=batch_size,
      num_batches=-(-recipe.evaluation.num_clips // batch_size),
      seed=recipe.evaluation.seed,
  )
  levels = [n for n in LEVELS if n <= config.num_quantizers]

  @functools.partial(jax.jit, static_argnums=2)
  def round_trip(variables, wave_BT, num_quantizers):
    codes_BFQ = codec.encode(variables, wave_BT, num_quantizers)
    return *distances(wave_BT, codec.decode(variables, codes_BFQ)), codes_BFQ

  def distances(wave_BT, estimate_BT):
    return (
        codec_metrics.si_sdr(wave_BT, estimate_BT),
        codec_metrics.log_mel_distance(wave_BT, estimate_BT, config.sample_rate),
    )

  def row(results) -> dict:
    si_sdr, mel = (np.concatenate([np.asarray(result[n]) for result in results]) for n in (0, 1))
    return {'si_sdr': float(si_sdr.mean()), 'mel_distance': float(mel.mean()), 'clips': len(mel)}

  waves = [batch['waveform'] for batch in batches]
  rows, codes_BFQ = {}, None
  for n in levels:
    results = [round_trip(variables, wave_BT, n) for wave_BT in waves]
    rows[f'{n} levels'] = row(results)
    codes_BFQ = np.concatenate([np.asarray(result[2]) for result in results])
  untrained = jax.jit(lambda key: config.make().init(key))(jax.random.key(1))
  rows['untrained, all levels'] = row([round_trip(untrained, wave_BT, config.num_quantizers) for wave_BT in waves])
  rows['silence'] = row([jax.jit(distances)(wave_BT, jnp.zeros_like(wave_BT)) for wave_BT in waves])
  perplexity_Q = codec_metrics.codebook_perplexity(jnp.asarray(codes_BFQ), config.codebook_size)
  return {'rows': rows, 'perplexity': [float(x) for x in perplexity_Q], 'codebook_size': config.codebook_size}
