#!/usr/bin/env bash
# Gives the TPUs back: deletes the queued resource and its machines, with everything on their disks. gcloud asks first.
#
#   tpu_scripts/delete.sh --name=run1 --zone=us-west4-a
#
#   --name=NAME  --zone=ZONE
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command, run nothing
source "$(dirname "$0")/lib.sh"

name='' zone='' project=''
parse 'name zone project' "$@"
need name zone

# --force: the machines go too; without it, only a queued resource without machines can be deleted.
command=(gcloud compute tpus queued-resources delete "$name" "--zone=$zone" --force)
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}"
