"""EPIC-KITCHENS-100, what comes next: the clip ends a second before the action starts.

For models that predict at each of the 8 time steps of a clip: a time step's label is
the action one second later, if there is one; the last one's is the one to anticipate.
"""

_base_ = './epic_videos.py'

task = 'anticipation'
labels = dict(type='EpicFrameLabels', num_positions=8)
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
