"""Evaluates continuations: whether they keep the prompt's voice, and continue its counting."""

import pathlib

import jax
import numpy as np

from audiolm_jax import audio, generation
from audiolm_jax.metrics import speaker, speech

from .. import sources, workspace
from ..recipe import Recipe
from . import external_judges, judges

# Label of a row: the coarse stage that has to be there, and the acoustic path.
SYSTEMS = {
  'continuation': ('coarse', 'autoregressive'),
  'SoundStorm continuation': ('soundstorm', 'soundstorm'),
  'acoustic-only continuation': ('acoustic_only', 'autoregressive'),
}
ORIGINAL = 'original, through the codec'


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how similar continuations of held-out voices are to them, and whether their words obey
  the number grammar.

  Voices are judged by the recipe's stage `speaker`; without one by d-vectors of a model that others
  trained on people's speech (metrics.d_vector). Measures that the corpus or the recipe does not
  allow are omitted, and named in 'left_out' with the reason.
  """
  settings = recipe.evaluation
  rate = workspace.load_stage(workdir, 'soundstream').config.sample_rate
  prompts = sources.prompts(recipe, workdir, rate)
  start, end = (
    round(s * rate) for s in (settings.prompt_seconds, settings.prompt_seconds + settings.seconds)
  )
  waves = {ORIGINAL: [e['waveform'][:end] for e in sources.reconstructions(prompts, workdir)]}
  waves |= continuations(recipe, workdir, [example['waveform'][:start] for example in prompts], end)
  judged = judges.load(recipe, workdir)
  shortest = min(settings.prompt_seconds, settings.seconds)
  left_out = judges.left_out(judged, prompts, shortest)
  rows, facts = {label: {'clips': len(clips)} for label, clips in waves.items()}, {}
  if 'voices' not in left_out:
    labels = np.array([judges.speaker_of(example) for example in prompts])
    hear = lambda clip_T: judges.hear(judged, clip_T, rate)
    heard = {label: [hear(clip[start:]) for clip in clips] for label, clips in waves.items()}
    # Prompts are heard through the codec, as the rest.
    prompts_heard = [hear(clip[:start]) for clip in waves[ORIGINAL]]
    for label, clips in waves.items():
      if judged.speaker is not None:
        who = [judges.voice(judged, clip[start:]) for clip in clips]
        rows[label]['speaker_accuracy'] = float(np.mean(who == labels))
      rows[label] |= external_judges.voices(prompts_heard, heard[label], heard[ORIGINAL], labels)
    facts['similarity_over_time'] = similarity_over_time(prompts_heard, heard, labels)
    if judged.speaker is not None:
      facts['chance_speaker'] = 1 / judged.speaker.config.num_classes
  if 'numbers' not in left_out:
    steps = [speech.counting_step(example['text'].split()) for example in prompts]
    for label, clips in waves.items():
      rows[label] |= speech.grammar_scores(
        [judges.numbers(judged, clip[start:]) for clip in clips], steps
      )
    facts['chance_step'] = 1 / len(speech.NUMBERS)
    facts['recognizer_word_error_rate'] = recognizer_error_rate(recipe, workdir, judged)
  for label, clips in waves.items():
    rows[label] |= external_judges.naturalnesses(
      [clip[start:] for clip in clips[: settings.num_naturalness_clips]], rate
    )
  return {
    'rows': rows,
    **facts,
    'prompts': len(prompts),
    'seconds': settings.seconds,
    'not_installed': external_judges.missing(),
    'left_out': left_out,
  }


def continuations(
  recipe: Recipe, workdir: pathlib.Path, prompts: list[np.ndarray], end: int
) -> dict:
  """Returns prompts with their continuations, up to sample `end`, by each trained system."""
  settings, (prompt_BT, num_samples_B) = recipe.evaluation, audio.stacked(prompts)
  waves, tokenizer = {}, None
  for label, (stage, acoustic) in SYSTEMS.items():
    if not (workdir / stage).is_dir():
      continue
    coarse = stage if acoustic == 'autoregressive' else 'coarse'
    models = workspace.load_models(workdir, coarse=coarse, tokenizer=tokenizer)
    tokenizer = models.tokenizer  # the same for all
    result = generation.continue_audio(
      models,
      jax.random.key(settings.seed),
      prompt_BT,
      num_samples_B,
      seconds=settings.seconds,
      sampling=recipe.sampling,
      carry_seconds=settings.carry_seconds,
      acoustic=acoustic,
    )
    waves[label] = list(np.asarray(result.wave_BT)[:, :end])
  return waves


def similarity_over_time(
  prompts: list[judges.Voice], heard: dict[str, list[judges.Voice]], labels: np.ndarray
) -> dict[str, list[float]]:
  """Returns, for each system, how similar each second of its clips is to their prompts
  (metrics.speaker.drift).

  The last entry is the floor: the originals of other voices.
  """
  embeddings = {label: [one.embedding_ND for one in clips] for label, clips in heard.items()}
  prompts = [one.embedding_ND.mean(axis=0) for one in prompts]
  result = {label: speaker.drift(prompts, clips).tolist() for label, clips in embeddings.items()}
  pairs = [(b, c) for b in range(len(labels)) for c in range(len(labels)) if labels[b] != labels[c]]
  if pairs:
    originals = embeddings[ORIGINAL]
    others = speaker.drift([prompts[b] for b, _ in pairs], [originals[c] for _, c in pairs])
    result['other voices, through the codec'] = others.tolist()
  return result


def recognizer_error_rate(recipe: Recipe, workdir: pathlib.Path, judged: judges.Judges) -> float:
  """Returns the word error rate of the number recognizer on whole held-out utterances, through the
  codec.
  """
  _, utterances = sources.held_out_voices(recipe, workdir)
  whole = sources.reconstructions(
    [example for example in utterances if example['kind'] == 'counting'], workdir
  )
  said = [[speech.NUMBERS.index(word) for word in example['text'].split()] for example in whole]
  return speech.word_error_rate(
    [judges.numbers(judged, example['waveform']) for example in whole], said
  )
