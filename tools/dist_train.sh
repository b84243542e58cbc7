#!/usr/bin/env bash
# One process per GPU, or per CPU worker over gloo where there is no GPU:
#   bash tools/dist_train.sh CONFIG GPUS [OPTIONS OF train.py]
# On several machines, run it on each, at about the same time, with the same PORT:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=FIRST_MACHINE bash tools/dist_train.sh CONFIG GPUS
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=FIRST_MACHINE bash tools/dist_train.sh CONFIG GPUS
# GPUS are those of one machine. Validation collects its results in the folder where it is
# run; if the machines do not share it: --cfg-options val_evaluator.collect_device=gpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
dist train.py CONFIG "$@"
