"""Suites on a corpus that tells no numbers, phones or speakers: the rest is measured. Models are
stubs.
"""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import audio, generation, kmeans
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.stages.base import Model
from experiments import corpora, evaluations, sources, workspace
from experiments.evaluations import acoustic, continuation, external_judges, judges, tokens
from experiments.recipe import Evaluation
from experiments.recipes import folder

RATE, HOP = 16_000, 320
CODEC = types.SimpleNamespace(sample_rate=RATE, hop_length=HOP)
SETTINGS = Evaluation(num_prompts=3, num_clips=4, prompt_seconds=0.4, seconds=0.4)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
  random = np.random.default_rng(0)
  for voice in ('ann', 'bob'):
    for side in ('train', 'test'):
      (tmp_path / side / voice).mkdir(parents=True)
      for index in range(2):
        gain = 0.01 if voice == 'ann' else 0.1
        wave_T = gain * random.uniform(0.9, 1, 14_000).astype(np.float32)
        audio.save(tmp_path / side / voice / f'{index}.wav', wave_T, RATE)
  for judge in (external_judges.whisper, external_judges.d_vector):
    monkeypatch.setattr(judge, 'missing', lambda: ['a judge'])
  monkeypatch.setattr(sources, 'reconstructions', lambda examples, workdir: examples)
  monkeypatch.setattr(workspace, 'load_stage', lambda workdir, name: Model(CODEC, None))
  corpus = corpora.Folder(root=str(tmp_path / 'train'), test_root=str(tmp_path / 'test'))
  return dataclasses.replace(folder.RECIPE, corpus=corpus, evaluation=SETTINGS)


def test_continuations_are_measured_as_far_as_the_corpus_tells(recipe, tmp_path, monkeypatch):
  asked = []

  def continuations(recipe, workdir, prompts, end):
    asked.extend(len(prompt_T) for prompt_T in prompts)
    return {'continuation': [np.zeros(end, np.float32)] * len(prompts)}

  monkeypatch.setattr(continuation, 'continuations', continuations)
  found = continuation.measure(recipe, tmp_path)
  assert asked == [6400] * 3
  assert {name: row['clips'] for name, row in found['rows'].items()} == {
    continuation.ORIGINAL: 3,
    'continuation': 3,
  }
  assert found['left_out'].keys() == {'voices', 'numbers'}
  assert found['left_out']['numbers'] == 'the recipe has no stage numbers'
  text = evaluations.table({'continuation': found})
  reason = 'the recipe has no stage speaker, and a judge is not installed: run `pip install -e'
  assert f'continuation: voices left out: {reason}' in text


def test_acoustic_stages_are_measured_as_far_as_the_corpus_tells(recipe, tmp_path, monkeypatch):
  tokenizer = types.SimpleNamespace(
    codec=CODEC, sample_rate=RATE, encode=lambda *arguments: (codes_BFQ[..., 0], codes_BFQ)
  )
  models = types.SimpleNamespace(tokenizer=tokenizer, soundstorm=None, coarse='there')
  codes_BFQ = np.arange(3 * 40 * 2).reshape(3, 40, 2) % 7
  other_BFQ = codes_BFQ.copy()
  other_BFQ[:, 20:30, 0] += 1  # half of what follows the prompt, of one of two levels
  half_BT = np.full((3, 12_800), 0.05, np.float32)
  monkeypatch.setattr(workspace, 'load_models', lambda workdir: models)
  result = types.SimpleNamespace(wave_BT=half_BT, num_frames_B=[40] * 3, codes_BFQ=other_BFQ)
  monkeypatch.setattr(generation, 'generate_acoustics', lambda *arguments, **options: result)
  distance = lambda a_BT, b_BT, rate: jnp.abs(a_BT - b_BT).mean(axis=1)
  monkeypatch.setattr(codec_metrics, 'log_mel_distance', distance)  # compiles long
  found = acoustic.measure(recipe, tmp_path)
  row = found['rows']['coarse and fine']
  assert (row['codes_level_1'], row['codes']) == (0.5, 0.75)
  prompts = sources.prompts(recipe, tmp_path, RATE)
  expected = [np.abs(e['waveform'][6400:] - half_BT[0, 6400:]).mean() for e in prompts]
  assert row['mel_distance'] == pytest.approx(np.mean(expected), rel=1e-4)
  assert set(found['left_out']) == {'voices', 'numbers', 'words'}
  assert found['rows']['original, through the codec']['codes'] == 1


