"""The published AVA schedule: SGD, 30 epochs, 5 of them warm-up, cosine.

The learning rate is for 16 clips a step (8 GPUs x 2); `--auto-scale-lr` scales it, with
where it starts and ends, 1e-6 for 16 clips. It is set every iteration.
"""

# On centre crops, every second epoch, as published.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_begin=1, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='MergedOptimWrapperConstructor',
    optimizer=dict(
        type='SGD', lr=0.075, momentum=0.9, nesterov=True, weight_decay=1e-8
    ),
    # No weight decay on 1-D parameters and biases. The compression is trained, since it
    # decides what is remembered; in the published code no gradient reaches it:
    # custom_keys=dict(compress=dict(lr_mult=0.0)), as in memvit_ava_published.py.
    paramwise_cfg=dict(flat_decay_mult=0.0, bias_decay_mult=0.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 0.075,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=25,
        eta_min_ratio=1e-6 / 0.075,
        by_epoch=True,
        begin=5,
        end=30,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(enable=False, base_batch_size=16)
