import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta

from audiolm_jax import losses
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables
from tests.toy_codec import CONFIG, FSQ, random_variables

# The spectral term of CONFIG.
spectral = functools.partial(
  losses.spectral_reconstruction, sample_rate=8000, floor=1e-5, windows=(64, 256)
)
SLOW_BOOKS = dataclasses.replace(CONFIG.quantizer, decay=0.9)


@pytest.fixture(scope='module')
def variables():
  return random_variables(CONFIG)


@pytest.fixture(scope='module')
def batch():
  time_T = jnp.arange(512) / 8000
  pitch_B1 = jnp.asarray([[200.0], [310.0], [430.0], [520.0]])
  return {
    'waveform': 0.3 * jnp.sin(2 * jnp.pi * pitch_B1 * time_T) + 0.1 * jnp.sin(7 * pitch_B1 * time_T)
  }


@pytest.fixture(scope='module')
def gradients():
  return jax.jit(jax.value_and_grad(CONFIG.make().loss, has_aux=True))


@pytest.mark.parametrize(
  'encoder_channels, decoder_channels, millions',
  [(32, 32, 8.4), (16, 16, 2.4), (16, 32, 5.5), (8, 32, 4.8), (32, 16, 5.3), (32, 8, 4.4)],
)
def test_parameters_match_table_one_of_the_paper(encoder_channels, decoder_channels, millions):
  config = soundstream.Config(
    network=SEANet(encoder_channels=encoder_channels, decoder_channels=decoder_channels)
  )
  params = jax.eval_shape(config.make().init, jax.random.key(0)).params['generator']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(
    millions, abs=0.06
  )


@pytest.mark.parametrize(
  'config, sample_rate, hop_length, frame_rate, bit_rate',
  [
    (soundstream.AUDIOLM, 16_000, 320, 50, 6000),
    (soundstream.PIANO, 16_000, 320, 50, 2100),
    (soundstream.SOUNDSTREAM, 24_000, 320, 75, 6000),
    (soundstream.MUSICLM, 24_000, 480, 50, 6000),
    (FSQ, 8000, 8, 1000, 1000 * np.log2(60)),
  ],
)
def test_rates_are_those_of_the_papers(config, sample_rate, hop_length, frame_rate, bit_rate):
  assert (config.sample_rate, config.hop_length, config.frame_rate) == (
    sample_rate,
    hop_length,
    frame_rate,
  )
  assert config.bit_rate == pytest.approx(bit_rate)
  waveform = config.make().batch['waveform']
  assert waveform.rate == sample_rate and waveform.shape[0] % hop_length == 0


def test_audiolm_is_the_default():
  assert soundstream.AUDIOLM == soundstream.Config()
  assert (soundstream.AUDIOLM.num_quantizers, soundstream.AUDIOLM.codebook_size) == (12, 1024)
  assert (soundstream.PIANO.num_quantizers, soundstream.PIANO.codebook_size) == (3, 16_384)


def test_each_side_of_the_game_gets_the_gradient_of_its_own_loss(variables, batch, gradients):
  """One scalar trains both groups exactly as two separate losses would."""
  (_, aux), got = gradients(
    variables.params, variables.state | {'step': jnp.asarray(1)}, batch, None
  )
  wave_BT, codebooks = batch['waveform'], variables.state['codebooks']

  def estimate(generator):
    z_BFD = soundstream.encoder(CONFIG).apply({'params': generator['encoder']}, wave_BT)
    quantized = quantizer.quantize(codebooks.vectors_QKD, z_BFD, jnp.full(4, 3))
    return soundstream.decoder(CONFIG).apply(
      {'params': generator['decoder']}, quantized.z_BFD
    ), quantized.commitment

  discriminate = lambda params, wave: CONFIG.discriminators.module(CONFIG.dtype).apply(
    {'params': params}, wave
  )

  def generator_loss(generator):
    estimate_BT, commitment = estimate(generator)
    real, fake = (
      discriminate(variables.params['discriminator'], wave) for wave in (wave_BT, estimate_BT)
    )
    terms = {
      'spectral': spectral(wave_BT, estimate_BT),
      'waveform': losses.relative_squared_error(wave_BT, estimate_BT),
      'commitment': commitment,
      'adversarial': losses.hinge_generator([j.logits_BN for j in fake]),
      'feature': losses.feature_matching([j.features for j in real], [j.features for j in fake]),
    }
    return sum(CONFIG.loss_weights[name] * term for name, term in terms.items()), terms

  def discriminator_loss(discriminator):
    real, fake = (
      discriminate(discriminator, w) for w in (wave_BT, estimate(variables.params['generator'])[0])
    )
    return losses.hinge_discriminator([j.logits_BN for j in real], [j.logits_BN for j in fake])

  @jax.jit
  def separate_gradients(params):
    generator, terms = jax.grad(generator_loss, has_aux=True)(params['generator'])
    return {
      'generator': generator,
      'discriminator': jax.grad(discriminator_loss)(params['discriminator']),
    }, terms

  want, terms = separate_gradients(variables.params)
  for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    scale = float(jnp.max(jnp.abs(w)))
    np.testing.assert_allclose(
      g, w, rtol=1e-3, atol=1e-4 * scale + 1e-7, err_msg=jax.tree_util.keystr(path)
    )
  for name, term in terms.items():
    np.testing.assert_allclose(aux.metrics[name], term, rtol=1e-4)
  assert {leaf.shape for leaf in aux.metrics.values()} == {()}
  assert 1 <= aux.metrics['perplexity_2'] <= 16


