"""`videomae_memory_ava.py` with ViT-L.

    tools/dist_train.sh configs/videomae_memory_ava_large.py 8 \
        --cfg-options load_from=WEIGHTS.pth

Settings are those of MMAction2's `vit-large-p16_videomae-k400-pre_8xb8-16x4x1-20e-
adamw_ava-kinetics-rgb.py`. This config has not been trained on AVA here.
"""

_base_ = './videomae_memory_ava.py'

model = dict(
    backbone=dict(embed_dims=1024, depth=24, num_heads=16),
    roi_head=dict(bbox_head=dict(in_channels=1024)),
)

optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4),
    paramwise_cfg=dict(decay_rate=0.8, num_layers=24),
)

# From MMAction2's model zoo, as it is: trained on AVA,
# vit-large-p16_videomae-k400-pre_8xb8-16x4x1-20e-adamw_ava-kinetics-rgb_*.pth,
# or on Kinetics-400,
# vit-large-p16_videomae-k400-pre_16x4x1_kinetics-400_*.pth.
load_from = None
