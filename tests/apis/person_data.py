"""A person detector of mmdet whose weights are set by hand, and videos for it."""

import math
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from stream_data import FPS, SIZE, write_video

from memvit_mm.apis.people.load_detector import build_detector

WIDTH, HEIGHT, SHIRT = 14, 22, 8  # of people and what they wear, in pixels
CHANNELS = 8


def detector_config() -> Config:
    """FCOS, small; what it would start training from is on no disk."""
    conv = dict(type='BN', requires_grad=True)
    model = dict(
        type='FCOS',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3, bgr_to_rgb=True
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=CHANNELS // 2,
            out_indices=(1,),
            norm_cfg=conv,
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
        ),
        neck=dict(
            type='FPN', in_channels=[CHANNELS], out_channels=CHANNELS, num_outs=1
        ),
        bbox_head=dict(
            type='FCOSHead',
            num_classes=80,
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            stacked_convs=0,
            strides=[8],
            regress_ranges=((-1, 1e8),),
        ),
        test_cfg=dict(
            nms_pre=100,
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.01),
            max_per_img=20,
        ),
    )
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(2 * SIZE[1], 2 * SIZE[0]), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]
    dataset = dict(type='CocoDataset', pipeline=steps)
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            test_dataloader=dict(dataset=dataset),
        )
    )


def write_detector(folder: Path) -> tuple:
    """Config and checkpoint of a detector that takes what is white for a person."""
    config, checkpoint = folder / 'white.py', folder / 'white.pth'
    detector_config().dump(config)
    model = build_detector(config, device='cpu')
    for name, value in model.state_dict().items():
        value.fill_(1 if name.endswith('running_var') else 0)
    backbone = model.backbone
    for block in (backbone.bn1, backbone.layer2[0].downsample[1]):
        block.weight.data.fill_(1)
    # Channel 0 is how bright it is, all the way through.
    backbone.conv1.weight.data[0] = 1 / backbone.conv1.weight[0].numel()
    backbone.layer2[0].downsample[0].weight.data[0, 0] = 1
    model.neck.lateral_convs[0].conv.weight.data[0, 0] = 1
    model.neck.fpn_convs[0].conv.weight.data[0, 0, 1, 1] = 1
    head = model.bbox_head
    head.conv_cls.weight.data[0, 0, 1, 1] = 20
    head.conv_cls.bias.data.fill_(-17)
    head.conv_centerness.bias.data.fill_(6)
    head.scales[0].scale.data.fill_(1)
    head.conv_reg.bias.data = torch.tensor([WIDTH, HEIGHT] * 2).log()
    meta = dict(dataset_meta=model.dataset_meta)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), checkpoint)
    return str(config), str(checkpoint)


def street(seconds: float, fps: float = FPS, people: int = 2) -> list:
    """Frames [H, W, 3] in which people in white shirts walk up and down."""
    frames, rng = [], np.random.RandomState(0)
    for number in range(round(seconds * fps)):
        frame = rng.randint(20, 60, (*SIZE, 3), dtype=np.uint8)
        for x, y in places(number / fps)[:people]:
            x, y = x + (WIDTH - SHIRT) // 2, y + (HEIGHT - SHIRT) // 2
            frame[y : y + SHIRT, x : x + SHIRT] = 255
        frames.append(frame)
    return frames


def places(second: float) -> list:
    """Left and top of each of the people."""
    return [
        (round(25 + 20 * math.sin(0.1 * second + turn)), top)
        for turn, top in ((0, 1), (2, 25))
    ]


def write_street(path: Path, seconds: float = 6, **options) -> str:
    """The same as a real video."""
    return write_video(path, street(seconds, **options))
