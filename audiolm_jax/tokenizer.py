"""Converts audio to semantic tokens and codes, and codes to audio.

Example::

  tokenizer = load_tokenizer('runs/tiny')
  for path, semantic_S, codes_FQ in files(tokenizer, ['a.wav', 'b.flac']):
    ...

A `Tokenizer` has two parts: a codec, and a model of features with clusters of these. For music it
also has a joint embedding of audio and texts with a quantizer of its vectors (`MusicTokenizer`).
All other classes are pytrees whose leaves are the weights, like `codec.Codec`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import (
  arrays_file,
  audio,
  checks,
  codec,
  embedding_tokens,
  joint_embedding,
  kmeans,
  storage,
  tokens,
)
from audiolm_jax.codec import Codec
from audiolm_jax.data import texts
from audiolm_jax.embedding_tokens import Quantizer
from audiolm_jax.errors import UserError
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.stages import melody
from audiolm_jax.stages.base import CONDITION_RATE, FeatureConfig, Variables
from audiolm_jax.tokens import PAD
from audiolm_jax.training import checkpoints

MELODY_ROWS = 8  # windows in one call of the embedding of melodies


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['variables'],
  meta_fields=['config', 'layer', 'frames_per_token'],
)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SemanticEncoder:
  """Binds a model of features to its weights, and selects the features to cluster.

  Fields:
    config: w2v-BERT or a pretrained model.
    variables: its weights.
    layer: layer of the features, numbered as in the module of the model.
    frames_per_token: number of frames averaged to one token; 2 makes 25 tokens/s from 50 frames/s.

  Raises:
    UserError: if a number is out of range.
  """

  config: FeatureConfig
  variables: Variables
  layer: int
  frames_per_token: int = 1

  def __post_init__(self):
    checks.fields(self, layer=checks.whole(0), frames_per_token=checks.WHOLE)

  @property
  def sample_rate(self) -> int:
    """Samples per second."""
    return self.config.sample_rate

  @property
  def hop_length(self) -> int:
    """Samples per token."""
    return self.config.hop_length * self.frames_per_token

  @property
  def frame_rate(self) -> float:
    """Tokens per second."""
    return self.config.frame_rate / self.frames_per_token

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits of the SHA-256 of the model's parameters."""
    return arrays_file.fingerprint(self.variables.params)

  def features(self, wave_BT: Float[Array | np.ndarray, 'B T']) -> Float[Array, 'B S D']:
    """Returns the features to cluster, S = ceil(T / hop_length).

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`.
    """
    checks.shapes(wave_BT=wave_BT)
    return _features(self, wave_BT)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['encoder', 'quantizer'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class SemanticTokenizer:
  """Binds a model of features to the clusters that were fitted to its features."""

  encoder: SemanticEncoder
  quantizer: kmeans.SemanticQuantizer

  @property
  def sample_rate(self) -> int:
    """Samples per second."""
    return self.encoder.sample_rate

  @property
  def hop_length(self) -> int:
    """Samples per token."""
    return self.encoder.hop_length

  @property
  def frame_rate(self) -> float:
    """Tokens per second."""
    return self.encoder.frame_rate

  @property
  def num_clusters(self) -> int:
    """Number of semantic tokens."""
    return len(self.quantizer.centroids_KD)

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits of the SHA-256 of the clusters."""
    return arrays_file.fingerprint(self.quantizer._asdict())

  def encode(self, wave_BT: Float[Array | np.ndarray, 'B T']) -> Int[Array, 'B S']:
    """Returns frame-aligned semantic tokens, S = ceil(T / hop_length).

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`.
    """
    checks.shapes(wave_BT=wave_BT)
    return _semantic_tokens(self, wave_BT)


@dataclasses.dataclass(frozen=True, eq=False)
class MelodyTokenizer:
  """Binds an embedding of melodies to the quantizer that was fitted to it (MusicLM, section 3.3).

  Fields:
    config: sizes of the embedding.
    variables: its weights.
    vectors_QKD: code vectors of each level; MusicLM has 24 levels of 512.
  """

  config: melody.Config
  variables: Variables
  vectors_QKD: Float[Array, 'Q K D']

  @property
  def codebook(self) -> tokens.Codebook:
    """Levels of all windows, 72 in MusicLM, and size of the tokens."""
    levels, size = self.vectors_QKD.shape[:2]
    return tokens.Codebook(levels * len(self.config.starts), size)

  @property
  def sample_rate(self) -> int:
    """Samples per second that the embedding reads."""
    return self.config.sample_rate

  def encode(
    self, wave_T: Float[np.ndarray, 'T'], sample_rate: int, seconds: Sequence[float] = (0.0,)
  ) -> Int[np.ndarray, 'S N']:
    """Returns the tokens of the melodies that start at some seconds of a clip.

    Windows that the clip lacks are replaced by its last one. A shorter clip is zero-padded.

    Args:
      wave_T: samples in [-1, 1], at least one.
      sample_rate: Hz.
      seconds: starts of the melodies.
    """
    checks.shapes(wave_T=wave_T)
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, self.sample_rate)
    length = self.config.crop_length
    wave_T = np.pad(wave_T, (0, max(0, length - len(wave_T))))
    first_SW = np.add.outer(np.asarray(seconds), self.config.starts) * self.sample_rate
    first_SW = np.minimum(np.rint(first_SW).astype(int), len(wave_T) - length)
    different_M, place_SW = np.unique(first_SW, return_inverse=True)
    parts = []
    for start in range(0, len(different_M), MELODY_ROWS):
      some_M = np.resize(different_M[start : start + MELODY_ROWS], MELODY_ROWS)
      wave_BT = np.stack([wave_T[first : first + length] for first in some_M])
      tokens_BQ = _melody_tokens(self.config, self.variables, self.vectors_QKD, wave_BT)
      parts.append(np.asarray(tokens_BQ))
    found_MQ = np.concatenate(parts)[: len(different_M)]
    return found_MQ[place_SW.reshape(first_SW.shape)].reshape(len(first_SW), -1)


@dataclasses.dataclass(frozen=True, eq=False)
class MusicTokenizer:
  """Binds a joint embedding of audio and texts to the quantizer that was fitted to it.

  Its tokens are the condition of music models (`stages.base.Condition`). With `melody`, they follow
  those of the melody, which are PAD where there is none.

  Fields:
    embedding: joint embedding of audio and texts.
    quantizer: quantizer of its vectors.
    melody: embedding and quantizer of melodies; None if the models read none.
    words: words of the training texts (`data.texts.words`), for `check_words`; none: not known.
  """

  embedding: JointEmbedding
  quantizer: Quantizer
  melody: MelodyTokenizer | None = None
  words: frozenset[str] = frozenset()

  @property
  def codebook(self) -> tokens.Codebook:
    """Levels and size of the tokens."""
    levels, size = self.quantizer.vectors_QKD.shape[:2]
    if self.melody is None:
      return tokens.Codebook(levels, size)
    melodies = self.melody.codebook
    return tokens.Codebook(levels + melodies.levels, max(size, melodies.size))

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits of the SHA-256 of the quantizer, with that of melodies."""
    arrays = self.quantizer._asdict()
    if self.melody is not None:
      arrays |= {'melody': self.melody.vectors_QKD}
    return arrays_file.fingerprint(arrays)

  def check_words(self, captions: Sequence[str]) -> None:
    """Checks that each text has at least one word, or letter, of the training texts.

    Args:
      captions: texts.

    Raises:
      UserError: for a text without any, such as one in another language.
    """
    for caption in captions:
      if self.words and self.words.isdisjoint(texts.words([caption])):
        known = sorted(self.words, key=lambda word: (-len(word), word))[:5]
        raise UserError(
          f'the text {caption[:40]!r} has no word of the texts that the models were trained on, '
          f'such as {", ".join(known)}: describe the music in their language'
        )

  def joined(
    self, found_BN: Int[np.ndarray, 'B N'], melody_BM: Int[np.ndarray, 'B M'] | None = None
  ) -> Int[np.ndarray, 'B L']:
    """Returns tokens of clips or texts after those of melodies; None: there are no melodies.

    Args:
      found_BN: tokens of clips or of texts.
      melody_BM: tokens of melodies.
    """
    if self.melody is None:
      return np.asarray(found_BN)
    if melody_BM is None:
      melody_BM = np.full((len(found_BN), self.melody.codebook.levels), PAD, np.int32)
    return np.concatenate([melody_BM, found_BN], axis=1)

  def texts(self, captions: Sequence[str]) -> Int[np.ndarray, 'B N']:
    """Returns the tokens of texts.

    Args:
      captions: at least one text.

    Raises:
      UserError: as `JointEmbedding.texts`.
    """
    vectors_BD = self.embedding.texts(captions)
    return self.joined(np.asarray(embedding_tokens.text_tokens(self.quantizer, vectors_BD)))

  def clips(self, wave_BT: Float[np.ndarray, 'B T'], sample_rate: int) -> Int[np.ndarray, 'B N']:
    """Returns the tokens of whole clips, a prompt of audio in the place of texts.

    Args:
      wave_BT: waveforms in [-1, 1] of equal lengths.
      sample_rate: their rate, in Hz.

    Raises:
      UserError: as `JointEmbedding.audio`.
    """
    wave_BT = audio.resample(np.asarray(wave_BT, np.float32), sample_rate, self.sample_rate)
    return self.joined(self._assign(self.embedding.audio(wave_BT)))

  def seconds(
    self, wave_T: Float[np.ndarray, 'T'], sample_rate: int, windows: Iterable[int]
  ) -> dict[int, Int[np.ndarray, 'S N']]:
    """Returns the tokens of each second of a clip, for several numbers of windows to average.

    The tokens of second s are those of the mean vector of the windows that start in the seconds
    s, ..., s + number - 1, as far as the clip has them; after its last window, of that one. The
    tokens of melodies, if there are any, are those of the windows of the melody from second s.

    Args:
      wave_T: samples in [-1, 1].
      sample_rate: Hz.
      windows: numbers of windows.

    Raises:
      UserError: as `JointEmbedding.windows`.
    """
    seconds = max(1, int(np.ceil(len(wave_T) / sample_rate * CONDITION_RATE)))
    wave_BT = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, self.sample_rate)
    vectors_ND = self.embedding.windows(wave_BT)[0]
    first_S = np.minimum(np.arange(seconds), len(vectors_ND) - 1)
    sums_ND = np.cumsum(np.pad(vectors_ND.astype(np.float64), ((1, 0), (0, 0))), axis=0)
    found, melody_SM = {}, None
    if self.melody is not None:
      melody_SM = self.melody.encode(
        wave_T, sample_rate, (np.arange(seconds) / CONDITION_RATE).tolist()
      )
    for number in windows:
      end_S = np.minimum(np.arange(seconds) + number, len(vectors_ND))
      mean_SD = sums_ND[end_S] - sums_ND[first_S]
      mean_SD /= np.linalg.norm(mean_SD, axis=1, keepdims=True)
      found[number] = self.joined(self._assign(mean_SD.astype(np.float32)), melody_SM)
    return found

  def _assign(self, vectors_ND):
    # Rows are padded to limit the number of compiled shapes.
    padded_ND = np.pad(vectors_ND, ((0, -len(vectors_ND) % 32), (0, 0)))
    found_NQ = _assign(self.quantizer.vectors_QKD, padded_ND)
    return np.asarray(found_NQ)[: len(vectors_ND)]

  @property
  def sample_rate(self) -> int:
    """Samples per second that the embedding reads."""
    return self.embedding.sample_rate


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['codec', 'semantic'], meta_fields=['music']
)
@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Converts audio to semantic tokens and codes, and codes to audio.

  `music` makes the tokens of texts and music that condition models; None if there are none.
  """

  codec: Codec
  semantic: SemanticTokenizer
  music: MusicTokenizer | None = None

  @property
  def sample_rate(self) -> int:
    """Samples per second of waveforms, which is the codec's."""
    return self.codec.sample_rate

  @property
  def spec(self) -> tokens.Spec:
    """Rates and sizes of the tokens."""
    condition = self.music and self.music.codebook
    return spec_of(self.codec, self.semantic.encoder, self.semantic.num_clusters, condition)

  @property
  def fingerprints(self) -> dict[str, str]:
    """Fingerprints by name that identify the tokens; stored with tokens and models of them."""
    prints = {'soundstream': self.codec.fingerprint, 'semantic_tokens': self.semantic.fingerprint}
    return prints if self.music is None else prints | {'music_tokens': self.music.fingerprint}

  @property
  def frames_per_semantic(self) -> int:
    """Codec frames per semantic token.

    Raises:
      UserError: if it is not a whole number.
    """
    return self.spec.frames_per_semantic

  def encode(
    self,
    wave_BT: Float[Array | np.ndarray, 'B T'],
    num_samples_B: Int[Array | np.ndarray, 'B'] | None = None,
  ) -> tuple[Int[np.ndarray, 'B S'], Int[np.ndarray, 'B F Q']]:
    """Returns the frame-aligned semantic tokens and the codes of the complete semantic frames.

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`, padded on the right.
      num_samples_B: number of samples of each row; None for all.

    Returns:
      Semantic tokens and codes, F = `frames_per_semantic` * S; PAD marks padding.

    Raises:
      UserError: if a row is shorter than one semantic frame, or a number of samples is too large.
    """
    checks.shapes(wave_BT=wave_BT)
    ratio, bound = self.frames_per_semantic, self.codec
    hop = ratio * bound.hop_length
    whole = np.full(len(wave_BT), wave_BT.shape[1])
    lengths_B = whole if num_samples_B is None else np.asarray(num_samples_B)
    checks.shapes(wave_BT=wave_BT, num_samples_B=lengths_B)
    if lengths_B.max(initial=0) > wave_BT.shape[1]:
      raise UserError(
        f'num_samples_B has {lengths_B.max()} samples, but the waveforms have {wave_BT.shape[1]}'
      )
    frames_B = lengths_B // hop
    if frames_B.min() < 1:
      raise UserError(
        f'a waveform has {lengths_B.min()} samples, less than one semantic frame of {hop}: use a '
        'longer one'
      )
    # Pad to whole seconds to limit the number of compiled shapes, with at least as much silence as
    # the codec looks ahead.
    second = max(1, round(bound.frame_rate / ratio)) * hop
    silence = bound.context * bound.hop_length
    inside_BT = np.arange(wave_BT.shape[1]) < frames_B[:, None] * hop
    wave_BT = np.asarray(wave_BT, np.float32) * inside_BT
    padding = silence + -(frames_B.max() * hop + silence) % second
    wave_BT = np.pad(wave_BT[:, : frames_B.max() * hop], ((0, 0), (0, padding)))
    semantic_wave_BT = audio.resample(wave_BT, bound.sample_rate, self.semantic.sample_rate)
    semantic_BS = np.asarray(self.semantic.encode(semantic_wave_BT))
    codes_BFQ = np.asarray(bound.encode(wave_BT))
    inside_BS = np.arange(frames_B.max()) < frames_B[:, None]
    semantic_BS = np.where(inside_BS, semantic_BS[:, : frames_B.max()], PAD)
    inside_BF1 = np.repeat(inside_BS, ratio, axis=1)[..., None]
    return semantic_BS, np.where(inside_BF1, codes_BFQ[:, : ratio * frames_B.max()], PAD)

  def decode(
    self, codes_BFQ: Int[np.ndarray, 'B F Q'], num_frames_B: Int[np.ndarray, 'B']
  ) -> Float[np.ndarray, 'B T']:
    """Returns the waveforms of codes, T = F * hop_length; padding is 0.

    Codecs that look ahead get repetitions of the last frame after the end of a row.

    Args:
      codes_BFQ: codes of the first Q levels, padded on the right.
      num_frames_B: number of frames of each row.
    """
    checks.shapes(codes_BFQ=codes_BFQ, num_frames_B=num_frames_B)
    bound, frames, context = self.codec, codes_BFQ.shape[1], self.codec.context
    second = max(1, round(bound.frame_rate))
    padded_F = np.arange(frames + context + -(frames + context) % second)
    read_BF = np.minimum(padded_F, num_frames_B[:, None] - 1)
    padded_BFQ = np.take_along_axis(codes_BFQ, read_BF[..., None], axis=1)
    wave_BT = np.asarray(bound.decode(padded_BFQ))[:, : frames * bound.hop_length]
    return wave_BT * (np.arange(wave_BT.shape[1]) < num_frames_B[:, None] * bound.hop_length)


def spec_of(
  codec: Codec,
  encoder: SemanticEncoder,
  num_clusters: int,
  condition: tokens.Codebook | None = None,
) -> tokens.Spec:
  """Returns rates and sizes of tokens, before clusters and quantizer are fitted.

  Args:
    codec: codec of the tokens.
    encoder: semantic encoder.
    num_clusters: number of semantic tokens.
    condition: tokens of conditions; None: there are none.
  """
  return tokens.Spec(
    semantic_rate=encoder.frame_rate,
    num_clusters=num_clusters,
    frame_rate=codec.frame_rate,
    num_quantizers=codec.num_quantizers,
    codebook_size=codec.codebook_size,
    condition_levels=condition and condition.levels,
    condition_size=condition and condition.size,
  )


def files(
  tokenizer: Tokenizer, paths: Iterable[str | os.PathLike]
) -> Iterator[tuple[str | os.PathLike, Int[np.ndarray, 'S'], Int[np.ndarray, 'F Q']]]:
  """Yields (path, semantic_S, codes_FQ) of each audio file, in the order of `paths`.

  Args:
    tokenizer: from `load_tokenizer`.
    paths: audio files.

  Raises:
    UserError: with the path, if a file cannot be read or is shorter than one semantic frame.
  """
  for path in paths:
    wave_T = audio.load(path, tokenizer.sample_rate)
    try:
      semantic_BS, codes_BFQ = tokenizer.encode(wave_T[None])
    except UserError as error:
      raise UserError(f'{path}: {error}') from error
    yield path, semantic_BS[0], codes_BFQ[0]


def clusters_path(workdir: str | os.PathLike) -> storage.Path:
  """Returns the path of the clusters of a workdir.

  Args:
    workdir: folder of a run.
  """
  return storage.path(workdir) / 'semantic_tokens' / 'kmeans.safetensors'


def music_path(workdir: str | os.PathLike) -> storage.Path:
  """Returns the path of the quantizer of music tokens of a workdir.

  Args:
    workdir: folder of a run.
  """
  return storage.path(workdir) / 'music_tokens' / 'quantizer.safetensors'


def melody_path(workdir: str | os.PathLike) -> storage.Path:
  """Returns the path of the quantizer of melodies of a workdir.

  Args:
    workdir: folder of a run.
  """
  return storage.path(workdir) / 'music_tokens' / 'melody.safetensors'


def load_semantic_encoder(
  workdir: str | os.PathLike, layer: int, frames_per_token: int = 1
) -> SemanticEncoder:
  """Returns the model of features of a workdir.

  Args:
    workdir: folder of the stages.
    layer: see `SemanticEncoder`.
    frames_per_token: see `SemanticEncoder`.

  Raises:
    UserError: if the model is missing, damaged, or makes no features.
  """
  directory = storage.path(workdir) / 'w2v_bert'
  if not directory.is_dir():
    raise UserError(f'{directory} does not exist: train or import a model of features there')
  config, variables, _ = checkpoints.load_variables(directory)
  if not isinstance(config, FeatureConfig):
    raise UserError(
      f'{directory} holds {type(config).__module__}, which makes no features: import a model of '
      'features there'
    )
  return SemanticEncoder(
    config=config, variables=variables, layer=layer, frames_per_token=frames_per_token
  )


def load_semantic_tokenizer(
  workdir: str | os.PathLike,
  remedy: str = 'fit the clusters again',
  encoder: SemanticEncoder | None = None,
) -> SemanticTokenizer:
  """Returns the model of features of a workdir with its clusters.

  Args:
    workdir: folder of the stages.
    remedy: what error messages advise to do if clusters are missing or damaged.
    encoder: the model of features, if it is loaded already; of any layer.

  Raises:
    UserError: with `remedy`, if either is missing or damaged, or the clusters were fitted to
      features of another model.
  """
  stored = kmeans.load(clusters_path(workdir), remedy)
  wanted = {'layer': stored.layer, 'frames_per_token': stored.frames_per_token}
  if encoder is None:
    encoder = load_semantic_encoder(workdir, **wanted)
  elif any(getattr(encoder, name) != value for name, value in wanted.items()):
    encoder = dataclasses.replace(encoder, **wanted)
  if stored.model != encoder.fingerprint:
    raise UserError(
      f'the clusters in {workdir} were fitted to features of another w2v_bert: move '
      f'{workdir}/semantic_tokens and {workdir}/tokens away, {remedy}, and train the language '
      'models again'
    )
  return SemanticTokenizer(encoder, stored.quantizer)


def load_tokenizer(workdir: str | os.PathLike, remedy: str = 'fit the clusters again') -> Tokenizer:
  """Returns the codec and the semantic tokenizer of a workdir, and its music tokenizer if fitted.

  Args:
    workdir: folder of a run or a release, on a disk or in a bucket.
    remedy: what error messages advise to do where clusters are missing.

  Raises:
    UserError: as `codec.load`, `load_semantic_tokenizer` and `load_music_tokenizer`.
  """
  music = load_music_tokenizer(workdir) if music_path(workdir).is_file() else None
  return Tokenizer(codec.load(workdir), load_semantic_tokenizer(workdir, remedy), music)


def load_music_tokenizer(
  workdir: str | os.PathLike, embedding: JointEmbedding | None = None
) -> MusicTokenizer:
  """Returns the joint embedding in the stage `mulan` of a workdir, with its quantizer.

  Args:
    workdir: folder of the stages.
    embedding: the embedding, if it is loaded already.

  Raises:
    UserError: if either is missing or damaged, or the quantizer was fitted to another embedding.
  """
  embedding = embedding or joint_embedding.load(storage.path(workdir) / 'mulan')
  quantizer = embedding_tokens.load(music_path(workdir), embedding.fingerprint)
  melodies = load_melody_tokenizer(workdir) if melody_path(workdir).is_file() else None
  words = embedding_tokens.load_words(music_path(workdir))
  return MusicTokenizer(embedding, quantizer, melodies, words)


def load_melody_tokenizer(workdir: str | os.PathLike) -> MelodyTokenizer:
  """Returns the embedding of melodies in the stage `melody` of a workdir, with its quantizer.

  Args:
    workdir: folder of a run, on a disk or in a bucket.

  Raises:
    UserError: if either is missing or damaged, or the quantizer was fitted to another embedding.
  """
  directory = storage.path(workdir) / 'melody'
  config, variables, _ = checkpoints.load_variables(directory)
  if not isinstance(config, melody.Config):
    raise UserError(f'{directory} holds {type(config).__module__}, no embedding of melodies')
  stored = embedding_tokens.load(melody_path(workdir), arrays_file.fingerprint(variables.params))
  return MelodyTokenizer(config, variables, stored.vectors_QKD)


@jax.jit
def encode_rows(
  tokenizer: Tokenizer,
  wave_BT: Float[Array | np.ndarray, 'B T'],
  semantic_wave_BT: Float[Array | np.ndarray, 'B U'],
) -> tuple[Int[Array, 'B F Q'], Int[Array, 'B S']]:
  """Returns codes and semantic tokens of whole rows, computed as one program.

  Args:
    tokenizer: from `load_tokenizer`.
    wave_BT: waveforms at the codec's rate.
    semantic_wave_BT: the same at the rate of the semantic encoder.
  """
  return tokenizer.codec.encode(wave_BT), tokenizer.semantic.encode(semantic_wave_BT)


_assign = jax.jit(embedding_tokens.assign)


@functools.partial(jax.jit, static_argnums=0)
def _melody_tokens(config: melody.Config, variables, vectors_QKD, wave_BT):
  return embedding_tokens.assign(vectors_QKD, melody.embeddings(config, variables, wave_BT))


@jax.jit
def _features(encoder: SemanticEncoder, wave_BT):
  features_BSD = encoder.config.semantic_features(encoder.variables, wave_BT, encoder.layer)
  batch, frames, width = features_BSD.shape
  if encoder.frames_per_token == 1 or not frames:
    return features_BSD
  missing = -frames % encoder.frames_per_token
  features_BSD = jnp.pad(features_BSD, ((0, 0), (0, missing), (0, 0)), mode='edge')
  return features_BSD.reshape(batch, -1, encoder.frames_per_token, width).mean(axis=2)


@jax.jit
def _semantic_tokens(tokenizer: SemanticTokenizer, wave_BT):
  return kmeans.assign(tokenizer.quantizer, _features(tokenizer.encoder, wave_BT))
