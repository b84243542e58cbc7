#!/usr/bin/env bash
# Under Slurm, one task per GPU:
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [OPTIONS OF test.py]
# CPUS_PER_TASK and SRUN_ARGS are taken from the environment as well.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "Usage: GPUS=8 bash $0 PARTITION JOB_NAME CONFIG CHECKPOINT [OPTIONS OF test.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
shift 2

export MASTER_PORT=${MASTER_PORT:-$((12000 + RANDOM % 20000))}
# SRUN_ARGS is a list of words on purpose.
# shellcheck disable=SC2086
exec srun --partition="$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/test.py" "$@" --launcher slurm
