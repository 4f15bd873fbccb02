"""The suite of music from texts: columns by hand, and the whole on toy models and clips."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import generation, joint_embedding, music_generation
from audiolm_jax.data import texts
from audiolm_jax.embedding_tokens import Quantizer
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import musicnn
from audiolm_jax.stages.base import Condition
from audiolm_jax.tokenizer import MusicTokenizer, Tokenizer
from experiments import evaluations, sources, workspace
from experiments.evaluations import music
from experiments.recipe import Evaluation
from experiments.recipes import tiny, tiny_music
from tests import toys

CONDITION = Condition(levels=2, size=4, windows=2, dropout=0.1)
SYSTEM = 'SoundStorm'


class Source(list):
  sample_rate = toys.RATE


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Clips of 2 s: loud pianos at a slow tempo and soft flutes at a fast one, in turn."""

  count: int = 4
  without: tuple[str, ...] = ()

  def examples(self, split, cache_dir):
    assert split == 'test'
    return Source(self._example(n) for n in range(self.count))

  def _example(self, n):
    is_loud = n % 2 == 0
    whole = {
      'waveform': (1.0 if is_loud else 0.1) * toys.noise(2.0, seed=n),
      'texts': texts.encode([f'{"piano" if is_loud else "flute"} {n}', 'music'], 16),
      'instrument': np.int32(0 if is_loud else 3),
      'dynamics': np.int32(is_loud),
      'tempo': np.int32(0 if is_loud else 2),
    }
    return {name: value for name, value in whole.items() if name not in self.without}


def recipe(corpus=Corpus(), num_prompts=4):
  settings = Evaluation(num_prompts=num_prompts, prompt_seconds=1.0, seconds=1.0, carry_seconds=0.4)
  return dataclasses.replace(
    tiny_music.RECIPE, corpus=corpus, evaluation=settings, sampling=toys.SAMPLING
  )


@pytest.fixture
def models(monkeypatch):
  """Toy models of which the semantic stage and SoundStorm have a condition."""
  own = toys.models()
  vectors_QKD = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)
  embedding = joint_embedding.of_mulan(*toys.model('mulan')[:2])
  conditioned = lambda name: toys.with_random_weights(
    dataclasses.replace(toys.CONFIGS[name], condition=CONDITION)
  )
  made = own._replace(
    tokenizer=Tokenizer(
      own.tokenizer.codec,
      own.tokenizer.semantic,
      MusicTokenizer(embedding, Quantizer(jnp.asarray(vectors_QKD))),
    ),
    semantic=conditioned('semantic'),
    soundstorm=conditioned('soundstorm'),
    coarse=None,
    fine=None,
  )
  monkeypatch.setattr(workspace, 'load_models', lambda workdir: made)
  monkeypatch.setattr(workspace, 'load_embedding', lambda workdir: embedding)
  monkeypatch.setattr(sources, 'reconstructions', lambda examples, workdir: examples)
  return made


