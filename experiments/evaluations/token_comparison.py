"""Measures AudioLM's Table I: phone discrimination (ABX) and reconstruction, by kind of token.

Phones in context come from a benchmark (`sources.benchmark`). The paper trains a SoundStream
decoder on each kind of token. Here, a linear map from semantic tokens and their neighbours to the
codec's embeddings, fitted in closed form, replaces it: a lower bound of what can be reconstructed.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.data import zerospeech
from audiolm_jax.metrics import abx, perceptual
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import tokens as token_metrics
from audiolm_jax.nn import quantizer as vector_quantizer
from audiolm_jax.tokenizer import SemanticTokenizer

from .. import corpora, sources, workspace
from ..recipe import Recipe
from . import log_mel
from .codec import CROP_SECONDS

LEVELS = (1, 4, 12)  # of acoustic tokens; the paper has 4 and 12
CONTEXT = 2  # frames on either side that the linear decoder reads
FRAMES_PER_CODE = 40  # for fitting the residual quantizer of features
VISQOL_CLIPS = 4  # few, because ViSQOL takes most of a second per clip
# Audio is padded to a multiple of this (whole semantic frames), to compile once for most clips.
BUCKET_SECONDS = 12.8


class Kind(NamedTuple):
  """A kind of token, or of features for comparison.

  Fields:
    source: frames that it is made from: 'log-mel', 'semantic' or 'codec'.
    read: maps these frames [N, ...] to the vectors [N, D] that distances are computed of.
    bits_per_second: bit rate; None for features.
    distance: of ABX (metrics.abx).
  """

  source: str
  read: Callable[[np.ndarray], np.ndarray]
  bits_per_second: float | None = None
  distance: str = 'angular'


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns ABX errors in percent, and measures of reconstructions, by kind of token.

  Cells that do not apply are None, and so is ViSQOL without the `eval` extra.
  """
  models = _Models(recipe, workdir)
  kinds, rows = models.kinds(), {}
  found = sources.benchmark(recipe, workdir)
  scores, facts = {}, {}
  if found is not None:
    path = zerospeech.item_file(*found)
    scores, facts = _abx(kinds, models, path, found[0]), {'items': path.name}
  reconstructions = models.reconstructions(kinds)
  for name, kind in kinds.items():
    rows[name] = {
      'bits_per_second': kind.bits_per_second,
      **{'abx_within': None, 'abx_across': None, **scores.get(name, {})},
      **reconstructions.get(name, {'si_sdr': None, 'mel_distance': None, 'visqol': None}),
    }
  return {
    'rows': rows,
    **facts,
    'visqol_mapper': perceptual.visqol_mapper(),
    'visqol_clips': VISQOL_CLIPS,
  }


def _abx(
  kinds: dict[str, Kind], models: '_Models', path: pathlib.Path, root: pathlib.Path
) -> dict[str, dict[str, float]]:
  """Returns ABX errors in percent within and across speakers, for the items in `path`.

  Their audio files are below `root`.
  """
  items = zerospeech.read_items(path)
  segments = {
    source: models.segments(source, items, root)
    for source in {kind.source for kind in kinds.values()}
  }
  labels = [[getattr(item, field) for item in items] for field in ('phone', 'context', 'speaker')]
  rows = {}
  # Recordings of a single speaker, such as festvox-ru, have no error across speakers.
  modes = abx.SPEAKERS if len(set(labels[2])) > 1 else ('within',)
  with workspace.progress(len(modes) * len(kinds), f'ABX, {path.stem}', 'score') as bar:
    for name, kind in kinds.items():
      cut, rows[name] = _framewise(kind.read, segments[kind.source]), {}
      for speaker in modes:
        rows[name][f'abx_{speaker}'] = (
          100 * abx.score(cut, *labels, speaker=speaker, distance=kind.distance).error
        )
        bar.update()
  return rows


def _framewise(read, segments: list[np.ndarray]) -> list[np.ndarray]:
  """Returns `read` of each segment's frames, computed in one call."""
  ends = np.cumsum([len(segment) for segment in segments])[:-1]
  return np.split(read(np.concatenate(segments)), ends)


