"""The suite of music from texts: columns by hand, and the whole on toy models and clips."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import audio, chain, generation, joint_embedding, music_generation
from audiolm_jax.data import music as music_data
from audiolm_jax.data import rendering, texts
from audiolm_jax.embedding_tokens import Quantizer
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import attributes
from audiolm_jax.nn.text_encoder import TextEncoderConfig
from audiolm_jax.pretrained import musicnn
from audiolm_jax.stages.base import Condition
from audiolm_jax.tokenizer import MusicTokenizer, Tokenizer
from experiments import evaluations, sources, workspace
from experiments.corpora import Captioned, Music
from experiments.evaluations import music, music_judges, music_long, music_probes, music_prompts
from experiments.recipe import Evaluation
from experiments.recipes import tiny, tiny_music
from tests import toys

CONDITION = Condition(levels=2, size=4, windows=2, dropout=0.1)
SYSTEM = 'SoundStorm'


class Source(list):
  sample_rate = toys.RATE


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Clips of 2 s: loud pianos at a slow tempo and soft flutes at a fast one, in turn.

  The split 'pairs' has fast harps and cellos of medium tempo.
  """

  count: int = 4
  without: tuple[str, ...] = ()

  def examples(self, split, cache_dir):
    return Source(self._example(n, split == 'pairs') for n in range(self.count))

  def _example(self, n, has_pair):
    is_loud = n % 2 == 0
    labels = ((1, 2), (4, 1)) if has_pair else ((0, 0), (3, 2))
    instrument, tempo = labels[n % 2]
    whole = {
      'waveform': (1.0 if is_loud else 0.1) * toys.noise(2.0, seed=n),
      'texts': texts.encode([f'{"piano" if is_loud else "flute"} {n}', 'music'], 16),
      'unseen_texts': texts.encode([f'{"pianist" if is_loud else "flutist"} {n}'], 16),
      'instrument': np.int32(instrument),
      'dynamics': np.int32(is_loud),
      'tempo': np.int32(tempo),
    }
    return {name: value for name, value in whole.items() if name not in self.without}


def recipe(corpus=Corpus(), num_prompts=4):
  settings = Evaluation(
    num_prompts=num_prompts,
    prompt_seconds=1.0,
    seconds=1.0,
    carry_seconds=0.4,
    num_long_clips=2,
    long_seconds=16.0,
  )
  return dataclasses.replace(
    tiny_music.RECIPE, corpus=corpus, evaluation=settings, sampling=toys.SAMPLING
  )


@pytest.fixture
def models(monkeypatch):
  """Toy models of which the semantic stage and SoundStorm have a condition."""
  own = toys.models()
  vectors_QKD = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)
  reads_long_texts = TextEncoderConfig(num_bytes=96, transformer=toys.TRANSFORMER)
  config = dataclasses.replace(toys.CONFIGS['mulan'], text=reads_long_texts)
  embedding = joint_embedding.of_mulan(*toys.with_random_weights(config)[:2])
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
  monkeypatch.setattr(sources, 'reconstructions', lambda examples, workdir: examples)
  return made


class ByLevel:
  """A judge that hears one value in loud clips and another one in soft ones."""

  def __init__(self, loud, soft):
    self._loud, self._soft = loud, soft

  def predict(self, features_ND):
    return np.where(features_ND[:, -1] > np.log(0.1), self._loud, self._soft)


def listen(wave_T, sample_rate):
  """Hears a piano in loud clips and a flute in soft ones."""
  assert sample_rate == toys.RATE
  loudness = np.sqrt(np.mean(wave_T**2))
  tag_V = np.full(len(musicnn.TAGS), 0.5)
  tag_V[[musicnn.TAGS.index(name) for name in ('piano', 'flute')]] = loudness, 1 - loudness
  return musicnn.Heard(tag_V, np.array([loudness, 0.0]))


