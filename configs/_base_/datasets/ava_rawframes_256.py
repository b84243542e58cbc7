"""AVA v2.2 from folders of frames, as MMAction2's VideoMAE takes them.

Crops of 256 without changes of colour; frames are tested and validated whole, their
shorter side 256.
"""

_base_ = './ava_rawframes.py'

augmentation = [
    # The same for all clips of a video in an epoch.
    dict(
        type='StreamConsistent',
        transforms=[
            dict(type='RandomRescale', scale_range=(256, 320)),
            dict(type='RandomCrop', size=256),
            dict(type='Flip', flip_ratio=0.5),
        ],
    ),
]
train_pipeline = [*_base_.train_pipeline[:2], *augmentation, *_base_.packing]
test_pipeline = [
    *_base_.test_pipeline[:2],
    dict(type='Resize', scale=(-1, 256)),
    *_base_.packing,
]
val_pipeline = test_pipeline

train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
