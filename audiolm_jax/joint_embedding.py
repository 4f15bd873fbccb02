"""Embeds clips and texts of any length in one space, by a trained MuLan or by CLAP.

  joint = load('runs/mine/mulan')
  audio_BD = joint.audio(wave_BT)
  text_BD = joint.texts(['a slow piece for solo piano', 'loud drums'])
  cosine_BB = audio_BD @ text_BD.T

As in MusicLM (arXiv 2301.11325), a clip's vector is the mean of the vectors of windows (of the
length of the model's training crops) with a stride of one second, scaled to unit length. Nothing is
random: equal clips have equal vectors.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from audiolm_jax import arrays_file, checks, storage
from audiolm_jax.data import texts as utf8_texts
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import clap, clap_audio
from audiolm_jax.stages import mulan
from audiolm_jax.stages.base import Variables
from audiolm_jax.training import checkpoints

CHUNK = 8  # windows, or texts, in one call of a tower; bounds the memory of long clips


class Towers(NamedTuple):
  """Defines a model by pure functions.

  Fields:
    audio: (config, variables, wave_BT of one window) -> unit vectors [B, D].
    text: (config, variables, ids_BL) -> unit vectors [B, D].
    filled: (wave_T shorter than a window, number of samples of a window) -> one window.
  """

  audio: Callable[[Any, Variables, jax.Array], jax.Array]
  text: Callable[[Any, Variables, jax.Array], jax.Array]
  filled: Callable[[np.ndarray, int], np.ndarray]


MULAN = Towers(
  mulan.audio_embeddings,
  mulan.text_embeddings,
  # as in training, where short examples are padded
  lambda wave_T, length: np.pad(wave_T, (0, length - len(wave_T))),
)
CLAP = Towers(
  clap.window_embeddings,
  clap.text_embeddings,
  lambda wave_T, length: np.asarray(clap.filled(jnp.asarray(wave_T)[None]))[0],
)


@dataclasses.dataclass(frozen=True, eq=False)
class JointEmbedding:
  """Binds a model of audio and texts to its weights; `of_mulan`, `of_clap` and `load` make it.

  Fields:
    config: sizes of the model.
    variables: its weights.
    towers: its functions.
    encode: texts -> ids of the text tower, [B, L].
    window_length: number of samples of a window.
    embedding_dim: width D of the vectors.
  """

  config: Any
  variables: Variables
  towers: Towers
  encode: Callable[[Sequence[str]], np.ndarray]
  window_length: int
  embedding_dim: int

  @property
  def sample_rate(self) -> int:
    """Samples per second."""
    return self.config.sample_rate

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits of the SHA-256 of the model's parameters."""
    return arrays_file.fingerprint(self.variables.params)

  def num_windows(self, num_samples: int) -> int:
    """Returns the number of windows of a clip: whole ones that start at a second, or 1.

    Args:
      num_samples: length of the clip at `sample_rate`.
    """
    return 1 + max(0, num_samples - self.window_length) // self.sample_rate

  def windows(
    self, wave_BT: Float[Any, 'B T'], num_samples_B: Int[Any, 'B'] | None = None
  ) -> Float[np.ndarray, 'B N D']:
    """Returns unit vectors of the windows that start at each second; 0 after a row's last one.

    A clip shorter than a window is zero-padded (MuLan) or repeated (CLAP).

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`, padded on the right.
      num_samples_B: number of samples of each row; None for all.

    Raises:
      UserError: if a clip is empty or longer than its row, or a sample is not finite.
    """
    wave_BT, lengths_B = _checked(wave_BT, num_samples_B)
    counts_B = [self.num_windows(length) for length in lengths_B]
    vectors_BND = np.zeros((len(wave_BT), max(counts_B), self.embedding_dim), np.float32)
    embedded_ND = _in_chunks(
      functools.partial(_embed, self.towers.audio, self.config, self.variables),
      self._cut(wave_BT, lengths_B, counts_B),
    )
    vectors_BND[np.arange(max(counts_B)) < np.array(counts_B)[:, None]] = embedded_ND
    return vectors_BND

  def _cut(self, wave_BT, lengths_B, counts_B) -> Iterator[np.ndarray]:
    for wave_T, length, count in zip(wave_BT, lengths_B, counts_B):
      if length < self.window_length:
        yield self.towers.filled(wave_T[:length], self.window_length)
      else:
        for start in self.sample_rate * np.arange(count):
          yield wave_T[start : start + self.window_length]

  def audio(
    self, wave_BT: Float[Any, 'B T'], num_samples_B: Int[Any, 'B'] | None = None
  ) -> Float[np.ndarray, 'B D']:
    """Returns a unit vector of each clip, the direction of the mean of its windows.

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`, padded on the right.
      num_samples_B: number of samples of each clip; None for all.

    Raises:
      UserError: as `windows`.
    """
    sum_BD = self.windows(wave_BT, num_samples_B).sum(axis=1)
    return sum_BD / np.linalg.norm(sum_BD, axis=1, keepdims=True)

  def texts(self, captions: Sequence[Any]) -> Float[np.ndarray, 'B D']:
    """Returns a unit vector of each text.

    Args:
      captions: at least one text.

    Raises:
      UserError: if there are no texts, or one is no string, blank, no Unicode, or too long.
    """
    utf8_texts.utf8(captions)
    return _in_chunks(
      functools.partial(_embed, self.towers.text, self.config, self.variables),
      self.encode(captions),
    )


