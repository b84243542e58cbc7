"""A small MemoryViT: 4 layers, 8 frames of 48 x 48, 14 classes."""

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
        return_feat_map=True,
        memory_levels=[dict(type='pool', ages=(2, 4), stride=(2, 1, 1))],
        init_cfg=_base_.init_cfg,
    ),
    # Memory is in the backbone alone.
    roi_head=dict(shared_head=None, bbox_head=dict(in_channels=64)),
)
