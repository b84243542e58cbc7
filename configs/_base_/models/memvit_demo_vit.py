"""A small MemoryViT: 4 layers, 2 x 6 x 6 tokens of 8 frames of 48 x 48, 14 classes.

There is no attention among people, which would remember them, too: what is remembered
is in the backbone alone.
"""

_base_ = './memvit_demo.py'

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
