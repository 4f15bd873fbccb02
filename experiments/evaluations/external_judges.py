"""Columns that a suite adds to its rows: what measures made elsewhere, and distances of embeddings,
make of its clips.

What needs the extras `eval` and `judges` is left out where those are not installed, and `missing`
names it.
"""

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from audiolm_jax.metrics import d_vector, frechet, naturalness, speaker, speech, whisper

from . import judges

PACKAGES = ('jiwer', 'pocketsphinx', 'speechmos')


def missing() -> list[str]:
  """Returns the names of packages that are not installed; their columns are left out."""
  own = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
  return list(dict.fromkeys([*own, *whisper.missing(), *d_vector.missing()]))


def voices(
  prompts: Sequence[judges.Voice],
  clips: Sequence[judges.Voice],
  originals: Sequence[judges.Voice],
  speaker_B: np.ndarray,
) -> dict[str, float]:
  """Returns whether clips keep their prompts' voices, and how far they are from the originals as a
  set.

  verified, other_voices, verification_error: metrics.speaker.Verification of the features' means
  over a clip; left out unless there are two known speakers.
  frechet_distance: of the features of single seconds, to those of the originals.
  """
  mean = lambda part: np.stack([one.features_ND.mean(axis=0) for one in part])
  found, speakers = {}, set(np.asarray(speaker_B).tolist())
  if len(speakers) > 1 and min(speakers) >= 0:
    verified = speaker.verification(mean(prompts), mean(clips), speaker_B)
    found = {
      'verified': verified.own,
      'other_voices': verified.others,
      'verification_error': verified.equal_error_rate,
    }
  gaussians = [
    frechet.fit(np.concatenate([one.features_ND for one in part])) for part in (clips, originals)
  ]
  return {**found, 'frechet_distance': frechet.distance(*gaussians)}


def whisper_words(
  originals: Sequence[np.ndarray], sample_rate: int, texts: Sequence[str] | None = None
) -> Callable[[Sequence[np.ndarray]], dict[str, float | int | None]]:
  """Returns a function of clips -> their error rates by Whisper, without columns if not installed.

  whisper_word_errors: insertions, deletions and substitutions per reference word. The references
  are `texts` or, without them, what Whisper itself hears in the originals: then the rate is of
  words that a clip loses or changes, and 0 for the originals by definition.
  whisper_clips: how many clips are compared: those with words in the reference. Whisper tiny.en
  knows English only: of other languages most clips have no reference of its own (whisper.SURE).
  """
  if 'jiwer' in missing() or whisper.missing():
    return lambda clips: {}
  recognize = whisper.recognizer()
  own = lambda: [recognize(clip_T, sample_rate, whisper.SURE) for clip_T in originals]
  references = own() if texts is None else texts

  def compare(clips):
    pairs = [(clip_T, text) for clip_T, text in zip(clips, references, strict=True) if text]
    if not pairs:
      return {'whisper_word_errors': None, 'whisper_clips': 0}
    found = speech.error_rates(recognize, *map(list, zip(*pairs)), sample_rate)
    return {'whisper_word_errors': found.words, 'whisper_clips': len(pairs)}

  return compare


def d_vector_similarity(
  originals: Sequence[np.ndarray], sample_rate: int
) -> Callable[[Sequence[np.ndarray]], dict[str, float]]:
  """Returns a function of clips -> the similarity of their voices to the originals', by d-vectors.

  Without columns if not installed.

  voice_similarity: mean cosine of the d-vectors of a clip and its original; 1 for the originals.
  other_clips_similarity: the same of a clip and other originals, mostly of other speakers.
  """
  if d_vector.missing():
    return lambda clips: {}
  embed = d_vector.embedder()
  means = lambda part: np.stack([embed(clip_T, sample_rate).mean(axis=0) for clip_T in part])
  original_BD = means(originals)

  def compare(clips):
    clip_BD, (one_N, other_N) = means(clips), np.nonzero(~np.eye(len(clips), dtype=bool))
    found = {'voice_similarity': float(speaker.similarity(clip_BD, original_BD).mean())}
    if len(one_N):
      others_N = speaker.similarity(clip_BD[one_N], original_BD[other_N])
      found['other_clips_similarity'] = float(others_N.mean())
    return found

  return compare


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
  """Returns the mean of DNSMOS over the clips, and how many have a score.

  Takes three seconds of processor time for a clip of 7 s: DNSMOS is a large convolution of each 9 s
  that begin at a whole second of the repeated clip.
  """
  if 'speechmos' in missing() or not len(clips):
    return {}
  found = [naturalness.dnsmos(clip_T, sample_rate) for clip_T in clips]
  scored = [scores for scores in found if scores.status == 'ok']
  means = {
    name: float(np.mean([getattr(scores, field) for scores in scored])) if scored else float('nan')
    for name, field in (('dnsmos', 'overall'), ('dnsmos_p808', 'p808'))
  }
  return {**means, 'dnsmos_clips': len(scored)}
