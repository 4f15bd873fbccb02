"""Measures sWUGGY and sBLIMP: how often a word is more likely than a nonword, grammar than errors.

Recordings come from a benchmark in the layout of ZeroSpeech 2021 (`sources.benchmark`). Scores are
mean log-likelihoods of the semantic tokens, as AudioLM's (section IV-D), and their sums.
"""

import pathlib

import numpy as np

from audiolm_jax import decoding, tokens
from audiolm_jax.data import zerospeech
from audiolm_jax.metrics import language
from audiolm_jax.stages import semantic

from .. import sources, workspace
from ..recipe import Recipe

TASKS = {
  'lexical': ('sWUGGY', zerospeech.read_lexical),
  'syntactic': ('sBLIMP', zerospeech.read_syntactic),
}
BUCKET_SECONDS = 1.6  # short recordings are padded to a multiple of this (whole semantic frames)


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict | None:
  """Returns accuracies in percent of the semantic model and of bigrams of its training tokens.

  None without a benchmark or a semantic model.
  """
  found = sources.benchmark(recipe, workdir)
  if found is None or not (workdir / 'semantic').is_dir():
    return None
  root, subset = found
  config, variables, _ = workspace.load_stage(workdir, 'semantic')
  counts = _counts(config, workdir)
  rows, by_kind, pairs = {'semantic': {}, 'bigram': {}}, {}, {}
  for task, (title, read) in TASKS.items():
    path = zerospeech.gold_file(root, task, subset)
    if path is None:
      continue
    samples = read(path)
    token_rows = _tokens(
      config, workdir, pathlib.Path(path).parent, [sample.file for sample in samples]
    )
    with workspace.progress(len(token_rows), f'{title}, likelihoods', 'recording') as bar:
      scores = decoding.log_likelihoods(
        config.language_model,
        variables.params,
        token_rows,
        crop=config.num_semantic,
        progress=bar.update,
      )
    counted = [language.bigram_log_probabilities(counts, row[None])[0] for row in token_rows]
    recordings = [language.Recording(s.pair, s.voice, s.correct, s.kind) for s in samples]
    for name, found_scores in (('semantic', scores), ('bigram', counted)):
      result = language.preference(recordings, [float(score.mean()) for score in found_scores])
      rows[name][title] = 100 * result.accuracy
      known = [sample.pair for sample in samples if sample.correct and sample.kind != 'oov']
      if task == 'lexical' and len(known) < sum(sample.correct for sample in samples):
        rows[name]['sWUGGY in vocabulary'] = 100 * _within(recordings, found_scores, set(known))
      summed = language.preference(recordings, [float(score.sum()) for score in found_scores])
      rows[name][f'{title}, sum'] = 100 * summed.accuracy
      by_kind[f'{name}, {title}'] = {kind: 100 * value for kind, value in result.by_kind.items()}
      pairs[title] = result.pairs
  return {
    'rows': rows,
    'by_kind': by_kind,
    **{f'{title} pairs': number for title, number in pairs.items()},
  }


def _within(recordings, scores, pairs: set[str]) -> float:
  chosen = [n for n, recording in enumerate(recordings) if recording.pair in pairs]
  return language.preference(
    [recordings[n] for n in chosen], [float(scores[n].mean()) for n in chosen]
  ).accuracy


def _tokens(
  config: semantic.Config, workdir: pathlib.Path, folder: pathlib.Path, names: list[str]
) -> list[np.ndarray]:
  """Returns semantic tokens [S, 1] of each named recording, as the language model reads them."""
  tokenizer = workspace.load_semantic_tokenizer(workdir)
  recordings = zerospeech.Recordings(folder, names, tokenizer.sample_rate)
  found = sources.map_frames(
    tokenizer.encode,
    recordings,
    tokenizer.sample_rate,
    hop_length=tokenizer.hop_length,
    batch_size=32,
    bucket_seconds=BUCKET_SECONDS,
  )
  with workspace.progress(
    len(recordings), f'semantic tokens of {folder.parent.name}', 'recording'
  ) as bar:
    of_name = {}
    for name, row_S in zip(recordings.names, found, strict=True):
      of_name[name] = _as_read(config, row_S)[:, None]
      bar.update()
  return [of_name[name] for name in names]


def _as_read(config: semantic.Config, row_S: np.ndarray) -> np.ndarray:
  """Returns a row of tokens, without repeats if the language model was trained so."""
  if not config.deduplicate:
    return row_S
  kept_BS, length_B = tokens.deduplicate(row_S[None])
  return kept_BS[0, : length_B[0]]


def _counts(config: semantic.Config, workdir: pathlib.Path) -> language.Counts:
  """Returns the bigram counts of the training tokens."""
  source = workspace.token_source(workdir, 'train')
  rows = [_as_read(config, np.asarray(source[n]['semantic']))[:, None] for n in range(len(source))]
  return language.fit(decoding.stack(rows, max(map(len, rows)), 1), config.num_clusters)
