#!/usr/bin/env bash
# Installs the code in ~/audiolm_jax.tar.gz as ~/audiolm_jax, then starts the command there in the background; launch.sh
# calls it on each host of a pod. Output is appended to ~/audiolm_jax.log. A command that still runs is stopped first
# (SIGTERM: it saves); its code stays as it is until it has ended.
set -euo pipefail
root=$HOME/audiolm_jax
tpu_lock=/tmp/libtpu_lockfile

# The process of an earlier launch, unless it has ended and its id was reused.
pid=$(cat ~/audiolm_jax.pid 2>/dev/null || echo none)
running() { [[ $(readlink "/proc/$pid/cwd") == "$root" ]]; }
if running; then
  kill -TERM "$pid"
  for ((second = 0; second < 300; second++)); do
    running || break
    sleep 1
  done
  if running; then
    printf 'error: process %s has not ended 5 minutes after SIGTERM: look at ~/audiolm_jax.log\n' "$pid" >&2
    exit 1
  fi
fi
if [[ -e $tpu_lock ]]; then
  printf 'note: %s exists on %s. If the log says that the TPU is in use although no process uses it, run there\n' \
    "$tpu_lock" "$(hostname)" >&2
  printf '  sudo rm %s\n(tpu_scripts/ssh.sh) and launch again\n' "$tpu_lock" >&2
fi

mkdir -p "$root"
tar -xzf ~/audiolm_jax.tar.gz -C "$root"
cd "$root"

# The hosts' Python may be older than 3.11; uv installs one.
python3 -m pip install --quiet --user uv==0.13.9
export PATH="$HOME/.local/bin:$PATH"
[[ -d .venv ]] || uv venv --quiet --python=3.11 .venv
# The tested versions, on all hosts and at every start.
uv pip install --quiet --python=.venv/bin/python --constraint=requirements.txt \
  --constraint=tpu_scripts/constraints.txt --editable '.[tpu]'

# Makes the programs connect to the other hosts before they use a device.
export AUDIOLM_DISTRIBUTED=1 PATH="$PWD/.venv/bin:$PATH"
printf '=== %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >>~/audiolm_jax.log
nohup "$@" >>~/audiolm_jax.log 2>&1 </dev/null &
echo $! >~/audiolm_jax.pid
