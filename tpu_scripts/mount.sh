#!/usr/bin/env bash
# Mounts a network file system (NFS, such as Filestore) on all hosts of a queued resource, and checks that you can write
# there. The root folder of a new Filestore belongs to root: it is given to you. Run it again on machines that were
# created again.
#
#   tpu_scripts/mount.sh --name=run1 --zone=us-west4-a --source=10.0.0.2:/shared --folder=/mnt/shared
#
#   --name=NAME  --zone=ZONE
#   --source=HOST:/PATH     what to mount
#   --folder=/PATH          where
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' source='' folder='' project=''
parse 'name zone source folder project' "$@"
need name zone source folder
[[ $source =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]] || die "--source=$(quoted "$source"): write HOST:/PATH"
[[ $folder =~ ^/[A-Za-z0-9._/-]+$ ]] || die "--folder=$(quoted "$folder"): write /PATH, of letters, digits and . _ - /"

# A new machine may still install its updates: apt waits for them. `hard`: a server that restarts delays, and loses nothing.
apt='sudo apt-get -qq -y -o DPkg::Lock::Timeout=600'
owner="\$(stat -L -c %u $folder)"
all=(
  'set -e'
  "command -v mount.nfs >/dev/null || { $apt update; $apt install nfs-common; }"
  "sudo mkdir -p $folder"
  "mountpoint -q $folder || sudo mount -t nfs -o hard $source $folder"
  "[ \"$owner\" != 0 ] || sudo chown \"\$(id -u):\$(id -g)\" $folder"
  "[ -w $folder ] || { echo \"error: $folder belongs to user $owner, on \$(hostname) you are \$(id -u): use OS Login,\" \
'which gives you the same number on all machines, or chown it' >&2; exit 1; }"
)
printf -v steps '%s; ' "${all[@]}"
command=(gcloud compute tpus queued-resources ssh "$name" "--zone=$zone" --node=all --worker=all)
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}" "--command=${steps%; }"
