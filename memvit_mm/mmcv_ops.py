"""mmcv's compiled operators, for an mmcv that comes without them.

``mmcv-lite`` has all of mmcv's Python code, ``mmcv.ops`` included, and lacks one
module: the compiled ``mmcv._ext``, which needs a compiler (and nvcc) that match torch.
Where it is missing, :func:`install` puts a module in its place, with the operators that
this package and mmdet's common person detectors call:

==================== ================================================================
``roi_align``        average pooling, forward and backward; every device and dtype
``nms``              and so ``batched_nms``; the same indices as mmcv's
``soft_nms``         the same indices and scores as mmcv's
deformable attention forward, by mmcv's own form in plain PyTorch
==================== ================================================================

Any other operator raises an error that names it. An mmcv with compiled operators is
left as it is.
"""

import importlib
import importlib.machinery
import logging
import sys
import types
from functools import cache, wraps
from typing import Optional

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NAME = 'mmcv._ext'
# Up to this many cells, RoIAlign multiplies with whole maps; above, with what each box
# covers.
SMALL_MAP = 1024
# Elements of the maps that RoIAlign gathers at a time, 256 MB in float32.
GATHERED = 2**26


def needed() -> bool:
    """Whether mmcv has no compiled operators, or none that load with this torch."""
    importlib.import_module('mmcv')
    try:
        importlib.import_module(NAME)
    except ModuleNotFoundError:
        return True
    except ImportError as error:
        logger.warning(
            "mmcv's compiled operators do not load (%s), so plain ones are used: "
            'compile mmcv again for this torch, or remove it, `pip uninstall mmcv '
            'mmcv-lite` and `pip install mmcv-lite==2.1.0`.',
            error,
        )
        return True
    return False


def install() -> None:
    """Put plain operators in the place of ``mmcv._ext``; open-mmlab/mmcv#3310.

    Call it before anything imports ``mmcv.ops``.
    """
    import mmcv

    mmcv._ext = sys.modules[NAME] = Operators(NAME)


def describe() -> str:
    """Which operators are in use: ``'compiled'``, ``'plain'`` or with torchvision's."""
    if not isinstance(sys.modules.get(NAME), Operators):
        return 'compiled'
    return 'plain' if torchvision_ops() is None else 'plain and torchvision'


class Operators(types.ModuleType):
    """Stands for the module ``mmcv._ext``.

    mmcv's Python code asks it for operators by name and calls them as the compiled
    ones: outputs are tensors among the arguments.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        # importlib.util.find_spec needs one.
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.roi_align_forward = roi_align_forward
        self.roi_align_backward = roi_align_backward
        self.nms = nms
        self.softnms = soft_nms
        self.ms_deform_attn_forward = deformable_attention
        # For mmcv.utils.collect_env.
        self.get_compiler_version = self.get_compiling_cuda_version = describe

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"mmcv's operator {name} is compiled code, which the installed mmcv "
                'does not have, or which does not load: install the full mmcv, `bash '
                'tools/setup_env.sh --compile-ops` in a checkout of memvit_mm does it.'
            )

        return missing


@cache
def torchvision_ops() -> Optional[object]:
    """torchvision's operators, or None where there are none that work."""
    try:
        import torchvision.ops  # noqa: F401

        # Its wheel imports without them if it was built for another torch.
        torch.ops.torchvision.nms  # noqa: B018
    except (ImportError, AttributeError, RuntimeError, OSError):
        return None
    return torch.ops.torchvision


# --- RoIAlign ------------------------------------------------------------------------
#
# He et al., Mask R-CNN, section 3. A bin is the mean of samples, a sample is bilinear,
# so that with average pooling each channel of a box is `rows @ map @ columns.T`, with
# two matrices for each box, `[bins, H]` and `[bins, W]`.


def in_full_precision(operator):
    """Keep autocast away, which would place samples in half precision."""

    @wraps(operator)
    def run(tensor, *args, **kwargs):
        with torch.autocast(tensor.device.type, enabled=False):
            operator(tensor, *args, **kwargs)

    return run


