"""MMAction2's schedule of VideoMAE on AVA: AdamW, 20 epochs, layer-wise rates.

The learning rate is for 64 clips a step (8 GPUs x 8); `--auto-scale-lr` scales it.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_begin=1, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.25e-4, weight_decay=0.05),
    constructor='MemoryLearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(
        decay_rate=0.75,
        decay_type='layer_wise',
        num_layers=12,
        # What is new in a layer is not held back with what was trained before. AdamW
        # moves a weight by about its rate in a step at most, and a gate has to get from
        # 0 to about 1: at ten times the rate in a thousand steps. The factors are ours,
        # untried on AVA.
        custom_keys=dict(
            gate=dict(lr_mult=10.0),
            rel_pos_age=dict(lr_mult=1.0),
            compress=dict(lr_mult=1.0),
        ),
    ),
    clip_grad=dict(max_norm=40, norm_type=2),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=15,
        eta_min=0,
        by_epoch=True,
        begin=5,
        end=20,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(enable=False, base_batch_size=64)
