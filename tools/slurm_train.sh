#!/usr/bin/env bash
# Under Slurm, one task per GPU:
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [OPTIONS OF train.py]
# CPUS_PER_TASK and SRUN_ARGS are taken from the environment as well.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
slurm train.py CONFIG "$@"
