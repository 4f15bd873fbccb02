"""Loss terms as pure functions of arrays. Every mean is over the global batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import audio


def masked_mean(values: Float[Array, '*dims'], mask: Bool[Array, '*dims']) -> Float[Array, '']:
  """Returns the mean of `values` where `mask` holds, 0 where it holds nowhere."""
  weights = mask.astype(values.dtype)
  return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


def cross_entropy(
  logits_BLV: Float[Array, 'B L V'], targets_BL: Int[Array, 'B L'], mask_BL: Bool[Array, 'B L']
) -> Float[Array, '']:
  """Returns the mean negative log-likelihood, in nats per token, of the targets where the mask
  holds.

  Targets outside the mask may be anything, also negative. Computed in float32: bfloat16 loses the
  small differences of a large softmax.
  """
  logits_BLV = logits_BLV.astype(jnp.float32)
  safe_BL = jnp.where(mask_BL, targets_BL, 0)
  target_logits_BL = jnp.take_along_axis(logits_BLV, safe_BL[..., None], axis=-1)[..., 0]
  nats_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - target_logits_BL
  return masked_mean(nats_BL, mask_BL)


SPECTRAL_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples (the paper's); hop a quarter of it


def noise_magnitude(level: float, window: int, sample_rate: int) -> float:
  """Returns the root mean square, in the mel spectra of `spectral_reconstruction`, of white noise
  of this one.

  A Hann window's mean square is 3/8, and a mel filter's area is 1 in hertz.
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
  """Returns the multi-scale spectral loss of SoundStream (section III-E), independent of crop
  length and mel bins.

  At each window length s: the L1 distance of mel spectra, plus sqrt(s / 2) times the L2 distance of
  log-mel spectra. The paper sums them over frames and bins and scales, so its weight against the
  adversarial terms would follow the crop; here they are means over frames, bins (root mean square
  for L2) and scales. The FFT is at least 512 long: 64 filters find no bins of their own in the 33
  of a window of 64. Windows longer than the crop are left out.

  windows: lengths in samples; the shortest costs most, as it has most frames.
  floor: root mean square of white noise whose mean spectrum is added before the logarithm, so that
    what is far below it hardly counts. The paper states none; with 1e-5, as good as none, nine
    tenths of the squared gradient are of the quietest eighth of speech (docs/log.md).
  """
  total, scales = jnp.zeros(()), [s for s in windows if s <= target_BT.shape[-1]]
  for window in scales:
    options = dict(window_length=window, hop_length=window // 4, fft_length=max(window, 512))
    target, estimate = (
      audio.mel_spectrogram(wave, sample_rate=sample_rate, num_mels=num_mels, **options)
      for wave in (target_BT, estimate_BT)
    )
    noise = noise_magnitude(floor, window, sample_rate)
    # The gradient of a root is not finite at 0.
    log_distance_BF = jnp.sqrt(
      jnp.mean(jnp.square(jnp.log((target + noise) / (estimate + noise))), axis=-1) + 1e-8
    )
    total += jnp.mean(jnp.abs(target - estimate)) + (window / 2) ** 0.5 * jnp.mean(log_distance_BF)
  return total / len(scales)


def relative_squared_error(
  target_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> Float[Array, '']:
  """Returns the energy of the error over that of the target, both over the whole batch: 1 for
  silence.

  Not the L1 distance: for a phase not yet learned its minimum is silence, and training stays there.
  """
  return jnp.mean(jnp.square(target_BT - estimate_BT)) / (jnp.mean(jnp.square(target_BT)) + 1e-8)


def hinge_discriminator(
  real: Sequence[Float[Array, 'B _']], fake: Sequence[Float[Array, 'B _']]
) -> Float[Array, '']:
  """Returns the hinge loss of critics, given their logits; mean over logits, then over critics.

  The paper prints a sum of 4 terms over 3; here it is their mean.
  """
  terms = [
    jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f))
    for r, f in zip(real, fake, strict=True)
  ]
  return sum(terms) / len(terms)


def hinge_generator(fake: Sequence[Float[Array, 'B _']]) -> Float[Array, '']:
  """Returns the hinge loss of the generator, given the critics' logits of what it made: mean of
  max(0, 1 - logit).
  """
  return sum(jnp.mean(jax.nn.relu(1 - f)) for f in fake) / len(fake)


def feature_matching(
  real: Sequence[Sequence[Array]], fake: Sequence[Sequence[Array]]
) -> Float[Array, '']:
  """Returns the mean absolute difference of hidden layers, mean over each layer, then layers, then
  critics.
  """
  critics = [
    sum(jnp.mean(jnp.abs(r - f)) for r, f in zip(*layers, strict=True)) / len(layers[0])
    for layers in zip(real, fake, strict=True)
  ]
  return sum(critics) / len(critics)


