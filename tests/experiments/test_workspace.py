"""What the programs read back from a workdir, and what they refuse."""

import argparse
import errno
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from audiolm_jax import files
from audiolm_jax.errors import UserError
from audiolm_jax.training import errors as training_errors
from audiolm_jax.training import watchdog
from experiments import evaluations, workspace
from experiments import recipe as recipe_lib
from experiments.cli import command_line, pod

ROOT = pathlib.Path(__file__).parents[2]


def test_what_is_missing_names_the_command(tmp_path):
  with pytest.raises(
    ValueError, match=r'run `python -m experiments.train --stage=coarse --workdir='
  ):
    workspace.load_stage(tmp_path, 'coarse')
  for load in (
    workspace.load_semantic_tokenizer,
    lambda workdir: workspace.token_source(workdir, 'train'),
  ):
    with pytest.raises(ValueError, match=r'run `python -m experiments.encode --workdir='):
      load(tmp_path)


def test_imports_that_are_missing_name_their_commands(tmp_path):
  recipe = recipe_lib.load('librispeech_pretrained')
  (tmp_path / 'soundstream').mkdir()
  with pytest.raises(
    ValueError,
    match=f'run\n  python -m experiments.pretrained import .*hubert.* --workdir={tmp_path}$',
  ):
    workspace.require_imports(recipe, tmp_path)
  (tmp_path / 'w2v_bert').mkdir()
  workspace.require_imports(recipe, tmp_path)


def test_waiting_for_others_ends(tmp_path):
  files = [tmp_path / 'a', tmp_path / 'b']
  missing = lambda: [str(file) for file in files if not file.exists()]
  for delay, file in enumerate(files, 1):
    threading.Timer(0.3 * delay, file.touch).start()
  pod.wait_for('files', missing, patience_seconds=5.0)  # of each, not of both
  files.append(tmp_path / 'c')
  with pytest.raises(
    ValueError, match=r'process 0 of 1 has waited 0.3 s for files: .*/c \(1 in all\)'
  ):
    pod.wait_for('files', missing, patience_seconds=0.3)


