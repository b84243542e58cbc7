"""Graph: a model with its memory as one function of tensors, which can be exported."""

import copy
from typing import Optional

import torch
from torch import Tensor, nn

from memvit_mm.models.heads import ActorMemoryHead, EpicHead
from memvit_mm.models.memory.layers import LayerMemories, LayerWrites, horizon_of

from .registers import Held, registers_of


class Graph(nn.Module):
    """A model and the memory of its streams, from tensors to tensors.

    Args:
        model (nn.Module): A recognizer or detector, in evaluation mode.
        clip (Tensor): Clips [B, C, T, H, W] of the only size that it takes.
    """

    def __init__(self, model: nn.Module, clip: Tensor) -> None:
        super().__init__()
        self.model = model
        self.specs = model.memory_specs(clip)
        self.registers = registers_of(self.specs)
        self.horizon = horizon_of(self.specs)

    def forward(
        self,
        clip: Tensor,
        boxes: Optional[Tensor],
        count: Optional[Tensor],
        valid: Optional[Tensor],
        contents: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Scores of clips, and what is to be remembered.

        Args:
            clip (Tensor): [B, C, T, H, W], normalized.
            boxes (Tensor, optional): Of a detector, [B, N, 5], x1, y1, x2, y2 in pixels
                and a score, which is not used.
            count (Tensor, optional): How many of the N boxes there are, int64 [B].
            valid (Tensor, optional): bool, [B, horizon], whether there is a clip 1, 2,
                ... steps back.
            contents (list[Tensor]): Of each register, [B, clips * tokens, C].

        Returns:
            tuple: Scores, [B, classes] or [B, N, classes], float32; and, with a memory,
            ``valid`` and ``contents`` for the next clip.
        """
        held = Held(self.specs, self.registers, contents, valid)
        past = held.read()
        if boxes is None:
            scores, written = self._of_clips(clip, past)
        else:
            scores, written = self._of_people(clip, boxes, count, past)
        if not self.specs:
            return (scores.float(),)
        valid = torch.cat([torch.ones_like(valid[:, :1]), valid[:, :-1]], dim=1)
        return scores.float(), valid, *held.write(written)

    def _of_clips(
        self, clip: Tensor, past: LayerMemories
    ) -> tuple[Tensor, LayerWrites]:
        """[B, classes], as the head's ``predict`` gives them for one view."""
        model = self.model
        x, written = model.run_backbone(clip, past)
        if model.with_neck:
            x, _ = model.neck(x, data_samples=None)
        options = dict(num_segs=1) if 'num_segs' in model._head_parameters else {}
        scores = model.cls_head(x, **options)
        if isinstance(model.cls_head, EpicHead):
            # A frame-level model answers with its last time step.
            parts = (part[:, -1] if part.ndim == 3 else part for part in scores)
            parts = [part.float().softmax(dim=-1) for part in parts]
            return torch.cat(parts, dim=-1), written
        if model.cls_head.average_clips == 'prob':
            scores = scores.float().softmax(dim=-1)
        return scores, written

    def _of_people(
        self, clip: Tensor, boxes: Tensor, count: Tensor, past: LayerMemories
    ) -> tuple[Tensor, LayerWrites]:
        """[B, N, classes], as the RoI head's ``predict`` gives them."""
        model, head = self.model, self.model.roi_head
        x, written = model._features(clip, past, [])
        batch, number = boxes.shape[:2]
        rows = torch.arange(batch, device=boxes.device)[:, None, None]
        rois = torch.cat([rows.expand(-1, number, -1).to(boxes), boxes[..., :4]], dim=2)
        rois = rois.flatten(0, 1)
        features, _ = head.bbox_roi_extractor(x, rois)
        if isinstance(getattr(head, 'shared_head', None), ActorMemoryHead):
            features, actors = self._related(features, batch, number, count, past)
            written = {**written, **actors}
        scores = head.bbox_head(features).float()
        multilabel = head.bbox_head.multilabel
        scores = scores.sigmoid() if multilabel else scores.softmax(dim=-1)
        return scores.unflatten(0, (batch, number)), written

    def _related(
        self,
        features: Tensor,
        batch: int,
        number: int,
        count: Tensor,
        past: LayerMemories,
    ) -> tuple[Tensor, LayerWrites]:
        """RoI features [B*N, C, T, H, W] through the actor head."""
        head = self.model.roi_head.shared_head
        # (B*N, C) -> (B, N, C), zeros where there is nobody
        people = head.pooled(features).unflatten(0, (batch, number))
        there = torch.arange(number, device=count.device) < count[:, None]
        people = torch.where(there[..., None], people, 0)
        # As many places more as others can be seen in, so that there are enough of
        # them; what is asked from a place further on changes nothing before it.
        spare = people.new_zeros(batch, head.max_actors, people.shape[-1])
        sequence, written = head.relate(torch.cat([people, spare], dim=1), past)
        # (B, L, C) -> (B*N, C, 1, 1, 1)
        people = sequence[:, :number].flatten(0, 1)
        return people[:, :, None, None, None], written


class RoIAlign(nn.Module):
    """mmcv's layer of the same name as one operator of ONNX, to be exported only.

    Args:
        layer (mmcv.ops.RoIAlign): Whose settings it takes.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.size = layer.output_size
        self.settings = dict(
            mode='avg',
            output_height=self.size[0],
            output_width=self.size[1],
            spatial_scale=float(layer.spatial_scale),
            sampling_ratio=max(int(layer.sampling_ratio), 0),
            coordinate_transformation_mode=(
                'half_pixel' if layer.aligned else 'output_half_pixel'
            ),
        )

    def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
        """Maps [B, C, H, W] and boxes [N, 5] -> [N, C, bins, bins]."""
        found = torch.onnx.ops.symbolic(
            'RoiAlign',
            (maps.float(), rois[:, 1:].float(), rois[:, 0].long()),
            self.settings,
            dtype=torch.float32,
            shape=(rois.shape[0], maps.shape[1], *self.size),
            version=16,
        )
        return found.to(maps)


class Pool(nn.Module):
    """Adaptive pooling over whole axes, for which ONNX has no operator of that name.

    Args:
        layer (nn.AdaptiveAvgPool3d | nn.AdaptiveMaxPool3d): Whose place it takes.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.axes = [n + 2 for n, size in enumerate(layer.output_size) if size == 1]
        self.largest = isinstance(layer, nn.AdaptiveMaxPool3d)

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether a layer reduces each axis to one number or leaves it."""
        kinds = (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
        size = getattr(layer, 'output_size', None)
        return (
            type(layer) in kinds and isinstance(size, tuple) and set(size) <= {1, None}
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, H, W] -> the same, the pooled axes of length 1."""
        pool = torch.amax if self.largest else torch.mean
        return pool(x, self.axes, keepdim=True)


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model whose RoIAlign and pooling over people are ONNX's."""
    memory, model.memory = model.memory, None
    try:
        twin = copy.deepcopy(model)
    finally:
        model.memory = memory
    roi_head = getattr(twin, 'roi_head', None)
    if roi_head is not None:
        extractor = roi_head.bbox_roi_extractor
        extractor.roi_layer = RoIAlign(extractor.roi_layer)
        for name, layer in list(roi_head.bbox_head.named_children()):
            if Pool.takes(layer):
                setattr(roi_head.bbox_head, name, Pool(layer))
    return twin.eval().cpu()
