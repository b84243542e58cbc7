"""MeMViT-24 on EPIC-KITCHENS-100, action recognition, 32 frames x 3.

    tools/dist_train.sh configs/memvit_24_epic_cls.py 16

Start from weights trained on Kinetics-600 or -700. For all else, see
`memvit_epic_cls.py`.
"""

_base_ = [
    '_base_/models/memvit_24_epic.py',
    '_base_/datasets/epic_videos_32x3.py',
    '_base_/schedules/epic_adamw_30e.py',
    '_base_/default_runtime.py',
]

default_hooks = dict(
    checkpoint=dict(
        interval=1,
        max_keep_ckpts=3,
        save_best='epic/all_action_accuracy_at_1',
        rule='greater',
    ),
    logger=dict(interval=20),
)
