#!/usr/bin/env bash
# Runs on every worker of a TPU slice; launch/tpu.sh starts it.
#
#   launch/tpu_worker.sh setup            makes .venv, with JAX for TPUs in it
#   launch/tpu_worker.sh run ARGUMENT...  starts training, detached, with a log in ~/ftbnn_jax.log
set -euo pipefail
cd "$(dirname "$0")/.."
log=$HOME/ftbnn_jax.log
action=${1:-}
(($# == 0)) || shift

# Held by the training process, however it ends. Two of them must not share a work directory.
exec 9>"$HOME/ftbnn_jax.lock"
flock --nonblock 9 || {
  echo "$HOSTNAME: training is running already; its log is $log"
  exit 0
}

case $action in
  setup)
    # The VM images have no venv module, and some an older Python.
    PYTHON=python3
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || PYTHON=python3.11
    export PYTHON
    if [ ! -d .venv ]; then
      sudo apt-get -o DPkg::Lock::Timeout=300 update --quiet
      sudo apt-get -o DPkg::Lock::Timeout=300 install --quiet --yes "$PYTHON-venv"
    fi
    EXTRAS=tpu bash launch/environment.sh
    echo "$HOSTNAME: set up"
    ;;
  run)
    [ -f .venv/installed ] || {
      echo "error: $HOSTNAME: not set up" >&2
      exit 1
    }
    # shellcheck disable=SC2016 # The inner shell expands it.
    nohup setsid bash -c '"$@"; echo "exit status $?"' _ \
      .venv/bin/python -m ftbnn_jax.main --distributed=tpu "$@" >>"$log" 2>&1 </dev/null &
    echo "$HOSTNAME: started; its log is $log"
    ;;
  *)
    echo "error: action '$action': must be setup or run" >&2
    exit 2
    ;;
esac
