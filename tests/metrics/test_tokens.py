import numpy as np
import pytest

from audiolm_jax.metrics import tokens

TOKENS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PHONES = np.array([5, 5, 7, 7, 7, 5, 5, 7])


def test_purity_by_hand():
  # Token 0 is best called 5 (2 of 3), 1 is 7 (2 of 2), 2 is 5 (2 of 3).
  assert tokens.phone_purity(TOKENS, PHONES) == 6 / 8


def test_mutual_information_by_its_definition():
  joint = np.zeros((3, 2))
  for token, phone in zip(TOKENS, PHONES):
    joint[token, int(phone == 7)] += 1 / len(TOKENS)

  def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))

  token_entropy, phone_entropy = entropy(joint.sum(1)), entropy(joint.sum(0))
  expected = (token_entropy + phone_entropy - entropy(joint.ravel())) / (
    (token_entropy + phone_entropy) / 2
  )
  assert tokens.normalized_mutual_information(TOKENS, PHONES) == pytest.approx(expected)


@pytest.mark.parametrize('metric', [tokens.phone_purity, tokens.normalized_mutual_information])
def test_relabelled_phones_are_perfect_and_padding_does_not_count(metric):
  assert metric((PHONES * 3) % 4, PHONES) == pytest.approx(1)
  padded = metric(np.append(TOKENS, [-1, 0]), np.append(PHONES, [5, -1]))
  assert padded == pytest.approx(metric(TOKENS, PHONES))


def test_unaligned_or_empty_sequences_are_refused():
  with pytest.raises(ValueError, match='8 tokens and 7 labels'):
    tokens.phone_purity(TOKENS, PHONES[1:])
  with pytest.raises(ValueError, match='none of the 2 frames'):
    tokens.phone_purity(np.array([-1, 0]), np.array([0, -1]))


def test_linear_decoder_finds_the_map_that_made_its_targets():
  random = np.random.default_rng(0)
  inputs = [random.normal(size=(length, 3)) for length in (200, 50, 1)]
  weights_CED, constant_D = random.normal(size=(3, 3, 2)), random.normal(size=2)

  def made(frames_SE):
    padded = np.pad(frames_SE, ((1, 1), (0, 0)))
    return np.stack(
      [
        sum(padded[s + c] @ weights_CED[c] for c in range(3)) + constant_D
        for s in range(len(frames_SE))
      ]
    )

  decoder = tokens.fit_linear_decoder(inputs, [made(one) for one in inputs], context=1, ridge=1e-6)
  unseen = random.normal(size=(20, 3))
  np.testing.assert_allclose(tokens.decode_linearly(decoder, unseen), made(unseen), atol=1e-4)
  # Without the neighbours it can not: they hold most of the variance.
  alone = tokens.fit_linear_decoder(inputs, [made(one) for one in inputs], context=0, ridge=1e-6)
  assert np.square(tokens.decode_linearly(alone, unseen) - made(unseen)).mean() > 0.5


def test_ridge_regression_by_its_closed_form():
  one_SE, target_SD = np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]])
  decoder = tokens.fit_linear_decoder([one_SE], [target_SD], context=0, ridge=1.0)
  # (X'X + I) w = X'y with X = [[1, 1], [2, 1]]: [[6, 3], [3, 3]] w = [3, 2].
  np.testing.assert_allclose(decoder.weight_ID, [[1 / 3], [1 / 3]], rtol=1e-6)
  with pytest.raises(ValueError, match=r'inputs of \[2\] frames, targets of \[1\]: cut both'):
    tokens.fit_linear_decoder([one_SE], [target_SD[:1]], context=0)
  eight = ', '.join('2' * 8)
  with pytest.raises(
    ValueError, match=rf'inputs of \[{eight}\] frames, targets of \[{eight}\]: cut'
  ):
    tokens.fit_linear_decoder([one_SE] * 9, [target_SD] * 10, context=0)
