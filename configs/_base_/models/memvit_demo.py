"""A small MeMViT: 4 layers, 8 frames of 64 x 64, 14 classes."""

_base_ = './memvit_16_ava.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=24,
            num_layers=4,
            num_heads=1,
            downscale_indices=[1],
        ),
        spatial_size=64,
        temporal_size=8,
        adaptive_kv_stride=(1, 4, 4),
        drop_path_rate=0.0,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_stride=8),
        shared_head=dict(
            in_channels=48,
            num_heads=2,
            max_actors=8,
            drop_path_rate=0.0,
            attn_drop_rate=0.0,
            qkv_drop_rate=0.0,
            drop_rate=0.0,
        ),
        bbox_head=dict(in_channels=48, num_classes=15, dropout_ratio=0.0),
    ),
)
