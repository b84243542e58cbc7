"""AVA v2.2 as `ava_rawframes.py`, from videos: data/ava/videos/<video>.mp4 (.mkv ...).

Second 900 is the start of the file, as MMAction2's cut_videos.sh leaves them. Frame
rates are the containers' own.
"""

_base_ = './ava_rawframes.py'

data_prefix = dict(img='data/ava/videos')

train_pipeline = [
    dict(type='VideoInit'),
    dict(type='SampleClipFrames', clip_len=16, frame_interval=4),
    dict(type='VideoDecode'),
    *_base_.augmentation,
    *_base_.packing,
]
test_pipeline = [
    dict(type='VideoInit'),
    dict(type='SampleClipFrames', clip_len=16, frame_interval=4, test_mode=True),
    dict(type='VideoDecode'),
    dict(type='ResizeShortSide', short_side=224),
    *_base_.packing,
]
val_pipeline = [*test_pipeline[:-2], _base_.center_crop, *_base_.packing]

train_dataloader = dict(
    dataset=dict(use_frames=False, data_prefix=data_prefix, pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(use_frames=False, data_prefix=data_prefix, pipeline=val_pipeline)
)
test_dataloader = dict(
    dataset=dict(use_frames=False, data_prefix=data_prefix, pipeline=test_pipeline)
)
