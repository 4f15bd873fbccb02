#!/usr/bin/env bash
# Checks a new machine of one chip within minutes, before a long run: starts experiments.smoke there. Its report, to paste
# into an issue if something is wrong, is the end of the log (tpu_scripts/logs.sh).
#
#   tpu_scripts/create.sh --name=try --zone=us-west4-a --topology=v5e:1x1 --tier=spot
#   tpu_scripts/smoke.sh --name=try --zone=us-west4-a
#
#   --name=NAME  --zone=ZONE
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the commands without running them
source "$(dirname "$0")/lib.sh"

name='' zone='' project=''
parse 'name zone project' "$@"
need name zone
((!${#rest[@]})) || die 'smoke.sh takes no command: use launch.sh for others'

flags=("--name=$name" "--zone=$zone")
[[ -z $project ]] || flags+=("--project=$project")
[[ -z $dry_run ]] || flags+=(--dry-run)
"$(dirname "$0")/launch.sh" "${flags[@]}" -- python -m experiments.smoke