@in_full_precision
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output``, the mean of each bin's samples.

    On small maps a value that is not finite spreads to all boxes of its channel.

    Args:
        input (Tensor): Maps ``[B, C, H, W]``.
        rois (Tensor): Boxes ``[N, 5]``: row of the batch, x1, y1, x2, y2.
        output (Tensor): ``[N, C, aligned_height, aligned_width]``.
        argmax_y, argmax_x (Tensor): Not used.
        aligned_height, aligned_width (int): Bins.
        spatial_scale (float): Cells of the map in one unit of the boxes.
        sampling_ratio (int): Samples of a bin in each direction; 0 for one a cell.
        pool_mode (int): 1 for the mean.
        aligned (bool): Whether a cell's value is in its middle, not its corner.

    Raises:
        NotImplementedError: If ``pool_mode`` is 0, the maximum.
    """
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' is compiled code, which the installed mmcv "
            "does not have (mmcv-lite): take pool_mode='avg' or install the full mmcv."
        )
    if not len(rois):
        return
    bins = (aligned_height, aligned_width)
    options = (spatial_scale, sampling_ratio, aligned)
    dtype = torch.promote_types(input.dtype, torch.float)
    maps, boxes = input.to(dtype), rois.to(dtype)
    if _is_small(input.shape):
        for part in _parts(len(rois), maps[0].numel()):
            rows, columns = _weights(boxes[part], bins, maps.shape, *options)
            own = maps[boxes[part, 0].long()]
            # (n, 1, bins, H) @ (n, C, H, W) @ (n, 1, W, bins) -> (n, C, bins, bins)
            output[part] = rows[:, None] @ own @ columns[:, None].mT
    elif _use_torchvision(input):
        output.copy_(
            torchvision_ops().roi_align(
                maps, boxes, spatial_scale, *bins, max(sampling_ratio, 0), aligned
            )
        )
    else:
        # Channels last: what a box covers is a matrix [height, width * C] as it lies.
        maps = maps.permute(0, 2, 3, 1).contiguous()
        for number, place, rows, columns in _crops(boxes, bins, input.shape, *options):
            cells = maps[place]
            # (bins, height) @ (height, width * C) -> (bins, width, C)
            part = (rows @ cells.flatten(1)).view(len(rows), *cells.shape[1:])
            # (bins, width) @ (bins, width, C) -> (bins, bins, C)
            output[number] = (columns @ part).permute(2, 0, 1)


@in_full_precision
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to ``grad_input``; arguments as of :func:`roi_align_forward`.

    The plain form sums by products, so that the result is the same in every run.
    torchvision's is not: ``torch.use_deterministic_algorithms(True)`` takes the plain
    one on a GPU, too.
    """
    if not len(rois):
        return
    bins = (aligned_height, aligned_width)
    options = (spatial_scale, sampling_ratio, aligned)
    dtype = torch.promote_types(grad_output.dtype, torch.float)
    grad, boxes = grad_output.to(dtype), rois.to(dtype)
    shape = grad_input.shape
    if _is_small(shape):
        total = grad.new_zeros(shape)
        for part in _parts(len(rois), grad_input[0].numel()):
            rows, columns = _weights(boxes[part], bins, shape, *options)
            own = rows[:, None].mT @ grad[part] @ columns[:, None]
            # (B, n) @ (n, C * H * W) -> (B, C * H * W)
            batch = torch.arange(shape[0], device=boxes.device)
            rows_of = (boxes[part, 0] == batch[:, None]).to(own)
            total += (rows_of @ own.flatten(1)).view(shape)
        grad_input += total
    elif _use_torchvision(grad_output):
        grad_input += torchvision_ops()._roi_align_backward(
            grad.contiguous(),
            boxes,
            spatial_scale,
            *bins,
            *shape,
            max(sampling_ratio, 0),
            aligned,
        )
    else:
        total = grad.new_zeros(shape).permute(0, 2, 3, 1).contiguous()
        for number, place, rows, columns in _crops(boxes, bins, shape, *options):
            # (width, bins) @ (bins, bins, C) -> (bins, width, C) -> (height, width, C)
            part = columns.mT @ grad[number].permute(1, 2, 0)
            total[place] += (rows.mT @ part.flatten(1)).view_as(total[place])
        grad_input += total.permute(0, 3, 1, 2)


def _is_small(shape: torch.Size) -> bool:
    return shape[2] * shape[3] <= SMALL_MAP


def _use_torchvision(tensor: Tensor) -> bool:
    """On a GPU, unless it must be deterministic: its backward adds in any order."""
    if not tensor.is_cuda or torch.are_deterministic_algorithms_enabled():
        return False
    return torchvision_ops() is not None and torchvision_ops()._cuda_version() != -1