def test_music_of_toy_models_is_held_to_its_own_and_to_other_prompts(models, tmp_path, monkeypatch):
  """The judges hear a slow piano in loud clips and a fast flute in soft ones."""
  by_level = {'instrument': ByLevel(0, 3), 'tempo': ByLevel(0, 2)}
  judges = music_judges.Judges(models.tokenizer.music.embedding, by_level, listen)
  monkeypatch.setattr(music_judges, 'load', lambda *arguments: (judges, {}))
  found = music.measure(recipe(), tmp_path)

  titles = [
    f'{name}, {SYSTEM}'
    for name in ('text prompt', "other clip's text", 'audio prompt', "other clip's audio")
  ]
  titles = [music.REAL, *titles, f'unconditional, {SYSTEM}']
  for part in (found, *(found[name] for name in ('accuracy', 'instruments', 'tempi'))):
    assert list(part['rows']) == titles
  real, asked, other = (found['rows'][title] for title in titles[:3])
  assert real['dynamics'] == 1 == real['musicnn_auc']
  assert real['dynamics_low'] == pytest.approx(4 / (4 + 1.96**2), abs=1e-4)  # Wilson's, all right
  assert real['frechet_mulan'] == pytest.approx(
    0, abs=1e-9
  )  # the codec of the test changes nothing
  assert real['frechet_musicnn'] == pytest.approx(0, abs=1e-9) and asked['frechet_musicnn'] > 0
  assert asked['similarity'] == pytest.approx(other['similarity_other'])
  assert asked['similarity_other'] == pytest.approx(other['similarity'])
  assert asked['nearer'] + other['nearer'] == 1 and 'frechet_mulan' not in other
  assert set(found['accuracy']['rows'][music.REAL]) == {
    f'{name}{end}' for name in ('instrument', 'tempo') for end in ('', '_low', '_high')
  }
  assert [found['accuracy']['rows'][music.REAL][name] for name in by_level] == [1, 1]
  assert found['instruments']['rows'][music.REAL] == {
    'piano': 1, 'harp': None, 'choir': None, 'flute': 1, 'cello': None, 'sitar': None
  }  # fmt: skip
  counts = [found['tempi']['rows'][music.REAL][f'clips_{name}'] for name in ('slow', 'medium')]
  assert counts == [2, 0] and found['clips'] == 4 and found['seconds'] == 2

  # The loss of the stage on the same tokens is another way to the nats.
  examples = music_prompts.held_out(recipe(), tmp_path, toys.RATE)
  clips = music_prompts.clips_of(examples, seed=0)
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
  assert list(rows) == ['own text', "other clip's text", 'own audio', 'no condition']

  assert list(found['embedding']['rows']) == [
    music_probes.TRAINED_WORDS, music_probes.UNSEEN_WORDS
  ]  # fmt: skip
  rows = found['memorization']['rows']
  assert list(rows) == ['prompt of 0 s', 'prompt of 0.48 s', 'prompt of 1 s']  # 0, 12, 25 tokens
  assert all(row['tokens'] == 25 and row['clips'] == 4 for row in rows.values())
  # Harps and cellos, which neither judge ever hears: 0 and the tempo of the loud or the soft clips.
  rows = found['pairs']['rows']
  assert list(rows) == titles[:3] and rows[music.REAL]['both'] == 0 == rows[music.REAL]['first']
  assert rows[music.REAL]['clips'] == 4 == found['pairs']['clips']
  assert list(found['stories']['rows']) == [music_long.TWO_TEXTS, music_long.SAME_TEXT]
  rows = found['drift']['rows']
  assert list(rows)[::7] == ['0 to 2 s', '14 to 16 s'] and len(rows) == 8
  assert rows['0 to 2 s']['pitch_distance'] == 0 < rows['14 to 16 s']['pitch_distance']
  assert found['left_out'] == {
    'melody': 'the models read no melodies',
    'coarse and fine': 'its stage is not trained',
    'without semantic stage': 'the stage acoustic_only is not trained',
  }
  text = evaluations.table({'music': found})
  for title in ('music (', 'music, accuracy', 'music, pairs', 'music, semantic', 'music, drift'):
    assert f'\n{title}' in text


