#!/usr/bin/env bash
# Creates TPU clusters on Google Kubernetes Engine and runs jobs on them, by XPK (pip install xpk).
#
#   tpu_scripts/xpk.sh --action=image --image=us-docker.pkg.dev/lab/images/audiolm_jax
#   tpu_scripts/xpk.sh --action=create --cluster=lab --zone=us-west4-a --topology=v5e:16x16 --tier=spot
#   tpu_scripts/xpk.sh --action=storage --cluster=lab --zone=us-west4-a --storage=shared --folder=/mnt/shared --size=2560
#   tpu_scripts/xpk.sh --action=launch --cluster=lab --zone=us-west4-a --topology=v5e:16x16 --name=run1 --storage=shared \
#     --image=us-docker.pkg.dev/lab/images/audiolm_jax -- \
#     python -m experiments.train --stage=semantic --recipe=librilight --workdir=gs://bucket/run1
#   tpu_scripts/xpk.sh --action=list --cluster=lab --zone=us-west4-a
#   tpu_scripts/xpk.sh --action=stop --cluster=lab --zone=us-west4-a --name=run1
#   tpu_scripts/xpk.sh --action=delete --cluster=lab --zone=us-west4-a
#
#   --action=WHAT       image: build and push the Docker image of the dependencies; create or delete the cluster;
#                       storage: make a file system (Filestore) for it; launch, list or stop jobs
#   --cluster=NAME  --zone=ZONE
#   --topology=CHIP:SHAPE   v4, v5e, v5p, v6e or tpu7x, and the shape of a slice (create, launch)
#   --tier=TIER         spot or on-demand (create)
#   --slices=N          number of slices (1)
#   --name=NAME         name of the job (launch, stop)
#   --image=IMAGE       Docker image of the dependencies; each launch adds this checkout to it (image, launch)
#   --storage=NAME      the file system, which all hosts of the job see (storage, launch; none where all is in buckets)
#   --folder=/PATH      where jobs find it (storage)
#   --size=GIGABYTES    its size (storage)
#   --restarts=N        number of automatic restarts of a job, which resumes: after a preemption, a hung or a lost host,
#                       an error of the storage; not after a mistake (50)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

action='' cluster='' zone='' topology='' tier='' slices=1 name='' image='' storage='' folder='' size='' restarts=50
project=''
parse 'action cluster zone topology tier slices name image storage folder size restarts project' "$@"
need action
restart_status=75 # of our programs, where a restart may help; xpk restarts 42 and 127 to 255 by itself
root=$(cd "$(dirname "$0")/.." && pwd)
[[ $image =~ ^([a-z0-9][A-Za-z0-9._/:@-]*)?$ ]] || die "--image=$(quoted "$image") is no name of a Docker image"

if [[ $action == image ]]; then
  need image
  run docker build "--file=$root/tpu_scripts/Dockerfile" "--tag=$image" "$root"
  run docker push "$image"
  exit
fi
need cluster zone

tpu_type() {
  need topology
  check_topology "$topology" v4 v5e v5p v6e tpu7x
  accelerator_type "$topology"
}

case $action in
  create)
    [[ $tier == spot || $tier == on-demand ]] || die "--tier=$tier: choose spot or on-demand"
    type=$(tpu_type)
    command=(xpk cluster create "--tpu-type=$type" "--num-slices=$slices" "--$tier" --enable-gcpfilestore-csi-driver)
    ;;
  storage)
    need storage folder size
    [[ $folder =~ ^/[A-Za-z0-9._/-]+$ ]] || die "--folder=$(quoted "$folder"): write /PATH, of letters, digits and . _ - /"
    [[ $size =~ ^[1-9][0-9]*$ ]] || die "--size=$size is no number of gigabytes"
    command=(xpk storage create "$storage" --type=gcpfilestore --tier=BASIC_SSD --vol=default "--size=$size")
    command+=(--access-mode=ReadWriteMany --auto-mount=false "--mount-point=$folder" --readonly=false)
    ;;
  launch)
    need name image
    ((${#rest[@]})) || die 'the command is missing: write it after -- (see --help)'
    type=$(tpu_type)
    # exec: xpk sends SIGTERM to the shell, which would not pass it on
    start="exec env AUDIOLM_DISTRIBUTED=1 $(quoted "${rest[@]}")"
    command=(xpk workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices")
    [[ -z $storage ]] || command+=("--storage=$storage")
    command+=("--max-restarts=$restarts" "--restart-on-exit-codes=$restart_status")
    command+=("--base-docker-image=$image" "--script-dir=$root" "--command=$start")
    ;;
  list) command=(xpk workload list) ;;
  stop) need name && command=(xpk workload delete "--workload=$name") ;;
  delete) command=(xpk cluster delete) ;;
  *) die "--action=$action: choose image, create, storage, launch, list, stop or delete" ;;
esac
command+=("--cluster=$cluster" "--zone=$zone")
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}"
