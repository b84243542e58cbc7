"""Calls of mmcv's operators, for numbers of the compiled ones and the tests of ours.

`python tests/mmcv_ops_cases.py tests/data/mmcv_ops/compiled.npz` writes what they
return, where mmcv has them (2.1.0, CPU); tests/test_mmcv_ops.py compares.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class Roi(NamedTuple):
    """RoIAlign of some boxes in maps ``[B, C, H, W]``."""

    shape: tuple = (2, 3, 14, 18)
    boxes: int = 9
    bins: tuple = (8, 8)
    scale: float = 1 / 16
    samples: int = 0
    aligned: bool = True
    spread: float = 1.0  # how far boxes reach, in widths of the map


# Names say what is special.
ROI_CASES = {
    'adaptive': Roi(),
    'fixed_samples': Roi(samples=2, bins=(7, 5)),
    'legacy': Roi(aligned=False, bins=(7, 7)),
    'outside': Roi(spread=2.5, boxes=20),
    'one_bin': Roi(bins=(1, 1), boxes=4),
    'one_cell': Roi(shape=(1, 2, 1, 1), boxes=4),
    'large_map': Roi(shape=(2, 2, 50, 76), scale=1 / 4, bins=(7, 7), boxes=12),
    'large_map_outside': Roi(
        shape=(2, 2, 50, 76), scale=1 / 4, bins=(7, 7), samples=2, spread=2.0
    ),
}


def roi_inputs(name: str) -> tuple:
    """Maps, boxes ``[N, 5]`` and the gradient of the output."""
    case = ROI_CASES[name]
    draw = np.random.RandomState(sum(map(ord, name)))
    rows, _, height, width = case.shape
    maps = draw.randn(*case.shape) * 3
    size = np.float32([width, height]) / case.scale
    middle = (draw.rand(case.boxes, 2) - 0.5) * case.spread + 0.5
    half = draw.rand(case.boxes, 2) * 0.5 * case.spread
    half[0] = 0  # a point
    half[1:3] /= 50  # smaller than a cell
    corners = np.concatenate([(middle - half) * size, (middle + half) * size], axis=1)
    row = draw.randint(rows, size=(case.boxes, 1))
    grad = draw.randn(case.boxes, case.shape[1], *case.bins)
    arrays = (maps, np.concatenate([row, corners], axis=1), grad)
    return tuple(torch.from_numpy(array.astype(np.float32)) for array in arrays)


def run_roi(name: str, dtype=torch.float32, device='cpu') -> tuple:
    """Output and gradient of the maps, by whatever operators mmcv has."""
    from mmcv.ops import RoIAlign

    case = ROI_CASES[name]
    maps, boxes, grad = (t.to(device, dtype) for t in roi_inputs(name))
    maps.requires_grad_()
    layer = RoIAlign(case.bins, case.scale, case.samples, 'avg', case.aligned)
    output = layer(maps, boxes)
    output.backward(grad)
    return output.detach(), maps.grad


def nms_inputs(count: int, classes: int = 5) -> tuple:
    """Boxes ``[N, 4]``, scores (with ties in thousands), classes."""
    draw = np.random.RandomState(count)
    corner = draw.rand(count, 2) * 400
    size = draw.rand(count, 2) * 120 + 1
    if count == 450:
        size[::40] = 0
        corner[::80] = 7
    boxes = np.concatenate([corner, corner + size], axis=1).round(1)
    boxes[1::50] = boxes[::50]  # some twice
    scores = draw.rand(count)
    if count % 1000 == 0:
        scores = scores.round(2)  # ties
    arrays = (boxes.astype(np.float32), scores.astype(np.float32))
    ids = torch.from_numpy(draw.randint(classes, size=count))
    return (*map(torch.from_numpy, arrays), ids)


NMS_CASES = {
    'nms_10000': dict(count=10000, nms=dict(type='nms', iou_threshold=0.5)),
    'nms_distinct': dict(count=9999, nms=dict(type='nms', iou_threshold=0.6)),
    'nms_strict': dict(count=3000, nms=dict(type='nms', iou_threshold=0.3, offset=1)),
    'nms_split': dict(
        count=3000, nms=dict(type='nms', iou_threshold=0.65, split_thr=9)
    ),
    'nms_agnostic': dict(
        count=2500, nms=dict(type='nms', iou_threshold=0.7, class_agnostic=True)
    ),
    'soft_linear': dict(
        count=600, nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)
    ),
    'soft_gaussian': dict(
        count=600,
        nms=dict(type='soft_nms', method='gaussian', sigma=0.4, min_score=0.1),
    ),
    'soft_empty_boxes': dict(
        count=450,
        nms=dict(type='soft_nms', method='gaussian', sigma=0.4, min_score=0.1),
    ),
    'soft_naive': dict(count=600, nms=dict(type='soft_nms', method='naive')),
}


def run_nms(name: str) -> tuple:
    """Boxes with their scores, and the indices that ``batched_nms`` keeps."""
    from mmcv.ops import batched_nms

    case = NMS_CASES[name]
    return batched_nms(*nms_inputs(case['count']), case['nms'])


def cpu() -> str:
    """What decides how sums are rounded, and how equal scores are sorted."""
    return torch.backends.cpu.get_cpu_capability()


DETECTORS = {
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'faster_rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
}


def detect(name: str, size: int = 224) -> np.ndarray:
    """``[people, 5]`` that an mmdet detector with drawn weights finds in noise."""
    from memvit_mm.apis import PersonDetector
    from memvit_mm.apis.people.load_detector import load_detector_config

    config = load_detector_config(DETECTORS[name])
    for step in config.test_dataloader.dataset.pipeline:
        if 'scale' in step:
            step.scale = (size, size)
    detector = PersonDetector(config, device='cpu', score_thr=0.0)
    draw = np.random.RandomState(0)
    for key, weights in detector.model.named_parameters():
        if weights.dim() > 1:
            values = draw.randn(*weights.shape) * (2 / weights[0].numel()) ** 0.5
            weights.data = torch.from_numpy(values.astype(np.float32))
        elif key.endswith('bias'):
            weights.data.zero_()
            if 'cls' in key and len(weights) in (80, 81):
                weights.data[detector.person] = 3.0
    image = draw.randint(256, size=(size, size, 3)).astype(np.uint8)
    # Without statistics of its own weights, a network of this depth overflows.
    norms = [m for m in detector.model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    detector(image)
    detector.model.eval()
    return detector(image)


def write(path: str) -> None:
    import mmcv._ext  # noqa: F401 - fails where there is none

    torch.set_num_threads(1)  # as the tests
    numbers = {'cpu': np.array(cpu())}
    for name in ROI_CASES:
        output, grad = run_roi(name)
        numbers[f'{name}/output'], numbers[f'{name}/grad'] = output, grad
    for name in NMS_CASES:
        boxes, kept = run_nms(name)
        numbers[f'{name}/kept'] = kept.to(torch.int16)
        numbers[f'{name}/scores'] = boxes[:, 4]
    for name in DETECTORS:
        numbers[f'{name}/people'] = torch.from_numpy(detect(name))
    np.savez_compressed(
        path, **{key: np.asarray(value) for key, value in numbers.items()}
    )


if __name__ == '__main__':
    write(sys.argv[1])
