"""MemoryAVARoIHead: MMAction2's RoI head for AVA, with memory over people."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from mmaction.models.roi_heads import AVARoIHead
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmaction.utils import InstanceList, SampleList
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from memvit_mm.models.memory.layers import LayerMemories, MemorySpec


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MemoryAVARoIHead(AVARoIHead):
    """MMAction2's ``AVARoIHead`` for any batch size, and for memory over people.

    Frames without a box are no exception: they give an empty result, and an actor
    memory without people. Takes the configs that ``AVARoIHead`` takes. ``init_cfg``
    holds for the box head, too, which takes none in MMAction2.

    :class:`MemoryFastRCNN` scores boxes by :meth:`_bbox_forward`, which takes the
    memory and returns what is to be remembered. From the scores :meth:`sample` and
    :meth:`loss_of` make losses, :meth:`predictions_of` predictions. :meth:`loss` and
    :meth:`predict` do both at once, without memory.
    """

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; without, the box head in its own way."""
        if self.init_cfg and self.with_bbox:
            self.bbox_head.is_init = True
        super().init_weights()

    def memory_specs(self) -> dict[str, MemorySpec]:
        """What the shared head keeps of a clip, if it is one that remembers."""
        if not self.with_shared_head or not hasattr(self.shared_head, 'memory_specs'):
            return {}
        return self.shared_head.memory_specs()

    def loss(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rpn_results_list: InstanceList,
        data_samples: SampleList,
        **kwargs,
    ) -> dict:
        """Losses of a batch, without memory.

        Args:
            x (Tensor | tuple[Tensor]): Features, [B, C, T, H, W].
            rpn_results_list (list[InstanceData]): Proposals, ``bboxes`` in pixels.
            data_samples (list[ActionDataSample]): With ``gt_instances``, and, if the
                proposals are to be matched with it in the frame before its crop,
                ``whole_frame_boxes`` in the metainfo (:class:`MemoryAVADataset`).

        Returns:
            dict[str, Tensor]: Losses, precision and recall.
        """
        sampled = self.sample(rpn_results_list, data_samples)
        rois = bbox2roi([result.priors for result in sampled])
        metas = [sample.metainfo for sample in data_samples]
        return self.loss_of(self._bbox_forward(x, rois, metas)['cls_score'], sampled)

    def sample(
        self, rpn_results_list: InstanceList, data_samples: SampleList
    ) -> list[SamplingResult]:
        """The boxes to train on, of each row."""
        sampled = []
        for proposals, sample in zip(rpn_results_list, data_samples):
            proposals.priors = proposals.pop('bboxes')
            assigned = self._assign(proposals, sample)
            if assigned.labels.ndim == 1:
                # MMAction2's assigner, where there is no box or nobody annotated.
                labels = sample.gt_instances.labels
                assigned.labels = labels.new_zeros(len(proposals), labels.shape[1])
            sampled.append(
                self.bbox_sampler.sample(assigned, proposals, sample.gt_instances)
            )
        return sampled

    def _assign(
        self, proposals: InstanceData, sample: ActionDataSample
    ) -> AssignResult:
        """Whose ground truth each of the proposals is."""
        truth = sample.gt_instances
        whole = sample.metainfo.get('whole_frame_boxes')
        if whole is not None:
            # A crop leaves little or nothing of many boxes, by which a detection
            # cannot be matched: it would become a negative.
            boxes, priors = (
                torch.as_tensor(whole[key]).to(proposals.priors)
                for key in ('gt_bboxes', 'proposals')
            )
            proposals = InstanceData(priors=priors)
            truth = InstanceData(bboxes=boxes, labels=truth.labels)
        return self.bbox_assigner.assign(proposals, truth, None)

    def loss_of(self, scores: Tensor, sampling_results: list[SamplingResult]) -> dict:
        """Losses, precision and recall of the sampled boxes.

        Args:
            scores (Tensor): [people, classes], row by row.
            sampling_results (list[SamplingResult]): Of :meth:`sample`.
        """
        # MMAction2's head has no loss without a labelled box, ours none without a box.
        negatives = getattr(self.bbox_head, 'negatives', False)
        counted = 'priors' if negatives else 'pos_priors'
        if not any(len(getattr(result, counted)) for result in sampling_results):
            # Zero, for every weight.
            return dict(loss_action_cls=0 * scores.sum())
        return self.bbox_head.loss_and_target(
            cls_score=scores,
            rois=bbox2roi([result.priors for result in sampling_results]),
            sampling_results=sampling_results,
            rcnn_train_cfg=self.train_cfg,
        )['loss_bbox']

    def _bbox_forward(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rois: Tensor,
        batch_img_metas: list[dict],
        memory: Optional[LayerMemories] = None,
    ) -> dict:
        """Scores of boxes.

        Where there is no box, one is made up and left out of the results: RoIAlign of
        none is an invalid launch on a GPU, and in training a gradient of zero still
        has to reach every parameter.

        Args:
            x (Tensor | tuple[Tensor]): Features, [B, C, T, H, W].
            rois (Tensor): [people, 5], the first column is the row of the batch.
            batch_img_metas (list[dict]): One per row.
            memory (dict[str, tuple[PastClips, ...]], optional): What the actor head may
                attend to of earlier clips.

        Returns:
            dict: ``cls_score`` [people, classes], ``bbox_feats``, and ``written``, what
            the actor head hands over to be remembered.
        """
        people = len(rois)
        some = rois if people else rois.new_tensor([[0, 0, 0, 1, 1]])
        specs = self.memory_specs()
        if not memory or not specs:
            results = super()._bbox_forward(x, some, batch_img_metas)
            results = {name: value[:people] for name, value in results.items()}
            return dict(results, written={})
        features, _ = self.bbox_roi_extractor(x, some)
        # Also when there is nobody: the clip takes its place in the memory.
        features, written = self.shared_head(
            features[:people],
            rois=rois,
            img_metas=batch_img_metas,
            memory={name: memory[name] for name in specs},
        )
        spare = features.new_zeros(len(some) - people, *features.shape[1:])
        scores = self.bbox_head(torch.cat([features, spare]))[:people]
        return dict(cls_score=scores, bbox_feats=features, written=written)

    def predict(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rpn_results_list: InstanceList,
        data_samples: SampleList,
        **kwargs,
    ) -> InstanceList:
        """Predict for a batch of any size, without memory.

        Args:
            x (Tensor | tuple[Tensor]): Features, [B, C, T, H, W].
            rpn_results_list (list[InstanceData]): Proposals, ``bboxes`` in pixels.
            data_samples (list[ActionDataSample]): One per row.

        Returns:
            list[InstanceData]: As :meth:`predictions_of`.
        """
        boxes = [result.bboxes for result in rpn_results_list]
        metas = [sample.metainfo for sample in data_samples]
        scores = self._bbox_forward(x, bbox2roi(boxes), metas)['cls_score']
        return self.predictions_of(scores, boxes, metas)

    def predictions_of(
        self, scores: Tensor, boxes: Sequence[Tensor], metas: list[dict]
    ) -> InstanceList:
        """Predictions from the scores of boxes.

        Args:
            scores (Tensor): [people, classes], row by row.
            boxes (sequence[Tensor]): [people, 4] in pixels, one per row.
            metas (list[dict]): One per row, with ``img_shape``. With
                ``whole_frame_boxes`` (:class:`MemoryAVADataset`), people are reported
                by these, not by what a crop left of them.

        Returns:
            list[InstanceData]: Per frame, ``bboxes`` [people, 4] in [0, 1] of the
            frame, and ``scores`` [people, classes].
        """
        counts = [len(b) for b in boxes]
        results = self.bbox_head.predict_by_feat(
            rois=bbox2roi(boxes).split(counts),
            cls_scores=scores.split(counts),
            batch_img_metas=metas,
            rcnn_test_cfg=self.test_cfg,
        )
        for result, meta in zip(results, metas):
            whole = meta.get('whole_frame_boxes')
            if whole is not None:
                result.bboxes = torch.as_tensor(whole['proposals']).to(result.bboxes)
        return results
