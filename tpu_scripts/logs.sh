#!/usr/bin/env bash
# Shows the output of the commands started by launch.sh; each start begins with a line === TIME COMMAND.
#
#   tpu_scripts/logs.sh --name=run1 --zone=us-west4-a             # follows the first host
#   tpu_scripts/logs.sh --name=run1 --zone=us-west4-a --worker=all --slice=all --lines=20
#
#   --name=NAME  --zone=ZONE
#   --worker=N          host within a slice, or all (0)
#   --slice=N           slice, or all (0)
#   --lines=N           print the last N lines and exit (follow the log)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' worker=0 slice=0 lines='' project=''
parse 'name zone worker slice lines project' "$@"
need name zone worker slice
[[ $lines =~ ^[0-9]*$ ]] || die "--lines=$lines is no number"

if [[ -n $lines ]]; then tail="tail -n $lines audiolm_jax.log"; else tail='tail -n 100 -F audiolm_jax.log'; fi
command=(gcloud compute tpus queued-resources ssh "$name" "--zone=$zone" "--node=$slice" "--worker=$worker")
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}" "--command=$tail"
