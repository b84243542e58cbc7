"""VideoMAE's ViT-B with memory, 16 frames x 4, for AVA: MMAction2's settings."""

model = dict(
    type='MemoryFastRCNN',
    _scope_='mmdet',
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
        use_mean_pooling=False,
        return_feat_map=True,
        # AVA has a clip a second, and a clip spans 2.1: every other clip misses
        # nothing, and eight of these reach back 16 seconds.
        memory_levels=[dict(type='kmeans', ages=range(2, 17, 2), tokens=128)],
    ),
    # For memory over people, too, give it shared_head=dict(type='ActorMemoryHead',
    # in_channels=768): its attention among people begins untrained.
    roi_head=dict(
        type='MemoryAVARoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor3D',
            roi_layer_type='RoIAlign',
            output_size=8,
            with_temporal_pool=True,
        ),
        bbox_head=dict(
            type='BBoxHeadAVA',
            background_class=True,
            in_channels=768,
            num_classes=81,
            multilabel=True,
            dropout_ratio=0.5,
        ),
    ),
    data_preprocessor=dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
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
            sampler=dict(
                type='RandomSampler',
                num=32,
                pos_fraction=1,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=1.0,
        )
    ),
    test_cfg=dict(rcnn=None),
)
