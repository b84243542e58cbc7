"""A small MeMViT that tells, on a laptop, what will be done next under a cloth.

    python tools/data/make_demo_dataset.py data/memvit_demo_epic --format epic
    python tools/train.py configs/memvit_demo_epic_anticipation.py

The clip ends a second before the action. The model is causal and predicts at each of 4
time steps, as that of `memvit_epic_anticipation.py` does.
`memvit_demo_epic_anticipation_no_memory.py` beside this is the baseline without memory.
"""

_base_ = './memvit_demo_epic_cls.py'

model = dict(
    backbone=dict(causal=True),
    cls_head=dict(frame_level=True),
)

train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='EpicFrameLabels', num_positions=4),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(
    dataset=dict(task='anticipation', tau_a=1.0, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(task='anticipation', tau_a=1.0))
test_dataloader = val_dataloader

val_evaluator = dict(task='anticipation')
test_evaluator = val_evaluator
