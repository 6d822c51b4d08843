#!/usr/bin/env bash
# The batch job that launch/slurm.sh submits: one process a GPU. Before the time limit they are sent
# SIGTERM, save and leave with status 75, and the job goes back into the queue.
set -euo pipefail
[ ! -d .venv ] || export PATH=$PWD/.venv/bin:$PATH

# Each process sees all GPUs of its node and takes the one of its local number, as JAX does under SLURM.
# No process is killed because another has left: each must be able to end its save.
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpu-bind=none --kill-on-bad-exit=0 \
  python -m ftbnn_jax.main --distributed=slurm "$@" || status=$?
if [ "$status" = 75 ]; then
  echo "stopped with everything saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
