import collections

import pytest

from audiolm_jax import audio
from audiolm_jax.data import synthesized, synthesized_benchmark, zerospeech

CONFIG = synthesized.Config(
  num_train_voices=4, num_test_voices=2, train_minutes=1.0, highest_number=9
)
SIZES = synthesized_benchmark.Sizes(num_voices=1, num_words=3, num_phrases=2)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  made = synthesized_benchmark.folder(CONFIG, cache, SIZES)
  assert (
    synthesized_benchmark.folder(CONFIG, cache, SIZES) == made and len(list(cache.iterdir())) == 1
  )
  return made


def test_syllables_have_each_phone_in_one_context_at_least_twice(root):
  items = zerospeech.read_items(root / 'phonetic' / 'twin' / 'twin.item')
  cells = collections.Counter((item.speaker, item.context, item.phone) for item in items)
  assert {speaker for speaker, *_ in cells} == {'voice0', 'voice1'} and min(cells.values()) >= 2
  phones = collections.defaultdict(set)
  for _, context, phone in cells:
    phones[context].add(phone)
  # many contexts in which phones compete
  assert sum(len(names) >= 3 for names in phones.values()) >= 10
  recordings = zerospeech.Recordings(root, [item.file for item in items], 16_000)
  seconds = {
    recordings[n]['file']: len(recordings[n]['waveform']) / 16_000 for n in range(len(recordings))
  }
  zerospeech.check_times(items, seconds)
  assert max(item.offset - item.onset for item in items) < 1.0


def test_gold_has_a_right_and_a_wrong_recording_of_each_pair(root):
  for task, read in (
    ('lexical', zerospeech.read_lexical),
    ('syntactic', zerospeech.read_syntactic),
  ):
    samples = read(zerospeech.gold_file(root, task, 'twin'))
    sides = collections.Counter((sample.pair, sample.voice) for sample in samples)
    assert set(sides.values()) == {2} and len(sides) == {'lexical': 3, 'syntactic': 4}[task]
    for sample in samples:
      assert len(audio.load(root / task / 'twin' / f'{sample.file}.wav', 16_000)) > 4000
  counted = [s.text.split() for s in samples if s.kind == 'counting']
  steps = lambda words: {
    (b - a) % 10 for a, b in zip(*(map(synthesized.NUMBERS.index, w) for w in (words, words[1:])))
  }
  assert [len(steps(words)) == 1 for words in counted] == [
    sample.correct for sample in samples if sample.kind == 'counting'
  ]


def test_nonwords_are_their_words_but_for_one_phone_and_not_in_the_vocabulary():
  voice = synthesized.voices(CONFIG)[-1]
  pairs = synthesized_benchmark._WORDS
  vocabulary = {
    word
    for request in synthesized.requests(synthesized.Config(), 'train')
    for word in request['text'].split()
  }
  vocabulary = {word.strip('.') for word in vocabulary}
  assert {word for word, _ in pairs} <= vocabulary and not {
    nonword for _, nonword in pairs
  } & vocabulary
  spoken = synthesized.speak(
    [
      dict(voice=voice.name, pitch=50, rate=160, gap=8, seed=1, text=text)
      for pair in pairs
      for text in pair
    ]
  )
  said = [[synthesized.plain_phone(name) for _, name in header['phones']] for header, _ in spoken]
  said = [[name for name in phones if name != '_'] for phones in said]
  differences = [
    sum(a != b for a, b in zip(word, nonword, strict=True))
    for word, nonword in zip(said[::2], said[1::2], strict=True)
  ]
  assert set(differences) <= {1, 2} and sum(n == 1 for n in differences) > 0.9 * len(differences), (
    differences
  )
