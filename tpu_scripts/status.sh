#!/usr/bin/env bash
# Prints the state of a queued resource, or waits until its machines run.
#
#   tpu_scripts/status.sh --name=run1 --zone=us-west4-a
#   tpu_scripts/status.sh --name=run1 --zone=us-west4-a --wait=600
#
#   --name=NAME  --zone=ZONE
#   --wait=MINUTES      print each new state and return at ACTIVE; exit status 1 after this time, and at once in a state
#                       that does not lead there: SUSPENDED (preempted), FAILED (print the state and exit)
#   --project=PROJECT   (gcloud's)
#   --dry-run           print the command without running it
source "$(dirname "$0")/lib.sh"

name='' zone='' wait='' project=''
parse 'name zone wait project' "$@"
need name zone
[[ $wait =~ ^([1-9][0-9]{0,5})?$ ]] || die "--wait=$wait is no number of minutes"

command=(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" '--format=value(state.state)')
[[ -z $project ]] || command+=("--project=$project")
if [[ -n $dry_run || -z $wait ]]; then
  run "${command[@]}"
  exit
fi

seconds=30 # between two questions
last=''
for ((poll = 0; ; poll++)); do
  state=$("${command[@]}")
  [[ $state == "$last" ]] || printf '%s\n' "$state"
  last=$state
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      printf 'error: %s is %s and will not start again: delete it (tpu_scripts/delete.sh) and create it again\n' \
        "$name" "$state" >&2
      exit 1
      ;;
  esac
  if ((poll * seconds >= wait * 60)); then
    printf 'error: %s is %s after %s minutes: it stays in the queue; wait longer, or delete it\n' \
      "$name" "$state" "$wait" >&2
    exit 1
  fi
  sleep "$seconds"
done
