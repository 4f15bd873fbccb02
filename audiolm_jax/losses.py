"""Loss terms as pure functions; means are over the global batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import audio


def masked_mean(values: Float[Array, '*dims'], mask: Bool[Array, '*dims']) -> Float[Array, '']:
  """Returns the mean of `values` where `mask` is True; 0 if it is True nowhere.

  Args:
    values: values.
    mask: which ones count.
  """
  weights = mask.astype(values.dtype)
  return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


def cross_entropy(
  logits_BLV: Float[Array, 'B L V'], targets_BL: Int[Array, 'B L'], mask_BL: Bool[Array, 'B L']
) -> Float[Array, '']:
  """Returns the mean negative log-likelihood of the masked targets, in nats per token.

  Targets outside of the mask are ignored and may be negative. Computed in float32, because bfloat16
  loses small differences of a large softmax.

  Args:
    logits_BLV: unnormalized log-probabilities.
    targets_BL: ids in [0, V).
    mask_BL: which targets count.
  """
  logits_BLV = logits_BLV.astype(jnp.float32)
  safe_BL = jnp.where(mask_BL, targets_BL, 0)
  target_logits_BL = jnp.take_along_axis(logits_BLV, safe_BL[..., None], axis=-1)[..., 0]
  nats_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - target_logits_BL
  return masked_mean(nats_BL, mask_BL)


SPECTRAL_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples; hops are a quarter (SoundStream)


def noise_magnitude(level: float, window: int, sample_rate: int) -> float:
  """Returns the root mean square of white noise in mel spectra of `spectral_reconstruction`.

  The mean square of a Hann window is 3/8, and the area of a mel filter is 1 Hz.

  Args:
    level: root mean square of the noise.
    window: window length in samples.
    sample_rate: in Hz.
  """
  return level * (3 / 8 * window) ** 0.5 * max(window, 512) / sample_rate


def spectral_reconstruction(
  target_BT: Float[Array, 'B T'],
  estimate_BT: Float[Array, 'B T'],
  *,
  sample_rate: int,
  floor: float,
  windows: Sequence[int] = SPECTRAL_WINDOWS,
  num_mels: int = 64,
) -> Float[Array, '']:
  """Returns SoundStream's multi-scale spectral loss (section III-E), averaged over frames and bins.

  The loss at window length s is the L1 distance of mel spectra plus sqrt(s / 2) times the L2
  distance of log-mel spectra. The paper sums over frames, bins and scales, so that the weight
  relative to the adversarial terms would depend on the crop; here, distances are means over frames,
  bins (root mean square for L2) and scales. The FFT has at least 512 points, because the 33 bins of
  a window of 64 cannot resolve 64 filters. Windows longer than the crop are ignored.

  Args:
    target_BT: original waveform.
    estimate_BT: reconstructed waveform.
    sample_rate: in Hz.
    floor: root mean square of white noise whose mean spectrum is added before the logarithm, which
      suppresses differences far below it. The paper states none; at 1e-5, nine tenths of the
      squared gradient come from the quietest eighth of speech (docs/log.md).
    windows: window lengths in samples; the shortest costs most, because it has most frames.
    num_mels: number of mel bins.
  """
  total, scales = jnp.zeros(()), [s for s in windows if s <= target_BT.shape[-1]]
  for window in scales:
    options = dict(window_length=window, hop_length=window // 4, fft_length=max(window, 512))
    target, estimate = (
      audio.mel_spectrogram(wave, sample_rate=sample_rate, num_mels=num_mels, **options)
      for wave in (target_BT, estimate_BT)
    )
    noise = noise_magnitude(floor, window, sample_rate)
    # The gradient of a square root is infinite at 0.
    log_distance_BF = jnp.sqrt(
      jnp.mean(jnp.square(jnp.log((target + noise) / (estimate + noise))), axis=-1) + 1e-8
    )
    total += jnp.mean(jnp.abs(target - estimate)) + (window / 2) ** 0.5 * jnp.mean(log_distance_BF)
  return total / len(scales)


def relative_squared_error(
  target_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> Float[Array, '']:
  """Returns the energy of the error divided by the energy of the target, over the whole batch.

  Silence scores 1. The L1 distance would fail: its minimum for unknown phases is silence, where
  training would stay.

  Args:
    target_BT: waveforms.
    estimate_BT: waveforms that approximate them.
  """
  return jnp.mean(jnp.square(target_BT - estimate_BT)) / (jnp.mean(jnp.square(target_BT)) + 1e-8)


def hinge_discriminator(
  real: Sequence[Float[Array, 'B _']], fake: Sequence[Float[Array, 'B _']]
) -> Float[Array, '']:
  """Returns the hinge loss of discriminators, averaged over logits, then over discriminators.

  The paper prints a sum of 4 terms divided by 3; this is their mean.

  Args:
    real: logits of each discriminator for original waveforms.
    fake: logits of each discriminator for generated waveforms.
  """
  terms = [
    jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f))
    for r, f in zip(real, fake, strict=True)
  ]
  return sum(terms) / len(terms)


def hinge_generator(fake: Sequence[Float[Array, 'B _']]) -> Float[Array, '']:
  """Returns the generator's hinge loss, the mean of max(0, 1 - logit).

  Args:
    fake: logits of each discriminator for generated waveforms.
  """
  return sum(jnp.mean(jax.nn.relu(1 - f)) for f in fake) / len(fake)


def feature_matching(
  real: Sequence[Sequence[Array]], fake: Sequence[Sequence[Array]]
) -> Float[Array, '']:
  """Returns the mean absolute difference of hidden layers.

  The mean is over each layer, then over layers, then over discriminators.

  Args:
    real: hidden layers of each discriminator on real audio.
    fake: those on generated audio.
  """
  terms = [
    sum(jnp.mean(jnp.abs(r - f)) for r, f in zip(*layers, strict=True)) / len(layers[0])
    for layers in zip(real, fake, strict=True)
  ]
  return sum(terms) / len(terms)


def adversarial_terms(
  discriminate: Callable, params, wave_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> dict[str, Float[Array, '']]:
  """Returns the loss terms of generator ('adversarial', 'feature') and 'discriminator'.

  The generator's terms have no gradient with respect to `params`, and the discriminators' term has
  none with respect to the estimate. Both need the discriminators' forward pass on the estimate,
  which XLA computes once.

  Args:
    discriminate: function (params, wave_BT) -> one
      nn.discriminators.DiscriminatorOutput per discriminator.
    params: parameters of the discriminators.
    wave_BT: original waveform.
    estimate_BT: generated waveform.
  """
  stop = jax.lax.stop_gradient
  real = discriminate(params, wave_BT)
  fake = discriminate(params, stop(estimate_BT))
  fake_to_generator = discriminate(stop(params), estimate_BT)
  logits = lambda outputs: [output.logits_BN for output in outputs]
  features = lambda outputs: [output.features for output in outputs]
  return {
    'adversarial': hinge_generator(logits(fake_to_generator)),
    'feature': feature_matching(stop(features(real)), features(fake_to_generator)),
    'discriminator': hinge_discriminator(logits(real), logits(fake)),
  }


class Balance(NamedTuple):
  """Holds moving averages per loss term of gradient lengths, and of 1 for bias correction.

  Gradients are with respect to the estimated waveform.
  """

  length: dict[str, Float[Array, '']]
  seen: dict[str, Float[Array, '']]


def init_balance(names: Sequence[str]) -> Balance:
  """Returns the averages before the first step, zeros.

  Args:
    names: of the loss terms.
  """
  return Balance(*({name: jnp.zeros(()) for name in names} for _ in Balance._fields))


def update_balance(
  balance: Balance, gradients: Mapping[str, Float[Array, 'B T']], decay: float
) -> Balance:
  """Returns the averages after one step; a term without gradient (not yet active) keeps its own.

  Args:
    balance: the averages so far.
    gradients: gradient of each term with respect to the waveform.
    decay: of the moving averages, in [0, 1).
  """

  def moved(averages, values):
    return {
      name: jnp.where(
        length[name] > 0, decay * averages[name] + (1 - decay) * values[name], averages[name]
      )
      for name in averages
    }

  length = {
    name: jnp.sqrt(jnp.sum(jnp.square(gradients[name].astype(jnp.float32))))
    for name in balance.length
  }
  return Balance(moved(balance.length, length), moved(balance.seen, {name: 1.0 for name in length}))


def balanced_weights(
  balance: Balance, shares: Mapping[str, float], num_values: int
) -> dict[str, Float[Array, '']]:
  """Returns weights by which the gradient of each term has its share of the total.

  The gradient of term i then has, on average, the length share_i / sum(shares) / sqrt(num_values),
  independent of its scale (EnCodec, arXiv 2210.13438, section 3.4). EnCodec lets the lengths sum to
  1 instead of 1 / sqrt(num_values), which is the length for a mean over samples: with it, the
  weights of other terms need not depend on the crop.

  Args:
    balance: averages of gradient lengths.
    shares: desired share of each term, and its weight until it has a gradient.
    num_values: number of values of the estimate, B * T.
  """
  total = sum(shares[name] for name in balance.length) * num_values**0.5
  weights = {}
  for name, length in balance.length.items():
    mean = length / jnp.maximum(balance.seen[name], 1e-30)
    balanced = shares[name] / (total * jnp.maximum(mean, 1e-30))
    weights[name] = jnp.where(balance.seen[name] > 0, balanced, shares[name])
  return weights


def contrastive(
  context_BSD: Float[Array, 'B S D'],
  target_BSD: Float[Array, 'B S D'],
  negatives_BSN: Int[Array, 'B S N'],
  mask_BS: Bool[Array, 'B S'],
  *,
  temperature: float,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns the contrastive loss in nats, and its accuracy in [0, 1].

  The loss is the cross entropy of choosing, by cosine similarity, each frame's own target among the
  targets of the frames `negatives_BSN`. The accuracy is the share of frames whose own target is
  strictly the most similar. Both are means over masked frames. Source: wav2vec 2.0 (arXiv
  2006.11477), equation 3.

  Args:
    context_BSD: context vectors.
    target_BSD: target vectors.
    negatives_BSN: indices of N other frames for each frame.
    mask_BS: True at frames in the means.
    temperature: divides the similarities.
  """
  context_BSD, target_BSD = (unit(x.astype(jnp.float32)) for x in (context_BSD, target_BSD))
  # One matrix product for all pairs, then a gather of scalars: gathering N vectors per frame would
  # not fit in memory.
  similarity_BSS = jnp.einsum('bsd,btd->bst', context_BSD, target_BSD) / temperature
  positive_BS = jnp.einsum('bss->bs', similarity_BSS)
  negative_BSN = jnp.take_along_axis(similarity_BSS, negatives_BSN, axis=-1)
  everything = jnp.concatenate([positive_BS[..., None], negative_BSN], axis=-1)
  loss_BS = jax.nn.logsumexp(everything, axis=-1) - positive_BS
  correct_BS = (positive_BS > jnp.max(negative_BSN, axis=-1)).astype(jnp.float32)
  return masked_mean(loss_BS, mask_BS), masked_mean(correct_BS, mask_BS)


