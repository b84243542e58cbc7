"""MeMViT-16 on AVA v2.2, the published recipe (arXiv 2201.08383, appendix).

    tools/dist_train.sh configs/memvit_ava.py 8

Start from weights trained on Kinetics: `--cfg-options load_from=WEIGHTS.pth`, converted
with `tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth --config
configs/memvit_ava.py`.
`memvit_ava_videos.py` reads videos instead of folders of frames.
"""

_base_ = [
    '_base_/models/memvit_16_ava.py',
    '_base_/datasets/ava_rawframes.py',
    '_base_/schedules/memvit_sgd_30e.py',
    '_base_/default_runtime.py',
]

default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3, save_best='auto'),
    logger=dict(interval=20),
)
