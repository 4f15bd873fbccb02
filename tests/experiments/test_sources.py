"""The sample for the k-means, shared among processes; voices and prompts of any corpus."""

import dataclasses

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import folders
from experiments import corpora, inputs, sources
from experiments import recipe as recipe_lib
from experiments.recipe import Evaluation, SemanticTokens
from experiments.recipes import folder, tiny

RATE = 16_000

NUM_EXAMPLES = 50


class Config:
  frame_rate, sample_rate = 25.0, 16_000


def extract(batch, sample_rate):
  """Frames that tell their example and the batch they were in, on which padding depends."""
  readable = [example for example in batch if example is not None]
  for example in readable:
    yield np.full((example['length'], 2), [example['number'], len(readable)], np.float32)


CORPUS = [{'number': i, 'length': 1 + 7 * i % 9} if i % 7 else None for i in range(NUM_EXAMPLES)]


def batches(corpus=CORPUS):
  return sources.FrameBatches(extract, corpus, Config.sample_rate, seed=0)


@pytest.mark.parametrize('count', [2, 3, 4, 9])
@pytest.mark.parametrize('seconds', [1.0, 4.0, 1000.0])
def test_the_sample_does_not_depend_on_the_number_of_processes(count, seconds):
  """Lengths differ, so that some processes have their part before others; and of nine processes two
  have no batch.
  """
  wanted = sources.num_sample_frames(
    Config, dataclasses.replace(SemanticTokens(), sample_seconds=seconds)
  )
  alone = sources.joined([sources.sample_frames(batches(), wanted)], wanted, batches())
  shares = [sources.sample_frames(batches(), wanted, index, count) for index in range(count)]
  np.testing.assert_array_equal(sources.joined(shares, wanted, batches()), alone)
  total = sum(example['length'] for example in CORPUS if example is not None)
  assert len(alone) == min(wanted, total)
  if seconds == 1.0:
    held = [len(share) for share in shares]
    assert max(held) < len(batches()), 'a share is no more than its part'


def test_the_sample_is_bounded_and_the_error_names_a_size_that_works():
  sized = lambda seconds: sources.num_sample_frames(
    Config, dataclasses.replace(SemanticTokens(), sample_seconds=seconds)
  )
  with pytest.raises(ValueError, match='sample_seconds=1e.300 are .* frames') as error:
    sized(1e300)
  seconds = float(str(error.value).rpartition('=')[2])
  assert 0 <= sources.MAX_SAMPLE_FRAMES - sized(seconds) < Config.frame_rate
  for name in ('librilight', 'librilight_pretrained'):
    sized(recipe_lib.load(name).semantic_tokens.sample_seconds)  # 25 frames a second, as here


def test_a_corpus_that_cannot_be_read_is_named():
  with pytest.raises(ValueError, match='no example of the corpus could be read'):
    sources.joined([sources.sample_frames(batches([None] * 9), 10)], 10, batches([None] * 9))


class Held:
  """A corpus whose test split is a list."""

  def __init__(self, examples, sample_rate=RATE):
    self.sample_rate, self._examples = sample_rate, examples

  def examples(self, split, cache_dir):
    source = Listed(self._examples)
    source.sample_rate = self.sample_rate
    return source


class Listed(list):
  pass


def recipe_of(examples, sample_rate=RATE, **stages):
  evaluation = Evaluation(num_prompts=5, prompt_seconds=0.01, seconds=0.02)
  corpus = Held(examples, sample_rate)
  return folder.RECIPE.derived(stages, corpus=corpus, evaluation=evaluation)


def clip(seconds, **options):
  return {'waveform': np.full(round(seconds * RATE), seconds, np.float32), **options}


def test_prompts_of_any_corpus_last_through_the_continuation(tmp_path):
  examples = [clip(0.02), None, clip(0.03), clip(0.5), clip(0.029)]
  found = sources.prompts(recipe_of(examples), tmp_path, RATE)
  assert len(found) == 5 and {len(example['waveform']) for example in found} == {480}
  assert {round(float(example['waveform'][0]), 2) for example in found} == {0.03, 0.5}
  np.testing.assert_array_equal(found[0]['waveform'], found[2]['waveform'])  # in turn
  with pytest.raises(ValueError, match='no held-out utterance has the 0.03 s.*evaluation.seconds'):
    sources.prompts(recipe_of([clip(0.02)]), tmp_path, RATE)


