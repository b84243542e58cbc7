"""MeMViT-16, 16 frames x 4, for EPIC-KITCHENS-100: 97 verbs and 300 nouns.

Memory, drop path and dropout are those of the paper's AVA recipe. Label smoothing of
0.1 is ours, untried, as is the schedule: the paper's for EPIC-KITCHENS is not public.
"""

model = dict(
    type='MemoryRecognizer3D',
    # Videos that are read side by side on a GPU: at least the batch size.
    memory=dict(type='ClipMemory', max_streams=16),
    backbone=dict(
        type='MeMViT',
        arch='small',
        spatial_size=224,
        temporal_size=16,
        memory_length=2,
        memory_gap=2,
        drop_path_rate=0.4,
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
        # 0.45 and 0.225 of [0, 1]; frames are RGB.
        mean=[114.75, 114.75, 114.75],
        std=[57.375, 57.375, 57.375],
        format_shape='NCTHW',
    ),
)
