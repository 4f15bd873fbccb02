"""Configs that earlier versions described, read as those of this version."""

import copy
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from audiolm_jax import testing
from audiolm_jax.errors import UserError
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.quantizer import FSQ, RVQ
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import mulan, semantic, soundstream
from audiolm_jax.stages.base import Condition
from audiolm_jax.training import checkpoints, configs, saving
from tests.toy_codec import CONFIG, random_variables
from tests.training import toy

# the codec of the speech models, as version 0.1.0 described it in its checkpoints
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'soundstream_flat.json'
SPEECH = soundstream.Config(
  crop_length=9600,
  network=FrameRate(width=256, num_blocks=5, expansion=2, overlap=160),
  quantizer=RVQ(embedding_dim=32, decay=0.98, dead_code_threshold=0.02),
  discriminators=Discriminators(
    start=None, spectral_channels=4, num_waveform=1, waveform_channels=4, waveform_max_channels=64
  ),
  spectral_windows=(128, 256, 512, 1024, 2048),
  loss_weights={'spectral': 0.08, 'waveform': 1.0, 'commitment': 0.1},
)


@pytest.fixture
def flat():
  return json.loads(GOLDEN.read_text())


def _rebuilt(described):
  return configs.rebuild(configs.upgraded(described), '0.1.0')


def test_flat_fields_of_a_codec_become_its_objects(flat):
  before = copy.deepcopy(flat)
  assert _rebuilt(flat) == SPEECH
  # nothing differs when a run continues
  assert configs.differences(configs.upgraded(flat), configs.describe(SPEECH)) == []
  assert flat == before


def test_discriminators_become_an_object_where_the_rest_is_nested():
  """As versions between described codecs, such as that of the first release."""
  described = configs.describe(SPEECH)
  own = described['fields'].pop('discriminators')['fields']
  own['adversarial_start'], own['num_waveform_critics'] = own.pop('start'), own.pop('num_waveform')
  described['fields'] |= own
  assert _rebuilt(described) == SPEECH


@pytest.mark.parametrize('place', [None, 'encoder', 'decoder'])
def test_the_place_of_the_denoising_switch_becomes_an_object(place):
  switch = None if place is None else DenoisingSwitch(place=place)
  config = dataclasses.replace(SPEECH, denoising=switch)
  described = configs.describe(config)
  del described['fields']['denoising']
  described['fields']['film'] = place  # as versions between described it
  assert _rebuilt(described) == config
  assert configs.differences(configs.upgraded(described), configs.describe(config)) == []


def test_without_a_network_of_its_own_the_codec_is_seanet(flat):
  flat['fields'] |= {'network': None, 'mel_encoder': True, 'quantizer_dropout': False}
  config = _rebuilt(flat)
  assert config.network == SEANet(
    strides=(5, 8), stem_stride=8, encoder_channels=64, decoder_channels=64, mel_encoder=True
  )
  assert config.quantizer == RVQ(
    embedding_dim=32, dropout=False, decay=0.98, dead_code_threshold=0.02
  )
  # the first checkpoints had neither field
  for name in ('network', 'mel_encoder'):
    del flat['fields'][name]
  assert not _rebuilt(flat).network.mel_encoder


def test_levels_of_fsq_come_over_and_their_sizes_follow(flat):
  flat['fields'] |= {
    'fsq_levels': [3, 4, 5],
    'num_quantizers': 1,
    'codebook_size': 60,
    'embedding_dim': 3,
    'film': 'decoder',
  }
  config = _rebuilt(flat)
  assert config.quantizer == FSQ(levels=(3, 4, 5))
  assert config.denoising == DenoisingSwitch(place='decoder')
  assert (config.num_quantizers, config.codebook_size, config.embedding_dim) == (1, 60, 3)


@pytest.mark.parametrize(
  'config, added',
  [
    (mulan.Config(), ['equal_texts']),
    (
      semantic.Config(condition=Condition()),
      ['condition.melody_levels', 'condition.melody_dropout'],
    ),
  ],
  ids=['mulan', 'semantic'],
)
def test_fields_that_were_added_have_the_value_of_earlier_versions(config, added):
  older = copy.deepcopy(configs.describe(config))
  for path in added:
    *parents, name = path.split('.')
    fields = functools.reduce(lambda node, parent: node['fields'][parent], parents, older)['fields']
    del fields[name]
  assert _rebuilt(older) == config
  assert configs.differences(configs.upgraded(older), configs.describe(config)) == []


def test_what_is_new_or_no_codec_stays_as_it_is():
  for config in (SPEECH, CONFIG, toy.Config(), soundstream.Config(quantizer=FSQ(levels=(8, 5)))):
    described = configs.describe(config)
    assert configs.upgraded(described) == described
  for damaged in (None, [], {}, {'class': 7}, {'class': configs.describe(SPEECH)['class']}):
    assert configs.upgraded(damaged) is damaged


def test_a_mel_encoder_before_a_network_at_the_frame_rate_is_refused(flat):
  flat['fields']['mel_encoder'] = True
  with pytest.raises(UserError, match='mel encoder before a network at the frame rate'):
    configs.upgraded(flat)


def test_a_checkpoint_with_flat_fields_is_loaded_and_continued(tmp_path):
  described = configs.describe(CONFIG)
  fields = described['fields']
  fields |= fields.pop('network')['fields']
  books = fields.pop('quantizer')['fields']
  fields |= {name: books[name] for name in ('num_quantizers', 'codebook_size', 'embedding_dim')}
  fields |= {'quantizer_dropout': books['dropout'], 'codebook_decay': books['decay']}
  fields |= {'dead_code_threshold': 0.5, 'fsq_levels': None, 'network': None}
  weights = fields.pop('loss_weights')
  del weights['discriminator']
  fields |= {f'{name}_weight': weight for name, weight in weights.items()}

  variables = random_variables(CONFIG)
  parts = {'params': variables.params, 'state': variables.state}
  checkpointer = saving.Checkpointer(tmp_path)
  checkpointer.save(3, parts, {'next': 3}, {'config': described, 'fingerprints': {}})
  checkpointer.wait()
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  targets = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.result_type(x), sharding=device), parts
  )
  restored = checkpointer.restore(targets, configs.describe(CONFIG))
  checkpointer.close()
  testing.assert_trees_equal(jax.device_get(restored.parts), jax.device_get(parts))
  config, loaded, metadata = checkpoints.load_variables(tmp_path)
  assert config == CONFIG and metadata['step'] == 3
  testing.assert_trees_equal(jax.device_get(loaded.params), jax.device_get(variables.params))


def test_a_field_that_was_added_as_none_is_no_difference():
  config = semantic.Config()
  described = configs.describe(config)
  del described['fields']['condition']  # as version 0.1 described it
  assert _rebuilt(described) == config
  assert configs.differences(described, configs.describe(config)) == []
  conditioned = semantic.Config(condition=Condition(levels=3))
  found = configs.differences(described, configs.describe(conditioned))
  assert "condition.levels: checkpoint '(absent)', now 3" in found
  assert _rebuilt(configs.describe(conditioned)) == conditioned
