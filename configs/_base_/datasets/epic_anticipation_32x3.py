"""As `epic_anticipation.py`, with clips of 32 frames, 3 apart: 16 time steps."""

_base_ = './epic_videos_32x3.py'

task = 'anticipation'
labels = dict(type='EpicFrameLabels', num_positions=16)
train_pipeline = [
    *_base_.train_pipeline[:-1],
    labels,
    _base_.train_pipeline[-1],
]

train_dataloader = dict(dataset=dict(task=task, tau_a=1.0, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(task=task, tau_a=1.0))
test_dataloader = val_dataloader

val_evaluator = dict(task=task)
test_evaluator = val_evaluator