@pytest.fixture
def d_vectors(monkeypatch):
  """d-vectors by hand: of each second, its mean and what is left of 0.06."""

  def embed(wave_T, rate):
    assert rate == RATE
    mean_N = wave_T[: len(wave_T) // rate * rate].reshape(-1, rate).mean(axis=1)
    return np.stack([mean_N, 0.06 - mean_N], axis=1)

  monkeypatch.setattr(external_judges.d_vector, 'missing', lambda: [])
  monkeypatch.setattr(external_judges.d_vector, 'embedder', lambda: embed)


def test_voices_of_people_are_judged_by_d_vectors(recipe, tmp_path, monkeypatch, d_vectors):
  """Continuations all in the voice of ann."""
  long = dataclasses.replace(SETTINGS, num_prompts=4, prompt_seconds=1.0, seconds=2.0)
  for voice, gain in (('ann', 0.01), ('bob', 0.1)):
    for path in (tmp_path / 'test' / voice).iterdir():
      path.unlink()
      audio.save(path, np.full(3 * RATE, gain, np.float32), RATE)
  corpus = dataclasses.replace(recipe.corpus, speaker_folders=True)
  recipe = dataclasses.replace(recipe, corpus=corpus, evaluation=long)
  ann_T = np.full(3 * RATE, 0.01, np.float32)
  continued = lambda recipe, workdir, prompts, end: {'continuation': [ann_T] * len(prompts)}
  monkeypatch.setattr(continuation, 'continuations', continued)
  found = continuation.measure(recipe, tmp_path)
  assert set(found['left_out']) == {'numbers'} and 'chance_speaker' not in found
  original, continued = (found['rows'][name] for name in (continuation.ORIGINAL, 'continuation'))
  assert original['verified'] == pytest.approx(1) and original['verification_error'] == 0
  assert original['other_voices'] == pytest.approx(-1)
  assert continued['verified'] == pytest.approx(0) == pytest.approx(continued['other_voices'])
  assert continued['verification_error'] == pytest.approx(0.5)
  over_time = found['similarity_over_time']
  np.testing.assert_allclose(over_time[continuation.ORIGINAL], [1, 1], atol=1e-6)
  assert max(over_time['other voices, through the codec']) < max(over_time['continuation']) < 1


def test_short_parts_and_unknown_speakers_have_no_d_vectors_or_verification(recipe, d_vectors):
  judged = judges.load(recipe, None)
  assert 'voices' in judges.left_out(judged, [{'speaker': 3}], 0.4)
  assert set(judges.left_out(judged, [{'speaker': 3}])) == {'numbers'}
  for unknown in ({}, {'speaker': -1}):
    assert 'verification' in judges.left_out(judged, [{'speaker': 3}, unknown])


class Encoder:
  """Frames of 40 ms: their mean, which tells the voices of these clips apart."""

  frame_rate, sample_rate, hop_length, config = 25.0, RATE, 640, None

  def features(self, wave_BT):
    frames_BSN = wave_BT.reshape(len(wave_BT), -1, 640)
    return jnp.log(frames_BSN.mean(axis=-1, keepdims=True) + 1e-6)


def measured(recipe, tmp_path, monkeypatch):
  centroids_KD = jnp.log(jnp.array([[0.01], [0.1]]))
  quantizer = kmeans.SemanticQuantizer(
    mean_D=jnp.zeros(1), scale_D=jnp.ones(1), centroids_KD=centroids_KD
  )
  loaded = types.SimpleNamespace(encoder=Encoder(), quantizer=quantizer)
  monkeypatch.setattr(workspace, 'load_semantic_tokenizer', lambda workdir: loaded)
  settings = dataclasses.replace(folder.RECIPE.semantic_tokens, num_clusters=2, sample_seconds=3.0)
  recipe = dataclasses.replace(recipe, semantic_tokens=settings)
  features = lambda config, wave_BT, **options: Encoder().features(wave_BT)
  monkeypatch.setattr(tokens.log_mel, 'features', features)  # compiles long
  monkeypatch.setattr(tokens.token_comparison, 'measure', lambda recipe, workdir: {'rows': {}})
  return tokens.measure(recipe, tmp_path)


def test_tokens_tell_of_speakers_where_the_corpus_has_no_phones(recipe, tmp_path, monkeypatch):
  corpus = dataclasses.replace(recipe.corpus, speaker_folders=True)
  found = measured(dataclasses.replace(recipe, corpus=corpus), tmp_path, monkeypatch)
  assert found['rows']['w2v-BERT'] == {'speaker_nmi': pytest.approx(1.0)}
  assert len(found['rows']) == 4
  assert found['frames_of_speakers'] == 4 * 22  # of 640 samples in 14,000
  assert set(found['left_out']) == {'phones', 'ABX'}


class WithPhones:
  """The corpus, and a split of two clips whose phones are the two voices, with two errors each."""

  PHONES = 'labelled'

  def __init__(self, corpus):
    self._corpus = corpus

  def examples(self, split, cache_dir):
    if split != self.PHONES:
      return self._corpus.examples(split, cache_dir)
    wave_T = np.tile(np.array([0.01, 0.1], np.float32).repeat(640), 5)
    phones_S = np.tile(np.array([0, 1], np.int32), 5)
    phones_S[:3] = 0, 0, 1
    return Labelled([{'waveform': wave_T, 'phones': phones_S}] * 2)


class Labelled(list):
  sample_rate = RATE


def test_phones_are_those_of_the_corpus_own_split(recipe, tmp_path, monkeypatch):
  corpus = WithPhones(dataclasses.replace(recipe.corpus, speaker_folders=True))
  found = measured(dataclasses.replace(recipe, corpus=corpus), tmp_path, monkeypatch)
  row = found['rows']['w2v-BERT']
  assert row['phone_purity'] == pytest.approx(8 / 10) and row['speaker_nmi'] == pytest.approx(1.0)
  assert (found['frames_of_phones'], found['frames_of_speakers']) == (2 * 10, 4 * 22)
  assert set(found['left_out']) == {'ABX'}


def test_tokens_of_a_corpus_that_tells_nothing_have_no_rows_and_say_why(
  recipe, tmp_path, monkeypatch
):
  found = measured(recipe, tmp_path, monkeypatch)
  assert found['rows'] == {} and set(found['left_out']) == {'phones', 'speakers', 'ABX'}


def test_judges_that_the_recipe_has_are_asked_for_and_others_left_out(recipe, tmp_path):
  assert judges.load(recipe, tmp_path) == (None, None, None)
  numbers = recipe.derived({'numbers': 'a stage'})
  judged = judges.load(numbers, tmp_path)
  assert judged.speaker is None and judged.numbers.config is CODEC
  assert judges.left_out(judged, [{'kind': 'counting'}]).keys() == {'voices'}
  assert judges.left_out(judged, [{}])['numbers'] == 'the corpus does not say who counts'
