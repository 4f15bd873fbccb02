"""Evaluates music models without generating audio: MuLan's texts, nats of tokens, memorization."""

import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from audiolm_jax import audio, decoding, tokens
from audiolm_jax.chain import Models
from audiolm_jax.data import arrangements, descriptions
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.metrics import music as music_metrics
from audiolm_jax.nn import language_model
from audiolm_jax.sampling import Rule
from audiolm_jax.tokens import PAD

from .. import corpora, sources
from ..recipe import Recipe
from .music_judges import share, share_of
from .music_prompts import OTHER, Clips

TRAINED_WORDS, UNSEEN_WORDS = 'words of the training texts', 'words that no training text has'
PROMPT_SHARES = (0.0, 0.25, 0.5)  # of a clip, before a continuation of half a clip
_DESCRIPTIONS = 32  # whose mean vector stands for a value of an attribute
_NEGATIVES = 10  # permuted pairs per clip, from which the threshold of memorization is set


def measure(
  recipe: Recipe, workdir: pathlib.Path, models: Models, clips: Clips
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the parts `embedding`, `semantic` and `memorization`, and reasons for missing ones."""
  embedding, rate = models.tokenizer.music.embedding, models.tokenizer.sample_rate
  parts, left_out = {}, {}
  if clips.unseen_texts:
    parts['embedding'] = {'rows': embedding_rows(embedding, clips, rate, recipe.evaluation.seed)}
  else:
    left_out['embedding'] = 'the corpus has no texts in words that training texts lack'
  if models.semantic.config.condition is None:
    left_out['semantic'] = 'the stage semantic has no condition'
  else:
    parts['semantic'] = {'rows': semantic_rows(models, clips)}
  if getattr(recipe.corpus, 'held_out', None) == 1:
    left_out['memorization'] = 'all clips of the corpus are held out, so that none was trained on'
  else:
    parts['memorization'] = {'rows': memorization_rows(recipe, workdir, models)}
  return parts, left_out


def embedding_rows(
  embedding: JointEmbedding, clips: Clips, sample_rate: int, seed: int
) -> dict[str, dict]:
  """Returns how well the joint embedding relates held-out clips, before the codec, to texts.

  recall_1, recall_10: share of texts whose clip is the most similar one, or among ten.
  Other columns: share of clips whose attribute's value has the nearest texts (zero-shot), with
  Wilson's interval. A value's vector is the mean of those of descriptions with that value.
  """
  wave_BT = audio.resample(clips.wave_BT, sample_rate, embedding.sample_rate)
  audio_BD, rows = embedding.audio(wave_BT), {}
  for name, captions in ((TRAINED_WORDS, clips.texts), (UNSEEN_WORDS, clips.unseen_texts)):
    row = recalls(audio_BD, embedding.texts(captions), np.arange(len(captions)))
    for attribute, label_B in clips.labels.items():
      value_VD = value_vectors(embedding, attribute, name == UNSEEN_WORDS, seed)
      row |= share(attribute, (audio_BD @ value_VD.T).argmax(axis=1) == label_B)
    rows[name] = row
  return rows


def recalls(
  audio_BD: Float[np.ndarray, 'B D'], text_BD: Float[np.ndarray, 'B D'], text_of_B: np.ndarray
) -> dict[str, float]:
  """Returns the share of texts whose own clip is among the most similar 1 and 10.

  text_of_B: number of the text of each clip.
  """
  cosine_BA = text_BD[text_of_B] @ audio_BD.T
  nearer_B = (cosine_BA > np.diag(cosine_BA)[:, None]).sum(axis=1)
  counts = [count for count in (1, 10) if count < len(nearer_B)]
  return {f'recall_{count}': float((nearer_B < count).mean()) for count in counts}


def value_vectors(
  embedding: JointEmbedding, attribute: str, unseen: bool, seed: int
) -> Float[np.ndarray, 'V D']:
  """Returns a unit vector of each value of an attribute: the mean of random descriptions.

  All values have the same other attributes.
  """
  vectors = []
  for value in arrangements.ATTRIBUTES[attribute]:
    random = np.random.default_rng(seed)
    captions = []
    for _ in range(_DESCRIPTIONS):
      described = arrangements.random_attributes(random) | {attribute: value}
      captions += descriptions.describe(described, 1, random, unseen=unseen)
    mean_D = embedding.texts(captions).mean(axis=0)
    vectors.append(mean_D / np.linalg.norm(mean_D))
  return np.stack(vectors)


def semantic_rows(models: Models, clips: Clips) -> dict[str, dict]:
  """Returns nats per semantic token of the real clips by the condition of the semantic stage.

  Clips are cut to the stage's crop. fewer: share of clips with fewer nats under their own text than
  under the other, with Wilson's interval.
  """
  config, variables, _ = models.semantic
  music, rate, condition = models.tokenizer.music, models.tokenizer.sample_rate, config.condition
  semantic_BS = models.tokenizer.encode(clips.wave_BT)[0][:, : config.num_semantic]
  text_BN = music.texts(clips.texts)
  windows = condition.windows
  # The tokens of a clip's first second, as in training on a crop that starts there.
  own_audio = [music.seconds(wave_T, rate, (windows,))[windows][0] for wave_T in clips.wave_BT]
  conditions = {
    'own text': text_BN,
    OTHER: text_BN[clips.other_B],
    'own audio': np.stack(own_audio),
  }
  if condition.dropout:
    conditions['no condition'] = np.full_like(text_BN, PAD)
  nats = {}
  for name, tokens_BN in conditions.items():
    batch = {'semantic': semantic_BS, condition.name: tokens_BN[:, None, : condition.levels]}
    prefix, target_BS1 = config.prefix_and_target(batch)
    found_BS1 = language_model.log_likelihoods(
      config.language_model, variables.params, prefix, target_BS1
    )
    nats[name] = -np.asarray(found_BS1)[..., 0], np.asarray(target_BS1)[..., 0] != PAD
  rows = {
    name: {'nats': float(nats_BS[here_BS].mean())} for name, (nats_BS, here_BS) in nats.items()
  }
  own_B, other_B = (nats[name][0].sum(axis=1) for name in ('own text', OTHER))
  rows['own text'] |= share('fewer', own_B < other_B)
  return rows


def memorization_rows(
  recipe: Recipe, workdir: pathlib.Path, models: Models
) -> dict[str, dict[str, float]]:
  """Returns how often the semantic stage, greedily, repeats training clips, by the prompt's length.

  As in MusicLM's appendix, the prompt has the clip's own tokens of MuLan and the first semantic
  tokens of the clip. exact: share of continuations equal to the clip's. approximate: share whose
  transport cost is below `threshold`, see `metrics.music.memorization`; of permuted pairs,
  `metrics.music.FALSE_POSITIVES` are, if there are enough pairs. tokens: length of the
  continuations.
  """
  config, variables, _ = models.semantic
  settings, rate = recipe.evaluation, models.tokenizer.sample_rate
  source = sources.corpus(recipe, 'train', workdir, rate)
  subset = corpora.Subset(source, settings.num_prompts, seed=settings.seed)
  waves = [example['waveform'] for example in subset if example is not None]
  wave_BT, num_samples_B = audio.stacked(
    [wave_T[: round(config.crop_seconds * rate)] for wave_T in waves]
  )
  semantic_BS = models.tokenizer.encode(wave_BT, num_samples_B)[0]
  if config.deduplicate:
    semantic_BS = np.asarray(tokens.deduplicate(semantic_BS)[0])
  # All rows have the length of the shortest.
  true_BS = semantic_BS[:, : int((semantic_BS != PAD).sum(axis=1).min())]
  options = {}
  if config.condition is not None:
    music, number = models.tokenizer.music, config.condition.windows
    own_BN = [music.seconds(wave_T, rate, (number,))[number][0] for wave_T in waves]
    options['condition'] = lambda b, start: own_BN[b]
  new, rows = true_BS.shape[1] // 2, {}
  for part in PROMPT_SHARES:
    given = round(part * true_BS.shape[1])
    made = decoding.extend(
      config.language_model,
      variables.params,
      jax.random.key(settings.seed),
      [row_S[:given, None] for row_S in true_BS],
      new,
      crop=config.num_semantic,
      carry=config.num_semantic // 2,
      prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
      prefix_crop=0,
      rule=Rule(0.0),
      **options,
    )
    found = music_metrics.memorization(
      np.stack([row_S1[given:, 0] for row_S1 in made]),
      true_BS[:, given : given + new],
      np.asarray(models.tokenizer.semantic.quantizer.centroids_KD),
      num_negatives=_NEGATIVES * len(true_BS),
      seed=settings.seed,
    )
    seconds = given / config.semantic_rate
    title = f'prompt of {given} tokens' if config.deduplicate else f'prompt of {seconds:g} s'
    count = len(true_BS)
    rows[title] = {
      **share_of('exact', round(found.exact * count), count),
      **share_of('approximate', round(found.approximate * count), count),
      'threshold': found.threshold,
      'tokens': new,
      'clips': count,
    }
  return rows
