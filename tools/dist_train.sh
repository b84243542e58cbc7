#!/usr/bin/env bash
# One process per GPU, or per CPU worker over gloo where there is no GPU:
#   bash tools/dist_train.sh CONFIG GPUS [OPTIONS OF train.py]
# On several machines, run it on each, at about the same time, with the same PORT:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=FIRST_MACHINE bash tools/dist_train.sh CONFIG GPUS
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=FIRST_MACHINE bash tools/dist_train.sh CONFIG GPUS
# GPUS are those of one machine. Validation collects its results in the folder where it is
# run; if the machines do not share it: --cfg-options val_evaluator.collect_device=gpu
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Usage: bash $0 CONFIG GPUS [OPTIONS OF train.py]" >&2
    exit 2
fi
TARGET=("${@:1:1}")
GPUS=$2
shift 2
if ! [[ $GPUS =~ ^([1-9][0-9]*|auto|gpu|cpu)$ ]]; then
    echo "Error: GPUS is '$GPUS', expected a number, as in bash $0 CONFIG 8." >&2
    exit 2
fi
if [ "${NNODES:-1}" != 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "NNODES=$NNODES without MASTER_ADDR: the first of them is taken to be this machine." >&2
fi

# One thread per process unless the user says otherwise, as torchrun does.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$GPUS" \
    "$(dirname "$0")/train.py" "${TARGET[@]}" --launcher pytorch "$@"