def test_evaluation_leaves_the_state_alone_and_training_does_not(variables, batch, gradients):
  (_, aux), _ = gradients(variables.params, variables.state, batch, None)
  jax.tree.map(np.testing.assert_array_equal, aux.state, variables.state)
  (_, aux), _ = gradients(variables.params, variables.state, batch, jax.random.key(0))
  assert aux.state['step'] == 1 and aux.state['codebooks'].fitted
  assert not np.allclose(
    aux.state['codebooks'].vectors_QKD, variables.state['codebooks'].vectors_QKD
  )


def test_discriminators_wait_for_their_start(variables, batch, gradients):
  (_, aux), gradient = gradients(variables.params, variables.state, batch, None)
  # What discriminators cost that say 0 to everything, by the hinge: the loss does not jump when they
  # begin.
  assert [float(aux.metrics[name]) for name in ('adversarial', 'feature', 'discriminator')] == [
    1,
    0,
    2,
  ]
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient['discriminator']))
  assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient['generator']))


def test_balance_gives_every_term_its_share_of_the_gradient_at_the_estimate(variables, batch):
  """The balanced weights are what the terms' gradients, taken one by one, ask for; evaluation
  reuses the averages.
  """
  config = dataclasses.replace(
    CONFIG, balance_decay=0.0, loss_weights={'waveform': 2.0, 'feature': 5.0}
  )
  wave_BT, discriminators = batch['waveform'], variables.params['discriminator']
  state = variables.state | {
    'step': jnp.asarray(1),
    'balance': losses.init_balance(soundstream.BALANCED),
  }
  # so that training quantizes as we do below
  codebooks = state['codebooks']._replace(fitted=jnp.asarray(True))
  state |= {'codebooks': codebooks}

  @jax.jit
  def lengths(params, state, key):
    _, aux = config.make().loss(params, state, batch, key)
    z_BFD = soundstream.encoder(config).apply({'params': params['generator']['encoder']}, wave_BT)
    quantized, _ = soundstream._quantize(config, state, z_BFD, key)
    estimate_BT = soundstream.decoder(config).apply(
      {'params': params['generator']['decoder']}, quantized.z_BFD
    )
    discriminate = lambda wave: config.discriminators.module(config.dtype).apply(
      {'params': discriminators}, wave
    )
    terms = {
      'spectral': lambda e: spectral(wave_BT, e),
      'waveform': lambda e: losses.relative_squared_error(wave_BT, e),
      'adversarial': lambda e: losses.hinge_generator([j.logits_BN for j in discriminate(e)]),
      'feature': lambda e: losses.feature_matching(
        *([j.features for j in discriminate(wave)] for wave in (wave_BT, e))
      ),
    }
    return {name: jnp.linalg.norm(jax.grad(term)(estimate_BT)) for name, term in terms.items()}, aux

  length, aux = lengths(variables.params, state, jax.random.key(0))
  shares = {
    name: aux.metrics[f'weight_{name}'] * length[name] * wave_BT.size**0.5 for name in length
  }
  want = {name: config.loss_weights[name] / (1 + 2 + 1 + 5) for name in shares}
  for name in want:
    np.testing.assert_allclose(shares[name], want[name], rtol=1e-3, err_msg=name)
  loss, evaluated = jax.jit(config.make().loss)(variables.params, aux.state, batch, None)
  jax.tree.map(np.testing.assert_array_equal, evaluated.state['balance'], aux.state['balance'])
  weights = {name: aux.metrics[f'weight_{name}'] for name in want} | {
    'commitment': 1.0,
    'discriminator': 1.0,
  }
  np.testing.assert_allclose(
    loss, sum(weights[name] * evaluated.metrics[name] for name in weights), rtol=1e-4
  )


