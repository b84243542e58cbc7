"""A small MeMViT: 4 layers, 8 frames of 48 x 48, 14 classes."""

_base_ = './memvit_16_ava.py'

# The published start (standard deviation 0.02) is for layers of hundreds of channels;
# layers this narrow would pass on next to nothing for the first few hundred steps.
init_cfg = [
    dict(type='Xavier', layer=['Linear', 'Conv3d'], distribution='uniform', bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=24,
            num_layers=4,
            num_heads=1,
            downscale_indices=[1],
        ),
        spatial_size=48,
        temporal_size=8,
        # On frames this small, memory must be fine enough in space to tell who it was.
        adaptive_kv_stride=(1, 2, 2),
        compress_stride=(4, 1, 1),
        drop_path_rate=0.0,
        init_cfg=init_cfg,
    ),
    roi_head=dict(
        # The classifier starts as MMAction2's does.
        init_cfg=None,
        bbox_roi_extractor=dict(featmap_stride=8),
        shared_head=dict(
            in_channels=48,
            num_heads=2,
            max_actors=8,
            drop_path_rate=0.0,
            attn_drop_rate=0.0,
            qkv_drop_rate=0.0,
            drop_rate=0.0,
            init_cfg=init_cfg,
        ),
        # The demo's detections are off by so much that a third of the people would be
        # negatives, too.
        bbox_head=dict(
            in_channels=48, num_classes=15, dropout_ratio=0.0, negatives=False
        ),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(neg_pos_ub=0))),
)
