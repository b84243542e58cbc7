"""AVA v2.2 from folders of frames: clips of 32 frames, 3 apart."""

_base_ = './ava_rawframes.py'

train_pipeline = [
    dict(type='SampleClipFrames', clip_len=32, frame_interval=3),
    *_base_.train_pipeline[1:],
]
sampling = dict(type='SampleClipFrames', clip_len=32, frame_interval=3, test_mode=True)
test_pipeline = [sampling, *_base_.test_pipeline[1:]]
val_pipeline = [sampling, *_base_.val_pipeline[1:]]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