def test_prompts_of_a_corpus_that_says_so_count(tmp_path):
  counting = [clip(0.01, kind='counting', speaker=n % 2, text=str(n)) for n in range(4)]
  examples = [clip(1.0, kind='sentences', speaker=0), *counting]
  found = sources.prompts(recipe_of(examples), tmp_path, RATE)
  assert {example['text'] for example in found} == set('0123')
  judged = sources.prompts(
    recipe_of(examples, speaker=tiny.RECIPE.stages['speaker']), tmp_path, RATE
  )
  # Of voice 0 the second of three, of voice 1 the second of two; they take turns.
  assert [(e['text'], int(e['label'])) for e in judged] == [('0', 0), ('3', 1)] * 2 + [('0', 0)]


def test_voices_of_any_corpus_that_tells_them_are_labelled(tmp_path):
  examples = [clip(0.1, speaker=np.int32(voice)) for voice in (17, 4, 17, 4, 17)]
  enrolled, judged = sources.held_out_voices(recipe_of(examples), tmp_path)
  assert [int(example['label']) for example in enrolled] == [0, 1, 1]
  assert [int(example['label']) for example in judged] == [0, 1]
  with pytest.raises(ValueError, match='1 of 6 .*no speaker.*--set corpus.speaker_folders=True'):
    sources.held_out_voices(recipe_of([*examples, clip(0.1)]), tmp_path)
  with pytest.raises(ValueError, match='no utterances that are known to count'):
    sources.counting_voices(recipe_of(examples), tmp_path)


def test_more_voices_than_the_classifier_tells_apart_are_refused(tmp_path, monkeypatch):
  model = dataclasses.replace(tiny.RECIPE.stages['speaker'].model, num_classes=2)
  stage = dataclasses.replace(tiny.RECIPE.stages['speaker'], model=model)
  monkeypatch.setattr(sources.workspace, 'load_codec', lambda workdir: None)
  examples = [clip(0.1, speaker=np.int32(voice)) for voice in (0, 1, 2)]
  with pytest.raises(ValueError, match='3 voices.*--set speaker.model.num_classes=3'):
    inputs.of_stage(recipe_of(examples, speaker=stage), 'speaker', tmp_path)


@pytest.mark.parametrize('held_out', [[], [None, None]])
def test_no_held_out_example_is_found_before_training(tmp_path, held_out):
  class Corpus(Held):
    def examples(self, split, cache_dir):
      self._examples = [clip(0.1)] if split == 'train' else held_out
      return super().examples(split, cache_dir)

  recipe = dataclasses.replace(folder.RECIPE, corpus=Corpus(None))
  message = f'stage soundstream: none of its {len(held_out)} held-out examples can be read'
  with pytest.raises(ValueError, match=message):
    inputs.of_stage(recipe, 'soundstream', tmp_path)


def test_a_clip_of_which_resampling_leaves_nothing_is_left_out_by_name(tmp_path):
  audio.save(tmp_path / 'one.wav', np.full(1, 0.5, np.float32), RATE)
  source = folders.examples(tmp_path, RATE, max_bad_fraction=1.0)
  assert sources.Resampled(source, 4_000)[0] is None
  assert source.bad == {0: 'too short: no samples are left at 4000 Hz'}


def test_words_keep_their_times_when_they_are_resampled():
  source = Listed([clip(1.0, words=[('one', 1600, 8000)])])
  source.sample_rate = RATE
  example = sources.Resampled(source, 24_000)[0]
  assert example['words'] == [('one', 2400, 12_000)] and len(example['waveform']) == 24_000


def test_training_says_how_many_files_are_left_out_and_where_they_are_listed(tmp_path, capsys):
  for name in ('train', 'test'):
    (tmp_path / name).mkdir()
    audio.save(tmp_path / name / '0.wav', np.full(RATE, 0.1, np.float32), RATE)
  (tmp_path / 'train/._0.wav').write_bytes(b'')
  (tmp_path / 'train/1.m4a').write_bytes(b'x')
  roots = dict(root=str(tmp_path / 'train'), test_root=str(tmp_path / 'test'))
  recipe = dataclasses.replace(folder.RECIPE, corpus=corpora.Folder(**roots))
  inputs.of_stage(recipe, 'soundstream', tmp_path)
  said = f'2 files are skipped, with reasons in {tmp_path}/corpus/skipped.jsonl\n'
  assert capsys.readouterr().err == said