def test_real_files_of_musiccaps_are_measured_as_far_as_their_captions_tell(
  models, tmp_path, monkeypatch
):
  """The clips are from 30 s to 32 s in tracks named by their ytid; all are held out."""
  lines = ['ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,'
           'is_balanced_subset,is_audioset_eval']  # fmt: skip
  (tmp_path / 'clips').mkdir()
  for n, name in enumerate(('-0Gj8-vB1q4', '-0SdAVK79lg', '-0vPFx-wRRI')):
    wave_T = np.pad(toys.noise(2.0, seed=n), (30 * toys.RATE, toys.RATE))
    audio.save(tmp_path / f'clips/{name}.wav', wave_T, toys.RATE)
    lines.append(f'{name},30,32,"/m/04rlf","[\'sad\']","A sad, slow song {n}.",4,False,True')
  (tmp_path / 'musiccaps-public.csv').write_text('\n'.join(lines) + '\n')
  corpus = Captioned(
    root=str(tmp_path / 'clips'),
    captions=str(tmp_path / 'musiccaps-public.csv'),
    sample_rate=toys.RATE,
    held_out=1.0,
  )
  monkeypatch.setattr(musicnn, 'listener', lambda: listen)
  settings = dataclasses.replace(recipe().evaluation, long_seconds=2.0)
  found = music.measure(dataclasses.replace(recipe(corpus, 3), evaluation=settings), tmp_path)
  assert found['clips'] == 3
  assert found['rows'][music.REAL]['similarity'] != 0
  assert {'nearer', 'recall_1', 'frechet_mulan'} <= set(found['rows'][music.REAL])
  assert 'dynamics' not in found['rows'][music.REAL] and 'accuracy' not in found
  assert set(found['semantic']['rows']) >= {'own text', "other clip's text"}
  assert found['left_out'].keys() >= {
    'attributes', 'dynamics', 'tempi', 'musicnn_auc', 'embedding', 'memorization', 'pairs',
    'stories', 'drift',
  }  # fmt: skip
  assert 'none was trained on' in found['left_out']['memorization']
  text = evaluations.table({'music': found})
  assert 'paper: MusicLM' in text and 'music: dynamics left out: the corpus does not name' in text


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
  found = music_prompts.held_out(recipe(Corpus(count=3), num_prompts=8), tmp_path, toys.RATE)
  assert len(found) == 3 and len({example['waveform'].tobytes() for example in found}) == 3


@pytest.mark.parametrize('count', [2, 3, 8])
def test_each_clip_has_another_one(count):
  for seed in range(5):
    other_B = music_prompts.others(count, seed)
    assert sorted(other_B) == list(range(count)) and (other_B != np.arange(count)).all()
  assert any((music_prompts.others(8, 0) != music_prompts.others(8, seed)).any() for seed in (1, 2))


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


def test_recall_counts_the_clips_that_are_more_similar_to_a_text():
  text_BD = np.eye(12)
  audio_BD = np.eye(12)
  audio_BD[1, 0] = 2.0  # nearer to the text 0 than the clip 0
  audio_BD[1:, 11] = 3.0  # 10 clips are nearer to the text 11 than the clip 11, which ties
  audio_BD[11, 11] = 2.5
  found = music_probes.recalls(audio_BD, text_BD, np.arange(12))
  assert found == {'recall_1': pytest.approx(10 / 12), 'recall_10': pytest.approx(11 / 12)}
  assert list(music_probes.recalls(audio_BD[:4], text_BD[:4], np.arange(4))) == ['recall_1']
  moved = music_probes.recalls(np.eye(4), np.eye(4), np.array([0, 1, 3, 2]))
  assert moved == {'recall_1': 0.5}  # texts 2 and 3 ask for the other's clip