def unit(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Scales the last axis to unit length; a small constant keeps the gradient finite at 0.

  Args:
    x: vectors.

  Returns:
    Vectors of unit length.
  """
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def multi_view_contrastive(
  to_text_BN: Float[Array, 'B B'],
  to_audio_BN: Float[Array, 'B B'],
  known_B: Bool[Array, 'B'],
  other_BN: Bool[Array, 'B B'] | None = None,
) -> Float[Array, '']:
  """Returns MuLan's contrastive loss of paired clips and texts, in nats.

    mean_i -log(exp s_ii / sum_{j != i} (exp s_ij + exp s_ji))

  The sum is over negatives only, as printed in MuLan (arXiv 2208.12415): similarities
  that are all equal score ln(2 (B - 1)), and there is no lower bound.

  Args:
    to_text_BN: s_ij, the scaled similarity of clip i and text j.
    to_audio_BN: s_ji, its transpose; two arguments, because devices hold rows of both.
    known_B: False at examples without a text, which are no negatives either.
    other_BN: which columns may be negatives of a row, symmetric; None: all but its own. Rows
      without negatives do not count.
  """
  own_BN, negative_BN, weight_B = _pairs(known_B, other_BN)
  others_BN = jnp.concatenate(
    [_masked(x_BN, negative_BN) for x_BN in (to_text_BN, to_audio_BN)], axis=1
  )
  own_B = jnp.sum(jnp.where(own_BN, to_text_BN, 0), axis=1)
  return masked_mean(jax.nn.logsumexp(others_BN, axis=1) - own_B, weight_B)


def clip_contrastive(
  to_text_BN: Float[Array, 'B B'],
  to_audio_BN: Float[Array, 'B B'],
  known_B: Bool[Array, 'B'],
  other_BN: Bool[Array, 'B B'] | None = None,
) -> Float[Array, '']:
  """Returns the mean cross entropy of finding a clip's text and a text's clip, in nats.

  Similarities that are all equal score ln B. Source: CLIP (arXiv 2103.00020).

  Args:
    to_text_BN: similarities [clip, text], scaled.
    to_audio_BN: similarities [text, clip], scaled.
    known_B: which pairs count.
    other_BN: which columns may be negatives of a row; None: all but its own.
  """
  own_BN, negative_BN, weight_B = _pairs(known_B, other_BN)
  nats = [
    jax.nn.logsumexp(_masked(x_BN, own_BN | negative_BN), axis=1)
    - jnp.sum(jnp.where(own_BN, x_BN, 0), axis=1)
    for x_BN in (to_text_BN, to_audio_BN)
  ]
  return masked_mean((nats[0] + nats[1]) / 2, weight_B)


def pair_accuracy(x_BN: Float[Array, 'B B'], known_B: Bool[Array, 'B']) -> Float[Array, '']:
  """Returns the share of rows whose own column is strictly the largest.

  Args:
    x_BN: similarities.
    known_B: which rows and columns count.
  """
  own_BN, _, weight_B = _pairs(known_B)
  own_B = jnp.sum(jnp.where(own_BN, x_BN, 0), axis=1)
  best_B = jnp.max(_masked(x_BN, known_B[None] & ~own_BN), axis=1)
  return masked_mean((own_B > best_B).astype(jnp.float32), weight_B)


def semi_hard_triplet(
  one_BD: Float[Array, 'B D'], other_BD: Float[Array, 'B D'], margin: float
) -> Float[Array, '']:
  """Returns the mean triplet loss of pairs of unit vectors with semi-hard negatives.

    mean max(0, d(a, p) - d(a, n) + margin)

  d is the squared distance. Each vector is an anchor a once, with the other of its pair as p. The
  negative n is, of the vectors of other pairs that are farther away than p, the nearest, or the
  farthest of all if none is. Source: FaceNet (arXiv 1503.03832); if none is farther, as in
  TensorFlow Addons.

  Args:
    one_BD: a unit vector of each pair, two pairs or more.
    other_BD: the other one.
    margin: squared distance by which negatives should be farther away.
  """
  vectors_ND = jnp.concatenate([one_BD, other_BD])
  count = len(one_BD)
  distance_NM = 2 - 2 * vectors_ND @ vectors_ND.T
  positive_N = jnp.diag(jnp.roll(distance_NM, count, axis=1))
  pair_N = jnp.arange(2 * count) % count
  is_negative_NM = pair_N[:, None] != pair_N[None]
  is_beyond_NM = is_negative_NM & (distance_NM > positive_N[:, None])
  nearest_N = jnp.min(distance_NM, axis=1, where=is_beyond_NM, initial=jnp.inf)
  farthest_N = jnp.max(distance_NM, axis=1, where=is_negative_NM, initial=0)
  negative_N = jnp.where(jnp.any(is_beyond_NM, axis=1), nearest_N, farthest_N)
  return jnp.mean(jax.nn.relu(positive_N - negative_N + margin))


def _pairs(known_B, other_BN=None):
  """Returns which column is a row's own, which are its negatives, and which rows have some."""
  own_BN = jnp.eye(len(known_B), dtype=bool)
  negative_BN = known_B[None] & ~own_BN
  if other_BN is not None:
    negative_BN &= other_BN
  return own_BN, negative_BN, known_B & jnp.any(negative_BN, axis=1)


def _masked(x_BN, mask):
  return jnp.where(mask, x_BN, jnp.finfo(x_BN.dtype).min)


def codebook_perplexity(
  probabilities_BSK: Float[Array, 'B S K'], mask_BS: Bool[Array, 'B S']
) -> Float[Array, '']:
  """Returns exp(entropy) of the mean distribution over codes: 1 for a single code, K at most.

  Args:
    probabilities_BSK: probability of each code.
    mask_BS: which frames count.
  """
  weights_BS = mask_BS / jnp.maximum(jnp.sum(mask_BS), 1)
  mean_K = jnp.einsum('bsk,bs->k', probabilities_BSK, weights_BS)
  return jnp.exp(-jnp.sum(mean_K * jnp.log(mean_K + 1e-9)))


def diversity(
  probabilities_BSK: Float[Array, 'B S K'], mask_BS: Bool[Array, 'B S']
) -> Float[Array, '']:
  """Returns the unused share of the codebook, 1 - perplexity / K, over masked frames.

  It is 0 if all codes are used equally, 1 - 1 / K if one is used. Source: wav2vec 2.0, equation 4,
  as in its published code.

  Args:
    probabilities_BSK: probability of each code.
    mask_BS: which frames count.
  """
  return 1 - codebook_perplexity(probabilities_BSK, mask_BS) / probabilities_BSK.shape[-1]
