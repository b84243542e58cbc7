"""Memory for MMAction2's VideoMAE ViT-B on AVA v2.2, 16 frames x 4.

    tools/dist_train.sh configs/videomae_memory_ava.py 8 \
        --cfg-options load_from=WEIGHTS.pth

Settings are those of MMAction2's `vit-base-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_
ava-kinetics-rgb.py`, on streams of AVA: keyframes in the order of time, each with a
person detected. Before training, predictions are those of the checkpoint.

This config has not been trained on AVA here.
"""

_base_ = [
    '_base_/models/videomae_memory_ava.py',
    '_base_/datasets/ava_rawframes_256.py',
    '_base_/schedules/videomae_adamw_20e.py',
    '_base_/default_runtime.py',
]

default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='auto'),
    logger=dict(interval=20),
)

# From MMAction2's model zoo, as it is: trained on AVA,
# vit-base-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_ava-kinetics-rgb_*.pth,
# or on Kinetics-400,
# vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_*.pth.
load_from = None
