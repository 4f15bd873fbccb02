#!/usr/bin/env bash
# Starts a command in the background on all hosts of a queued resource, from the root of a copy of this checkout's last
# commit, which it installs there. After an interruption, run it again to resume training.
#
#   tpu_scripts/launch.sh --name=run1 --zone=us-west4-a -- \
#     python -m experiments.train --stage=semantic --recipe=librilight --workdir=gs://bucket/run1
#
#   --name=NAME  --zone=ZONE
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the commands without running them
source "$(dirname "$0")/lib.sh"

name='' zone='' project=''
parse 'name zone project' "$@"
need name zone
((${#rest[@]})) || die 'the command is missing: write it after -- (see --help)'

root=$(cd "$(dirname "$0")/.." && pwd)
code=$HOME/.audiolm_jax-$name.tar.gz # not in /tmp, where other users may have created a link of that name
[[ -n $dry_run ]] || trap 'rm -f "$code"' EXIT
location=("--zone=$zone" --node=all --worker=all)
[[ -z $project ]] || location+=("--project=$project")

[[ -z $(git -C "$root" status --porcelain) ]] || printf 'note: uncommitted changes are not copied\n' >&2
run git -C "$root" archive --format=tar.gz --output="$code" HEAD
run gcloud compute tpus queued-resources scp "$code" "$name:audiolm_jax.tar.gz" "${location[@]}"
# Out of the archive: the code of a run that has not ended yet is not touched.
script='tar -xzOf audiolm_jax.tar.gz tpu_scripts/on_host.sh >audiolm_jax_on_host.sh'
start="$script && bash audiolm_jax_on_host.sh $(quoted "${rest[@]}")"
run gcloud compute tpus queued-resources ssh "$name" "${location[@]}" "--command=$start"
