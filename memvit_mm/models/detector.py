"""MemoryFastRCNN: action detection that remembers."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmaction.registry import MODELS
from mmaction.utils import SampleList
from mmdet.models.detectors import FastRCNN
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from .heads.roi_head import MemoryAVARoIHead
from .memory.layers import LayerMemories, LayerWrites, MemorySpec
from .memory.remember import MemoryOwner, Run
from .memory.rows import by_row, in_row_order, waves


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MemoryFastRCNN(MemoryOwner, FastRCNN):
    """Action detector that reads videos clip by clip and remembers what came before.

    Owns one :class:`ClipMemory` for backbone and actor head. Each sample's stream and
    time are read from its metainfo (``video_id``, ``timestamp``). Any MMAction2
    backbone works, one that takes no memory just gets none.

    A batch may hold anything: several clips of one video run one after the other. At
    test, frames of different size (``img_shape``) run apart, so that padding reaches no
    result, and on a CPU every sample does (:class:`MemoryOwner` says why).

    Source: MeMViT (arXiv 2201.08383), sec. 5.1.

    Args:
        backbone, roi_head, train_cfg, neck, data_preprocessor, init_cfg (dict): As
            mmdet's ``FastRCNN``.
        test_cfg (dict): As there, and ``one_by_one`` (bool): run each sample of a test
            batch by itself.
        memory (dict): Config of the :class:`ClipMemory`.
    """

    def __init__(
        self,
        backbone: ConfigType,
        roi_head: ConfigType,
        train_cfg: ConfigType,
        test_cfg: ConfigType,
        neck: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        *,
        memory: dict = dict(type='ClipMemory'),
    ) -> None:
        super().__init__(
            backbone, roi_head, train_cfg, test_cfg, neck, data_preprocessor, init_cfg
        )
        self.memory = MODELS.build(memory)

    @property
    def remembers(self) -> bool:
        """Whether earlier clips change a result: by the backbone or the actor head."""
        return self.backbone_remembers or bool(self._actor_specs())

    def memory_specs(self, clips: Tensor) -> dict[str, MemorySpec]:
        """What the layers of backbone and actor head keep of clips, by their names."""
        return {**super().memory_specs(clips), **self._actor_specs()}

    def _actor_specs(self) -> dict[str, MemorySpec]:
        return self.roi_head.memory_specs() if self._has_own_roi_head else {}

    @property
    def _has_own_roi_head(self) -> bool:
        """Whether the RoI head may take memory. Any other RoI head runs without."""
        return isinstance(self.roi_head, MemoryAVARoIHead)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Losses of a batch of clips, [B, C, T, H, W]."""
        self._check(batch_data_samples)
        samples = batch_data_samples
        proposals = [sample.proposals for sample in samples]
        rows = self.batch_rows(samples)
        groups = waves(rows)
        if not self._has_own_roi_head:
            parts = self.remember(batch_inputs, rows, groups, self._features)
            return self.roi_head.loss(in_row_order(parts, groups), proposals, samples)
        sampled = self.roi_head.sample(proposals, samples)
        score = self._scorer(samples, [result.priors for result in sampled])
        outputs = self.remember(batch_inputs, rows, groups, score)
        scores = by_row([found for _, found in outputs], groups)
        return self.roi_head.loss_of(torch.cat(scores), sampled)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict: each sample gets ``pred_instances``, see the RoI head."""
        self._check(batch_data_samples, 'img_shape')
        samples = batch_data_samples
        rows = self.batch_rows(samples)
        if self.remembers:
            self.memory.expect(rows.streams)
        shapes = [tuple(sample.img_shape) for sample in samples]
        groups = self.test_groups(rows, shapes, batch_inputs.device)
        boxes = [sample.proposals.bboxes for sample in samples]
        score = self._scorer(samples, boxes)

        def run(clips: Tensor, past: LayerMemories, group: Sequence[int]) -> tuple:
            some = [samples[row] for row in group]
            if not self._has_own_roi_head:
                x, written = self._features(clips, past, group)
                proposals = [sample.proposals for sample in some]
                return self.roi_head.predict(x, proposals, some), written
            (_, scores), written = score(clips, past, group)
            parts = [boxes[row] for row in group]
            metas = [sample.metainfo for sample in some]
            found = self.roi_head.predictions_of(torch.cat(scores), parts, metas)
            return found, written

        results = self.remember(batch_inputs, rows, groups, run, shapes)
        return self.add_pred_to_datasample(samples, by_row(results, groups))

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: Optional[SampleList] = None
    ) -> tuple:
        """Features and, with data samples, the boxes' scores.

        Returns:
            tuple: The backbone's features over all rows and, with data samples, the
            scores [people, classes] of the proposals, row by row.
        """
        if batch_data_samples is None:
            return (self._features(batch_inputs, {}, [])[0],)
        self._check(batch_data_samples)
        rows = self.batch_rows(batch_data_samples)
        groups = waves(rows)
        boxes = [sample.proposals.bboxes for sample in batch_data_samples]
        score = self._scorer(batch_data_samples, boxes)
        features, scores = zip(*self.remember(batch_inputs, rows, groups, score))
        return in_row_order(features, groups), torch.cat(by_row(scores, groups))

    def _features(
        self, clips: Tensor, past: LayerMemories, group: Sequence[int]
    ) -> tuple[Any, LayerWrites]:
        """Features of clips [B, C, T, H, W], through the neck, and what was written."""
        actors = self._actor_specs()
        own = {name: kept for name, kept in past.items() if name not in actors}
        x, written = self.run_backbone(clips, own)
        return (self.neck(x) if self.with_neck else x), written

    def _scorer(self, samples: SampleList, boxes: Sequence[Tensor]) -> Run:
        """What runs clips and scores their boxes; see :meth:`MemoryOwner.remember`.

        Its output are the features of the clips, and for each of them the scores
        [people, classes] of its boxes.

        Args:
            samples (list[ActionDataSample]): One per row of the batch.
            boxes (sequence[Tensor]): [people, 4] in pixels, one per row.
        """

        def run(clips: Tensor, past: LayerMemories, group: Sequence[int]) -> tuple:
            x, written = self._features(clips, past, group)
            parts = [boxes[row] for row in group]
            metas = [samples[row].metainfo for row in group]
            out = self.roi_head._bbox_forward(x, bbox2roi(parts), metas, memory=past)
            scores = out['cls_score'].split([len(part) for part in parts])
            return (x, scores), {**written, **out.get('written', {})}

        return run

    @staticmethod
    def _check(samples: SampleList, *meta_keys: str) -> None:
        """Every sample must bring boxes, and what is needed to place them."""
        for number, sample in enumerate(samples):
            if 'proposals' not in sample:
                raise ValueError(
                    f'Sample {number} of the batch has no proposals (people to '
                    'classify): name a proposal_file in the dataset, or set '
                    'data_sample.proposals.'
                )
            for key in meta_keys:
                if key not in sample.metainfo:
                    raise ValueError(
                        f'Sample {number} of the batch has no {key!r} in its metainfo: '
                        f'add {key!r} to the meta_keys of PackActionInputs.'
                    )
