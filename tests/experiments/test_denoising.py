"""The recipe of the codec that takes noise out, from a folder of speech and one of noise to its
table.
"""

import dataclasses

import numpy as np
import pytest

from audiolm_jax import audio
from experiments import recipe as recipe_lib
from experiments import sources, train
from experiments.corpora import Folder, Noisy
from experiments.evaluations import codec
from experiments.recipes import small_codec_denoise


def recordings(folder, count: int, seconds: float, sample_rate: int) -> str:
  folder.mkdir()
  for number in range(count):
    wave_T = np.random.default_rng(number).normal(size=round(seconds * sample_rate))
    audio.save(folder / f'{number}.wav', 0.3 * wave_T / np.abs(wave_T).max(), sample_rate)
  return str(folder)


@pytest.fixture
def recipe(tmp_path) -> recipe_lib.Recipe:
  """`small_codec_denoise` with its switch, and small in all else."""
  speech = Folder(root=recordings(tmp_path / 'speech', 12, 4.0, 16_000), held_out=0.3)
  noise = Folder(
    root=recordings(tmp_path / 'noise', 3, 1.0, 16_000),
    test_root=recordings(tmp_path / 'held_out_noise', 3, 1.0, 16_000),
  )
  own = small_codec_denoise.RECIPE.stages['soundstream']
  model = dataclasses.replace(
    own.model,
    crop_length=3200,
    network=dataclasses.replace(own.model.network, encoder_channels=2, decoder_channels=2),
    quantizer=dataclasses.replace(
      own.model.quantizer, num_quantizers=2, codebook_size=8, embedding_dim=4
    ),
  )
  schedule = dataclasses.replace(
    own.train,
    batch_size=8,
    num_steps=2,
    eval_batches=2,
    eval_every=2,
    save_every=2,
    rollback=None,
    expected_metrics=(),
  )
  return small_codec_denoise.RECIPE.derived(
    {'soundstream': dataclasses.replace(own, model=model, train=schedule)},
    corpus=Noisy(speech=speech, noise=noise, snr_db=(4.0, 6.0)),
  )


@pytest.mark.slow
def test_a_codec_with_a_switch_is_trained_and_measured(recipe, tmp_path, monkeypatch):
  monkeypatch.setattr(codec.perceptual, 'available', lambda: ())  # which have tests of their own
  train.train_stage(recipe, 'soundstream', tmp_path / 'run')
  rows = codec.measure(recipe, tmp_path / 'run')['rows']
  noisy, denoised = rows['noisy input'], rows['denoised, all levels']
  assert 4 <= noisy['si_sdr'] <= 6
  assert 0 < noisy['clips'] == denoised['clips'] <= rows['silence']['clips']
  assert denoised['kbit_s'] == pytest.approx(2 * 3 * 50 / 1000) and np.isfinite(
    denoised['mel_distance']
  )


def test_noise_is_brought_to_the_codecs_rate_with_the_speech(recipe, tmp_path):
  plain = recipe.corpus.examples('train', tmp_path)
  assert plain.sample_rate == 16_000
  halved = sources.corpus(recipe, 'train', tmp_path, 8_000)
  example = next(e for e in (halved[i] for i in range(len(halved))) if e['noise'].any())
  assert len(example['noise']) == len(example['waveform']) == 32_000


def test_noise_at_another_rate_than_the_speech_is_refused(recipe, tmp_path):
  corpus = dataclasses.replace(
    recipe.corpus, noise=dataclasses.replace(recipe.corpus.noise, sample_rate=8000)
  )
  with pytest.raises(ValueError, match='noise is read at 8000 Hz, the speech at 16000'):
    corpus.examples('train', tmp_path)
