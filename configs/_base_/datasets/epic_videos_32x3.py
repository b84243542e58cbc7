"""EPIC-KITCHENS-100 from videos: clips of 32 frames, 3 apart, that span 3.1 seconds."""

_base_ = './epic_videos.py'

sampling = dict(type='SampleEpicFrames', clip_len=32, frame_interval=3)
train_pipeline = [
    dict(type='VideoInit'),
    sampling,
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    dict(type='VideoInit'),
    sampling,
    *_base_.test_pipeline[2:],
]

train_dataloader = dict(
    batch_size=2, dataset=dict(context_stride=3.0, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=2, dataset=dict(context_stride=3.0, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
