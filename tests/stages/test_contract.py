"""Every stage passes the same checks: gradients, evaluation, eight devices, overfitting, save and
restore.
"""

import dataclasses

import jax
import numpy as np
import pytest

from audiolm_jax import testing
from audiolm_jax.data import texts
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import UNUSED, Discriminators
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.quantizer import FSQ, RVQ
from audiolm_jax.nn.resnet import ResNetConfig
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.nn.text_encoder import TextEncoderConfig
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import (
  classifier,
  coarse,
  detector,
  fine,
  mulan,
  semantic,
  soundstorm,
  soundstream,
  w2v_bert,
)
from audiolm_jax.training import sharding
from audiolm_jax.training.optimizers import OptimizerConfig

TRANSFORMER = TransformerConfig(
  num_layers=2, num_heads=2, width=16, mlp_width=32, dtype='float32', remat=False
)
BATCH = 4


def voiced(num_samples: int) -> np.ndarray:
  """Returns tones of different pitch with a little noise: [BATCH, num_samples]."""
  random = np.random.default_rng(0)
  seconds_T = np.arange(num_samples) / 16_000
  tones_BT = np.stack(
    [np.sin(2 * np.pi * 200 * (1 + row) * seconds_T * (1 + seconds_T)) for row in range(BATCH)]
  )
  return (0.3 * tones_BT + 0.03 * random.normal(size=tones_BT.shape)).astype(np.float32)


def codes(frames: int, levels: int, size: int) -> np.ndarray:
  shape = (BATCH, frames, levels) if levels else (BATCH, frames)
  return np.random.default_rng(1).integers(0, size, shape).astype(np.int32)


