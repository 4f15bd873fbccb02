"""Columns that a suite adds to its rows: what measures made elsewhere, and distances of embeddings,
say of its clips.

What needs the extra `eval` is left out where that is not installed, and `missing` names it.
"""

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from audiolm_jax.metrics import frechet, naturalness, speaker, speech

from .. import evaluation_models

PACKAGES = ('jiwer', 'pocketsphinx', 'speechmos')


def missing() -> list[str]:
  """Returns which of PACKAGES are not installed: a fact beside the rows that lack their columns."""
  return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def voices(
  judged: evaluation_models.Judges,
  prompts: Sequence[np.ndarray],
  clips: Sequence[np.ndarray],
  originals: Sequence[np.ndarray],
  speaker_B: np.ndarray,
) -> dict[str, float]:
  """Returns whether clips keep their prompts' voices, and how far they are from the originals as a
  set.

  verified, other_voices, verification_error: metrics.speaker.Verification of the embeddings' means
  over a clip.
  frechet_distance: of the embeddings of single seconds, to those of the originals.
  """
  prompt_BND, clip_BND, original_BND = (
    [evaluation_models.features(judged, clip_T) for clip_T in part]
    for part in (prompts, clips, originals)
  )
  mean = lambda part_BND: np.stack([own_ND.mean(axis=0) for own_ND in part_BND])
  found = {}
  if len(set(np.asarray(speaker_B).tolist())) > 1:
    verified = speaker.verification(mean(prompt_BND), mean(clip_BND), speaker_B)
    found = {
      'verified': verified.own,
      'other_voices': verified.others,
      'verification_error': verified.equal_error_rate,
    }
  gaussians = [frechet.fit(np.concatenate(part_BND)) for part_BND in (clip_BND, original_BND)]
  return {**found, 'frechet_distance': frechet.distance(*gaussians)}


def words(
  clips: Sequence[np.ndarray],
  texts: Sequence[str],
  sample_rate: int,
  ctc: Callable[[np.ndarray, int], str] | None = None,
) -> dict[str, float]:
  """Returns the error rates of pocketsphinx on clips that say the texts, number words all of them.

  ctc: a recognizer of people's speech (`pretrained.ctc.recognizer`), whose error rates stand
  beside.
  """
  pairs = [(clip_T, text) for clip_T, text in zip(clips, texts, strict=True) if text]
  if not pairs or 'jiwer' in missing():
    return {}
  recognizers = {} if 'pocketsphinx' in missing() else {'sphinx': speech.pocketsphinx_numbers()}
  recognizers |= {} if ctc is None else {'ctc': ctc}
  columns = {}
  for name, recognize in recognizers.items():
    found = speech.error_rates(recognize, *map(list, zip(*pairs)), sample_rate)
    columns |= {f'{name}_word_errors': found.words, f'{name}_character_errors': found.characters}
  return columns


def naturalnesses(clips: Sequence[np.ndarray], sample_rate: int) -> dict[str, float | int]:
  """Returns the mean of DNSMOS over the clips, and how many have a score; five seconds of computing
  a clip.
  """
  if 'speechmos' in missing() or not clips:
    return {}
  found = [naturalness.dnsmos(clip_T, sample_rate) for clip_T in clips]
  scored = [scores for scores in found if scores.status == 'ok']
  means = {
    name: float(np.mean([getattr(scores, field) for scores in scored])) if scored else float('nan')
    for name, field in (('dnsmos', 'overall'), ('dnsmos_p808', 'p808'))
  }
  return {**means, 'dnsmos_clips': len(scored)}
