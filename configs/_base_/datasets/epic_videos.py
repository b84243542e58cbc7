"""EPIC-KITCHENS-100 from videos, for models with memory: 16 frames, 4 apart.

Files as the official download leaves them, and the official annotations:

    data/epic/EPIC-KITCHENS/P01/videos/P01_01.MP4 ...
    data/epic/annotations/EPIC_100_train.csv, EPIC_100_validation.csv, ...

Full HD is slow to decode: videos scaled to 320 pixels (the shorter side) at the same
frame rate do. Extracted frames are read with `use_frames=True`, see
`EpicKitchensDataset`.
"""

data_root = 'data/epic/'
anno_root = 'annotations/EPIC_100_'
task = 'recognition'

# Frames are counted at 30 a second, whatever the video's own rate: a clip of 16 x 4
# spans 2 seconds.
sampling = dict(type='SampleEpicFrames', clip_len=16, frame_interval=4)
augmentation = [
    # The same for all clips of a video in an epoch.
    dict(
        type='StreamConsistent',
        transforms=[
            dict(type='RandomRescale', scale_range=(256, 320)),
            dict(type='RandomCrop', size=224),
            dict(type='Flip', flip_ratio=0.5),
        ],
    ),
]
packing = [
    dict(type='FormatShape', input_format='NCTHW'),
    dict(
        type='PackActionInputs',
        meta_keys=('img_shape', 'video_id', 'timestamp', 'stream', 'narration_id'),
    ),
]
train_pipeline = [
    dict(type='VideoInit'),
    sampling,
    dict(type='VideoDecode'),
    *augmentation,
    *packing,
]
test_pipeline = [
    dict(type='VideoInit'),
    sampling,
    dict(type='VideoDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    *packing,
]

dataset = dict(
    type='EpicKitchensDataset',
    task=task,
    data_root=data_root,
    data_prefix=dict(video='EPIC-KITCHENS'),
    video_info_file=f'{anno_root}video_info.csv',
    class_files=(f'{anno_root}verb_classes.csv', f'{anno_root}noun_classes.csv'),
    # A clip every 2 seconds, as long as a clip, where there is no segment. Directly, a
    # layer attends to the clips 2 and 4 back; through its 8 memory layers MeMViT-16
    # then reaches about 32 clips, a minute, as published.
    context_stride=2.0,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file=f'{anno_root}train.csv',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file=f'{anno_root}validation.csv',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='EpicMetric', task=task, annotations=f'{data_root}annotations'
)
test_evaluator = val_evaluator
