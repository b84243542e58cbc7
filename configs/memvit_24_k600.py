r"""MeMViT-24's architecture, without memory, on Kinetics-600: 32 frames x 3.

    python tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth \
        --config configs/memvit_24_k600.py
    python tools/test.py configs/memvit_24_k600.py WEIGHTS.pth

A clip of Kinetics has no past, so this is where weights are pretrained and checked.
Augmentation and schedule are MMAction2's for MViTv2-B on Kinetics-400; `val_dataloader`
and `test_dataloader` read the same videos.
"""

_base_ = 'mmaction::recognition/mvit/mvit-base-p244_32x3x1_kinetics400-rgb.py'

custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)

num_classes = 600
model = dict(
    backbone=dict(type='MeMViT', arch='base', memory_layers=()),
    cls_head=dict(num_classes=num_classes),
    data_preprocessor=dict(
        blending=dict(
            augments=[
                dict(type='MixupBlending', alpha=0.8, num_classes=num_classes),
                dict(type='CutmixBlending', alpha=1, num_classes=num_classes),
            ]
        )
    ),
)

data = 'data/kinetics600'
ann_file_val = f'{data}/kinetics600_val_list_videos.txt'
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{data}/kinetics600_train_list_videos.txt',
        data_prefix=dict(video=f'{data}/videos_train'),
    )
)
val_dataloader = dict(
    dataset=dict(ann_file=ann_file_val, data_prefix=dict(video=f'{data}/videos_val'))
)
test_dataloader = dict(
    dataset=dict(ann_file=ann_file_val, data_prefix=dict(video=f'{data}/videos_val'))
)