def test_waiting_looks_less_and_less_often_and_says_for_what(monkeypatch, capsys):
  pauses, clock = [], [0.0]

  def sleep(seconds):
    pauses.append(seconds)
    clock[0] += seconds

  monkeypatch.setattr(time, 'sleep', sleep)
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  missing = lambda: [f'shard {n}' for n in range(int(clock[0] // 100), 10)]
  pod.wait_for('shards of other hosts', missing)
  # 1000 s of shards, one every 100 s.
  assert pauses[:3] == [0.2, pytest.approx(0.3), pytest.approx(0.45)] and max(pauses) == 10.0
  assert len(pauses) < 120
  said = capsys.readouterr().err.splitlines()
  assert 14 <= len(said) <= 17
  assert said[0] == 'waiting for shards of other hosts: 10 missing, such as shard 0'


def test_the_address_of_a_pod_is_checked(monkeypatch):
  monkeypatch.setenv('AUDIOLM_DISTRIBUTED', '0')
  pod.join_pod()  # alone
  monkeypatch.setenv('AUDIOLM_DISTRIBUTED', 'here,2')
  with pytest.raises(
    ValueError, match='AUDIOLM_DISTRIBUTED=here,2: set it to 1, or to ADDRESS:PORT,COUNT,INDEX'
  ):
    pod.join_pod()


class Hosts:
  """Threads in the place of a pod's processes, with what they say to one another."""

  def __init__(self, monkeypatch, count):
    self.count, self._own = count, threading.local()
    self._said, self._barrier = [None] * count, threading.Barrier(count, timeout=60)
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    monkeypatch.setattr(jax, 'process_index', lambda: self._own.index)
    utils = pod.multihost_utils
    monkeypatch.setattr(utils, 'broadcast_one_to_all', lambda value: self._exchange(value)[0])
    monkeypatch.setattr(utils, 'process_allgather', lambda value: np.stack(self._exchange(value)))

  def _exchange(self, value):
    self._said[self._own.index] = value
    self._barrier.wait()
    said = list(self._said)
    self._barrier.wait()
    return said

  def run(self, function) -> list[str]:
    """Returns the error of each host, or ''."""
    errors = [''] * self.count

    def host(index):
      self._own.index = index
      try:
        function(index)
      except (UserError, training_errors.PeerError) as error:
        errors[index] = str(error)

    threads = [threading.Thread(target=host, args=(index,)) for index in range(self.count)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return errors


def test_hosts_without_the_shared_storage_are_named_on_all(tmp_path, monkeypatch):
  hosts = Hosts(monkeypatch, 4)
  prove = lambda name: pod.check_shared(tmp_path / name, patience_seconds=0.5)
  for name in ('shared', 'own'):
    (tmp_path / name).mkdir()
  assert hosts.run(lambda index: prove('shared')) == [''] * 4
  errors = hosts.run(lambda index: prove('own' if index in (1, 3) else 'shared'))
  assert all('process 1, 3 (2 of 4 in all) is not that of process 0' in error for error in errors)
  assert not list((tmp_path / 'shared').iterdir()) and not list((tmp_path / 'own').iterdir())


def test_hosts_that_run_another_command_are_named(tmp_path, monkeypatch):
  hosts = Hosts(monkeypatch, 2)
  commands = [['train', '--stage=coarse'], ['train', '--stage=fine']]
  checksum = pod.zlib.crc32
  monkeypatch.setattr(
    pod.zlib, 'crc32', lambda _: checksum(' '.join(commands[jax.process_index()]).encode())
  )
  errors = hosts.run(lambda index: pod.check_shared(tmp_path))
  assert all('process 1 (1 of 2 in all) runs another command' in error for error in errors)


def test_a_workdir_in_a_bucket_is_remembered_claimed_and_shared(bucket, monkeypatch):
  args = argparse.Namespace(workdir=bucket, recipe='tiny', overrides=['semantic.train.seed=3'])
  assert workspace.recipe_of(args).stages['semantic'].train.seed == 3
  assert command_line.remembered(bucket) == ('tiny', [])
  workspace.claim(bucket / 'tokens', {'codec': 'abc'})
  workspace.claim(bucket / 'tokens', {'codec': 'abc'})
  with pytest.raises(UserError, match=f'{bucket}/tokens was made by the models'):
    workspace.claim(bucket / 'tokens', {'codec': 'def'})
  with pytest.raises(UserError, match='belongs to the recipe .tiny., not to .folder.'):
    workspace.recipe_of(argparse.Namespace(workdir=bucket, recipe='folder', overrides=[]))
  with pytest.raises(UserError, match='python -m experiments.encode .*--workdir=gs://bucket/'):
    workspace.token_source(bucket, 'train')
  with pytest.raises(UserError, match=f'{bucket}/coarse does not exist: run `python -m exp'):
    workspace.load_stage(bucket, 'coarse')
  assert Hosts(monkeypatch, 2).run(lambda index: pod.check_shared(bucket)) == ['', '']
  assert {path.name for path in bucket.iterdir()} == {command_line.MEMORY, 'tokens'}


@pytest.mark.parametrize(
  'error, status',
  [
    (UserError('wrong'), 1),
    (OSError(errno.ENOSPC, 'full'), 1),
    (OSError(errno.ESTALE, 'stale'), 75),
    (OSError(errno.EIO, 'failed'), 75),
    (training_errors.PeerError('gone'), 75),
    (watchdog.StalledError('hangs'), 75),
  ],
)
def test_exit_status_says_whether_to_start_again(monkeypatch, capsys, error, status):
  def fail():
    raise error

  monkeypatch.setattr(os, '_exit', sys.exit)
  with pytest.raises(SystemExit) as left:
    command_line.run(fail)
  if status == 1:
    assert left.value.code.startswith('error: ')  # Python prints a text, and exits with 1
  else:
    assert left.value.code == status and capsys.readouterr().err.startswith('error: ')


@pytest.mark.parametrize(
  'work, held, left',
  [
    ('ready(); time.sleep(1000)', '', True),
    # Stands for a long call of native code: it never returns to Python. The signal must not come
    # before it.
    (
      'threading.Timer(2.0, ready).start(); '
      '[ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]',
      'pid',
      False,
    ),
  ],
)
def test_encoding_on_a_pod_leaves_at_sigterm(tmp_path, work, held, left):
  """JAX, which joined the pod, catches SIGTERM to ask for a save that only training makes."""
  program = (
    'import ctypes, sys, threading, time; from experiments import encode; from experiments.cli import command_line\n'
    'ready = lambda: print("ready", flush=True)\n'
    'mutex = ctypes.create_string_buffer(64)\n'
    'def encode_corpus(recipe, workdir):\n'
    f'  try: {work}\n'
    '  finally: print("left", flush=True)\n'
    'encode.encode_corpus = encode_corpus\n'
    'sys.argv = ["encode", "--workdir=" + sys.argv[1]]; command_line.run(encode.main)'
  )
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  process = subprocess.Popen(
    [sys.executable, '-c', program, str(tmp_path)],
    env=os.environ | {'AUDIOLM_DISTRIBUTED': f'{address},1,0', 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 143 and output == ('left\n' if left else '')
  assert held in (tmp_path / 'tokens/lock').read_text()
  assert held or not (tmp_path / 'tokens/lock').read_text()


def test_errors_keep_their_lines_and_lose_their_escapes():
  def fail():
    raise UserError('a\n  \x1b]0;b\x07 \udcff')

  with pytest.raises(SystemExit) as caught:
    command_line.run(fail)
  assert str(caught.value) == 'error: a\n  \\x1b]0;b\\x07 \\udcff'


@pytest.mark.parametrize('text', ['{', '[]'])
def test_a_torn_mark_of_a_folder_is_named(tmp_path, text):
  (tmp_path / 'made_by.json').write_text(text)
  with pytest.raises(ValueError, match='made_by.json .*: move .* away first'):
    workspace.claim(tmp_path, {'soundstream': 'abc'})


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"rows": []}', '{"rows": {"a": 3}}'])
def test_damaged_results_are_named(tmp_path, text):
  files.write_text(evaluations.path(tmp_path, 'codec'), text)
  with pytest.raises(ValueError, match='codec.json .*: delete it and measure again'):
    evaluations.load(tmp_path)


def test_no_program_reads_a_number_without_a_check():
  sources = [*(ROOT / 'experiments').rglob('*.py')]
  assert len(sources) > 40
  unchecked = re.compile(r'\btype=(int|float)\b')
  assert not [path.name for path in sources if unchecked.search(path.read_text())]
