"""Draws pictures of a run: spectrograms, training curves, and results of evaluations."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use('Agg')  # no display

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from audiolm_jax import audio, storage
from audiolm_jax.metrics import detection
from audiolm_jax.training import metrics_writer

CURVES_IN_A_ROW = 4


def save_spectrograms(
  path: pathlib.Path, waves: Mapping[str, np.ndarray], sample_rate: int, marks: Mapping[str, float]
):
  """Draws log-mel spectrograms of waveforms [T], with a vertical line at `marks[title]` seconds."""
  figure, axes = plt.subplots(
    len(waves), 1, figsize=(11, 2.6 * len(waves)), squeeze=False, layout='constrained'
  )
  for axis, (title, wave_T) in zip(axes[:, 0], waves.items(), strict=True):
    _spectrogram(axis, wave_T, sample_rate)
    if title in marks:
      axis.axvline(marks[title], color='white', linestyle='--')
    axis.set(title=title, xlabel='seconds', ylabel='mel bin')
  _save(figure, path)


def save_heard(
  path: pathlib.Path,
  titles: Sequence[str],
  waves: Sequence[np.ndarray],
  sample_rate: int,
  notes: Sequence[np.ndarray] | None = None,
):
  """Draws the spectrogram of each waveform [T], and its notes [N, 4] as a piano roll."""
  figure, axes = plt.subplots(
    len(waves),
    1 if notes is None else 2,
    figsize=(13, 2.6 * len(waves)),
    squeeze=False,
    layout='constrained',
  )
  for row, (title, wave_T) in enumerate(zip(titles, waves, strict=True)):
    seconds = len(wave_T) / sample_rate
    _spectrogram(axes[row, 0], wave_T, sample_rate)
    axes[row, 0].set(title=title, xlabel='seconds', ylabel='mel bin')
    if notes is not None:
      onset_N, end_N, pitch_N, velocity_N = np.asarray(notes[row], float).reshape(-1, 4).T
      loudness = np.clip(velocity_N / 127, 0.2, 1.0)
      axes[row, 1].barh(
        pitch_N, end_N - onset_N, left=onset_N, height=0.8, color=[(0, 0, 0, x) for x in loudness]
      )
      axes[row, 1].set(
        title=f'{len(pitch_N)} notes', xlabel='seconds', ylabel='pitch (MIDI)', xlim=(0, seconds)
      )
  _save(figure, path)


def _spectrogram(axis, wave_T: np.ndarray, sample_rate: int):
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


def save_training_curves(
  path: pathlib.Path, logs: Mapping[str, pathlib.Path]
) -> dict[str, dict[str, float]]:
  """Draws the training and held-out loss of each stage from its metrics.jsonl, over steps.

  Returns:
    {stage: {'training' or 'held out': last loss}}, without what was not measured.
  """
  columns = min(len(logs), CURVES_IN_A_ROW)
  rows = math.ceil(len(logs) / columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(3.2 * columns, 3 * rows), squeeze=False, layout='constrained'
  )
  last = {}
  for axis, (stage, log) in zip(axes.flat, logs.items()):
    steps = metrics_writer.read(log)
    last[stage] = {}
    for name, label, color in (
      ('loss', 'training', 'tab:blue'),
      ('eval/loss', 'held out', 'tab:orange'),
    ):
      if points := {step: values[name] for step, values in steps.items() if name in values}:
        axis.plot(list(points), list(points.values()), label=label, color=color)
        last[stage][label] = points[max(points)]
    axis.set(title=stage, xlabel='step', ylabel='loss')
    if last[stage]:
      axis.legend()
  for axis in axes.flat[len(logs) :]:
    axis.set_axis_off()
  _save(figure, path)
  return last


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
