"""Small registered models and samples for the tests."""

from collections.abc import Sequence

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import memvit_mm  # noqa: F401

ARCH = dict(embed_dims=8, num_layers=4, num_heads=1, downscale_indices=[1, 3])
DIMS = 32
CLASSES = 6
FRAMES = 8


def backbone_cfg(**kwargs) -> dict:
    return {
        'type': 'MeMViT',
        'arch': ARCH,
        'spatial_size': 32,
        'temporal_size': FRAMES,
        'adaptive_kv_stride': (1, 4, 4),
        **kwargs,
    }


def vit_cfg(**kwargs) -> dict:
    """A small MemoryViT that reads the clips which the small MeMViT reads."""
    return {
        'type': 'MemoryViT',
        'img_size': 32,
        'embed_dims': DIMS,
        'depth': 3,
        'num_heads': 2,
        'num_frames': FRAMES,
        'memory_levels': [dict(type='kmeans', ages=(2, 4), tokens=6)],
        **kwargs,
    }


def vit_map_cfg(**kwargs) -> dict:
    """One that returns a map of features, as detectors want it."""
    return vit_cfg(**{'return_feat_map': True, 'use_mean_pooling': False, **kwargs})


def vit_recognizer(**kwargs) -> torch.nn.Module:
    """As :func:`recognizer`, with a MemoryViT."""
    return recognizer(vit_cfg(), **kwargs)


def vit_detector(**kwargs) -> torch.nn.Module:
    """As :func:`detector`, with a MemoryViT, one softmax over learned and other
    memories."""
    levels = [
        dict(type='pool', ages=(2,), stride=(2, 1, 1)),
        dict(type='coreset', ages=(4,), tokens=3),
    ]
    backbone = vit_map_cfg(reading='joint', memory_levels=levels)
    return detector(backbone, **kwargs)


def long_detector() -> torch.nn.Module:
    """A detector that reads each of the last clips, most of them coarsely."""
    levels = [
        dict(type='pool', ages=(2,), stride=(4, 2, 2)),
        dict(type='pool', ages=(1, 3, 4), tokens=2),
    ]
    return detector(
        backbone_cfg(output_cls_token=False, memory_levels=levels),
        dict(memory_levels=[dict(type='keep', ages=(1, 2, 3, 4), tokens=4)]),
    )


def build(cfg: dict) -> torch.nn.Module:
    init_default_scope('mmaction')
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(cfg))


def randomize(model: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Weights unlike their start, so that no term is zero by accident."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(scale * noise)
        if name.endswith('.gate'):
            parameter.data.add_(1.0)
    return model


def recognizer(backbone: dict = None, **kwargs) -> torch.nn.Module:
    backbone = backbone or backbone_cfg()
    is_vit = backbone['type'] == 'MemoryViT'
    cfg = dict(
        type='MemoryRecognizer3D',
        backbone=backbone,
        cls_head=dict(
            type='TimeSformerHead' if is_vit else 'MViTHead',
            num_classes=CLASSES,
            in_channels=DIMS,
            dropout_ratio=0.0,
            average_clips='prob',
        ),
    )
    return randomize(build({**cfg, **kwargs})).eval()


def detector(
    backbone: dict = None, actors: dict = dict(), negatives: bool = False, **kwargs
) -> torch.nn.Module:
    """A detector; ``actors=None`` for one without actor memory."""
    roi_head = dict(
        type='MemoryAVARoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
        ),
        bbox_head=dict(
            type='BBoxHeadAVA',
            background_class=True,
            in_channels=DIMS,
            num_classes=CLASSES,
            topk=(2,),
        ),
    )
    if negatives:
        roi_head['bbox_head']['type'] = 'MemoryBBoxHeadAVA'
    if actors is not None:
        roi_head['shared_head'] = {
            'type': 'ActorMemoryHead',
            'in_channels': DIMS,
            'num_heads': 4,
            'max_actors': 6,
            **actors,
        }
    cfg = dict(
        type='MemoryFastRCNN',
        _scope_='mmdet',
        backbone=backbone or backbone_cfg(output_cls_token=False),
        roi_head=roi_head,
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
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
                    neg_pos_ub=-1 if negatives else 0,
                    add_gt_as_proposals=True,
                ),
                pos_weight=1.0,
            )
        ),
        test_cfg=dict(rcnn=None),
    )
    return randomize(build({**cfg, **kwargs})).eval()


def clip(video: str, time: int, size: Sequence[int] = (32, 32)) -> torch.Tensor:
    """The one clip of a video at a time: [3, T, H, W]."""
    seed = sum(ord(c) * 31**i for i, c in enumerate(video)) * 1000 + int(time)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, FRAMES, *size, generator=generator)


def sample(
    video: str, time: int, size: Sequence[int] = (32, 32), people: int = 2, **meta
) -> ActionDataSample:
    """A sample with a recognition label, ground truth boxes and proposals."""
    generator = torch.Generator().manual_seed(int(time) + 7)
    corner = torch.rand(people, 2, generator=generator) * 10
    boxes = torch.cat([corner, corner + 8 + torch.arange(people)[:, None]], dim=1)
    labels = torch.zeros(people, CLASSES)
    labels[:, 1 + int(time) % (CLASSES - 1)] = 1
    result = ActionDataSample()
    result.set_gt_label(int(time) % CLASSES)
    result.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    result.proposals = InstanceData(bboxes=boxes.clone())
    result.set_metainfo(
        dict(video_id=video, timestamp=time, img_shape=tuple(size), **meta)
    )
    return result


def batch(*clips: tuple) -> tuple:
    """Inputs [B, 1, C, T, H, W] and samples of (video, time) pairs."""
    inputs = torch.stack([clip(*c)[None] for c in clips])
    return inputs, [sample(*c) for c in clips]


def batch_for(model, *clips: tuple) -> tuple:
    """As :func:`batch`, in the form that a recognizer or a detector takes."""
    inputs, samples = batch(*clips)
    return inputs.squeeze(1) if hasattr(model, 'roi_head') else inputs, samples


def scores(model, *clips: tuple) -> list[torch.Tensor]:
    """Predictions of one batch, one tensor per (video, time) pair."""
    inputs, samples = batch_for(model, *clips)
    with torch.no_grad():
        results = model(inputs, samples, mode='predict')
    if hasattr(model, 'roi_head'):
        return [result.pred_instances.scores for result in results]
    return [result.pred_score for result in results]