def test_music_of_toy_models_is_held_to_its_own_and_to_other_texts(models, tmp_path, monkeypatch):
  """The judge of tags hears a piano in loud clips and a flute in soft ones."""
  column_of = {name: musicnn.TAGS.index(name) for name in ('piano', 'flute')}

  def tag(wave_T, sample_rate):
    assert sample_rate == toys.RATE
    loudness = np.sqrt(np.mean(wave_T**2))
    tag_V = np.full(len(musicnn.TAGS), 0.5)
    tag_V[[column_of['piano'], column_of['flute']]] = loudness, 1 - loudness
    return tag_V

  monkeypatch.setattr(music, 'MUSICNN_SECONDS', 1.0)
  monkeypatch.setattr(musicnn, 'folder', lambda: None)
  monkeypatch.setattr(musicnn, 'tagger', lambda: tag)
  found = music.measure(recipe(), tmp_path)

  titles = [f'{name}, {SYSTEM}' for name in (music.TEXT, music.OTHER, music.NONE)]
  for rows in (found['rows'], found['instruments']['rows'], found['tempi']['rows']):
    assert list(rows) == [music.REAL, *titles]
  real, asked, other, _ = found['rows'].values()
  assert real['dynamics'] == 1 == real['musicnn_auc']
  assert real['dynamics_low'] == pytest.approx(4 / (4 + 1.96**2), abs=1e-4)  # Wilson's, all right
  assert asked['similarity'] == pytest.approx(other['similarity_other'])
  assert asked['similarity_other'] == pytest.approx(other['similarity'])
  assert asked['nearer'] + other['nearer'] == 1
  assert found['instruments']['rows'][music.REAL] == {
    'piano': 1, 'harp': None, 'choir': None, 'flute': 1, 'cello': None, 'sitar': None
  }  # fmt: skip
  counts = [found['tempi']['rows'][music.REAL][f'clips_{name}'] for name in ('slow', 'medium')]
  assert counts == [2, 0] and found['clips'] == 4 and found['seconds'] == 2

  # The loss of the stage on the same tokens is another way to the nats.
  examples = music.held_out(recipe(), tmp_path, toys.RATE)
  clips = music.clips_of(examples, seed=0)
  assert sorted(clips.texts) == ['flute 1', 'flute 3', 'piano 0', 'piano 2']
  stage, (params, state) = models.semantic.config.make(), models.semantic.variables
  batch = {
    'semantic': models.tokenizer.encode(clips.wave_BT)[0],
    CONDITION.name: models.tokenizer.music.texts(clips.texts)[:, None],
  }
  rows = found['semantic']['rows']
  loss = jax.jit(lambda batch: stage.loss(params, state, batch, None)[0])
  assert rows['own text']['nats'] == pytest.approx(float(loss(batch)), rel=1e-5)
  hidden = batch | {CONDITION.name: np.full_like(batch[CONDITION.name], -1)}
  assert rows['no condition']['nats'] == pytest.approx(float(loss(hidden)), rel=1e-5)
  assert list(rows) == ['own text', music.OTHER, 'own audio', 'no condition']
  assert found['left_out'] == {
    'coarse and fine': 'its stage is not trained',
    'instrument accuracy': 'no stage classifies instruments',
  }
  text = evaluations.table({'music': found})
  for title in ('music (', 'music, instruments', 'music, tempi', 'music, semantic'):
    assert f'\n{title}' in text


def test_recipes_without_conditions_are_left_out_by_name(tmp_path):
  found = evaluations.SUITES['music'](tiny.RECIPE, tmp_path)
  assert found['rows'] == {}
  text = evaluations.table({'music': found})
  assert text.strip() == (
    'music: music from texts left out: no stage of the recipe has a condition, so that texts '
    'control nothing'
  )


@pytest.mark.parametrize(
  'corpus, reason',
  [
    (Corpus(without=('texts',)), 'does not have a text of every clip'),
    (Corpus(count=1), 'no other clip for the control'),
  ],
)
def test_a_corpus_without_texts_or_with_a_single_clip_is_left_out(
  tmp_path, monkeypatch, corpus, reason
):
  """It is so before anything is generated: the models know their rate only."""
  models = types.SimpleNamespace(tokenizer=types.SimpleNamespace(sample_rate=toys.RATE))
  monkeypatch.setattr(workspace, 'load_models', lambda workdir: models)
  found = music.measure(recipe(corpus), tmp_path)
  assert found['rows'] == {} and reason in found['left_out']['music from texts']


def test_clips_are_not_repeated_where_fewer_are_held_out(tmp_path):
  found = music.held_out(recipe(Corpus(count=3), num_prompts=8), tmp_path, toys.RATE)
  assert len(found) == 3 and len({example['waveform'].tobytes() for example in found}) == 3


@pytest.mark.parametrize('count', [2, 3, 8])
def test_each_clip_has_another_one(count):
  for seed in range(5):
    other_B = music.others(count, seed)
    assert sorted(other_B) == list(range(count)) and (other_B != np.arange(count)).all()
  assert any((music.others(8, 0) != music.others(8, seed)).any() for seed in (1, 2))


def test_similarity_to_the_text_and_to_the_other():
  audio_BD = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  found = music.similarity(audio_BD, audio_BD[[0, 0, 2]], audio_BD[[1, 1, 0]])
  assert found['similarity'] == pytest.approx(2 / 3)  # 1, 0, 1
  assert found['similarity_other'] == pytest.approx(1.6 / 3)  # 0, 1, 0.6
  assert found['nearer'] == pytest.approx(2 / 3)
  assert 0 < found['nearer_low'] < 2 / 3 < found['nearer_high'] < 1


