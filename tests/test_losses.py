import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.special

from audiolm_jax import losses

RATE = 16_000


def _noise(seed, num_samples=2400):
  return jax.random.normal(jax.random.key(seed), (2, num_samples)) / 4


def _white_noise_in_mel(level, window):
  """Returns the mel magnitude of white noise: the energy of a Hann window, and of filters whose
  area is 1 in hertz.
  """
  return level * np.sqrt(window * 3 / 8) * max(window, 512) / RATE


def test_cross_entropy_is_the_mean_of_the_targets_that_count():
  rng = np.random.default_rng(0)
  logits_BLV = 3 * rng.normal(size=(2, 5, 7)).astype(np.float32)
  targets_BL = rng.integers(0, 7, (2, 5))
  mask_BL = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)
  log_likelihoods_BLV = scipy.special.log_softmax(logits_BLV.astype(np.float64), axis=-1)
  want = -np.mean([log_likelihoods_BLV[b, l, targets_BL[b, l]] for b, l in np.argwhere(mask_BL)])
  cross_entropy = functools.partial(losses.cross_entropy, jnp.asarray(logits_BLV))
  got = cross_entropy(jnp.asarray(np.where(mask_BL, targets_BL, -1)), jnp.asarray(mask_BL))
  assert float(got) == pytest.approx(want, rel=1e-5)
  assert float(cross_entropy(jnp.asarray(targets_BL), jnp.zeros((2, 5), bool))) == 0


