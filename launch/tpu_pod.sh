#!/usr/bin/env bash
# Trains on a Cloud TPU slice whose hosts share a disk.
#
#   tpu_pod.sh [--dry_run] create NAME            asks for the slice, waits, installs;
#                                                 given again, it goes on
#   tpu_pod.sh [--dry_run] run NAME FLAG...       trains with these flags on all hosts
#   tpu_pod.sh [--dry_run] follow NAME            prints what the hosts print
#   tpu_pod.sh [--dry_run] resume NAME            a new slice goes on with the same run
#   tpu_pod.sh [--dry_run] delete NAME            gives the slice back
#
# For example:
#
#   export PROJECT=my-project ZONE=us-west4-a SHARE=10.0.0.2:/runs
#   bash launch/tpu_pod.sh create feddp
#   bash launch/tpu_pod.sh run feddp --config=feddp:feddp,vgg11,100 --config.lanes=4
#   bash launch/tpu_pod.sh follow feddp
#
# SHARE is an NFS share in the slice's network, such as a Filestore instance. The run,
# its command and its output are there, so they outlive the slice: `resume` replaces a
# slice that was preempted and starts the command again, which goes on from the newest
# checkpoint. Data sets of TFDS are looked for in `data` of the share. ACCELERATOR,
# RUNTIME and SPOT choose the slice; SPOT= (empty) asks for one that is not preempted.
# --dry_run prints each command and runs none.
set -euo pipefail

MOUNT=/mnt/runs

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "${1:-1}"
}

say() {
  printf '%q ' "$@"
  echo
}

# Prints a command, and runs it except in a dry run.
do_() {
  say "$@"
  if [ -z "$dry_run" ]; then "$@"; fi
}

queued() {
  local verb=$1
  shift
  do_ gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

# Runs a command on a host: its number, or all.
on_host() {
  do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

wait_until_active() {
  local now
  say gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
  if [ -n "$dry_run" ]; then return; fi
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPENDING | SUSPENDED)
        echo "error: the slice $name is $now: resume or delete it" >&2
        exit 1
        ;;
    esac
    echo "$name: $now"
    sleep 30
  done
  [ "$now" = ACTIVE ]
}

create() {
  # After a failure the same command goes on with the slice that it has asked for.
  if [ -n "$dry_run" ] || ! state > /dev/null 2>&1; then ask; fi
  wait_until_active
  install
}

ask() {
  local options=(--accelerator-type="${ACCELERATOR:-v5litepod-16}"
    --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" --node-id="$name")
  if [ -n "${SPOT-1}" ]; then options+=(--spot); fi
  queued create "${options[@]}"
}

# Mounts the share on all hosts, copies this checkout's last commit and installs it.
install() {
  local code
  code=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder is known now
  trap "rm -rf '$code'" EXIT
  do_ git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$code/code.tar" HEAD
  # A fresh host may still be installing its updates.
  local apt="sudo apt-get -qq -o DPkg::Lock::Timeout=600"
  on_host all "timeout 600 sh -c 'until $apt update; do sleep 10; done' && \
    $apt install -y nfs-common python3.11-venv && \
    sudo mkdir -p $MOUNT && { mountpoint -q $MOUNT || sudo mount $SHARE $MOUNT; } && \
    sudo chmod 1777 $MOUNT && mkdir -p fedjax_prune"
  do_ gcloud compute tpus tpu-vm scp "$code/code.tar" "$name:fedjax_prune/" \
    "${where[@]}" --worker=all
  on_host all "cd fedjax_prune && tar xf code.tar && \
    EXTRAS='[tpu]' && source launch/environment.sh"
}

run() {
  local command
  command=$(printf '%q ' python -m launch.train --workdir="$MOUNT/$name" "$@")
  # All hosts and a later slice read the same command.
  on_host 0 "mkdir -p $MOUNT/$name.output && \
    printf '%s\\n' $(printf '%q' "$command") > $MOUNT/$name.command"
  start
}

start() {
  on_host all "test -f $MOUNT/$name.command || \
    { echo 'error: there is no command yet: run $name FLAG...' >&2; exit 1; }; \
    cd fedjax_prune && source .venv/bin/activate && \
    export TFDS_DATA_DIR=$MOUNT/data && \
    { nohup bash $MOUNT/$name.command >> $MOUNT/$name.output/\$(hostname) 2>&1 \
      < /dev/null & }"
}

follow() {
  on_host 0 "tail -n +1 -F $MOUNT/$name.output/*"
}

resume() {
  local now=SUSPENDED
  if [ -z "$dry_run" ]; then now=$(state || echo none); fi
  case $now in
    ACTIVE)
      echo "error: the slice $name is ACTIVE: follow its run, or, if that has ended," \
        "give the same run command again" >&2
      exit 1
      ;;
    FAILED | SUSPENDING | SUSPENDED)
      delete
      ask
      ;;
    none) ask ;;
  esac
  wait_until_active
  install
  start
}

delete() {
  queued delete --force --quiet
}

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
case ${1:-} in
  create | run | follow | resume | delete) action=$1 ;;
  -h | --help) usage 0 ;;
  *) usage >&2 ;;
esac
name=${2:-}
if ! [[ $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]]; then
  echo "error: NAME must be lower-case letters, digits and hyphens, got '$name'" >&2
  exit 1
fi
if [ "$action" != run ] && [ $# -gt 2 ]; then usage >&2; fi
if [ "$action" = run ] && [ $# -lt 3 ]; then usage >&2; fi
: "${PROJECT:?names the Google Cloud project}" "${ZONE:?names the zone of the slice}"
: "${SHARE:?names the NFS share, HOST:/PATH}"
where=(--project="$PROJECT" --zone="$ZONE")
"$action" "${@:3}"