class _Models:
  """The trained models of a workdir, which make frames."""

  def __init__(self, recipe: Recipe, workdir: pathlib.Path):
    self.recipe, self.workdir, self._training_frames = recipe, workdir, {}
    self.semantic = workspace.load_semantic_tokenizer(workdir)
    self.codec = workspace.load_codec(workdir)
    mel_config = log_mel.config_of(self.semantic.encoder)
    mel = functools.partial(log_mel.features, mel_config, stack=False, normalize=True)
    self._extractors = {  # (wave_BT -> [B, S, ...], config with its rates)
      'log-mel': (jax.jit(mel), mel_config),
      'semantic': (functools.partial(_normalized, self.semantic), self.semantic),
      'codec': (self.codec.encode, self.codec),
    }

  def frames(self, source: str, examples) -> list[np.ndarray]:
    """Returns the frames of `source` of each example."""
    function, config = self._extractors[source]
    options = dict(hop_length=config.hop_length, bucket_seconds=BUCKET_SECONDS)
    return list(sources.map_frames(function, examples, config.sample_rate, **options))

  def segments(
    self, source: str, items: list[zerospeech.Item], root: pathlib.Path
  ) -> list[np.ndarray]:
    """Returns the frames of `source` of each item."""
    function, config = self._extractors[source]
    recordings = zerospeech.Recordings(root, (item.file for item in items), config.sample_rate)
    of_file = {name: [] for name in recordings.names}
    for n, item in enumerate(items):
      of_file[item.file].append(n)
    segments, seconds = [None] * len(items), {}
    options = dict(hop_length=config.hop_length, bucket_seconds=BUCKET_SECONDS)
    frames = sources.map_frames(function, recordings, config.sample_rate, **options)
    for name, frames_SD in zip(recordings.names, frames, strict=True):
      seconds[name] = len(frames_SD) / config.frame_rate
      for n in of_file[name]:
        segments[n] = abx.cut(frames_SD, items[n].onset, items[n].offset, config.frame_rate).copy()
    zerospeech.check_times(items, seconds)
    return segments

  def kinds(self) -> dict[str, Kind]:
    """Returns the kinds of tokens in Table I, and features for comparison, by name."""
    semantic = math.log2(self.semantic.num_clusters) * self.semantic.frame_rate
    levels = max(1, round(self.codec.bit_rate() / semantic))
    kinds = {
      'log-mel': Kind('log-mel', lambda frames_ND: frames_ND),
      'semantic features': Kind('semantic', lambda frames_ND: frames_ND),
      'semantic tokens, equal or not': Kind('semantic', self._tokens, semantic, 'identity'),
      'semantic tokens': Kind('semantic', self._centroids, semantic),
      f'semantic tokens, {levels} levels': Kind(
        'semantic', self._residual(levels), semantic * levels
      ),
    }
    for n in (n for n in LEVELS if n <= self.codec.num_quantizers):
      name, rate = f'acoustic tokens, {n} levels', self.codec.bit_rate(n)
      if self.codec.functions.vectors is not None:
        kinds[name] = Kind('codec', functools.partial(self._code_vectors, n), rate)
      else:
        kinds[name] = Kind('codec', lambda codes_NQ, n=n: codes_NQ[:, :n], rate, 'identity')
    return kinds

  def _tokens(self, frames_ND: np.ndarray) -> np.ndarray:
    return np.asarray(
      vector_quantizer.nearest(self.semantic.quantizer.centroids_KD, jnp.asarray(frames_ND))
    )[:, None]

  def _centroids(self, frames_ND: np.ndarray) -> np.ndarray:
    return np.asarray(self.semantic.quantizer.centroids_KD)[self._tokens(frames_ND)[:, 0]]

  def _residual(self, levels: int):
    """Returns a residual quantizer of features, fitted on training audio."""
    frames_ND = jnp.concatenate(
      [jnp.asarray(frames_SD) for frames_SD in self.training_frames('semantic')]
    )
    num_codes, width = self.semantic.quantizer.centroids_KD.shape
    frames_ND = frames_ND[:: max(1, len(frames_ND) // (FRAMES_PER_CODE * num_codes))]
    empty = vector_quantizer.init(jax.random.key(0), levels, num_codes, width)
    books = jax.jit(vector_quantizer.fit)(
      empty, frames_ND[None], jax.random.key(self.recipe.evaluation.seed)
    )
    encode = jax.jit(lambda x_ND: vector_quantizer.encode(books.vectors_QKD, x_ND[None])[0])
    decode = jax.jit(lambda codes_BFQ: vector_quantizer.decode(books.vectors_QKD, codes_BFQ)[0])
    return lambda frames_ND: np.asarray(decode(encode(jnp.asarray(frames_ND))))

  def _code_vectors(self, levels: int, codes_NQ: np.ndarray) -> np.ndarray:
    codes_BFQ = jnp.asarray(codes_NQ)[None, :, :levels]
    return np.asarray(self.codec.functions.vectors(self.codec.variables, codes_BFQ)[0])

  @functools.cached_property
  def _training(self):
    settings = self.recipe.evaluation
    corpus = sources.corpus(self.recipe, 'train', self.workdir, self.semantic.sample_rate)
    chosen, seconds = [], 0.0
    for example in corpora.Subset(corpus, len(corpus), seed=settings.seed, shuffle=True):
      if seconds >= settings.decoder_seconds:
        break
      if example is not None:
        chosen.append(example)
        seconds += len(example['waveform']) / self.semantic.sample_rate
    return chosen

  def training_frames(self, source: str) -> list[np.ndarray]:
    """Returns the frames of `source` of the training audio, cached for several kinds of token."""
    if source not in self._training_frames:
      self._training_frames[source] = self.frames(source, self._training)
    return self._training_frames[source]

  def reconstructions(self, kinds: dict[str, Kind]) -> dict[str, dict[str, float]]:
    """Returns SI-SDR (dB), log-mel distance (nats) and ViSQOL of held-out clips, by kind of token.

    Empty unless the codec decodes vectors and has two frames per semantic token.
    """
    codec = self.codec
    rates = [
      (model.sample_rate, model.frame_rate / ratio)
      for model, ratio in ((codec, 2), (self.semantic, 1))
    ]
    if codec.functions.decode_vectors is None or rates[0] != rates[1]:
      return {}
    length = round(CROP_SECONDS * codec.sample_rate)
    corpus = sources.corpus(self.recipe, 'test', self.workdir, codec.sample_rate)
    corpus = corpora.Subset(
      corpus, self.recipe.evaluation.num_clips, seed=self.recipe.evaluation.seed
    )
    clips = [
      {'waveform': example['waveform'][:length]} for example in corpus if example is not None
    ]
    held_out = {source: self.frames(source, clips) for source in ('semantic', 'codec')}
    every_level = functools.partial(self._code_vectors, codec.num_quantizers)
    targets = [
      _pairs(vectors_FD) for vectors_FD in _framewise(every_level, self.training_frames('codec'))
    ]

    @jax.jit
    def compare(codec, wave_T, num_samples, z_FD):
      estimate_BT = codec.functions.decode_vectors(codec.variables, z_FD[None])[:, :length]
      estimate_BT = jnp.where(jnp.arange(length) < num_samples, estimate_BT, 0)
      distances = (
        codec_metrics.si_sdr,
        functools.partial(codec_metrics.log_mel_distance, sample_rate=codec.sample_rate),
      )
      return [distance(wave_T[None], estimate_BT)[0] for distance in distances], estimate_BT[0]

    rows = {}
    for name, kind in kinds.items():
      if kind.bits_per_second is None or kind.distance == 'identity':
        continue
      if kind.source == 'codec':
        vectors = _framewise(kind.read, held_out['codec'])
      else:
        inputs = _framewise(kind.read, self.training_frames(kind.source))
        decoder = token_metrics.fit_linear_decoder(inputs, targets, CONTEXT)
        predicted = [
          token_metrics.decode_linearly(decoder, one)
          for one in _framewise(kind.read, held_out[kind.source])
        ]
        vectors = [two_SE.reshape(2 * len(two_SE), -1) for two_SE in predicted]
      pairs = list(_padded(clips, vectors, length, codec.hop_length))
      distances, estimates = zip(
        *(compare(codec, *clip, z_FD) for clip, z_FD in pairs), strict=True
      )
      rows[name] = dict(
        zip(('si_sdr', 'mel_distance'), np.array(distances).mean(axis=0).tolist(), strict=True)
      )
      rows[name]['visqol'] = None
      if 'visqol' in perceptual.available():
        heard = zip([wave_T for (wave_T, _), _ in pairs[:VISQOL_CLIPS]], estimates)
        scores = (
          perceptual.visqol(wave_T, np.asarray(estimate_T), codec.sample_rate)
          for wave_T, estimate_T in heard
        )
        rows[name]['visqol'] = perceptual.mean(scores).value
    return rows


@jax.jit
def _normalized(semantic: SemanticTokenizer, wave_BT):
  """Returns features normalized as for clustering."""
  quantizer = semantic.quantizer
  return (semantic.encoder.features(wave_BT) - quantizer.mean_D) / quantizer.scale_D


def _pairs(vectors_FD: np.ndarray) -> np.ndarray:
  """Returns pairs of codec frames, one per semantic frame; an odd last frame is repeated."""
  vectors_FD = np.concatenate([vectors_FD, vectors_FD[-1:]]) if len(vectors_FD) % 2 else vectors_FD
  return vectors_FD.reshape(len(vectors_FD) // 2, -1)


def _padded(clips: list[dict], vectors: list[np.ndarray], length: int, hop_length: int):
  """Yields ((padded waveform [length], its number of samples), padded frames) of each clip."""
  num_frames = -(-length // hop_length)
  for clip, vectors_FD in zip(clips, vectors, strict=True):
    num_samples = len(clip['waveform'])
    vectors_FD = np.pad(
      vectors_FD, ((0, max(0, num_frames - len(vectors_FD))), (0, 0)), mode='edge'
    )[:num_frames]
    yield (np.pad(clip['waveform'], (0, length - num_samples)), num_samples), vectors_FD
