"""MeMViT-16, 16 frames x 4, for AVA: backbone, memory over people, 80 classes."""

# How weights start that Kinetics does not bring, as published: linear layers, layer
# norms and tables of positions so, convolutions as torch has it. (MMAction2's MViT
# starts biases at 0.02, and its box head in Xavier's way.)
init_cfg = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]

model = dict(
    type='MemoryFastRCNN',
    _scope_='mmdet',
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
        output_cls_token=False,
        init_cfg=init_cfg,
    ),
    roi_head=dict(
        type='MemoryAVARoIHead',
        init_cfg=init_cfg,
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor3D',
            roi_layer_type='RoIAlign',
            output_size=7,
            featmap_stride=32,
            with_temporal_pool=True,
        ),
        shared_head=dict(
            type='ActorMemoryHead',
            in_channels=768,
            num_heads=8,
            num_layers=1,
            max_actors=100,
            memory_length=2,
            memory_gap=2,
            # Grows from 0 over the layers: none for this one layer, as published.
            drop_path_rate=0.1,
            attn_drop_rate=0.5,
            qkv_drop_rate=0.3,
            drop_rate=0.3,
            init_cfg=init_cfg,
        ),
        bbox_head=dict(
            # Detections of nobody who is annotated are negatives.
            type='MemoryBBoxHeadAVA',
            negatives=True,
            background_class=True,
            in_channels=768,
            num_classes=81,
            multilabel=True,
            dropout_ratio=0.5,
        ),
    ),
    data_preprocessor=dict(
        type='mmaction.ActionDataPreprocessor',
        # 0.45 and 0.225 of [0, 1]; frames are RGB.
        mean=[114.75, 114.75, 114.75],
        std=[57.375, 57.375, 57.375],
        format_shape='NCTHW',
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssignerAVA',
                pos_iou_thr=0.9,
                neg_iou_thr=0.9,
                min_pos_iou=0.9,
            ),
            # All ground truth and all detections: no keyframe has as many as num.
            sampler=dict(
                type='RandomSampler',
                num=10000,
                pos_fraction=1,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=1.0,
        )
    ),
    test_cfg=dict(rcnn=None),
)