NO_SHARES = dict.fromkeys(soundstream.BALANCED, 0.0)


def test_weights_that_are_left_out_are_those_of_the_paper():
  config = soundstream.Config(loss_weights={'waveform': 2.0})
  assert config.loss_weights == {
    'spectral': 1.0,
    'waveform': 2.0,
    'commitment': 1.0,
    'adversarial': 1.0,
    'feature': 10.0,
    'discriminator': 1.0,
  }
  # compiled functions take configs as static arguments
  assert config == soundstream.Config(loss_weights={'waveform': 2.0})
  assert hash(config) == hash(soundstream.Config(loss_weights={'waveform': 2.0}))
  assert config != soundstream.Config()


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(balance_decay=1.0), 'balance_decay=1.0'),
    (dict(balance_decay=0.9, loss_weights={'feature': -1.0}), 'loss_weights.feature=-1.0'),
    (dict(loss_weights={'spektral': 1.0}), r"unknown terms \['spektral'\]: choose from spec"),
    (dict(balance_decay=0.9, loss_weights=NO_SHARES), 'balance_decay=0.9 with all weights'),
  ],
)
def test_an_impossible_balance_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)


@functools.partial(jax.jit, static_argnums=0)
def trained(config, variables, batch):
  """Returns the variables after 200 steps on one batch."""
  optimizer = optax.adam(5e-3, b1=0.8)
  gradient = jax.grad(config.make().loss, has_aux=True)

  def step(carry, key):
    params, state, optimizer_state = carry
    updates, aux = gradient(params, state, batch, key)
    updates, optimizer_state = optimizer.update(updates, optimizer_state)
    return (optax.apply_updates(params, updates), aux.state, optimizer_state), None

  keys = jax.random.split(jax.random.key(0), 200)
  (params, state, _), _ = jax.lax.scan(step, (*variables, optimizer.init(variables.params)), keys)
  return Variables(params, state)


def test_training_reconstructs_better_with_more_levels(variables, batch):
  config = dataclasses.replace(CONFIG, discriminators=UNUSED, quantizer=SLOW_BOOKS)

  @jax.jit
  def errors(variables):
    codes_BFQ = soundstream.encode(CONFIG, variables, batch['waveform'])
    decoded = [soundstream.decode(CONFIG, variables, codes_BFQ[..., :levels]) for levels in (1, 3)]
    return [jnp.mean(jnp.abs(wave_BT - batch['waveform'])) for wave_BT in decoded]

  silence = float(jnp.mean(jnp.abs(batch['waveform'])))
  (one, three), (_, untrained) = errors(trained(config, variables, batch)), errors(variables)
  assert three < one < untrained
  assert three < 0.5 * silence


@pytest.mark.parametrize('place', ['encoder', 'decoder'])
def test_a_fresh_denoising_switch_changes_nothing(variables, batch, place):
  """The other parameters are those of a codec without it, drawn from the same keys, and it begins
  as the identity.
  """
  config = dataclasses.replace(CONFIG, denoising=DenoisingSwitch(place=place))
  shapes, without = (
    jax.eval_shape(c.make().init, jax.random.key(0)).params for c in (config, CONFIG)
  )
  film = shapes['generator'].pop('film')
  assert jax.tree.structure(shapes) == jax.tree.structure(without)
  film = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), meta.unbox(film))
  switched = Variables(
    {**variables.params, 'generator': variables.params['generator'] | {'film': film}},
    variables.state,
  )

  @functools.partial(jax.jit, static_argnums=(0, 2))
  def codes_and_waveform(config, variables, place):
    codes_BFQ = soundstream.encode(config, variables, batch['waveform'], denoise=place == 'encoder')
    return codes_BFQ, soundstream.decode(config, variables, codes_BFQ, denoise=place == 'decoder')

  codes_BFQ, wave_BT = codes_and_waveform(CONFIG, variables, None)
  got_BFQ, got_BT = codes_and_waveform(config, switched, place)
  np.testing.assert_array_equal(got_BFQ, codes_BFQ)
  np.testing.assert_allclose(got_BT, wave_BT, rtol=1e-4, atol=1e-5)


