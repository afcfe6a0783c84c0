#!/bin/bash
# A run on a slice of Cloud TPU VMs, through the user's own gcloud.
#
#   experiments/pods/tpu_vm.sh create          asks for the slice (a queued resource)
#   experiments/pods/tpu_vm.sh status          says whether it is there
#   experiments/pods/tpu_vm.sh setup           copies this checkout to every host and installs it
#   experiments/pods/tpu_vm.sh run OPTION...   experiments.train on all hosts, with these options
#   experiments/pods/tpu_vm.sh delete          gives the slice back
#
# Settings, from the environment: NAME and ZONE (required), TYPE (v5litepod-16), RUNTIME
# (v2-alpha-tpuv5-lite), SPOT (1 for a slice that can be taken away; a run goes on from its last
# checkpoint). The run's folder must be on a disk or bucket that every host mounts.
set -euo pipefail

TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-0}

usage() {
  sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

create() {
  local extra=()
  if [[ $SPOT == 1 ]]; then
    extra+=(--spot)
  fi
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${extra[@]}"
}

status() {
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)"
}

setup() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:optgen.tar.gz" --zone="$ZONE" --worker=all
  rm -f "$archive"
  on_all_hosts "mkdir -p optgen && tar -xzf optgen.tar.gz -C optgen && cd optgen && make setup EXTRAS=tpu"
}

run() {
  local command="cd optgen && .venv/bin/python -m experiments.train --distributed"
  local option
  for option in "$@"; do
    command+=" $(printf '%q' "$option")" # one word there as it is here
  done
  on_all_hosts "$command"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

action=${1:-}
case $action in
  create | status | setup | delete)
    [[ $# -eq 1 ]] || usage
    ;;
  run)
    [[ $# -ge 2 ]] || usage
    ;;
  *)
    usage
    ;;
esac
: "${NAME:?set NAME to the name of the slice}" "${ZONE:?set ZONE, for example us-west4-a}"
shift
"$action" "$@"
