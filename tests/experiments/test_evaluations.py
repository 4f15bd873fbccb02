"""How results are shown: ours, the papers' below them, and pictures."""

from experiments import evaluations
from experiments.evaluations import paper, pictures

OURS = {
  'log-mel': {'bits_per_second': None, 'abx_within': 9.0, 'abx_across': 12.5, 'mel_distance': None},
  'w2v-BERT tokens': {
    'bits_per_second': 150.0,
    'abx_within': 8.0,
    'abx_across': 11.0,
    'mel_distance': 1.5,
  },
}


def test_papers_numbers_stand_in_the_columns_of_ours():
  text = evaluations.table(
    {'tokens': {'rows': {}, 'trade_off': {'rows': OURS, 'items': 'twin.item'}}}
  )
  lines = [line for line in text.splitlines() if line]
  assert lines[0] == 'tokens, trade_off (items twin.item)'
  column = lines[1].index('abx_across') + len('abx_across')
  cells = {line[:40].split('  ')[0]: line[:column].split()[-1] for line in lines[2:-1]}
  assert cells['log-mel'] == '12.500' and cells['paper: w2v-BERT tokens'] == '7.600'
  assert '-' in lines[2].split() and lines[-1].startswith('paper: AudioLM, Table I')


def test_every_table_of_the_papers_says_where_it_is_from():
  for title, known in paper.TABLES.items():
    assert title.split(',')[0] in {*evaluations.SUITES, 'listening'}
    assert known.source.startswith(('AudioLM', 'SoundStream', 'SoundStorm')) and known.rows


def test_trade_off_is_drawn(tmp_path):
  pictures.save_token_comparison(
    tmp_path / 'tokens.png', OURS, paper.TABLES['tokens, trade_off'].rows
  )
  assert (tmp_path / 'tokens.png').stat().st_size > 5000 and len(list(tmp_path.iterdir())) == 1
