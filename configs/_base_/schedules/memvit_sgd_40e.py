"""The schedule of MeMViT-24: 40 epochs, 6 of them warm-up, gradients clipped at 5.

The learning rate is for 256 clips a step (128 GPUs x 2); `--auto-scale-lr` scales it.
All is as published, the rate 0.075 for each 16 clips, and where it starts and ends
1e-6 for each 16.
"""

_base_ = './memvit_sgd_30e.py'

train_cfg = dict(max_epochs=40)

optim_wrapper = dict(
    optimizer=dict(lr=1.2),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 0.075,
        by_epoch=True,
        begin=0,
        end=6,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=34,
        eta_min_ratio=1e-6 / 0.075,
        by_epoch=True,
        begin=6,
        end=40,
        convert_to_iter_based=True,
    ),
]

auto_scale_lr = dict(enable=False, base_batch_size=256)
