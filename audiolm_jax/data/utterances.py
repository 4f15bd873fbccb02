"""Source of recordings with texts and phones, if known."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from audiolm_jax.data import folders
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError

PHONE_RATE = 25.0  # phone labels per second, the rate of semantic tokens


class Utterance(NamedTuple):
  """Describes a file; `phones` are [(end in seconds, phone)], each from the previous end."""

  path: str
  speaker: int
  text: str | None = None
  phones: Sequence[tuple[float, str]] = ()


class Utterances:
  """Random access source of utterances with 'waveform', 'speaker' and, if known, 'text', 'phones'.

  The 'phones' are S = ceil(25 T / sample_rate) indices into `phone_names`. Unreadable files are
  None (see `folders.AudioFiles`).
  """

  def __init__(
    self,
    utterances: Sequence[Utterance],
    sample_rate: int,
    *,
    phone_names: Sequence[str] = (),
    **options,
  ):
    """Creates the source; `options` are options of `folders.AudioFiles`.

    Raises:
      UserError: if `phone_names` lacks a phone.
    """
    self._utterances = list(utterances)
    self.parts = [folders.Part(utterance.path, utterance.speaker) for utterance in self._utterances]
    self._files = folders.AudioFiles(self.parts, sample_rate, **options)
    self.sample_rate, self.phone_names, self.bad = sample_rate, tuple(phone_names), self._files.bad
    self._ids = {name: index for index, name in enumerate(self.phone_names)}
    if unknown := {phone for one in self._utterances for _, phone in one.phones} - self._ids.keys():
      raise UserError(f'phone_names lacks {", ".join(sorted(unknown))}')

  def __len__(self) -> int:
    return len(self._utterances)

  def inventory(self) -> list[str]:
    """Returns one line per file (see `folders.AudioFiles.inventory`)."""
    return self._files.inventory()

  def refuse(self, i: int, reason: str):
    """Records example i as unreadable."""
    self._files.refuse(i, reason)

  def __getitem__(self, i: int) -> Example | None:
    example = self._described(i, self._files[i])
    utterance = self._utterances[i]
    if example is not None and utterance.phones:
      num_frames = int(np.ceil(len(example['waveform']) * PHONE_RATE / self.sample_rate))
      ids_N = np.array([self._ids[phone] for _, phone in utterance.phones], np.int32)
      ends_N = np.array([end for end, _ in utterance.phones])
      centres_S = (np.arange(num_frames) + 0.5) / PHONE_RATE
      example['phones'] = ids_N[
        np.minimum(np.searchsorted(ends_N, centres_S, side='right'), len(ids_N) - 1)
      ]
    return example

  def crop(self, i: int, choose: Callable[[int], tuple[int, int]]) -> dict | None:
    """Returns `utterances[i]` with `waveform[first:stop]` only and without phones.

    See `folders.AudioFiles.crop`.
    """
    return self._described(i, self._files.crop(i, choose))

  def _described(self, i: int, example: dict | None) -> dict | None:
    if example is None:
      return None
    utterance = self._utterances[i]
    known = {} if utterance.text is None else {'text': utterance.text}
    return {**example, 'speaker': np.int32(utterance.speaker), **known}
