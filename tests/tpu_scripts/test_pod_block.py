"""The guide's commands for a pod, line by line, in a cloud of stand-ins: a queue with its states, two
hosts with disks of their own, a file server and a bucket.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GCLOUD = r"""
state=$(cat "$CLOUD/state" 2>/dev/null)
verb=$4
for word; do case $word in
  --command=*) command=${word#*=} ;;
  --worker=*) worker=${word#*=} ;;
esac; done
fail() { printf 'ERROR: (gcloud.compute.tpus.queued-resources.%s) %s\n' "$verb" "$*" >&2; exit 1; }
case $verb in
  create)
    [[ -z $state ]] || fail "ALREADY_EXISTS: Resource 'run1' already exists"
    echo WAITING_FOR_RESOURCES >"$CLOUD/state"
    ;;
  describe)
    case $state in
      '') fail 'NOT_FOUND' ;;
      WAITING_FOR_RESOURCES) echo PROVISIONING >"$CLOUD/state" ;;
      PROVISIONING) echo ACTIVE >"$CLOUD/state" && mkdir -p "$CLOUD"/hosts/{0,1} ;;
    esac
    echo "$state"
    ;;
  ssh | scp)
    [[ $state == ACTIVE ]] || fail "the queued resource is $state"
    for host in "$CLOUD"/hosts/*; do
      if [[ $verb == scp ]]; then
        cp "$5" "$host/${6#*:}"
      elif [[ $worker == all || $host == */$worker ]]; then
        command=${command// -F/}
        (cd "$host" && HOME=$host bash -c "${command//\/mnt\/shared/$host/mnt/shared}") || exit
      fi
    done
    ;;
  delete)
    [[ -n $state ]] || fail 'NOT_FOUND'
    rm -r "$CLOUD/state" "$CLOUD/hosts"
    ;;
