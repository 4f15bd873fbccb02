import numpy as np
import pytest

from audiolm_jax.metrics import tokens

TOKENS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PHONES = np.array([5, 5, 7, 7, 7, 5, 5, 7])


def test_purities_by_hand():
  # Token 0 is best called 5 (2 of 3), 1 is 7 (2 of 2), 2 is 5 (2 of 3).
  assert tokens.phone_purity(TOKENS, PHONES) == 6 / 8
  # Phone 5 is best called 0 or 2 (2 of 4), 7 is 1 (2 of 4).
  assert tokens.cluster_purity(TOKENS, PHONES) == 4 / 8


def test_mutual_information_by_its_definition():
  joint = np.zeros((3, 2))
  for token, phone in zip(TOKENS, PHONES):
    joint[token, int(phone == 7)] += 1 / len(TOKENS)

  def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))

  token_entropy, phone_entropy = entropy(joint.sum(1)), entropy(joint.sum(0))
  expected = (token_entropy + phone_entropy - entropy(joint.ravel())) / ((token_entropy + phone_entropy) / 2)
  assert tokens.normalized_mutual_information(TOKENS, PHONES) == pytest.approx(expected)


@pytest.mark.parametrize('metric', [tokens.phone_purity, tokens.cluster_purity, tokens.normalized_mutual_information])
def test_relabelled_phones_are_perfect_and_padding_does_not_count(metric):
  assert metric((PHONES * 3) % 4, PHONES) == pytest.approx(1)
  padded = metric(np.append(TOKENS, [-1, 0]), np.append(PHONES, [5, -1]))
  assert padded == pytest.approx(metric(TOKENS, PHONES))


def test_unaligned_or_empty_sequences_are_refused():
  with pytest.raises(ValueError, match='8 tokens and 7 labels'):
    tokens.phone_purity(TOKENS, PHONES[1:])
  with pytest.raises(ValueError, match='none of the 2 frames'):
    tokens.cluster_purity(np.array([-1, 0]), np.array([0, -1]))