def test_pairs_are_heard_whole_or_in_part():
  labels = {'instrument': np.array([1, 4, 5, 1]), 'tempo': np.array([2, 1, 0, 2])}  # held-out ones
  heard = {'instrument': np.array([1, 4, 1, 0]), 'tempo': np.array([2, 2, 0, 0])}
  found = music.pair_shares(heard, labels, np.arange(4))
  assert (found['first'], found['second'], found['both'], found['clips']) == (0.5, 0.5, 0.25, 4)
  # Held to the next clip's pair. The fourth asks for the pair of the first, which is its own.
  found = music.pair_shares(heard, labels, np.array([1, 2, 3, 0]))
  assert (found['first'], found['second'], found['both'], found['clips']) == (1 / 3, 0, 0, 3)


def test_stories_differ_in_the_instrument_alone():
  for seed in range(20):
    (one, two), (first, second) = music_long.story(np.random.default_rng(seed))
    assert first != second and one != two
    for text, number in ((one, first), (two, second)):
      heard = [name for name in music.ATTRIBUTES['instrument'] if name in text]
      assert heard == [music.ATTRIBUTES['instrument'][number]]
    tempi = [{'slow', 'unhurried'}, {'moderate', 'walking'}, {'fast', 'quick'}]
    shared = [any(w in one for w in words) == any(w in two for w in words) for words in tempi]
    assert all(shared)


def test_windows_of_long_clips():
  found = music_long.cut(np.arange(14).reshape(2, 7), 3)
  np.testing.assert_array_equal(found, [[[0, 1, 2], [3, 4, 5]], [[7, 8, 9], [10, 11, 12]]])


def test_columns_whose_labels_are_missing_are_named():
  assert set(music.unmeasured({})) == set(music.COLUMNS)
  assert music.unmeasured(dict.fromkeys(music.COLUMNS.values())) == {}


def test_judges_that_length_packages_or_fonts_do_not_allow_are_named(monkeypatch, tmp_path):
  def missing():
    raise UserError('musicnn is not installed: run it')

  monkeypatch.setattr(musicnn, 'listener', missing)
  load = lambda recipe, seconds: music_judges.load(recipe, tmp_path, None, toys.RATE, seconds)
  judges, left_out = load(recipe(), 5.0)
  assert judges.listen is None and judges.attributes == {}
  assert left_out['musicnn'] == 'musicnn is not installed: run it'
  assert left_out['attributes'] == 'the corpus is no rendered music with attributes'
  _, left_out = load(recipe(Music(config=music_data.Config())), 2.0)
  assert left_out['musicnn'].endswith('3 s, the clips have 2 s')
  assert '--set evaluation.judge_font=FILE' in left_out['attributes']
  piano = recipe(Music(config=music_data.Config(setting='piano')))
  assert not music_judges.is_captioned(piano)

  fonts = {}
  monkeypatch.setattr(rendering, 'font_path', lambda font='': fonts[font])
  for name, data in (('', b'one'), ('copy', b'one'), ('other', b'two')):
    fonts[name] = tmp_path / f'{name}.sf2'
    fonts[name].write_bytes(data)
  of_font = lambda font: dataclasses.replace(
    recipe(Music(config=music_data.Config())), evaluation=Evaluation(judge_font=font)
  )
  with pytest.raises(UserError, match='is the font of the corpus'):
    music_judges.lacking(of_font('copy'))
  assert music_judges.lacking(of_font('other')) == ''


def test_judges_learn_from_other_draws_with_the_other_font(monkeypatch, tmp_path):
  """The waveform of a clip of the instrument n is n + 1 periods of a sine in every 64 samples."""
  asked = []

  class Clips(list):
    sample_rate = toys.RATE

  def examples(config, split, *, cache_dir=None):
    asked.append((config.font, config.seed, split, config.train_clips, config.pairs_clips))
    count = config.train_clips if split == 'train' else config.pairs_clips
    time_T = np.arange(2 * toys.RATE) / 64
    made = Clips()
    for n in range(count):
      labels = {name: np.int32(n % len(values)) for name, values in music.ATTRIBUTES.items()}
      wave_T = np.sin(2 * np.pi * (labels['instrument'] + 1) * time_T).astype(np.float32)
      made.append({'waveform': 0.5 * wave_T, **labels})
    return made

  monkeypatch.setattr(music_data, 'examples', examples)
  monkeypatch.setattr(sources, 'reconstructions', lambda examples, workdir: examples)
  made = dataclasses.replace(
    recipe(Music(config=music_data.Config(seed=3))),
    evaluation=Evaluation(judge_font='other.sf2', num_judge_clips=14),
  )
  judges = music_judges.fitted(made, tmp_path, toys.RATE)
  assert asked == [('other.sf2', 4, 'train', 12, 2), ('other.sf2', 4, 'pairs', 12, 2)]
  features_ND = [attributes.features(e['waveform'], toys.RATE) for e in examples(
    music_data.Config(train_clips=6), 'train')]  # fmt: skip
  found = attributes.judge(judges, np.stack(features_ND))
  assert found['instrument'].tolist() == [0, 1, 2, 3, 4, 5]


