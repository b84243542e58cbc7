"""A small MeMViT for the demo kitchens: 4 layers, 8 frames of 48 x 48."""

# The published start (standard deviation 0.02) is for layers of hundreds of channels;
# layers this narrow would pass on next to nothing for the first few hundred steps.
init_cfg = [
    dict(type='Xavier', layer=['Linear', 'Conv3d'], distribution='uniform', bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]

model = dict(
    type='MemoryRecognizer3D',
    memory=dict(type='ClipMemory', max_streams=16),
    backbone=dict(
        type='MeMViT',
        arch=dict(
            embed_dims=24,
            num_layers=4,
            num_heads=1,
            downscale_indices=[1],
        ),
        spatial_size=48,
        temporal_size=8,
        adaptive_kv_stride=(1, 4, 4),
        compress_stride=(4, 1, 1),
        # The last three clips: a dish has three segments under the cloth.
        memory_length=3,
        memory_gap=1,
        output_cls_token=False,
        init_cfg=init_cfg,
    ),
    cls_head=dict(
        type='EpicHead',
        in_channels=48,
        num_verbs=4,
        num_nouns=6,
        dropout_ratio=0.0,
        init_cfg=init_cfg,
    ),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        # 0.45 and 0.225 of [0, 1]; frames are RGB.
        mean=[114.75, 114.75, 114.75],
        std=[57.375, 57.375, 57.375],
        format_shape='NCTHW',
    ),
)
