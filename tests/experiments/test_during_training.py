"""The codec's measurement against the same numbers counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import perceptual
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import UNUSED, Discriminators
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import semantic, soundstream
from audiolm_jax.stages.base import Variables
from audiolm_jax.training import evaluation
from experiments.evaluations import during_training

CONFIG = soundstream.Config(
  sample_rate=8000,
  crop_length=640,
  network=SEANet(strides=(4, 4), encoder_channels=2, decoder_channels=2),
  quantizer=quantizer.RVQ(num_quantizers=2, codebook_size=16, embedding_dim=4),
  discriminators=Discriminators(
    spectral_channels=1,
    spectral_window_length=128,
    num_waveform=1,
    waveform_channels=4,
    waveform_max_channels=4,
  ),
)


@pytest.fixture(scope='module')
def variables():
  rng = np.random.default_rng(0)
  shapes = meta.unbox(jax.eval_shape(CONFIG.make().init, jax.random.key(0)))
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, s.dtype), shapes.params)
  codebooks = quantizer.init(
    jax.random.key(0), CONFIG.num_quantizers, CONFIG.codebook_size, CONFIG.embedding_dim
  )
  return Variables(params, {'codebooks': codebooks, 'step': jnp.zeros((), jnp.int32)})


def test_codec_measurement(variables):
  measurement = during_training.for_stage(CONFIG)
  wave_NBT = np.random.default_rng(1).normal(size=(2, 4, 640)).astype(np.float32) / 4
  measure = jax.jit(measurement.measure)
  found = [measure(*variables, {'waveform': wave_BT}) for wave_BT in wave_NBT]
  means = jax.tree.map(
    lambda a, b: (np.asarray(a, np.float64) + np.asarray(b)) / 2, *(arrays for arrays, _ in found)
  )
  summary = measurement.summarize(means, jax.device_get(found[0][1]))

  wave_BT = jnp.asarray(wave_NBT.reshape(8, 640))
  codes_BFQ = jax.jit(soundstream.encode, static_argnums=0)(CONFIG, variables, wave_BT)
  estimate_BT = jax.jit(soundstream.decode, static_argnums=0)(CONFIG, variables, codes_BFQ)
  for level in range(2):
    _, counts = np.unique(np.asarray(codes_BFQ)[..., level], return_counts=True)
    share = counts / counts.sum()
    np.testing.assert_allclose(
      summary.scalars[f'perplexity_{level}'], np.prod(share**-share), rtol=1e-4
    )
    assert summary.scalars[f'dead_codes_{level}'] == 16 - len(counts)
  np.testing.assert_allclose(
    summary.scalars['si_sdr'],
    np.mean(codec_metrics.si_sdr(wave_BT, estimate_BT)),
    rtol=1e-3,
    atol=1e-3,
  )
  assert 0 <= summary.scalars['discriminator_accuracy'] <= 1
  assert {'mel_distance', 'stft_distance'} <= set(summary.scalars)
  assert (
    len(summary.audio) == 2 * during_training.NUM_SAMPLES
    and len(summary.images) == during_training.NUM_SAMPLES
  )
  sound, rate = summary.audio['reconstruction_1']
  np.testing.assert_allclose(sound, estimate_BT[1], rtol=1e-3, atol=1e-4)
  picture = summary.images['spectrogram_0']
  assert (
    rate == 8000 and picture.shape[0] == 2 * 64 + 2 and picture.min() >= 0 and picture.max() <= 1
  )


@pytest.mark.skipif(
  'visqol' not in perceptual.available(), reason='the eval extra is not installed'
)
@pytest.mark.parametrize('place', [None, 'encoder', 'decoder'])
def test_visqol_is_of_the_joined_clips_and_denoising_is_measured(variables, place):
  switch = None if place is None else DenoisingSwitch(place=place)
  config = dataclasses.replace(CONFIG, crop_length=1600, discriminators=UNUSED, denoising=switch)
  params = variables.params
  if place is not None:
    kernel = jax.random.normal(jax.random.key(3), (2, 2 * CONFIG.embedding_dim))
    params = params | {'generator': params['generator'] | {'film': {'linear': {'kernel': kernel}}}}
  time_BT = np.arange(8 * 1600).reshape(8, 1600) / 8000
  wave_BT = jnp.asarray(0.3 * np.sin(2 * np.pi * 300 * time_BT * (1 + time_BT)), jnp.float32)
  noise_BT = (0.03 * jax.random.normal(jax.random.key(4), wave_BT.shape)).at[5:].set(0)
  measurement = during_training.for_stage(config)
  means, samples = jax.jit(measurement.measure)(
    params, variables.state, {'waveform': wave_BT, 'noise': noise_BT}
  )
  summary = measurement.summarize(jax.device_get(means), jax.device_get(samples))
  variables = Variables(params, variables.state)
  estimate_BT = soundstream.decode(
    config, variables, soundstream.encode(config, variables, wave_BT)
  )
  want = perceptual.visqol(
    np.asarray(wave_BT).reshape(-1), np.asarray(estimate_BT).reshape(-1), 8000
  )
  assert want.status == 'ok'
  assert summary.scalars[f'visqol_{perceptual.visqol_mapper()}'] == pytest.approx(
    want.value, abs=0.05
  )
  assert len(summary.audio) == 2 * during_training.NUM_SAMPLES
  if place is None:
    assert 'si_sdr_noisy' not in summary.scalars
    return
  noisy_BT = wave_BT + noise_BT
  codes_BFQ = soundstream.encode(config, variables, noisy_BT, denoise=place == 'encoder')
  denoised_BT = soundstream.decode(config, variables, codes_BFQ, denoise=place == 'decoder')
  for name, estimate_BT in (('denoised', denoised_BT), ('noisy', noisy_BT)):
    want = np.mean(codec_metrics.si_sdr(wave_BT[:5], estimate_BT[:5]))
    np.testing.assert_allclose(summary.scalars[f'si_sdr_{name}'], want, rtol=1e-3, atol=1e-2)
  clean = jax.jit(measurement.measure)(
    params, variables.state, {'waveform': wave_BT, 'noise': jnp.zeros_like(noise_BT)}
  )
  scalars = measurement.summarize(*jax.device_get(clean)).scalars
  assert (
    scalars['noisy'] == 0 and 'si_sdr_noisy' not in scalars and 'si_sdr_denoised' not in scalars
  )


def test_discriminators_cannot_tell_a_waveform_from_itself(variables):
  wave_BT = jax.random.normal(jax.random.key(2), (2, 640))
  np.testing.assert_allclose(
    soundstream.discriminator_accuracy(CONFIG, variables, wave_BT, wave_BT), 0.5, rtol=1e-6
  )


def test_other_stages_and_short_crops_have_none():
  none = evaluation.NO_MEASUREMENT
  assert during_training.for_stage(semantic.Config()) is none
  assert during_training.for_stage(dataclasses.replace(CONFIG, crop_length=496)) is none
