"""Models of configs and one training step of them, on any device."""

from typing import Any

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from small_models import randomize
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from memvit_mm.paths import get_config_path

# What is drawn at random in training, beside the blending of clips and dropout.
RATES = ('drop_path_rate', 'attn_drop_rate', 'qkv_drop_rate', 'drop_rate')


def without_dropout(cfg: Any) -> Any:
    """A config whose training draws no random numbers."""
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            cfg[key] = 0.0 if key in RATES else without_dropout(value)
        cfg.pop('blending', None)
    elif isinstance(cfg, (list, tuple)):
        return type(cfg)(map(without_dropout, cfg))
    return cfg


def model_of(name: str, **options: Any) -> nn.Module:
    """The model of a config, weights unlike their start, without dropout."""
    cfg = Config.fromfile(get_config_path(name))
    cfg.merge_from_dict(options)
    init_default_scope('mmaction')
    torch.manual_seed(0)
    model = MODELS.build(without_dropout(cfg.model))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return randomize(model, 0.02)


def batch_of(model: nn.Module, time: int, pixels: int, rows: int = 2) -> dict:
    """What a dataloader gives: the clip at a time of each of some videos.

    Clips are as long as the model's, frames are ``pixels`` wide and high; in each are
    two people.
    """
    frames, *_ = clip_size(model.backbone)
    detects = hasattr(model, 'roi_head')
    generator = torch.Generator().manual_seed(time)
    samples, clips = [], []
    for row in range(rows):
        shape = (3, frames, pixels, pixels)
        clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        clips.append(clip if detects else clip[None])
        sample = ActionDataSample().set_gt_label(label_of(model, time + row))
        if detects:
            boxes = torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.4, 0.2, 0.9, 0.8]]) * pixels
            labels = torch.zeros(2, model.roi_head.bbox_head.num_classes)
            labels[:, 1 + (time + row) % 4] = 1
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
            sample.proposals = InstanceData(bboxes=boxes.clone())
        meta = dict(video_id=f'v{row}', timestamp=time, img_shape=(pixels, pixels))
        sample.set_metainfo(meta)
        samples.append(sample)
    return dict(inputs=clips, data_samples=samples)


def clip_size(backbone: nn.Module) -> tuple[int, int, int]:
    """T, H, W that a backbone is made for, MMAction2's ViT's too."""
    return tuple(backbone.clip_size)


def label_of(model: nn.Module, number: int) -> Any:
    """A label that the head of a recognizer takes."""
    head = getattr(model, 'cls_head', None)
    if hasattr(head, 'num_verbs'):
        return torch.tensor([number % head.num_verbs, number % head.num_nouns])
    return number % 4


def losses_of(model: nn.Module, data: dict) -> Tensor:
    """Sum of the losses of a batch."""
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    return sum(value for name, value in losses.items() if 'loss' in name)


def to_device(tree: Any, device: torch.device) -> Any:
    """Nested lists and dicts with their tensors moved."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


def need_roi_align_in(dtype: torch.dtype, device: torch.device) -> None:
    """Skip the test where mmcv's compiled RoIAlign does not know a type."""
    from mmcv.ops import roi_align

    features = torch.zeros(1, 1, 4, 4, dtype=dtype, device=device)
    try:
        roi_align(features, features.new_tensor([[0, 0, 0, 2, 2]]), (2, 2))
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"mmcv's compiled RoIAlign, not ours: {error}")
