"""MeMViT-16 on EPIC-KITCHENS-100, action anticipation, one second ahead.

    tools/dist_train.sh configs/memvit_epic_anticipation.py 8

The model is causal and predicts at every time step of a clip: what a time step says
depends on no later frame, so that all of them can be trained, each on what comes a
second after it. Its answer for a clip is that of the last one. (The published code has
both as options and says that its models of EPIC-KITCHENS use them; which was used for
which task is not published.)

Weights and schedule: see `memvit_epic_cls.py`.
"""

_base_ = [
    '_base_/models/memvit_16_epic.py',
    '_base_/datasets/epic_anticipation.py',
    '_base_/schedules/epic_adamw_30e.py',
    '_base_/default_runtime.py',
]

model = dict(
    backbone=dict(causal=True, output_cls_token=False),
    cls_head=dict(frame_level=True),
)

default_hooks = dict(
    checkpoint=dict(
        interval=1,
        max_keep_ckpts=3,
        save_best='epic/overall_action_mt5r',
        rule='greater',
    ),
    logger=dict(interval=20),
)
