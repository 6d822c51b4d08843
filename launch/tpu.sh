#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a slice of many hosts.
#
#   launch/tpu.sh create --name NAME --zone ZONE --type TYPE --version VERSION [--queued] [--spot]
#   launch/tpu.sh wait   --name NAME --zone ZONE [--queued]       until it is ready
#   launch/tpu.sh status --name NAME --zone ZONE [--queued]       prints its state
#   launch/tpu.sh setup  --name NAME --zone ZONE     copies the last commit, installs, on all workers
#   launch/tpu.sh run    --name NAME --zone ZONE --config FILE --workdir gs://... [-- ARGUMENT...]
#   launch/tpu.sh logs   --name NAME --zone ZONE                  the end of each worker's log
#   launch/tpu.sh attach --name NAME --zone ZONE                  follows the first worker's log
#   launch/tpu.sh resume, with all options of create and of run: creates, waits, sets up and runs, as
#       far as needed. The program goes on from its work directory. Does nothing to a run that goes well.
#   launch/tpu.sh delete --name NAME --zone ZONE [--queued]
#
#   --project PROJECT  unless it is gcloud's default
#   --type TYPE        accelerator type: v4-8, v5litepod-16, ...
#   --version VERSION  software: tpu-ubuntu2204-base (v2 to v4), v2-alpha-tpuv5-lite, v2-alpha-tpuv5, ...
#   --spot             cheaper, and may be preempted at any time
#   --queued           as a queued resource of the same name, which waits until there is room
#   --config FILE      as in ftbnn_jax.main: a path in the repository, or a name: derived44_g5
#   --workdir DIR      where every worker finds it: gs://... or the path of a shared disk
#   --data_dir DIR     passed on as --config.data_dir: a directory of every worker, such as a mounted disk
#   --dry_run          prints the commands, runs none; for resume, those after a preemption
#   -- ARGUMENT...     passed on to ftbnn_jax.main: --config.batch_size=1024 ...
#
# POLL_SECONDS (30) is the time between two looks at the state. `resume` may be run again and again.
set -euo pipefail
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"
actions="create wait status setup run logs attach resume delete"
parse "name zone project type version config workdir data_dir" "spot queued dry_run" "$@"
action=${words[0]:-}
[[ " $actions " == *" $action "* && -n $action ]] || die "action '$action': must be one of $actions"
((${#words[@]} == 1)) || die "${words[1]}: unexpected; arguments of the program come after --"

needed="name zone"
[[ $action != create && $action != resume ]] || needed+=" type version"
[[ $action != run && $action != resume ]] || needed+=" config workdir"
for one in $needed; do
  [[ -n ${option[$one]:-} ]] || die "--$one: must be given for $action"
done
[[ $needed == *config* ]] || ((${#rest[@]} == 0)) || die "--: $action takes no arguments of the program"

cd "$(dirname "$0")/.."
name=${option[name]}
place=("--zone=${option[zone]}" ${option[project]:+"--project=${option[project]}"})
vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
program=()
if [[ $needed == *config* ]]; then
  file=${option[config]%%:*}
  stem=${file#configs/}
  [[ -f $file || -f configs/${stem%.py}.py ]] ||
    die "--config=${option[config]}: there is no such file in $PWD"
  [[ ${option[workdir]} == gs://?* || ${option[workdir]} == /?* ]] ||
    die "--workdir=${option[workdir]}: must be gs://... or the path of a disk that all workers share"
  program=("--config=${option[config]}" "--workdir=${option[workdir]}")
  [[ -z ${option[data_dir]:-} ]] || program+=("--config.data_dir=${option[data_dir]}")
  program+=("${rest[@]}")
fi

create() {
  local spot=${option[spot]:+--spot}
  if [[ -n ${option[queued]:-} ]]; then
    execute "${queue[@]}" create "$name" "--node-id=$name" "${place[@]}" \
      "--accelerator-type=${option[type]}" "--runtime-version=${option[version]}" ${spot:+"$spot"}
  else
    execute "${vm[@]}" create "$name" "${place[@]}" \
      "--accelerator-type=${option[type]}" "--version=${option[version]}" ${spot:+"$spot"}
  fi
}

delete() {
  if [[ -n ${option[queued]:-} ]]; then
    execute "${queue[@]}" delete "$name" "${place[@]}" --force --quiet
  else
    execute "${vm[@]}" delete "$name" "${place[@]}" --quiet
  fi
}

# describe FIELD COMMAND...: sets `state`; with --dry_run, to $assumed.
describe() {
  local command=("${@:2}" describe "$name" "${place[@]}" "--format=value($1)") errors
  if [[ -n ${option[dry_run]:-} ]]; then
    execute "${command[@]}"
    state=$assumed
    return
  fi
  errors=$(mktemp)
  if state=$("${command[@]}" 2>"$errors"); then
    rm "$errors"
  elif grep -q NOT_FOUND "$errors"; then
    rm "$errors"
    state=NOT_FOUND
  else
    cat "$errors" >&2
    rm "$errors"
    exit 1
  fi
}

# The state of the queued resource until it is active, then that of the machine.
ask_state() {
  if [[ -n ${option[queued]:-} ]]; then
    describe state.state "${queue[@]}"
    [[ $state == ACTIVE || -n ${option[dry_run]:-} ]] || return 0
  fi
  describe state "${vm[@]}"
}

is_coming() {
  local states=" CREATING STARTING RESTARTING REIMAGING REPAIRING ACCEPTED PROVISIONING WAITING_FOR_RESOURCES "
  [[ -n $state && $states == *" $state "* ]]
}

is_gone() {
  [[ -n $state && " PREEMPTED TERMINATED STOPPED SUSPENDED FAILED NOT_FOUND " == *" $state "* ]]
}

await() {
  ask_state
  while is_coming; do
    echo "$name: $state"
    sleep "${POLL_SECONDS:-30}"
    ask_state
  done
  [[ $state == READY ]] || {
    echo "error: $name: $state instead of READY" >&2
    exit 1
  }
}

# on WORKERS COMMAND: runs it in a shell there.
on() { execute "${vm[@]}" ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"; }

setup() {
  local archive=build/ftbnn_jax.tar.gz
  execute mkdir -p build
  execute git archive --prefix=ftbnn_jax/ "--output=$archive" HEAD
  execute "${vm[@]}" scp "$archive" "$name:" "${place[@]}" --worker=all
  # Not under the feet of a training that runs: the lock is the one of tpu_worker.sh.
  on all "flock --nonblock --verbose ftbnn_jax.lock tar -xzf ftbnn_jax.tar.gz && bash ftbnn_jax/launch/tpu_worker.sh setup"
}

run() {
  local arguments
  printf -v arguments ' %q' "${program[@]}"
  on all "bash ftbnn_jax/launch/tpu_worker.sh run$arguments"
}

resume() {
  assumed=PREEMPTED
  ask_state
  assumed=READY
  if is_gone; then
    echo "# $name: $state"
    [[ $state == NOT_FOUND ]] || delete
    create
    await
  else
    await
    # This fails where a worker was not set up.
    ! run || return 0
  fi
  setup
  run
}

assumed=READY
case $action in
  wait) await ;;
  status)
    ask_state
    [[ -n ${option[dry_run]:-} ]] || echo "$state"
    ;;
  logs) on all "tail -n 20 ftbnn_jax.log" ;;
  attach) on 0 "tail -n 20 -F ftbnn_jax.log" ;;
  *) "$action" ;;
esac
