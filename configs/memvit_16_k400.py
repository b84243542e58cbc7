r"""MeMViT-16's architecture, without memory, on Kinetics-400: 16 frames x 4.

    python tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth \
        --config configs/memvit_16_k400.py
    python tools/test.py configs/memvit_16_k400.py WEIGHTS.pth

A clip of Kinetics has no past, so this is where weights are pretrained and checked.
Data, augmentation and schedule are MMAction2's for MViTv2-S.
"""

_base_ = (
    'mmaction::recognition/mvit/mvit-small-p244_32xb16-16x4x1-200e_kinetics400-rgb.py'
)

custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)

model = dict(backbone=dict(type='MeMViT', arch='small', memory_layers=()))
