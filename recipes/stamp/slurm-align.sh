#!/bin/bash
# stage 2 on 4 GPUs. From the root of a clone: sbatch recipes/stamp/slurm-align.sh
# A job that is preempted or runs out of time saves a checkpoint (SIGTERM, two minutes before the end) and is queued again;
# it goes on from there. The corpora must be there: see run.sh.
#SBATCH --job-name=stamp-align
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source recipes/stamp/settings.sh

srun stampy align "$RUNS/hest-corpus" --model "$GENES" --out "$RUNS/both" --config "$recipe/$ALIGN"
status=$?
# 143: a checkpoint was saved after SIGTERM. Preempted jobs are queued again by SLURM; those out of time by us
if [ "$status" = 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