def test_dynamics_by_the_level_of_the_real_clips():
  level_B, label_B = (
    np.array([0.1, 0.3, 0.2, 0.9]),
    np.array([0, 0, 1, 1]),
  )  # soft, soft, loud, loud
  assert music.dynamics(level_B, label_B, 0.15)['dynamics'] == 0.75
  assert music.dynamics(level_B, 1 - label_B, 0.15)['dynamics'] == 0.25


def test_areas_of_the_tags_of_instruments():
  tag_BV = np.zeros((4, len(musicnn.TAGS)))
  tag_BV[:, musicnn.TAGS.index('harp')] = [0.9, 0.1, 0.2, 0.3]
  tag_BV[:, musicnn.TAGS.index('sitar')] = [0.1, 0.2, 0.0, 0.3]
  found = music.areas(tag_BV, np.array([1, 5, 5, 1]))  # harp, sitar, sitar, harp
  assert found['harp'] == 1 and found['sitar'] == pytest.approx(0.25)  # 1 of 4 pairs
  assert [found[name] for name in ('piano', 'choir', 'flute', 'cello')] == [None] * 4


def test_onsets_by_tempo():
  found = music.onsets(np.array([1.0, 2.0, 6.0, 1.0]), np.array([0, 0, 2, 2]))
  assert (found['slow'], found['medium'], found['fast']) == (1.5, None, 3.5)
  assert [found[f'clips_{name}'] for name in ('slow', 'medium', 'fast')] == [2, 0, 2]
  assert found['fast_above_slow'] == pytest.approx(2.5 / 4)  # 6 above both, 1 ties with one
  assert music.onsets(np.array([1.0]), np.array([1]))['fast_above_slow'] is None


def test_columns_that_labels_length_or_packages_do_not_allow_are_named(monkeypatch):
  def missing():
    raise UserError('musicnn is not installed: run it')

  monkeypatch.setattr(musicnn, 'folder', missing)
  labels = dict.fromkeys(('instrument', 'dynamics', 'tempo'))
  assert music.unmeasured(labels, 5.0)['musicnn_auc'] == 'musicnn is not installed: run it'
  assert music.unmeasured(labels, 2.0)['musicnn_auc'].endswith('3 s, the clips have 2 s')
  assert set(music.unmeasured({}, 5.0)) == {*music.COLUMNS, 'instrument accuracy'}


def test_systems_that_texts_cannot_control_are_named(monkeypatch):
  """Generation is stubbed: it returns a number for what was asked."""
  wave = lambda sample: np.full((4, 99), sample, np.float32)
  from_texts = lambda *a, **o: types.SimpleNamespace(audio=types.SimpleNamespace(wave_BT=wave(1)))
  free = lambda *a, **o: types.SimpleNamespace(wave_BT=wave(2))
  monkeypatch.setattr(music_generation, 'from_texts', from_texts)
  monkeypatch.setattr(generation, 'generate_unconditional', free)
  stage = lambda condition, deduplicate=False: types.SimpleNamespace(
    config=types.SimpleNamespace(condition=condition, deduplicate=deduplicate)
  )
  clips = music.Clips(np.zeros((4, 80)), ['text'] * 4, {}, music.others(4, 0))
  tokenizer = types.SimpleNamespace(sample_rate=80)

  def made(semantic, coarse, soundstorm):
    models = generation.Models(tokenizer, semantic, coarse=coarse, soundstorm=soundstorm)
    waves, left_out = music.generated(recipe(), models, clips)
    assert all(wave_BT.shape == (4, 80) for wave_BT in waves.values())
    return {name: int(wave_BT[0, 0]) for name, wave_BT in waves.items()}, left_out

  undropped = Condition(levels=2, size=4)
  autoregressive = 'coarse and fine'
  waves, left_out = made(stage(CONDITION, deduplicate=True), stage(None), stage(CONDITION))
  assert waves == {f'{music.TEXT}, {autoregressive}': 1, f'{music.NONE}, {autoregressive}': 2}
  assert left_out == {SYSTEM: 'it needs a semantic stage with deduplicate=False'}
  waves, left_out = made(stage(None), stage(None), stage(undropped))
  assert waves == {f'{music.TEXT}, {SYSTEM}': 1}
  assert left_out == {
    autoregressive: 'its stages have no condition',
    f'{music.NONE}, {SYSTEM}': 'a stage was trained without condition.dropout',
  }
