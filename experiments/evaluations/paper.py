"""Defines the papers' results, in the columns and units of our tables, which show them below ours.

They are results of systems with hundreds of millions of parameters, trained on 60,000 hours of read
English: a goal, but no standard for `tiny`.
"""

from typing import NamedTuple


class Table(NamedTuple):
  source: str
  rows: dict[str, dict[str, float]]


# By the titles of our tables: a suite, or a suite and one of its parts.
TABLES = {
  'piano': Table(
    'AudioLM, section IV-I: in 83.3 % of 15 pairs, 10 raters preferred the continuation of 4 s of '
    'MAESTRO by AudioLM to that by acoustic tokens only; no numbers of notes',
    {'AudioLM against acoustic-only': {'preferred': 83.3}},
  ),
  'music': Table(
    "MusicLM, table 1: MusicCaps; Frechet distances by Trill and VGGish, divergence of a tagger's "
    "classes; the similarity is by the authors' MuLan",
    {
      'MusicLM': {'similarity': 0.51, 'fad_trill': 0.44, 'fad_vggish': 4.0, 'kld': 1.01},
      'MusicLM, without semantic stage': {
        'similarity': 0.49,
        'fad_trill': 0.42,
        'fad_vggish': 4.0,
        'kld': 1.05,
      },
      'Riffusion': {'similarity': 0.34, 'fad_trill': 0.76, 'fad_vggish': 13.4, 'kld': 1.19},
      'Mubert': {'similarity': 0.32, 'fad_trill': 0.45, 'fad_vggish': 9.6, 'kld': 1.58},
    },
  ),
  'tokens, trade_off': Table(
    'AudioLM, Table I: LibriSpeech dev-clean; ViSQOL of a SoundStream decoder trained on the '
    'tokens',
    {
      'w2v-BERT tokens': {
        'bits_per_second': 250,
        'abx_within': 6.7,
        'abx_across': 7.6,
        'visqol': 1.1,
      },
      'w2v-BERT tokens, 24 levels': {
        'bits_per_second': 6000,
        'abx_within': 5.6,
        'abx_across': 6.2,
        'visqol': 1.4,
      },
      'SoundStream tokens, 4 levels': {
        'bits_per_second': 2000,
        'abx_within': 22.4,
        'abx_across': 28.7,
        'visqol': 3.3,
      },
      'SoundStream tokens, 12 levels': {
        'bits_per_second': 6000,
        'abx_within': 17.8,
        'abx_across': 26.6,
        'visqol': 3.9,
      },
    },
  ),
  'language, preference': Table(
    'AudioLM, Table IV and section IV-D: ZeroSpeech 2021, dev',
    {
      'AudioLM': {
        'sWUGGY': 71.5,
        'sWUGGY in vocabulary': 83.7,
        'sBLIMP': 64.7,
        'sBLIMP, sum': 67.5,
      },
      'GSLM': {'sWUGGY in vocabulary': 68.7, 'sBLIMP': 57.1},
      'van Niekerk et al.': {'sWUGGY': 64.3, 'sWUGGY in vocabulary': 72.3, 'sBLIMP': 54.0},
      'CPC-BERT (not causal)': {'sWUGGY in vocabulary': 80.0, 'sBLIMP': 59.9},
      'phones (topline)': {'sWUGGY': 97.9, 'sBLIMP': 66.8},
    },
  ),
  'codec': Table(
    'SoundStream, Figure 7: 24 kHz, one model of 80 levels for all rates',
    {'3 kbit/s': {'visqol': 3.74}, '6 kbit/s': {'visqol': 4.01}, '12 kbit/s': {'visqol': 4.20}},
  ),
  'continuation': Table(
    'AudioLM, Table III: 291 speakers of LibriSpeech, continuations of 3 s',
    {
      'original, through the codec': {'speaker_accuracy': 1.0},
      'continuation': {'speaker_accuracy': 0.926},
      'acoustic generation': {'speaker_accuracy': 0.032},
    },
  ),
  'acoustic': Table(
    'AudioLM, Table II: Conformer Transducer-L on LibriSpeech test-clean, acoustic tokens sampled '
    'for true semantic tokens; after a prompt of 3 s: SoundStorm, Table 1, clips of 10 to 20 s',
    {
      'original': {'word_error_rate': 0.025, 'character_error_rate': 0.008},
      'original, through the codec': {'word_error_rate': 0.026, 'character_error_rate': 0.009},
      'coarse and fine': {'word_error_rate': 0.060, 'character_error_rate': 0.034},
      'GSLM unit to speech': {'word_error_rate': 0.066, 'character_error_rate': 0.029},
      'coarse and fine, after a prompt': {'word_error_rate': 0.034, 'character_error_rate': 0.0147},
      'SoundStorm, after a prompt': {'word_error_rate': 0.0243, 'character_error_rate': 0.0081},
    },
  ),
  'detection': Table(
    'AudioLM, section IV-I: continuations of LibriSpeech; SoundStorm, section 4.4',
    {'AudioLM': {'accuracy': 0.986}, 'SoundStorm': {'accuracy': 0.985}},
  ),
  'listening': Table(
    'AudioLM, section IV-G: 100 clips of 10 s, 10 raters',
    {'AudioLM': {'correct': 0.512, 'p_value': 0.23, 'ratings': 1000}},
  ),
}