def adversarial_terms(
  judge: Callable, params, wave_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> dict[str, Float[Array, '']]:
  """Returns the terms of a GAN: the generator's and the critics'.

  The generator's are constant in the critics' `params`, and theirs constant in the estimate.

  judge: (params, wave_BT) -> one nn.discriminators.Judgement for each critic. Both sides judge the
  estimate; the two forward passes are equal but for what is held constant, and XLA computes equal
  expressions once.
  """
  stop = jax.lax.stop_gradient
  real = judge(params, wave_BT)
  fake = judge(params, stop(estimate_BT))
  fake_to_generator = judge(stop(params), estimate_BT)
  logits = lambda judgements: [j.logits_BN for j in judgements]
  features = lambda judgements: [j.features for j in judgements]
  return {
    'adversarial': hinge_generator(logits(fake_to_generator)),
    'feature': feature_matching(stop(features(real)), features(fake_to_generator)),
    'discriminator': hinge_discriminator(logits(real), logits(fake)),
  }


class Balance(NamedTuple):
  """Moving averages, by term of a loss: of the length of its gradient at the estimate, and of 1,
  for the bias.
  """

  length: dict[str, Float[Array, '']]
  seen: dict[str, Float[Array, '']]


def init_balance(names: Sequence[str]) -> Balance:
  """Returns averages of nothing."""
  return Balance(*({name: jnp.zeros(()) for name in names} for _ in Balance._fields))


def update_balance(
  balance: Balance, gradients: Mapping[str, Float[Array, 'B T']], decay: float
) -> Balance:
  """Returns the averages with the gradients of one more step; a term without gradient (absent so
  far) keeps its own.
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
  """Returns the weight of each term with which its gradient at the estimate has its share of the
  whole.

  The gradient of term i then has, on average, the length share_i / sum(shares) /
  sqrt(`num_values`), whatever its scale (Defossez et al., 2022, arXiv 2210.13438, section 3.4). The
  paper has the length 1 in place of 1 / sqrt(num_values),
  B * T: ours is that of a mean over samples, so that terms outside of the balance do not follow the
  crop. A term that had no gradient yet keeps its share as its weight.
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
  """Returns the loss, in nats, of picking each frame's own target among those of the frames
  `negatives_BSN`, and the share of frames where the own target is strictly the most similar
  (cosine).

  Both are means over the frames where the mask holds. Source: wav2vec 2.0 (arXiv 2006.11477),
  equation 3.
  """
  context_BSD, target_BSD = (_unit(x.astype(jnp.float32)) for x in (context_BSD, target_BSD))
  # All pairs by one matrix product, then a gather of scalars: gathering N vectors a frame would not
  # fit in memory.
  similarity_BSS = jnp.einsum('bsd,btd->bst', context_BSD, target_BSD) / temperature
  positive_BS = jnp.einsum('bss->bs', similarity_BSS)
  negative_BSN = jnp.take_along_axis(similarity_BSS, negatives_BSN, axis=-1)
  everything = jnp.concatenate([positive_BS[..., None], negative_BSN], axis=-1)
  loss_BS = jax.nn.logsumexp(everything, axis=-1) - positive_BS
  correct_BS = (positive_BS > jnp.max(negative_BSN, axis=-1)).astype(jnp.float32)
  return masked_mean(loss_BS, mask_BS), masked_mean(correct_BS, mask_BS)


def _unit(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Scales the last axis to length 1; the constant keeps the gradient finite at 0."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def codebook_perplexity(
  probabilities_BSK: Float[Array, 'B S K'], mask_BS: Bool[Array, 'B S']
) -> Float[Array, '']:
  """Returns exp(entropy) of the mean distribution over codes: K when all are used alike, 1 when
  only one is.
  """
  weights_BS = mask_BS / jnp.maximum(jnp.sum(mask_BS), 1)
  mean_K = jnp.einsum('bsk,bs->k', probabilities_BSK, weights_BS)
  return jnp.exp(-jnp.sum(mean_K * jnp.log(mean_K + 1e-9)))


def diversity(
  probabilities_BSK: Float[Array, 'B S K'], mask_BS: Bool[Array, 'B S']
) -> Float[Array, '']:
  """Returns the share of the codebook that goes unused, 1 - perplexity / K, over the frames where
  the mask holds.

  Source: wav2vec 2.0, equation 4, in the form of its published code: 0 is best, 1 - 1 / K is
  collapse.
  """
  return 1 - codebook_perplexity(probabilities_BSK, mask_BS) / probabilities_BSK.shape[-1]