def _parts(boxes: int, elements: int) -> list:
    """Slices of the boxes, each with maps of at most ``GATHERED`` elements."""
    if torch.compiler.is_compiling():
        return [slice(None)]
    step = max(GATHERED // max(elements, 1), 1)
    return [slice(first, first + step) for first in range(0, boxes, step)]


def _crops(boxes, bins, shape, *options):
    """Of each box: number, the cells it covers, ``[B, H, W]``, and both matrices."""
    step = 256
    for first in range(0, len(boxes), step):
        part = boxes[first : first + step]
        rows, columns = _weights(part, bins, shape, *options)
        covered = zip(part[:, 0].long().tolist(), _ends(rows), _ends(columns))
        for number, (row, (top, bottom), (left, right)) in enumerate(covered):
            yield (
                first + number,
                (row, slice(top, bottom), slice(left, right)),
                rows[number, :, top:bottom],
                columns[number, :, left:right],
            )


def _ends(weights: Tensor) -> list:
    """Of each box: the first cell that has a weight, and the one after the last."""
    # [N, bins, size] -> [N, size]
    used = (weights != 0).any(dim=1)
    first = used.int().argmax(dim=1)
    end = used.shape[1] - used.flip(1).int().argmax(dim=1)
    return torch.stack([first, end.where(used.any(dim=1), first)], dim=1).tolist()


def _weights(boxes, bins, shape, scale, sampling_ratio, aligned):
    """Both matrices of each box: ``[N, bins, H]`` and ``[N, bins, W]``."""
    corners = boxes[:, 1:] * scale - (0.5 if aligned else 0.0)
    start, length = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        length = length.clamp(min=1)
    return tuple(
        _axis_weights(start[:, axis], length[:, axis], count, size, sampling_ratio)
        for axis, count, size in ((1, bins[0], shape[2]), (0, bins[1], shape[3]))
    )


def _axis_weights(start, length, bins: int, size: int, sampling_ratio: int) -> Tensor:
    """What each cell of one axis adds to each bin, ``[N, bins, size]``.

    Samples that lie beyond the map add nothing, and the others are at least half a cell
    apart, or one a bin: a box of any size has a limited number of them, so that shapes
    do not depend on values.
    """
    # A box that is not finite covers nothing.
    finite = start.isfinite() & length.isfinite()
    start, length = torch.where(finite, start, -2.0), torch.where(finite, length, 0.0)
    step = (length / bins)[:, None]
    if sampling_ratio > 0:
        samples = torch.full_like(step, sampling_ratio)
        number = torch.arange(bins * sampling_ratio, device=start.device).to(step)
        number = number.expand(len(start), -1)
    else:
        samples = (length[:, None] / bins).ceil()
        most = max(bins, 2 * size + 6)
        if start.device.type == 'cpu' and not torch.compiler.is_compiling():
            # Here values may be looked at: most boxes have far fewer.
            most = min(most, max(int(samples.max()), 1) * bins)
        spacing = step / samples.clamp(min=1)
        before = ((-1 - start[:, None]) / spacing.clamp(min=1e-6) - 1).floor()
        number = before.clamp(min=0) + torch.arange(most, device=start.device)
    # [N, samples]: the bin of each sample, and its place in cells
    per_bin = samples.clamp(min=1)
    of_bin = torch.div(number, per_bin, rounding_mode='floor')
    place = start[:, None] + of_bin * step
    place = place + (number - of_bin * per_bin + 0.5) * step / per_bin
    counts = (place >= -1) & (place <= size) & (of_bin < bins) & (samples > 0)
    place = place.clamp(0, size - 1)
    share = counts.to(step) / per_bin
    if size**2 > SMALL_MAP:
        cell = place.floor().clamp(max=max(size - 2, 0))
        index = (of_bin.clamp(max=bins - 1) * size + cell).long()
        weights = start.new_zeros(len(start), bins * size)
        weights.scatter_add_(1, index, share * (1 - place + cell))
        weights.scatter_add_(1, index + 1, share * (place - cell))
        return weights.view(-1, bins, size)
    cells = torch.arange(size, device=start.device)
    # [N, samples, size]: bilinear
    share = (1 - (place[..., None] - cells).abs()).clamp(min=0) * share[..., None]
    which = torch.arange(bins, device=start.device)[:, None]
    # (N, bins, samples) @ (N, samples, size) -> (N, bins, size)
    return (of_bin[:, None] == which).to(share) @ share


# --- non-maximum suppression ---------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy suppression: the boxes that overlap no better one by too much.

    Args:
        boxes (Tensor): ``[N, 4]``, x1, y1, x2, y2.
        scores (Tensor): ``[N]``.
        iou_threshold (float): Boxes that overlap by more are the same.
        offset (int): 1 where a box ends with its last pixel, else 0.

    Returns:
        Tensor: int64 indices, best first.
    """
    if not len(boxes):
        return boxes.new_zeros(0, dtype=torch.long)
    ends = boxes.float() + boxes.new_tensor([0, 0, offset, offset], dtype=torch.float)
    # The call of mmcv, for its order of equal scores.
    order = scores.sort(0, descending=True)[1]
    if _use_torchvision(boxes) or (boxes.device.type == 'cpu' and torchvision_ops()):
        # Ranks in the place of scores: torchvision orders equal scores otherwise. mmcv
        # compares in float32.
        ranks = -torch.arange(len(order), device=order.device, dtype=torch.float)
        threshold = float(np.float32(iou_threshold))
        return order[torchvision_ops().nms(ends[order], ranks, threshold)]
    kept = _suppress(ends[order].cpu().numpy(), iou_threshold)
    return order[torch.from_numpy(kept).to(order.device)]


def _suppress(boxes: np.ndarray, iou_threshold: float, block: int = 256) -> np.ndarray:
    """Indices of the boxes that stay; boxes come best first."""
    # A row for each coordinate, so that each is contiguous.
    alive, sides, kept = np.arange(len(boxes)), np.ascontiguousarray(boxes.T), []
    while len(alive):
        best = sides[:, :block]
        same = _overlap(best, sides) > iou_threshold
        stays = np.ones(best.shape[1], bool)
        for number in range(len(stays)):
            if stays[number]:
                stays[number + 1 :] &= ~same[number, number + 1 : len(stays)]
        kept.append(alive[:block][stays])
        rest = ~same[stays, block:].any(axis=0)
        alive, sides = alive[block:][rest], sides[:, block:][:, rest]
    return np.concatenate(kept)


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union, ``[4, N]`` and ``[4, M]`` -> ``[N, M]``."""
    areas = [(sides[2] - sides[0]) * (sides[3] - sides[1]) for sides in (one, other)]
    x1, y1 = (np.maximum(one[side][:, None], other[side]) for side in (0, 1))
    x2, y2 = (np.minimum(one[side][:, None], other[side]) for side in (2, 3))
    both = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return both / (areas[0][:, None] + areas[1] - both)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Suppression that lowers scores (Bodla et al., arXiv 1704.04503).

    Args:
        boxes, scores, iou_threshold, offset: As for :func:`nms`, on a CPU.
        dets (Tensor): ``[N, 5]``, receives the boxes that stay and their scores.
        sigma (float): Width of the Gaussian.
        min_score (float): Boxes whose score falls below are left out.
        method (int): 0 for hard suppression, 1 for linear, 2 for Gaussian.

    Returns:
        Tensor: int64 indices in the order of ``dets``.
    """
    ends = boxes.float().numpy() + np.float32([0, 0, offset, offset])
    sides, score = np.ascontiguousarray(ends.T), scores.float().numpy().copy()
    index, left, first = np.arange(len(score)), len(score), 0
    while first < left:
        # Boxes without area have an overlap, and so a score, that is no number.
        best = first
        if not np.isnan(score[first]):
            best += np.nan_to_num(score[first:left], nan=-np.inf).argmax()
        for values in (sides.T, score, index):
            values[[first, best]] = values[[best, first]]
        rest = slice(first + 1, left)
        overlap = _overlap(sides[:, first : first + 1], sides[:, rest])[0]
        if method == 2:
            factor = np.exp(-(overlap * overlap) / np.float32(sigma))
        else:
            lower = 1 - overlap if method == 1 else 0
            factor = np.where(overlap >= np.float32(iou_threshold), lower, 1)
        score[rest] *= factor.astype(np.float32)
        # Holes are filled from the end, as mmcv does: that decides between equals.
        stays = ~(score[rest] < np.float32(min_score))
        count = int(stays.sum())
        holes = first + 1 + np.flatnonzero(~stays[:count])
        fill = first + 1 + count + np.flatnonzero(stays[count:])[::-1]
        for values in (sides.T, score, index):
            values[holes] = values[fill]
        left, first = first + 1 + count, first + 1
    kept = torch.from_numpy(index[:left].copy())
    dets[:left, :4] = boxes[kept].to(dets)
    dets[:left, 4] = torch.from_numpy(score[:left]).to(dets)
    return kept


# --- deformable attention ------------------------------------------------------------


def deformable_attention(
    value: Tensor,
    shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Deformable DETR's attention (arXiv 2010.04159), forward only, on a GPU.

    On a CPU mmcv takes this plain form itself.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
