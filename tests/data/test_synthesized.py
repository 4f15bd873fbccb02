import dataclasses

import numpy as np
import pytest

from audiolm_jax.data import synthesized

SMALL = synthesized.Config(
  num_train_voices=4, num_test_voices=2, train_minutes=0.5, test_minutes=0.3, utterance_seconds=4.0
)


@pytest.fixture(scope='module')
def train():
  return synthesized.examples(SMALL, 'train')


def test_an_utterance_does_not_depend_on_those_before_it():
  wanted = synthesized.requests(SMALL, 'train')
  forward = synthesized.speak(wanted, num_workers=1)
  backward = synthesized.speak(wanted[::-1], num_workers=2)[::-1]
  for (_, one), (_, other) in zip(forward, backward, strict=True):
    np.testing.assert_array_equal(one, other)


def test_splits_share_neither_voices_nor_texts():
  config = synthesized.Config()
  train, test = (synthesized.requests(config, split) for split in ('train', 'test'))
  assert not {r['speaker'] for r in train} & {r['speaker'] for r in test}
  assert {r['speaker'] for r in train} == set(range(32)) and {r['speaker'] for r in test} == set(
    range(32, 40)
  )
  assert len({(v.name, v.pitch, v.rate) for v in synthesized.voices(config)}) == 40
  # Two counts are told apart by their first two numbers, sentences by the whole sentence.
  texts = [set(), set()]
  for seen, wanted in zip(texts, (train, test), strict=True):
    for r in wanted:
      seen |= (
        {' '.join(r['text'].split()[:2])}
        if r['kind'] == 'counting'
        else set(r['text'].strip('.').split('. '))
      )
  assert not texts[0] & texts[1]
  for wanted in (train, test):
    assert 0.5 < np.mean([r['kind'] == 'counting' for r in wanted]) < 0.7


def test_counting_counts(train):
  counted = [train[i]['text'].split() for i in range(len(train)) if train[i]['kind'] == 'counting']
  assert counted
  for words in counted:
    numbers = [synthesized.NUMBERS.index(word) for word in words]
    assert set(np.diff(numbers) % 21) in ({1}, {20})


def test_examples_hold_what_they_promise(train):
  for i in range(len(train)):
    example = train[i]
    wave_T, phones_S = example['waveform'], example['phones']
    assert (
      wave_T.dtype == np.float32 and np.abs(wave_T).max() <= 0.96 and len(wave_T) > 2.5 * 16_000
    )
    assert len(phones_S) == -(-len(wave_T) // 640) and phones_S.max() < len(train.phone_names)
    assert 1 not in phones_S  # '?': every phone spoken is in the inventory
    assert [word for word, *_ in example['words']] == example['text'].replace('.', '').split()
    starts, ends = np.array([word[1:] for word in example['words']]).T
    assert (starts < ends).all() and (ends[:-1] <= starts[1:]).all() and ends[-1] <= len(wave_T)


def test_pauses_are_silent_and_vowels_are_not(train):
  loud = {False: [], True: []}
  for i in range(len(train)):
    example = train[i]
    for frame, phone in enumerate(example['phones'][:-1]):
      energy = np.sqrt(np.mean(example['waveform'][640 * frame : 640 * frame + 640] ** 2))
      name = train.phone_names[phone]
      if name in ('_', 'i:', 'aI', 'u:', 'eI'):
        loud[name != '_'].append(energy)
  assert np.median(loud[True]) > 10 * np.median(loud[False])


def test_the_cache_holds_the_same(train, tmp_path):
  for _ in range(2):  # made, then read
    cached = synthesized.examples(SMALL, 'train', cache_dir=str(tmp_path))
    assert len(cached) == len(train)
    np.testing.assert_array_equal(cached[-1]['waveform'], train[-1]['waveform'])
    assert cached[-1]['words'] == train[-1]['words']
  assert len(list(tmp_path.iterdir())) == 1
  synthesized.examples(dataclasses.replace(SMALL, seed=1), 'train', cache_dir=str(tmp_path))
  assert len(list(tmp_path.iterdir())) == 2


def test_wrong_values_are_named():
  with pytest.raises(ValueError, match='train_minutes=0.0: must be a finite number above 0'):
    synthesized.Config(train_minutes=0.0)
  with pytest.raises(ValueError, match="'dev'"):
    synthesized.examples(SMALL, 'dev')