def test_systems_that_prompts_cannot_control_are_named(monkeypatch, tmp_path):
  """Generation is stubbed: it returns a number for what was asked."""
  wave = lambda sample: types.SimpleNamespace(wave_BT=np.full((4, 99), sample, np.float32))
  from_texts = lambda *a, **o: types.SimpleNamespace(audio=wave(1))
  free = lambda *a, condition=None, **o: wave(2 if condition is None else 3)
  monkeypatch.setattr(music_generation, 'from_texts', from_texts)
  monkeypatch.setattr(generation, 'generate_unconditional', free)
  stage = lambda condition, deduplicate=False, **options: types.SimpleNamespace(
    config=types.SimpleNamespace(condition=condition, deduplicate=deduplicate, **options)
  )
  clips = music_prompts.Clips(np.zeros((4, 80)), ['text'] * 4, {}, music_prompts.others(4, 0))
  tokens_of = lambda wave_BT, rate: np.zeros((len(wave_BT), 2), int)
  tokenizer = types.SimpleNamespace(sample_rate=80, music=types.SimpleNamespace(clips=tokens_of))

  def made(semantic, coarse, soundstorm):
    models = chain.Models(tokenizer, semantic, coarse=coarse, soundstorm=soundstorm)
    systems, left_out = music_prompts.usable(recipe(), tmp_path, models)
    rows = {}
    for system in systems:
      waves, reasons = music_prompts.generated(recipe(), system, clips)
      assert all(wave_BT.shape == (4, 80) for wave_BT in waves.values())
      rows |= {name: int(wave_BT[0, 0]) for name, wave_BT in waves.items()}
      left_out |= reasons
    return rows, left_out

  undropped = Condition(levels=2, size=4)
  plain, alone = 'coarse and fine', 'without semantic stage'
  waves, left_out = made(stage(CONDITION, deduplicate=True), stage(None), stage(CONDITION))
  assert waves == {f'text prompt, {plain}': 1, f'audio prompt, {plain}': 3, f'unconditional, {plain}': 2}  # fmt: skip  # noqa: E501
  not_trained = {alone: 'the stage acoustic_only is not trained'}
  assert left_out == {SYSTEM: 'it needs a semantic stage with deduplicate=False', **not_trained}
  waves, left_out = made(stage(None), stage(None), stage(undropped))
  assert waves == {f'text prompt, {SYSTEM}': 1, f'audio prompt, {SYSTEM}': 3}
  assert left_out == {
    plain: 'its stages have no condition',
    f'unconditional, {SYSTEM}': 'a stage was trained without condition.dropout',
    **not_trained,
  }

  (tmp_path / 'acoustic_only').mkdir()
  only = stage(CONDITION, condition_on_semantic=False)
  asked = []

  def load_models(workdir, **options):
    asked.append(options)
    return chain.Models(options['tokenizer'], stage(None), only)

  monkeypatch.setattr(workspace, 'load_models', load_models)
  waves, left_out = made(stage(None), None, None)
  assert waves == {f'text prompt, {alone}': 1, f'audio prompt, {alone}': 3, f'unconditional, {alone}': 2}  # fmt: skip  # noqa: E501
  assert asked == [{'coarse': 'acoustic_only', 'tokenizer': tokenizer}] and alone not in left_out