def of_mulan(config: mulan.Config, variables: Variables) -> JointEmbedding:
  """Returns a trained MuLan as a `JointEmbedding`.

  Args:
    config: of the stage.
    variables: its parameters and state.
  """
  return JointEmbedding(
    config=config,
    variables=variables,
    towers=MULAN,
    encode=lambda captions: utf8_texts.encode(captions, config.text.num_bytes),
    window_length=config.audio.crop_length,
    embedding_dim=config.embedding_dim,
  )


def of_clap(config: clap.Config, variables: Variables, folder: str | os.PathLike) -> JointEmbedding:
  """Returns CLAP as a `JointEmbedding`.

  Args:
    config: sizes of the model.
    variables: its parameters.
    folder: folder of its vocabulary; see `clap.tokenizer`.

  Raises:
    UserError: if the vocabulary is missing, damaged, or belongs to another model.
  """
  pairs = clap.tokenizer(config, pathlib.Path(folder))
  return JointEmbedding(
    config=config,
    variables=variables,
    towers=CLAP,
    encode=functools.partial(clap.tokens, config, pairs),
    window_length=clap_audio.CLIP,
    embedding_dim=config.embedding_dim,
  )


def load(directory: str | os.PathLike) -> JointEmbedding:
  """Loads a trained MuLan, or CLAP as `experiments.pretrained import --output` writes it.

  Args:
    directory: workdir or folder of the stage, or of CLAP.

  Returns:
    The embedding.

  Raises:
    UserError: if the model is missing, damaged, or of another kind.
  """
  directory = storage.path(directory)
  config, variables, _ = checkpoints.load_variables(directory)
  if isinstance(config, mulan.Config):
    return of_mulan(config, variables)
  if isinstance(config, clap.Config):
    return of_clap(config, variables, directory)
  raise UserError(
    f'{directory} holds {type(config).__module__}, which does not embed texts: give the folder of '
    'a MuLan or of CLAP'
  )


def _checked(wave_BT, num_samples_B):
  wave_BT = np.asarray(wave_BT, np.float32)
  checks.shapes(wave_BT=wave_BT)
  if not len(wave_BT):
    raise UserError('no clips: give at least one')
  lengths_B = np.full(len(wave_BT), wave_BT.shape[1]) if num_samples_B is None else num_samples_B
  checks.shapes(wave_BT=wave_BT, num_samples_B=lengths_B)
  for row, length in enumerate(lengths_B):
    if not 1 <= length <= wave_BT.shape[1]:
      raise UserError(
        f'clip {row} has {length} samples, in a row of {wave_BT.shape[1]}: it must have at least '
        'one, and at most those of the row'
      )
    if not np.isfinite(wave_BT[row, :length]).all():
      raise UserError(f'clip {row} has samples that are NaN or infinite: check its file')
  return wave_BT, [int(length) for length in lengths_B]


def _in_chunks(function: Callable, rows: Iterable[np.ndarray]) -> np.ndarray:
  """Returns the results for all rows, by calls with CHUNK rows: one compiled shape serves all."""
  rows, results = iter(rows), []
  while part := list(itertools.islice(rows, CHUNK)):
    filled = np.stack(part + part[-1:] * (CHUNK - len(part)))
    results.append(np.asarray(function(filled))[: len(part)])
  return np.concatenate(results)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(function, config, variables, rows):
  return function(config, variables, rows)
