"""A small MeMViT that learns, on a laptop, what only memory can tell.

    python tools/data/make_demo_dataset.py data/memvit_demo
    python tools/train.py configs/memvit_demo.py

`memvit_demo_no_memory.py` beside this is the baseline without memory.
"""

_base_ = [
    '_base_/models/memvit_demo.py',
    '_base_/datasets/memvit_demo.py',
    '_base_/default_runtime.py',
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    # Where to look in the memory is what takes longest to learn.
    paramwise_cfg=dict(custom_keys={'rel_pos': dict(lr_mult=5.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=2e-5,
        by_epoch=True,
        begin=4,
        end=6,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)

default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=1, save_best=None),
    logger=dict(interval=20),
)
randomness = dict(seed=3)
