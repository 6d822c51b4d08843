#!/usr/bin/env bash
# Submits a training on GPUs to SLURM: one process for each GPU, joined by jax.distributed. Two minutes
# before the time limit the processes save, and the job goes back into the queue and on from there.
#
#   launch/slurm.sh [OPTION...] -- --config=FILE --workdir=DIR [ARGUMENT...]
#
#   --nodes N          machines (1)
#   --gpus_per_node G  GPUs of each (1)
#   --cpus_per_gpu C   cores that decode images for each GPU (8)
#   --time T           time limit, as sbatch takes it: minutes, hours:minutes:seconds, ... (24:00:00)
#   --partition P      unless it is the default
#   --dry_run          prints the command, submits nothing
#   -- ARGUMENT...     of ftbnn_jax.main; paths are relative to the repository, on a disk that all share
#
# Runs the repository's .venv if there is one, otherwise the python on PATH; for GPUs it is made by
# `EXTRAS=cuda bash launch/environment.sh`. The log is slurm-JOB.log in the repository.
set -euo pipefail
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"
parse "nodes gpus_per_node cpus_per_gpu time partition" "dry_run" "$@"
((${#words[@]} == 0)) || die "${words[0]}: unexpected; arguments of the program come after --"
for count in nodes gpus_per_node cpus_per_gpu; do
  [[ ${option[$count]:-1} =~ ^[1-9][0-9]*$ ]] || die "--$count=${option[$count]}: must be 1 or more"
done
for needed in config workdir; do
  [[ " ${rest[*]}" == *" --$needed"[=\ ]?* ]] || die "--$needed=...: must be given, after --"
done

cd "$(dirname "$0")/.."
gpus=${option[gpus_per_node]:-1}
execute sbatch --job-name=ftbnn_jax "--chdir=$PWD" --output=slurm-%j.log --open-mode=append --requeue \
  "--nodes=${option[nodes]:-1}" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" \
  "--cpus-per-task=${option[cpus_per_gpu]:-8}" "--time=${option[time]:-24:00:00}" \
  ${option[partition]:+"--partition=${option[partition]}"} --signal=TERM@120 \
  launch/slurm_job.sh "${rest[@]}"
