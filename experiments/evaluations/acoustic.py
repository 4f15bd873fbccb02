"""Evaluates the acoustic stages, given true semantic tokens and the first seconds of codes.

This is the setting of SoundStorm's table 1.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import audio, generation
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import speaker, speech
from audiolm_jax.pretrained import ctc

from .. import sources, workspace
from ..recipe import Recipe
from . import external_judges, judges
from .continuation import ORIGINAL

SYSTEMS = {'coarse and fine': 'autoregressive', 'SoundStorm': 'soundstorm'}


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns measures of voice, words and distance to the original, of audio after the prompt.

  Measures that the corpus or the recipe does not allow are omitted, and named in 'left_out' with
  the reason.

  word_error_rate: of the recognized numbers against the spoken ones; the recognizer makes errors on
    the original, too. sphinx_*, ctc_*: the same by recognizers that were trained on people's speech
    by others (the second if the settings name one).
  whisper_word_errors: by Whisper, against the texts of the corpus or, if it has none, Whisper's own
    transcript of the original recording (external_judges.whisper_words).
  similarity: mean over seconds, of the speaker embedding and the prompt's.
  verified, other_voices, verification_error, frechet_distance: external_judges.voices.
  dnsmos: of the first `num_naturalness_clips` clips.
  mel_distance: to the original through the codec, in nats; frames are aligned, because semantic
    tokens are.
  codes_level_1, codes: share of codes equal to the original's, of the first level and of all.
  perplexity: of the codes, mean over levels; a value far below the original's means that a system
    repeats few codes.
  """
  settings = recipe.evaluation
  models = workspace.load_models(workdir)
  rate, hop = models.tokenizer.sample_rate, models.tokenizer.codec.hop_length
  examples = sources.prompts(recipe, workdir, rate)
  start, end = (
    round(s * rate) for s in (settings.prompt_seconds, settings.prompt_seconds + settings.seconds)
  )
  wave_BT, num_samples_B = audio.stacked([example['waveform'][:end] for example in examples])
  semantic_BS, codes_BFQ = models.tokenizer.encode(wave_BT, num_samples_B)
  prompt_BFQ = codes_BFQ[:, : start // hop]
  waves = {ORIGINAL: [e['waveform'][:end] for e in sources.reconstructions(examples, workdir)]}
  codes = {ORIGINAL: codes_BFQ}
  for label, acoustic in SYSTEMS.items():
    if (models.soundstorm if acoustic == 'soundstorm' else models.coarse) is None:
      continue
    result = generation.generate_acoustics(
      models,
      jax.random.key(settings.seed),
      semantic_BS,
      prompt_BFQ,
      sampling=recipe.sampling,
      carry_seconds=settings.carry_seconds,
      acoustic=acoustic,
    )
    waves[label] = [
      row_T[: frames * hop]
      for row_T, frames in zip(result.wave_BT, result.num_frames_B, strict=True)
    ]
    codes[label] = result.codes_BFQ
  judged = judges.load(recipe, workdir)
  shortest = min(settings.prompt_seconds, settings.seconds)
  left_out = judges.left_out(judged, examples, shortest)
  recognize = ctc.recognizer(settings.recognizer) if settings.recognizer else None
  texts = None
  if all('words' in example for example in examples):
    texts = [_text(example, start, end) for example in examples]
  else:
    left_out['words'] = 'the corpus does not tell what is said'
  whisper_words = external_judges.whisper_words(
    [example['waveform'][start:end] for example in examples], rate, texts
  )
  if 'voices' not in left_out:
    labels = np.array([judges.speaker_of(example) for example in examples])
    hear = lambda clip_T: judges.hear(judged, clip_T, rate)
    heard = {label: [hear(clip_T[start:]) for clip_T in clips] for label, clips in waves.items()}
    prompts = [hear(clip_T[:start]) for clip_T in waves[ORIGINAL]]
    prompt_BD = [one.embedding_ND.mean(axis=0) for one in prompts]
  rows = {}
  for label, clips in waves.items():
    new, row = [clip_T[start:] for clip_T in clips], {}
    if 'voices' not in left_out:
      drift = speaker.drift(prompt_BD, [one.embedding_ND for one in heard[label]])
      if judged.speaker is not None:
        who = [judges.voice(judged, clip_T) for clip_T in new]
        row['speaker_accuracy'] = float(np.mean(who == labels))
      row['similarity'] = float(drift.mean())
      row |= external_judges.voices(prompts, heard[label], heard[ORIGINAL], labels)
    if 'numbers' not in left_out:
      row['word_error_rate'] = speech.word_error_rate(
        [judges.numbers(judged, clip_T) for clip_T in new], [_said(e, start, end) for e in examples]
      )
    row['mel_distance'] = _mel_distance(waves[ORIGINAL], clips, start, rate)
    if texts is not None:
      row |= external_judges.words(new, texts, rate, recognize)
    row |= whisper_words(new)
    row |= external_judges.naturalnesses(new[: settings.num_naturalness_clips], rate)
    rows[label] = row | _codes(codes_BFQ, codes[label], start // hop)
  return {
    'rows': rows,
    'prompts': len(examples),
    'seconds': settings.seconds,
    'not_installed': external_judges.missing(),
    'left_out': left_out,
  }


def _text(example: dict, start: int, end: int) -> str:
  """Returns the words whose middle lies between two samples."""
  middles = [(word, (first + last) // 2) for word, first, last in example['words']]
  return ' '.join(word for word, middle in middles if start <= middle < end)


def _said(example: dict, start: int, end: int) -> list[int]:
  return [speech.NUMBERS.index(word) for word in _text(example, start, end).split()]


def _mel_distance(
  originals: list[np.ndarray], clips: list[np.ndarray], start: int, rate: int
) -> float:
  distances = []
  for original_T, clip_T in zip(originals, clips, strict=True):
    end = min(len(original_T), len(clip_T))
    pair = (jnp.asarray(wave_T[None, start:end]) for wave_T in (original_T, clip_T))
    distances.append(codec_metrics.log_mel_distance(*pair, rate))
  return float(np.mean(distances))


def _codes(true_BFQ: np.ndarray, codes_BFQ: np.ndarray, first: int) -> dict[str, float]:
  levels = min(true_BFQ.shape[-1], codes_BFQ.shape[-1])
  here_BF = true_BFQ[:, first:, 0] >= 0
  true_NQ, codes_NQ = true_BFQ[:, first:, :levels][here_BF], codes_BFQ[:, first:, :levels][here_BF]
  hit_NQ = true_NQ == codes_NQ
  use = [
    codec_metrics.codebook_perplexity(jnp.asarray(codes_N1[None]), 1 + int(codes_N1.max()))
    for codes_N1 in codes_NQ.T[..., None]
  ]
  return {
    'codes_level_1': float(hit_NQ[:, 0].mean()),
    'codes': float(hit_NQ.mean()),
    'perplexity': float(np.mean(use)),
  }
