r"""A small MemoryViT that learns, on a laptop, what only memory can tell.

    python tools/data/make_demo_dataset.py data/memvit_demo_vit --people 1 \
        --num-train 84
    python tools/train.py configs/memvit_demo_vit.py

The data of `memvit_demo.py` with one person in each video, and three times the videos:
from a random start, a plain transformer learns 28 videos by heart. Other ways to keep a
clip, and the baseline without memory: docs/vit.md.
"""

_base_ = './memvit_demo.py'

# 4 layers, 2 x 6 x 6 tokens of 8 frames of 48 x 48. There is no attention among people,
# which would remember them, too: what is remembered is in the backbone alone.
model = dict(
    backbone=dict(
        _delete_=True,
        type='MemoryViT',
        img_size=48,
        patch_size=8,
        embed_dims=64,
        depth=4,
        num_heads=4,
        num_frames=8,
        tubelet_size=4,
        use_mean_pooling=False,
        return_feat_map=True,
        memory_layers=(1, 2, 3),
        memory_levels=[dict(type='kmeans', ages=(2, 4), tokens=36)],
        # A random start has nothing that a closed gate would keep.
        reading='joint',
        init_cfg=_base_.init_cfg,
    ),
    roi_head=dict(shared_head=None, bbox_head=dict(in_channels=64)),
)

data_root = 'data/memvit_demo_vit/'
notes = f'{data_root}annotations/'
labels = dict(label_file=f'{notes}action_list.pbtxt')
exclude = dict(exclude_file=f'{notes}excluded_val.csv')

train_dataloader = dict(
    batch_size=16,
    # Each keeps the videos of its half of the batch open.
    num_workers=2,
    dataset=dict(
        data_root=data_root, proposal_file=f'{notes}proposals_train.pkl', **labels
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        proposal_file=f'{notes}proposals_val.pkl',
        **labels,
        **exclude,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{notes}val.csv', **labels, **exclude)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4, val_interval=4)

optim_wrapper = dict(
    # A gate, which `model.backbone.reading=gated` has, opens too slowly at the rate of
    # the other weights.
    paramwise_cfg=dict(custom_keys={'gate': dict(lr_mult=10.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=2e-5,
        by_epoch=True,
        begin=1,
        end=4,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

default_hooks = dict(
    checkpoint=dict(interval=2, max_keep_ckpts=1, save_best=None),
    logger=dict(interval=50),
)
