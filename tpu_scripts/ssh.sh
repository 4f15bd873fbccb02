#!/usr/bin/env bash
# Runs a command on hosts of a queued resource, or opens a shell on one.
#
#   tpu_scripts/ssh.sh --name=run1 --zone=us-west4-a                          # a shell on the first host
#   tpu_scripts/ssh.sh --name=run1 --zone=us-west4-a --worker=all -- free -g
#
#   --name=NAME  --zone=ZONE
#   --worker=N          host within a slice, or all (0)
#   --slice=N           slice, or all (0)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' worker=0 slice=0 project=''
parse 'name zone worker slice project' "$@"
need name zone worker slice

command=(gcloud compute tpus queued-resources ssh "$name" "--zone=$zone" "--node=$slice" "--worker=$worker")
[[ -z $project ]] || command+=("--project=$project")
if ((${#rest[@]})); then
  command+=("--command=$(quoted "${rest[@]}")")
elif [[ $worker == all || $slice == all ]]; then
  die 'a shell opens on one host: give a command after --, or numbers for --worker and --slice'
fi
run "${command[@]}"
