#!/usr/bin/env bash
# Deletes a queued resource and its machines, with everything on their disks. gcloud asks for confirmation.
#
#   tpu_scripts/delete.sh --name=run1 --zone=us-west4-a
#
#   --name=NAME  --zone=ZONE
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' project=''
parse 'name zone project' "$@"
need name zone

# --force deletes the machines, too; without it, only a queued resource without machines can be deleted.
command=(gcloud compute tpus queued-resources delete "$name" "--zone=$zone" --force)
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}"
