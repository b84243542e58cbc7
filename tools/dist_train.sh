#!/usr/bin/env bash
# One process per GPU, or per CPU worker over gloo where there is no GPU:
#   bash tools/dist_train.sh CONFIG GPUS [OPTIONS OF train.py]
# On several machines, run it on each with NNODES, NODE_RANK and MASTER_ADDR set.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Usage: bash $0 CONFIG GPUS [OPTIONS OF train.py]" >&2
    exit 2
fi
TARGET=("${@:1:1}")
GPUS=$2
shift 2

# One thread per process unless the user says otherwise, as torchrun does.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$GPUS" \
    "$(dirname "$0")/train.py" "${TARGET[@]}" --launcher pytorch "$@"
