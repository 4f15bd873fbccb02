"""Checks the texts of music; without jax, so that programs can check their flags at once."""

import math
from collections.abc import Sequence
from typing import Any

from audiolm_jax import checks
from audiolm_jax.errors import UserError

MAX_SECONDS = 300.0  # of MusicLM's longest examples
SEGMENT_SECONDS = 15.0  # of music for each text of a story, as in MusicLM


def check(stories: Sequence[Sequence[Any]], seconds: float, story_seconds: float) -> None:
  """Checks the texts of each row, and that each text has a segment.

  Args:
    stories: texts of each row, in the order of their segments.
    seconds: length of each row.
    story_seconds: length of a segment; the last one lasts until the end.

  Raises:
    UserError: if there is no text; if one is no string, blank or no Unicode; if the segment of the
      last text would start after the end; if a length is out of range.
  """
  checks.values(seconds=(seconds, checks.POSITIVE), story_seconds=(story_seconds, checks.POSITIVE))
  if seconds > MAX_SECONDS:
    raise UserError(f'seconds={seconds:g}: music has at most {MAX_SECONDS:g} s; lower seconds')
  if not stories or not all(stories):
    raise UserError('no texts: give at least one for each row')
  for story in stories:
    for text in story:
      _check_text(text)
    needed = (len(story) - 1) * story_seconds
    if needed >= seconds:
      longer = f', or give seconds above {needed:g}' if needed < MAX_SECONDS else ''
      raise UserError(
        f'a story has {len(story)} texts of {story_seconds:g} s each, but seconds={seconds:g}: its '
        f'last text would not be heard; give at most {math.ceil(seconds / story_seconds)} texts, '
        f'lower story_seconds{longer}'
      )


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise UserError(f'the text {text!r:.60} is of type {type(text).__name__}: pass a string')
  if not text.strip():
    raise UserError('a text is blank: describe the music in words')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'the text {text[:40]!r} is not Unicode ({error.reason}): correct it'
    ) from error
