#!/usr/bin/env bash
# Creates TPU clusters on Google Kubernetes Engine and runs jobs on them, by XPK (pip install xpk).
#
#   tpu_scripts/xpk.sh --action=create --cluster=lab --zone=us-west4-a --topology=v5e:16x16 --tier=spot
#   tpu_scripts/xpk.sh --action=launch --cluster=lab --zone=us-west4-a --topology=v5e:16x16 --name=run1 -- \
#     python -m experiments.train --stage=semantic --recipe=librilight --workdir=/mnt/shared/run1
#   tpu_scripts/xpk.sh --action=list --cluster=lab --zone=us-west4-a
#   tpu_scripts/xpk.sh --action=stop --cluster=lab --zone=us-west4-a --name=run1
#   tpu_scripts/xpk.sh --action=delete --cluster=lab --zone=us-west4-a
#
#   --action=WHAT       create or delete the cluster; launch, list or stop jobs
#   --cluster=NAME  --zone=ZONE
#   --topology=CHIP:SHAPE   v4, v5e, v5p or v6e, and the shape of a slice (create, launch)
#   --tier=TIER         spot or on-demand (create)
#   --slices=N          number of slices (1)
#   --name=NAME         name of the job (launch, stop)
#   --image=IMAGE       Docker image for this checkout (python:3.11)
#   --restarts=N        number of automatic restarts of a job, which resumes (50)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

action='' cluster='' zone='' topology='' tier='' slices=1 name='' image=python:3.11 restarts=50 project=''
parse 'action cluster zone topology tier slices name image restarts project' "$@"
need action cluster zone

tpu_type() {
  need topology
  local count shape=${topology#*:}
  [[ $topology =~ ^(v4|v5p):[0-9]+x[0-9]+x[0-9]+$ || $topology =~ ^(v5e|v6e):[0-9]+x[0-9]+$ ]] ||
    die "--topology=$topology: write CHIP:SHAPE, as in v5e:16x16 or v4:4x4x8"
  count=$(chips "$shape")
  case $topology in
    v5e:*) printf '%s\n' "v5litepod-$count" ;;
    v6e:*) printf '%s\n' "v6e-$count" ;;
    *) printf '%s\n' "${topology%%:*}-$((2 * count))" ;; # the name counts cores
  esac
}

case $action in
  create)
    [[ $tier == spot || $tier == on-demand ]] || die "--tier=$tier: choose spot or on-demand"
    type=$(tpu_type)
    command=(xpk cluster create "--tpu-type=$type" "--num-slices=$slices" "--$tier")
    ;;
  launch)
    need name
    ((${#rest[@]})) || die 'the command is missing: write it after -- (see --help)'
    type=$(tpu_type)
    root=$(cd "$(dirname "$0")/.." && pwd)
    start="pip install --quiet --editable '.[tpu]' && AUDIOLM_DISTRIBUTED=1 $(quoted "${rest[@]}")"
    command=(xpk workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" "--max-restarts=$restarts")
    command+=("--base-docker-image=$image" "--script-dir=$root" "--command=$start")
    ;;
  list) command=(xpk workload list) ;;
  stop) need name && command=(xpk workload delete "--workload=$name") ;;
  delete) command=(xpk cluster delete) ;;
  *) die "--action=$action: choose create, launch, list, stop or delete" ;;
esac
command+=("--cluster=$cluster" "--zone=$zone")
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}"