def test_the_switch_takes_noise_out_and_leaves_it_in(variables, batch):
  """Tones and a hum: on, the estimate is nearer to the tones than off, and off nearer to the tones
  with the hum.
  """
  config = dataclasses.replace(
    CONFIG, discriminators=UNUSED, quantizer=SLOW_BOOKS, denoising=DenoisingSwitch()
  )
  film = {'linear': {'kernel': jnp.zeros((2, 2 * config.embedding_dim))}}
  before = Variables(
    {**variables.params, 'generator': variables.params['generator'] | {'film': film}},
    variables.state,
  )
  clean_BT = batch['waveform']
  hum_BT = 0.3 * jnp.sin(2 * jnp.pi * 1500 * jnp.arange(512) / 8000)[None] * jnp.ones((4, 1))
  after = trained(config, before, {'waveform': clean_BT, 'noise': hum_BT})

  @jax.jit
  def errors(variables, on_B):
    codes_BFQ = soundstream.encode(config, variables, clean_BT + hum_BT)
    estimate_BT = soundstream.decode(config, variables, codes_BFQ, denoise=on_B)
    return [
      jnp.mean(jnp.square(estimate_BT - wave_BT)) for wave_BT in (clean_BT, clean_BT + hum_BT)
    ]

  (on_clean, on_noisy), (off_clean, off_noisy) = (
    errors(after, jnp.full(4, on)) for on in (True, False)
  )
  power = float(jnp.mean(jnp.square(hum_BT)))
  assert on_clean < 0.7 * off_clean and on_clean < 0.7 * power, (on_clean, off_clean, power)
  assert off_noisy < 0.7 * on_noisy, (off_noisy, on_noisy)


def test_codes_of_a_prefix_are_the_prefix_of_the_codes(variables, batch):
  wave_BT, encode = batch['waveform'], jax.jit(soundstream.encode, static_argnums=(0, 3))
  codes_BFQ = encode(CONFIG, variables, wave_BT)
  assert codes_BFQ.shape == (4, 64, 3)
  np.testing.assert_array_equal(
    encode(CONFIG, variables, wave_BT[:, :256], 2), codes_BFQ[:, :32, :2]
  )


def test_errors_name_the_remedy(variables):
  with pytest.raises(ValueError, match='511 samples.*hop_length=8.*pad_to_multiple'):
    soundstream.encode(CONFIG, variables, jnp.zeros((1, 511)))
  for levels in (0, 4):
    with pytest.raises(ValueError, match=f'num_quantizers={levels}: .* 1 to 3'):
      soundstream.encode(CONFIG, variables, jnp.zeros((1, 512)), levels)
  with pytest.raises(ValueError, match='1,001 samples'):
    soundstream.Config(crop_length=1001).make()
  with pytest.raises(ValueError, match='4 levels.*num_quantizers=3'):
    soundstream.decode(CONFIG, variables, jnp.zeros((1, 2, 4), jnp.int32))
  with pytest.raises(ValueError, match="place='bottleneck'"):
    DenoisingSwitch(place='bottleneck')
  encoder_switch = dataclasses.replace(CONFIG, denoising=DenoisingSwitch(place='encoder'))
  with pytest.raises(ValueError, match="needs .*place='decoder'.*has .*place='encoder'"):
    soundstream.decode(encoder_switch, variables, jnp.zeros((1, 2, 3), jnp.int32), denoise=True)
  with pytest.raises(ValueError, match="needs .*place='encoder'.*has denoising=None"):
    soundstream.encode(CONFIG, variables, jnp.zeros((1, 512)), denoise=True)
  with pytest.raises(ValueError, match='no denoising switch'):
    soundstream.denoised(CONFIG, variables, jnp.zeros((1, 512)))
  for levels in ((), (1, 60), (2**16, 2**16)):
    with pytest.raises(ValueError, match='2 or more levels for each dimension'):
      quantizer.FSQ(levels=levels)
