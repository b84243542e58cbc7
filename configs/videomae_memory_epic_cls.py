"""Memory for VideoMAE's ViT-B on EPIC-KITCHENS-100, action recognition.

    tools/dist_train.sh configs/videomae_memory_epic_cls.py 8 \
        --cfg-options load_from=WEIGHTS.pth

The schedule is `memvit_epic_cls.py`'s with MMAction2's layer-wise rates of VideoMAE.
It is ours: this config has not been trained on EPIC-KITCHENS-100 here.
"""

_base_ = [
    '_base_/models/videomae_memory_epic.py',
    '_base_/datasets/epic_videos.py',
    '_base_/schedules/epic_adamw_30e.py',
    '_base_/default_runtime.py',
]

optim_wrapper = dict(
    constructor='MemoryLearningRateDecayOptimizerConstructor',
    # As in `_base_/schedules/videomae_adamw_20e.py`.
    paramwise_cfg=dict(
        _delete_=True,
        decay_rate=0.75,
        decay_type='layer_wise',
        num_layers=12,
        custom_keys=dict(
            gate=dict(lr_mult=10.0),
            rel_pos_age=dict(lr_mult=1.0),
            compress=dict(lr_mult=1.0),
        ),
    ),
)

default_hooks = dict(
    checkpoint=dict(
        interval=1,
        max_keep_ckpts=3,
        save_best='epic/all_action_accuracy_at_1',
        rule='greater',
    ),
    logger=dict(interval=20),
)

# From MMAction2's model zoo, as it is:
# vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_*.pth.
load_from = None
