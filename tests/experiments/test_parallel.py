"""Programs side by side: each on its cores, and one that fails takes the others along."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments.cli import parallel


def test_shares_are_disjoint_and_whole(monkeypatch):
  monkeypatch.setattr(parallel.os, 'sched_getaffinity', lambda _: {0, 1, 2, 3, 4}, raising=False)
  assert parallel._shares(2) == [{0, 2, 4}, {1, 3}]
  assert parallel._shares(8) == [None] * 8


def test_a_program_that_fails_ends_the_run_with_its_status(capfd):
  with pytest.raises(SystemExit) as stopped:
    parallel.run([('evaluate', '--suite=nothing'), ('evaluate', '--help')], num_slots=1)
  assert stopped.value.code == 1
  out, err = capfd.readouterr()
  assert err.startswith('error: --suite=nothing: choose all') and err.count('\n') == 1
  assert 'usage' not in out  # the second never began


def parent_of(child_code: str, folder) -> subprocess.Popen:
  """Starts a process that runs a program of that code, in a group of its own; returns it once the
  program has printed 'ready'."""
  child = folder / 'experiments' / 'waits.py'
  child.parent.mkdir()
  child.write_text(textwrap.dedent(child_code))
  programs_file = parallel.__file__
  starter = (
    'import importlib.util as u; s = u.spec_from_file_location("experiments.cli.parallel", '
    + repr(programs_file)
    + ');'
    'm = u.module_from_spec(s); s.loader.exec_module(m); m.run([("waits",)])'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', starter],
    cwd=folder,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert parent.stdout.readline() == 'ready\n'
  return parent


def test_a_signal_to_the_group_reaches_a_program_once(tmp_path):
  code = """
    import signal, sys, time
    count = 0
    def hear(*_):
      global count
      count += 1
    signal.signal(signal.SIGTERM, hear)
    print('ready', flush=True)
    while not count:
      time.sleep(0.01)
    time.sleep(0.5)
    print(count, flush=True)
  """
  parent = parent_of(code, tmp_path)
  os.killpg(parent.pid, signal.SIGTERM)
  assert parent.stdout.read() == '1\n'
  assert parent.wait() == 143


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel tells the children only here')
def test_children_hear_of_the_death_of_their_parent(tmp_path):
  parent = parent_of(
    f"""
      import pathlib, signal, sys, time
      signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path)!r}, 'told').touch(), sys.exit()))
      print('ready', flush=True)
      time.sleep(60)
    """,
    tmp_path,
  )
  parent.kill()
  parent.wait()
  assert parent.stdout.read() == ''  # ends when the child, which holds the other end, is gone
  assert (tmp_path / 'told').exists()
