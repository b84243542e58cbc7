"""The demo kitchens, in EPIC-KITCHENS' format.

python tools/data/make_demo_dataset.py data/memvit_demo_epic --format epic
"""

data_root = 'data/memvit_demo_epic/'
anno_root = 'annotations/EPIC_100_'
task = 'recognition'

sampling = dict(type='SampleEpicFrames', clip_len=8, frame_interval=1, target_fps=12)
packing = [
    dict(type='FormatShape', input_format='NCTHW'),
    dict(
        type='PackActionInputs',
        meta_keys=('img_shape', 'video_id', 'timestamp', 'stream', 'narration_id'),
    ),
]
train_pipeline = [
    # Readers of the videos that are being read stay open: one a lane.
    dict(type='VideoInit', keep_open=8),
    sampling,
    dict(type='VideoDecode'),
    dict(type='Resize', scale=(48, 48), keep_ratio=False),
    *packing,
]
test_pipeline = train_pipeline

dataset = dict(
    type='EpicKitchensDataset',
    task=task,
    data_root=data_root,
    data_prefix=dict(video='videos'),
    video_info_file=f'{anno_root}video_info.csv',
    class_files=(f'{anno_root}verb_classes.csv', f'{anno_root}noun_classes.csv'),
    # A clip every 2 seconds where there is no segment.
    context_stride=2.0,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
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
    batch_size=8,
    num_workers=1,
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
