"""A schedule for EPIC-KITCHENS-100: AdamW, 30 epochs, 5 of them warm-up, cosine.

It is ours, untried: the paper does not give its own for EPIC-KITCHENS. Epochs, warm-up
and cosine, as the model's drop rates, are those of its AVA recipe; AdamW, 1e-4 and
weight decay 0.05 are what Motionformer takes on EPIC-KITCHENS-100, another video
transformer that starts from Kinetics (there for 32 clips a machine, on four). The rate
here is for 32 clips in all, of which `context_stride` leaves about 40 % labelled: count
the labelled ones when you choose your own. `--auto-scale-lr` scales the rate with the
number of clips.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_begin=1, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='MergedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    # No weight decay on 1-D parameters.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=25,
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=30,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(enable=False, base_batch_size=32)
