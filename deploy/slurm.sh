#!/usr/bin/env bash
# The pipeline as a Slurm job on one machine: `sbatch deploy/slurm.sh`, from the repository's folder. Options of sbatch
# on the command line override those below; arguments replace `make repro`.
#
# At the time limit it saves a checkpoint, puts itself back into the queue and continues there, until the work is done.
# Preempted, it saves a checkpoint and continues when Slurm requeues it. `scancel` ends it for good.
#SBATCH --job-name=smollm
#SBATCH --nodes=1 --ntasks=1
#SBATCH --gpus-per-node=8 --cpus-per-task=64 --mem=256G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append
#SBATCH --output=slurm-%j.log
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
# shellcheck source=deploy/wait.sh
. deploy/wait.sh
[ $# -gt 0 ] || set -- make repro

is_over=
trap 'is_over=yes; kill -USR1 $run' USR1
trap : TERM # deploy/run.sh has it too, and says when all is saved
deploy/run.sh "$@" &
run=$!
wait_for $run
status=$?
if [ -n "$is_over" ] && [ "$status" != 0 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