def test_spectral_reconstruction_matches_librosa():
  target_BT, estimate_BT = np.asarray(_noise(0)), np.asarray(_noise(1))
  want = []
  for window in (64, 128, 256, 512, 1024, 2048):
    filters = librosa.filters.mel(sr=RATE, n_fft=max(window, 512), n_mels=64)
    mels = []
    for wave in (target_BT, estimate_BT):
      frames = np.lib.stride_tricks.sliding_window_view(wave, window, axis=-1)[:, :: window // 4]
      hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
      mels.append(np.abs(np.fft.rfft(frames * hann, max(window, 512))) @ filters.T)
    logs = [np.log(mel + _white_noise_in_mel(0.01, window)) for mel in mels]
    want.append(np.abs(mels[0] - mels[1]).mean())
    want[-1] += np.sqrt(window / 2) * np.sqrt(np.square(logs[0] - logs[1]).mean(-1)).mean()
  options = dict(sample_rate=RATE, floor=0.01)
  loss = jax.jit(functools.partial(losses.spectral_reconstruction, **options))
  got = loss(jnp.asarray(target_BT), jnp.asarray(estimate_BT))
  np.testing.assert_allclose(got, np.mean(want), rtol=1e-3)


def test_spectral_reconstruction_has_finite_gradients_at_silence_and_equality():
  gradient = jax.jit(
    jax.grad(lambda e, t: losses.spectral_reconstruction(t, e, sample_rate=RATE, floor=1e-3))
  )
  for target_BT, estimate_BT in (
    (_noise(0), _noise(0)),
    (_noise(0), 0 * _noise(0)),
    (0 * _noise(0), 0 * _noise(0)),
  ):
    assert np.isfinite(gradient(estimate_BT, target_BT)).all()


def test_the_floor_bounds_the_gradient_of_silence():
  """A quiet sound, 60 dB below full scale, comes 3 dB too quiet: without a floor its gradient goes
  as 1 / level.
  """
  target_BT = 1e-3 * _noise(0, 32_000)

  def length(floor):
    options = dict(sample_rate=RATE, floor=floor, windows=(64, 512))
    loss = lambda e: losses.spectral_reconstruction(target_BT, e, **options)
    return jnp.linalg.norm(jax.jit(jax.grad(loss))(0.7 * target_BT))

  assert length(1e-6) > 30 * length(0.01)


def test_the_floor_is_the_level_of_white_noise():
  noise_BT, floor = 4 * _noise(0, 32_000), 0.01
  options = dict(sample_rate=RATE, floor=floor)
  loss = jax.jit(
    lambda level: losses.spectral_reconstruction(level * noise_BT, 0 * noise_BT, **options)
  )
  # The magnitude of noise is on average sqrt(pi) / 2 of its root mean square: log(1 + 0.886) above
  # silence.
  want = np.mean([np.sqrt(window / 2) for window in losses.SPECTRAL_WINDOWS]) * np.log(1.886)
  np.testing.assert_allclose(loss(floor), want, rtol=0.15)
  assert loss(0.01 * floor) < 0.03 * want


def test_hinge_losses_by_hand():
  real, fake = (
    [jnp.asarray([[2.0, 0.0]]), jnp.asarray([[0.5]])],
    [jnp.asarray([[-3.0, 1.0]]), jnp.asarray([[0.0]])],
  )
  # Discriminator 0: (0 + 1) / 2 + (0 + 2) / 2; discriminator 1: 0.5 + 1.
  np.testing.assert_allclose(losses.hinge_discriminator(real, fake), (1.5 + 1.5) / 2)
  # Discriminator 0: (4 + 0) / 2; discriminator 1: 1.
  np.testing.assert_allclose(losses.hinge_generator(fake), (2 + 1) / 2)


def test_feature_matching_weighs_layers_and_discriminators_alike():
  real = [[jnp.zeros((1, 2)), jnp.zeros((1, 8))], [jnp.zeros((1, 3))]]
  fake = [[jnp.ones((1, 2)), -3 * jnp.ones((1, 8))], [4 * jnp.ones((1, 3))]]
  np.testing.assert_allclose(losses.feature_matching(real, fake), ((1 + 3) / 2 + 4) / 2)


def test_relative_squared_error_of_silence_is_one():
  np.testing.assert_allclose(losses.relative_squared_error(_noise(0), 0 * _noise(0)), 1, rtol=1e-4)
  np.testing.assert_allclose(
    losses.relative_squared_error(_noise(0), 0.5 * _noise(0)), 0.25, rtol=1e-4
  )


def test_balanced_terms_share_the_gradient_as_asked():
  """Three terms of wild scales; with decay 0 the average is the step's own length, and the shares
  are exact.
  """
  estimate_BT, num_values = _noise(0, 40), 80
  terms = lambda x: {
    'a': 1e4 * jnp.mean(jnp.square(x)),
    'b': 1e-5 * jnp.sum(jnp.abs(x - 1)),
    'c': jnp.mean(x) ** 3,
  }
  gradients = jax.jit(jax.jacrev(terms))(estimate_BT)
  balance = losses.update_balance(losses.init_balance('abc'), gradients, 0.0)
  weights = losses.balanced_weights(balance, {'a': 1.0, 'b': 3.0, 'c': 0.0}, num_values)
  lengths = {
    name: np.linalg.norm(weights[name] * gradients[name]) * num_values**0.5 for name in 'abc'
  }
  np.testing.assert_allclose([lengths[name] for name in 'abc'], [0.25, 0.75, 0.0], rtol=1e-5)
  weighted = lambda x: sum(weights[name] * term for name, term in terms(x).items())
  total = jax.jit(jax.grad(weighted))(estimate_BT)
  np.testing.assert_allclose(
    total, sum(weights[name] * gradients[name] for name in 'abc'), rtol=1e-4, atol=1e-7
  )


def test_lengths_are_averaged_without_bias_and_absent_terms_wait():
  balance = losses.init_balance('ab')
  shares = {'a': 1.0, 'b': 2.0}
  assert losses.balanced_weights(balance, shares, 1) == shares  # nothing seen yet
  for a, b in ((3.0, 0.0), (5.0, 7.0)):  # lengths of the gradients; b has none at first
    gradients = {name: jnp.full((1, 1), value) for name, value in (('a', a), ('b', b))}
    balance = losses.update_balance(balance, gradients, 0.9)
  weights = losses.balanced_weights(balance, shares, 1)
  mean_a = (0.9 * 0.1 * 3 + 0.1 * 5) / (0.9 * 0.1 + 0.1)
  np.testing.assert_allclose([weights['a'], weights['b']], [1 / 3 / mean_a, 2 / 3 / 7], rtol=1e-5)


def test_a_term_counts_however_short_its_gradient_is():
  balance = losses.init_balance('ab')
  gradients = {'a': jnp.full((2, 2), 1e-12), 'b': jnp.full((2, 2), 1e6)}  # lengths 2e-12, 2e6
  balance = losses.update_balance(balance, gradients, 0.999)
  weights = losses.balanced_weights(balance, {'a': 3.0, 'b': 1.0}, 4)
  want = [3 / 4 / 2 / 2e-12, 1 / 4 / 2 / 2e6]
  np.testing.assert_allclose([weights['a'], weights['b']], want, rtol=1e-3)


def brute_force_contrastive(similarity_BN, known, text_of=lambda i: i):
  """Both contrastive losses in float64, term by term; returns (multi-view, CLIP's).

  Examples of one text (`text_of`) are no negatives of one another.
  """
  s, multi_view, clip = np.asarray(similarity_BN, np.float64), [], []
  for i in known:
    others = [j for j in known if text_of(j) != text_of(i)]
    negatives = sum(np.exp(s[i, j]) + np.exp(s[j, i]) for j in others)
    multi_view.append(-np.log(np.exp(s[i, i]) / negatives))
    rows = np.exp(s[i, i]) / sum(np.exp(s[i, j]) for j in [i, *others])
    columns = np.exp(s[i, i]) / sum(np.exp(s[j, i]) for j in [i, *others])
    clip.append(-(np.log(rows) + np.log(columns)) / 2)
  return np.mean(multi_view), np.mean(clip)


CONTRASTIVE = jax.jit(losses.multi_view_contrastive), jax.jit(losses.clip_contrastive)


def test_contrastive_losses_are_their_formulas():
  s_BN = jnp.asarray(3 * np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)
  for known in ([0, 1, 2, 3, 4], [0, 2, 3]):
    known_B = jnp.isin(jnp.arange(5), jnp.array(known))
    got = [loss(s_BN, s_BN.T, known_B) for loss in CONTRASTIVE]
    np.testing.assert_allclose(got, brute_force_contrastive(s_BN, known), rtol=1e-5)
  text_B = np.array([0, 1, 0, 2, 0])
  for known in ([0, 1, 2, 3, 4], [0, 1, 2]):
    known_B = jnp.isin(jnp.arange(5), jnp.array(known))
    different_BN = jnp.asarray(text_B[:, None] != text_B)
    got = [loss(s_BN, s_BN.T, known_B, different_BN) for loss in CONTRASTIVE]
    wanted = brute_force_contrastive(s_BN, known, text_of=lambda i: text_B[i])
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
  equal_BN, all_B = jnp.full((5, 5), 0.3), jnp.ones(5, bool)
  chance = [np.log(2 * 4), np.log(5)]
  got = [loss(equal_BN, equal_BN, all_B) for loss in CONTRASTIVE]
  np.testing.assert_allclose(got, chance, rtol=1e-6)
  # A single pair has nothing to be told from.
  alone_B = all_B.at[1:].set(False)
  assert CONTRASTIVE[0](s_BN, s_BN.T, alone_B) == 0


def test_pair_accuracy_counts_rows_whose_own_column_wins():
  x_BN = jnp.array([[3.0, 1.0, 9.0], [2.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
  all_B = jnp.ones(3, bool)
  assert np.isclose(losses.pair_accuracy(x_BN, all_B), 1 / 3)  # a tie is no win
  assert np.isclose(losses.pair_accuracy(x_BN, jnp.array([True, True, False])), 1 / 2)


def brute_force_triplet(one_BD, other_BD, margin):
  """Returns the triplet loss by loops over anchors and negatives."""
  total = []
  for anchors_BD, positives_BD in ((one_BD, other_BD), (other_BD, one_BD)):
    for i, anchor_D in enumerate(anchors_BD):
      square = lambda vector_D: float(np.sum((anchor_D - vector_D) ** 2))
      own = square(positives_BD[i])
      others = [
        square(vectors_BD[j])
        for vectors_BD in (one_BD, other_BD)
        for j in range(len(one_BD))
        if j != i
      ]
      beyond = [distance for distance in others if distance > own]
      total.append(max(0.0, own - (min(beyond) if beyond else max(others)) + margin))
  return np.mean(total)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('noise', [0.1, 3.0])  # with the latter, some positives are the farthest
def test_the_triplet_loss_is_its_formula(seed, noise):
  random = np.random.default_rng(seed)
  one_BD = random.normal(size=(5, 3))
  other_BD = one_BD + noise * random.normal(size=one_BD.shape)
  one_BD, other_BD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one_BD, other_BD))
  found = losses.semi_hard_triplet(jnp.asarray(one_BD), jnp.asarray(other_BD), 0.5)
  assert float(found) == pytest.approx(brute_force_triplet(one_BD, other_BD, 0.5), abs=1e-5)


def test_contrastive_loss_by_brute_force():
  rng = np.random.default_rng(0)
  context, target = rng.normal(size=(2, 2, 6, 4)).astype(np.float32)
  negatives = rng.integers(0, 6, (2, 6, 3))
  mask = rng.random((2, 6)) < 0.6
  terms, hits = [], []
  for b, s in zip(*np.nonzero(mask)):

    def cosine(n):
      return (
        context[b, s] @ target[b, n] / np.linalg.norm(context[b, s]) / np.linalg.norm(target[b, n])
      )

    own, others = np.exp(cosine(s) / 0.1), [np.exp(cosine(n) / 0.1) for n in negatives[b, s]]
    terms.append(-np.log(own / (own + sum(others))))
    hits.append(own > max(others))
  got, accuracy = losses.contrastive(
    *map(jnp.asarray, (context, target, negatives, mask)), temperature=0.1
  )
  np.testing.assert_allclose(got, np.mean(terms), rtol=1e-4)
  np.testing.assert_allclose(accuracy, np.mean(hits), rtol=1e-6)


def test_diversity_is_0_for_uniform_use_and_1_minus_1_over_k_for_one_code():
  everywhere = jnp.ones((2, 8), bool)
  one_hot = jax.nn.one_hot(jnp.arange(16).reshape(2, 8) % 4, 4)
  np.testing.assert_allclose(losses.diversity(one_hot, everywhere), 0, atol=1e-5)
  np.testing.assert_allclose(losses.diversity(one_hot[:, ::4], everywhere[:, ::4]), 0.75, atol=1e-5)
  np.testing.assert_allclose(
    losses.diversity(one_hot, jnp.arange(16).reshape(2, 8) % 4 < 2), 0.5, atol=1e-5
  )
