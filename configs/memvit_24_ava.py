"""MeMViT-24 on AVA v2.2, 32 frames x 3 (arXiv 2201.08383, appendix).

    GPUS=128 tools/slurm_train.sh PARTITION JOB configs/memvit_24_ava.py

The published recipe takes 128 GPUs x 2 clips; on fewer, add `--auto-scale-lr`. Start
from Kinetics-600 or -700 weights: `--cfg-options load_from=WEIGHTS.pth`, converted
with `tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth --config
configs/memvit_24_ava.py`.
"""

_base_ = [
    '_base_/models/memvit_24_ava.py',
    '_base_/datasets/ava_rawframes_32x3.py',
    '_base_/schedules/memvit_sgd_40e.py',
    '_base_/default_runtime.py',
]

default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3, save_best='auto'),
    logger=dict(interval=20),
)