esac
"""
TRAIN = r"""#!/usr/bin/env bash
for word; do case $word in
  --workdir=gs://*) workdir=$CLOUD/${word#*=gs://} ;;
  corpus.root=*) root=${word#*=} ;;
esac; done
[[ -L ${root%/*} ]] || exit 1
mkdir -p "$workdir"
echo "$AUDIOLM_DISTRIBUTED $*" >>"$workdir/${HOME##*/}"
echo trained
"""
STAND_INS = {
  'gcloud': GCLOUD,
  'git': 'for word; do case $word in --output=*) tar -czf "${word#*=}" -C "$2" tpu_scripts ;; esac; done',
  'sleep': 'exit 0',
  'sudo': 'exec "$@"',
  'apt-get': 'echo "$*" >>"$CLOUD/apt"',
  'mountpoint': '[[ -L ${!#} ]]',
  'mount': 'echo "$*" >>"$CLOUD/mounted"; rmdir "${!#}" && ln -s "$CLOUD/shared" "${!#}"',
  'id': 'echo 1001',
  'stat': 'cat "$CLOUD/owner"',
  'chown': 'echo "$1" >>"$CLOUD/chowned"; echo "${1%:*}" >"$CLOUD/owner"',
  'python3': 'exit 0',
  'uv': 'if [[ $1 == venv ]]; then mkdir -p .venv/bin && cp "$CLOUD/train" .venv/bin/python; fi',
}

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='TPU hosts run Linux')


class Cloud:
  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    (folder / 'shared').mkdir()
    (folder / 'home').mkdir()
    (folder / 'owner').write_text('0\n')  # root's, as a new Filestore is
    (folder / 'train').write_text(TRAIN)
    (folder / 'train').chmod(0o755)
    (folder / 'bin').mkdir()
    for name, text in STAND_INS.items():
      (folder / 'bin' / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
      (folder / 'bin' / name).chmod(0o755)

  def run(self, line: str) -> subprocess.CompletedProcess:
    variables = {'CLOUD': str(self.folder), 'HOME': str(self.folder / 'home')}
    variables['PATH'] = f'{self.folder / "bin"}:{os.environ["PATH"]}'
    return subprocess.run(
      ['bash', '-c', line], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300
    )

  def preempt(self):
    (self.folder / 'state').write_text('SUSPENDED\n')
    for path in sorted((self.folder / 'hosts').rglob('*'), reverse=True):
      path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()

  def lines(self, name: str) -> list[str]:
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def wait_for(self, name: str, count: int) -> list[str]:
    deadline = time.monotonic() + 60
    while len(self.lines(name)) < count and time.monotonic() < deadline:
      time.sleep(0.05)
    return self.lines(name)


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


def block() -> dict[str, str]:
  """Returns the commands of the guide's block for a pod, by their scripts, in order."""
  section = (ROOT / 'docs/guide/pod.md').read_text()
  text = re.search(r'^```\n(.*?)^```', section, re.DOTALL | re.MULTILINE)[1]
  first, *lines = text.replace('\\\n', ' ').splitlines()
  assert first.startswith('TPU=')
  return {re.match(r'tpu_scripts/(\w+)\.sh', line)[1]: f'{first}\n{line}' for line in lines}


def test_the_block_runs_and_after_a_preemption_again(cloud):
  lines = block()
  assert list(lines) == ['create', 'status', 'mount', 'launch', 'logs', 'delete']
  start = [lines[name] for name in ('create', 'status', 'mount', 'launch')]
  for life in (1, 2):
    for line in start:
      done = cloud.run(line)
      assert done.returncode == 0, (line, done.stderr)
    for host in ('0', '1'):
      trained = cloud.wait_for(f'bucket/run1/{host}', life)
      assert len(trained) == life
      assert trained[-1].startswith('1 -m experiments.train --stage=all --recipe=librilight')
    if life == 2:
      break
    cloud.preempt()
    # The request is still there, and takes the name; neither waiting nor launching helps.
    assert 'ALREADY_EXISTS' in cloud.run(lines['create']).stderr
    waited = cloud.run(lines['status'])
    assert waited.returncode == 1
    assert 'run1 is SUSPENDED and will not start again: delete it (tpu_scripts/delete.sh)' in (
      waited.stderr
    )
    assert cloud.run(lines['launch']).returncode == 1
    assert cloud.run(lines['delete']).returncode == 0
  cloud.wait_for('hosts/0/audiolm_jax.log', 2)
  assert 'trained' in cloud.run(lines['logs']).stdout
  assert cloud.run(lines['delete']).returncode == 0
  assert not (cloud.folder / 'state').exists()
  # Both hosts mounted it in both lives; the root folder was given to the user once.
  assert [line.split()[:3] for line in cloud.lines('mounted')] == [['-t', 'nfs', '-o']] * 4
  assert cloud.lines('chowned') == ['1001:1001']


def test_waiting_prints_each_state_once(cloud):
  lines = block()
  cloud.run(lines['create'])
  done = cloud.run(lines['status'])
  assert done.stdout.split() == ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']


def test_waiting_ends(cloud):
  flags = '--name=run1 --zone=us-west4-a'
  (cloud.folder / 'bin/gcloud').write_text('#!/bin/sh\necho . >>$CLOUD/asked; echo ACCEPTED\n')
  done = cloud.run(f'tpu_scripts/status.sh {flags} --wait=2')
  assert done.returncode == 1 and 'run1 is ACCEPTED after 2 minutes' in done.stderr
  assert len(cloud.lines('asked')) == 5  # every 30 s, at both ends too
  assert cloud.run(f'tpu_scripts/status.sh {flags}').stdout == 'ACCEPTED\n'


def test_mounting_twice_mounts_once_and_a_folder_of_another_user_is_named(cloud):
  lines = block()
  for name in ('create', 'status', 'mount', 'mount'):
    assert cloud.run(lines[name]).returncode == 0
  assert len(cloud.lines('mounted')) == 2
  if os.getuid() == 0:
    pytest.skip('root can write everywhere')
  (cloud.folder / 'owner').write_text('12345\n')
  (cloud.folder / 'shared').chmod(0o555)
  done = cloud.run(lines['mount'])
  assert done.returncode == 1 and 'belongs to user 12345' in done.stderr
