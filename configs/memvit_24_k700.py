"""MeMViT-24's architecture, without memory, on Kinetics-700: 32 frames x 3.

python tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth \\
    --config configs/memvit_24_k700.py
"""

_base_ = './memvit_24_k600.py'

num_classes = 700
model = dict(
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

data = 'data/kinetics700'
ann_file_val = f'{data}/kinetics700_val_list_videos.txt'
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{data}/kinetics700_train_list_videos.txt',
        data_prefix=dict(video=f'{data}/videos_train'),
    )
)
val_dataloader = dict(
    dataset=dict(ann_file=ann_file_val, data_prefix=dict(video=f'{data}/videos_val'))
)
test_dataloader = dict(
    dataset=dict(ann_file=ann_file_val, data_prefix=dict(video=f'{data}/videos_val'))
)
