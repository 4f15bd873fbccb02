"""Draws pictures of a run: spectrograms, training curves, and results of evaluations."""

import pathlib
from collections.abc import Mapping

import matplotlib

matplotlib.use('Agg')  # no display

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from audiolm_jax import audio, storage
from audiolm_jax.metrics import detection
from audiolm_jax.training import metrics_writer


def save_spectrograms(
  path: pathlib.Path, waves: Mapping[str, np.ndarray], sample_rate: int, marks: Mapping[str, float]
):
  """Draws log-mel spectrograms of waveforms [T], with a vertical line at `marks[title]` seconds."""
  figure, axes = plt.subplots(
    len(waves), 1, figsize=(11, 2.6 * len(waves)), squeeze=False, layout='constrained'
  )
  for axis, (title, wave_T) in zip(axes[:, 0], waves.items(), strict=True):
    log_mel_FM = audio.log_mel_spectrogram(
      jnp.asarray(wave_T)[None],
      sample_rate=sample_rate,
      window_length=1024,
      hop_length=160,
      num_mels=80,
    )[0]
    extent = (0, len(wave_T) / sample_rate, 0, 80)
    axis.imshow(
      log_mel_FM.T, origin='lower', aspect='auto', cmap='magma', extent=extent, vmin=-8, vmax=4
    )
    if title in marks:
      axis.axvline(marks[title], color='white', linestyle='--')
    axis.set(title=title, xlabel='seconds', ylabel='mel bin')
  _save(figure, path)


def save_training_curves(path: pathlib.Path, logs: Mapping[str, pathlib.Path]):
  """Draws the training and held-out loss of each stage from its metrics.jsonl, over steps."""
  figure, axes = plt.subplots(
    1, len(logs), figsize=(3.2 * len(logs), 3), squeeze=False, layout='constrained'
  )
  for axis, (stage, log) in zip(axes[0], logs.items(), strict=True):
    steps = metrics_writer.read(log)
    for name, label in (('loss', 'training'), ('eval/loss', 'held out')):
      points = {step: values[name] for step, values in steps.items() if name in values}
      axis.plot(list(points), list(points.values()), label=label)
    axis.set(title=stage, xlabel='step', ylabel='loss')
    axis.legend()
  _save(figure, path)


def save_token_comparison(
  path: pathlib.Path, ours: Mapping[str, Mapping], papers: Mapping[str, Mapping]
):
  """Draws AudioLM's Table I: phones (ABX across speakers, percent) against sound (ViSQOL).

  Up and to the left is better. Without ViSQOL, ours shows the log-mel distance on an inverted axis.
  """
  figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
  heard = any(row.get('visqol') is not None for row in ours.values())
  column = 'visqol' if heard else 'mel_distance'
  for axis, title, rows, measure in (
    (axes[0], 'ours', ours, column),
    (axes[1], 'AudioLM, Table I', papers, 'visqol'),
  ):
    for name, row in rows.items():
      if row['abx_across'] is None or row.get(measure) is None:
        continue
      at = row['abx_across'], row[measure]
      axis.scatter(*at, color='tab:blue')
      label = f'{name}\n{row["bits_per_second"]:.0f} bit/s'
      axis.annotate(label, at, fontsize=8, xytext=(5, 3), textcoords='offset points')
    sound = 'ViSQOL' if measure == 'visqol' else 'log-mel distance, nats'
    axis.set(title=title, xlabel='ABX error across speakers, %', ylabel=sound)
    axis.margins(0.25)
  if not heard:
    axes[0].invert_yaxis()
  _save(figure, path)


def save_roc(path: pathlib.Path, curves: Mapping[str, detection.Roc]):
  """Draws receiver operating characteristics, their areas, and the diagonal of chance."""
  figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
  axis.plot([0, 1], [0, 1], color='grey', linestyle=':', label='chance')
  for title, curve in curves.items():
    area = np.trapezoid(curve.true_positive_N, curve.false_positive_N)
    axis.plot(curve.false_positive_N, curve.true_positive_N, label=f'{title} (area {area:.3f})')
  axis.set(
    title='generated against original',
    xlabel='originals called generated',
    ylabel='generated called generated',
    xlim=(-0.01, 1.01),
    ylim=(-0.01, 1.01),
    aspect='equal',
  )
  axis.legend(loc='lower right')
  _save(figure, path)


def _save(figure, path: pathlib.Path):
  with storage.atomically(path) as partial:
    figure.savefig(partial, dpi=100, format='png')
  plt.close(figure)
