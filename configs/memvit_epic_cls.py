"""MeMViT-16 on EPIC-KITCHENS-100, action recognition.

    tools/dist_train.sh configs/memvit_epic_cls.py 8

Start from weights trained on Kinetics-400: `--cfg-options load_from=WEIGHTS.pth`,
converted with `tools/deployment/convert_checkpoint.py SRC WEIGHTS.pth --config
configs/memvit_epic_cls.py`. The paper does not give its schedule; this one is ours
(`_base_/schedules/epic_adamw_30e.py` says where it comes from).
"""

_base_ = [
    '_base_/models/memvit_16_epic.py',
    '_base_/datasets/epic_videos.py',
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
