#!/usr/bin/env bash
# Requests TPUs as a queued resource, which waits in a queue until capacity is available.
#
#   tpu_scripts/create.sh --name=run1 --zone=us-west4-a --topology=v5e:4x4 --tier=spot
#
#   --name=NAME         name of the queued resource, used by the other scripts
#   --zone=ZONE
#   --topology=CHIP:SHAPE   v4, v5e, v5p or v6e, and the shape of a slice: v5e:16x16, v4:4x4x8; tpu7x is
#                       on GKE only, see xpk.sh
#   --tier=TIER         spot (cheap, may be preempted), on-demand, or reserved
#   --slices=N          number of slices, connected by the data centre's network (1)
#   --valid-for=TIME    leave the queue after this time, for example 6h (never)
#   --runtime=VERSION   software of the machines (Google's recommendation for the chip)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' topology='' tier='' slices=1 valid_for='' runtime='' project=''
parse 'name zone topology tier slices valid-for runtime project' "$@"
need name zone topology tier
[[ $topology != tpu7x:* ]] || die "--topology=$topology: TPU7x is to be had on GKE only, by tpu_scripts/xpk.sh"
check_topology "$topology" v4 v5e v5p v6e
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices=$slices is no positive number"

hardware=("--accelerator-type=$(accelerator_type "$topology")")
case ${topology%%:*} in
  v4) hardware=(--type=v4 "--topology=${topology#*:}") software=tpu-ubuntu2204-base ;;
  v5e) software=v2-alpha-tpuv5-lite ;;
  v5p) software=v2-alpha-tpuv5 ;;
  v6e) software=v2-alpha-tpuv6e ;;
esac

command=(gcloud compute tpus queued-resources create "$name" "--zone=$zone" "${hardware[@]}")
command+=("--runtime-version=${runtime:-$software}")
if ((slices > 1)); then command+=("--node-count=$slices"); else command+=("--node-id=$name"); fi
case $tier in
  spot) command+=(--spot) ;;
  reserved) command+=(--reserved) ;;
  on-demand) ;;
  *) die "--tier=$tier: choose spot, on-demand or reserved" ;;
esac
[[ -z $valid_for ]] || command+=("--valid-until-duration=$valid_for")
[[ -z $project ]] || command+=("--project=$project")
run "${command[@]}"
