"""VideoMAE's ViT-B with memory, 16 frames x 4, for EPIC-KITCHENS-100.

The backbone is that of MMAction2's config for Kinetics: the mean of its tokens is the
feature. Drop path is that of its AVA config; dropout and label smoothing are those of
`memvit_16_epic.py`, untried.
"""

model = dict(
    type='MemoryRecognizer3D',
    # Videos that are read side by side on a GPU: at least the batch size.
    memory=dict(type='ClipMemory', max_streams=16),
    backbone=dict(
        type='MemoryViT',
        img_size=224,
        patch_size=16,
        embed_dims=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=16,
        norm_cfg=dict(type='LN', eps=1e-6),
        drop_path_rate=0.2,
        # Clips follow each other without overlap: these eight reach back 16 seconds.
        memory_levels=[dict(type='kmeans', ages=range(1, 9), tokens=128)],
    ),
    cls_head=dict(
        type='EpicHead',
        in_channels=768,
        num_verbs=97,
        num_nouns=300,
        dropout_ratio=0.5,
        label_smooth_eps=0.1,
    ),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW',
    ),
)