SEMANTIC = codes(10, 0, 20)
CAPTIONS = np.stack(
  [texts.encode(row, 8, num_texts=2) for row in (['low'], ['mid', 'middle'], ['high'], ['top'])]
)
W2V_BERT = dict(
  num_mels=16,
  conv_channels=2,
  num_contrastive_layers=1,
  num_mlm_layers=1,
  width=16,
  num_heads=2,
  mlp_width=32,
  codebook_size=8,
  code_width=8,
  num_negatives=4,
  dropout=0.0,
  crop_seconds=0.8,
  feature_layer=1,
)
SOUNDSTREAM = soundstream.Config(
  crop_length=1600,
  network=SEANet(strides=(4, 4), encoder_channels=2, decoder_channels=2),
  quantizer=RVQ(num_quantizers=2, codebook_size=8, embedding_dim=4),
  discriminators=Discriminators(
    spectral_channels=2,
    spectral_window_length=256,
    num_waveform=1,
    waveform_channels=4,
    waveform_max_channels=8,
  ),
  spectral_windows=(64, 256),  # of the paper's six: each adds to what is compiled
  loss_weights={'waveform': 10.0},
)
CODEC_OPTIONS = dict(
  loss_name='waveform',
  factor=0.9,
  rtol=1e-4,
  without_gradient={
    r'dilated\.': 'the convolution after it starts at 0, and lets gradients through from the second step on',
    r'discriminator\..*logits\.bias': 'inside its margins the hinge pulls real and fake equally hard',
  },
  optimizer={
    'generator': OptimizerConfig(learning_rate=1e-2, clip_norm=1.0),
    'discriminator': OptimizerConfig(learning_rate=1e-3),
  },
)
# Other networks and quantizers leave the discriminators as they are, and compiling those takes longer.
WITHOUT_DISCRIMINATORS = dataclasses.replace(SOUNDSTREAM, discriminators=UNUSED)
WITHOUT_DISCRIMINATORS_OPTIONS = CODEC_OPTIONS | {
  'without_gradient': CODEC_OPTIONS['without_gradient'] | {r'^discriminator\.': 'never starts'}
}
CASES = {
  'semantic': (
    semantic.Config(crop_seconds=0.4, num_clusters=20, transformer=TRANSFORMER),
    {'semantic': SEMANTIC},
    {},
  ),
  'coarse': (
    coarse.Config(
      crop_seconds=0.4, num_clusters=20, num_quantizers=2, codebook_size=8, transformer=TRANSFORMER
    ),
    {'semantic': SEMANTIC, 'codes': codes(20, 2, 8)},
    dict(factor=0.7, num_steps=100),
  ),
  'fine': (
    fine.Config(
      crop_seconds=0.2, total_quantizers=4, num_coarse=2, codebook_size=8, transformer=TRANSFORMER
    ),
    {'codes': codes(10, 4, 8)},
    dict(factor=0.7, num_steps=100),
  ),
  'soundstorm': (
    soundstorm.Config(
      crop_seconds=0.4,
      random_length=False,
      num_clusters=20,
      num_quantizers=2,
      codebook_size=8,
      num_layers=2,
      num_heads=2,
      width=16,
      mlp_width=32,
      dropout=0.0,
      dtype='float32',
      remat=True,
    ),
    {'semantic': SEMANTIC, 'codes': codes(20, 2, 8)},
    dict(factor=0.7, num_steps=150),
  ),
  'classifier': (
    classifier.Config(num_classes=BATCH, channels=(4, 8), num_mels=16, crop_seconds=0.2),
    {'waveform': voiced(3200), 'label': np.arange(BATCH, dtype=np.int32)},
    {},
  ),
  'detector': (
    detector.Config(channels=(4, 8), num_mels=16, crop_seconds=0.2),
    {'waveform': voiced(3200), 'label': np.array([0, 1, 1, 0], np.int32)},
    dict(num_steps=100),
  ),
  'mulan': (
    mulan.Config(
      audio=ResNetConfig(blocks=(1, 1), width=4, num_mels=16, crop_seconds=0.2),
      text=TextEncoderConfig(num_bytes=8, transformer=TRANSFORMER),
      embedding_dim=8,
      num_texts=2,
      num_masks=1,
      mask_seconds=0.02,
      mask_mels=2,
    ),
    {'waveform': voiced(3200), 'texts': CAPTIONS},
    dict(
      loss_name='above_chance',
      factor=-1.0,
      without_gradient={
        r'^audio\.block_\w+\.(conv|norm)_[12]\.': 'the last scale of a block starts at 0, and lets gradients through from the second step on',
        r'^audio\.block_\w+\.conv_3\.': 'as above',
      },
    ),
  ),
  'w2v_bert': (
    w2v_bert.Config(**W2V_BERT),
    {'waveform': voiced(12_800)},
    dict(loss_name='mlm', factor=0.8, rtol=1e-4),
  ),
  'w2v_bert_of_clusters': (
    w2v_bert.Config(targets='clusters', **W2V_BERT),
    {'waveform': voiced(12_800)},
    dict(loss_name='mlm', factor=0.8, rtol=1e-4),
  ),
  'soundstream': (SOUNDSTREAM, {'waveform': voiced(1600)}, CODEC_OPTIONS),
  'soundstream_frame_rate': (
    dataclasses.replace(
      WITHOUT_DISCRIMINATORS,
      network=FrameRate(
        hop_length=16, window_length=32, overlap=8, width=16, num_blocks=2, kernel_size=3
      ),
    ),
    {'waveform': voiced(1600)},
    WITHOUT_DISCRIMINATORS_OPTIONS,
  ),
  # levels so fine that the small embeddings of an untrained encoder do not all round to 0
  'soundstream_fsq': (
    dataclasses.replace(WITHOUT_DISCRIMINATORS, quantizer=FSQ(levels=(16, 15, 9))),
    {'waveform': voiced(1600)},
    WITHOUT_DISCRIMINATORS_OPTIONS,
  ),
}


# Variants of stages that are here besides, each a minute and more of compiling.
SLOW = ('soundstream_fsq', 'soundstream_frame_rate', 'w2v_bert_of_clusters')


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def test_stage_keeps_the_contract(name, tmp_path):
  config, batch, options = CASES[name]
  testing.check_stage(config, batch, tmp_path, **options)


@pytest.mark.parametrize('name', CASES)
def test_arrays_of_different_ranks_are_not_combined(name):
  """The axes that a loss adds are written out; it is traced here, not compiled."""
  config, batch, _ = CASES[name]
  stage = config.make()
  with jax.numpy_rank_promotion('raise'):
    variables = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    for key in (None, jax.random.key(1)):
      loss, _ = jax.eval_shape(lambda v, b, key=key: stage.loss(*v, b, key), variables, batch)
      assert loss.shape == ()


@pytest.mark.slow
def test_the_balance_of_the_loss_and_the_denoising_switch_are_the_same_on_eight_devices():
  """All but the training of `check_stage`, which would compile a second pass through the discriminators
  once more.
  """
  config = dataclasses.replace(SOUNDSTREAM, balance_decay=0.9, denoising=DenoisingSwitch())
  case = testing.prepare(config, {'waveform': voiced(1600), 'noise': 0.1 * voiced(1600)[::-1]})
  testing.check_gradients(case, CODEC_OPTIONS['without_gradient'])
  testing.check_evaluation(case)
  testing.check_devices(case, CODEC_OPTIONS['rtol'])
