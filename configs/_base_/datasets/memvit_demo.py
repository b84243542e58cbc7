"""The made data set that needs memory, see tools/data/make_demo_dataset.py."""

data_root = 'data/memvit_demo/'
anno_root = 'annotations/'
# Classes that can be told from the clip, and those that need memory.
class_groups = dict(clip=[1, 2, 3, 4, 5, 6], memory=[7, 8, 9, 10, 11, 12, 13, 14])

sampling = dict(type='SampleClipFrames', clip_len=8, frame_interval=1)
packing = [
    dict(type='FormatShape', input_format='NCTHW', collapse=True),
    dict(
        type='PackActionInputs',
        meta_keys=('img_shape', 'img_key', 'video_id', 'timestamp', 'stream'),
    ),
]
train_pipeline = [
    # Readers of the videos that are being read stay open: one a lane.
    dict(type='VideoInit', keep_open=8),
    sampling,
    dict(type='VideoDecode'),
    dict(
        type='StreamConsistent',
        transforms=[
            dict(type='Resize', scale=(48, 48), keep_ratio=False),
            dict(type='Flip', flip_ratio=0.5),
        ],
    ),
    *packing,
]
test_pipeline = [
    # Readers of the videos that are being read stay open: one a lane.
    dict(type='VideoInit', keep_open=8),
    dict(**sampling, test_mode=True),
    dict(type='VideoDecode'),
    dict(type='Resize', scale=(48, 48), keep_ratio=False),
    *packing,
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
    dataset=dict(
        type='MemoryAVADataset',
        data_root=data_root,
        ann_file=f'{anno_root}train.csv',
        label_file=f'{data_root}{anno_root}action_list.pbtxt',
        proposal_file=f'{data_root}{anno_root}proposals_train.pkl',
        num_classes=15,
        pipeline=train_pipeline,
        use_frames=False,
        data_prefix=dict(img='videos'),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=False),
    dataset=dict(
        type='MemoryAVADataset',
        data_root=data_root,
        ann_file=f'{anno_root}val.csv',
        exclude_file=f'{data_root}{anno_root}excluded_val.csv',
        label_file=f'{data_root}{anno_root}action_list.pbtxt',
        proposal_file=f'{data_root}{anno_root}proposals_val.pkl',
        num_classes=15,
        keyframes='detected',
        pipeline=test_pipeline,
        test_mode=True,
        use_frames=False,
        data_prefix=dict(img='videos'),
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='MemoryAVAMetric',
    ann_file=f'{data_root}{anno_root}val.csv',
    exclude_file=f'{data_root}{anno_root}excluded_val.csv',
    label_file=f'{data_root}{anno_root}action_list.pbtxt',
    num_classes=15,
    class_groups=class_groups,
)
test_evaluator = val_evaluator
