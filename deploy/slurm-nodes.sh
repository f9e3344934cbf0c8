#!/usr/bin/env bash
# A training stage as a Slurm job on several machines: `sbatch deploy/slurm-nodes.sh pretrain`, from the repository's
# folder, which all machines share. Slurm passes on the environment that is active where the job is submitted. Run
# `dvc repro tokenize` first. What ends and continues it is as in deploy/slurm.sh.
#SBATCH --job-name=smollm
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --gpus-per-node=8 --cpus-per-task=64 --mem=256G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append
#SBATCH --output=slurm-%j.log
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
# shellcheck source=deploy/wait.sh
. deploy/wait.sh

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it otherwise
export PET_NNODES=$SLURM_NTASKS PET_RDZV_BACKEND=c10d PET_RDZV_ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT-0}
PET_RDZV_ENDPOINT=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400
export PET_RDZV_ENDPOINT

is_over=
trap 'is_over=yes; scancel --signal=INT "$SLURM_JOB_ID.0"' USR1 # Ctrl-C to all of the step: every machine saves the same step
trap : TERM
# shellcheck disable=SC2016 # each task has its own SLURM_PROCID
srun --wait=300 bash -c 'exec deploy/node.sh "$SLURM_PROCID" "$1"' node "${1-pretrain}" &
run=$!
wait_for $run
status=$?
if [ -n "$is_over" ] && [ "$status" != 0 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
