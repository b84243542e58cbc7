"""MemoryFastRCNN and MemoryAVARoIHead: action detection that remembers."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmaction.models.roi_heads import AVARoIHead
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmaction.utils import InstanceList, SampleList
from mmdet.models.detectors import FastRCNN
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from .actor_memory import ActorMemoryHead
from .memory import MemoryStep
from .streams import MemoryOwner, Rows, in_row_order, rows_of, take_rows, waves


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MemoryAVARoIHead(AVARoIHead):
    """MMAction2's ``AVARoIHead`` for any batch size, and for memory over people.

    Frames without a box are no exception: they give an empty result, and an actor
    memory without people. Takes the configs that ``AVARoIHead`` takes.
    """

    def loss(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rpn_results_list: InstanceList,
        data_samples: SampleList,
        memory: Optional[MemoryStep] = None,
    ) -> dict:
        """Losses of a batch.

        Args:
            x (Tensor | tuple[Tensor]): Features, [B, C, T, H, W].
            rpn_results_list (list[InstanceData]): Proposals, ``bboxes`` in pixels.
            data_samples (list[ActionDataSample]): With ``gt_instances``, and, if the
                proposals are to be matched with it in the frame before its crop,
                ``whole_frame_boxes`` in the metainfo (:class:`MemoryAVADataset`).
            memory (MemoryStep, optional): The memory step of this batch.

        Returns:
            dict[str, Tensor]: Losses, precision and recall.
        """
        sampling_results = []
        for proposals, sample in zip(rpn_results_list, data_samples):
            proposals.priors = proposals.pop('bboxes')
            assigned = self._assign(proposals, sample)
            if assigned.labels.ndim == 1:
                # MMAction2's assigner, where there is no box or nobody annotated.
                labels = sample.gt_instances.labels
                assigned.labels = labels.new_zeros(len(proposals), labels.shape[1])
            sampling_results.append(
                self.bbox_sampler.sample(assigned, proposals, sample.gt_instances)
            )
        metas = [sample.metainfo for sample in data_samples]
        return self.bbox_loss(x, sampling_results, metas, memory)['loss_bbox']

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

    def bbox_loss(
        self,
        x: Union[Tensor, tuple[Tensor]],
        sampling_results: list[SamplingResult],
        batch_img_metas: list[dict],
        memory: Optional[MemoryStep] = None,
    ) -> dict:
        """Scores and losses of the sampled boxes."""
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(x, rois, batch_img_metas, memory)
        # MMAction2's head has no loss without a labelled box, ours none without a box.
        negatives = getattr(self.bbox_head, 'negatives', False)
        counted = 'priors' if negatives else 'pos_priors'
        if not any(len(getattr(result, counted)) for result in sampling_results):
            return {**results, 'loss_bbox': self._no_loss(results)}
        losses = self.bbox_head.loss_and_target(
            cls_score=results['cls_score'],
            rois=rois,
            sampling_results=sampling_results,
            rcnn_train_cfg=self.train_cfg,
        )
        return {**results, 'loss_bbox': losses['loss_bbox']}

    def _no_loss(self, results: dict) -> dict:
        """The loss of a batch without a box to learn from: zero, for every weight."""
        features, scores = results['bbox_feats'], results['cls_score']
        if len(features) == 0:
            scores = self.bbox_head(features.new_zeros(1, *features.shape[1:]))
        return dict(loss_action_cls=0 * (features.sum() + scores.sum()))

    def _bbox_forward(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rois: Tensor,
        batch_img_metas: list[dict],
        memory: Optional[MemoryStep] = None,
    ) -> dict:
        """Scores of boxes: [people, classes] for rois [people, 5]."""
        remembers = self.with_shared_head and isinstance(
            self.shared_head, ActorMemoryHead
        )
        if len(rois) > 0 and not (remembers and memory is not None):
            return super()._bbox_forward(x, rois, batch_img_metas)
        features, _ = self.bbox_roi_extractor(x, rois)
        if remembers:
            # Also when there is nobody: the clip takes its place in the memory.
            features = self.shared_head(
                features, rois=rois, img_metas=batch_img_metas, memory=memory
            )
        if len(rois) == 0:
            scores = features.new_zeros(0, self.bbox_head.num_classes)
        else:
            scores = self.bbox_head(features)
        return dict(cls_score=scores, bbox_feats=features)

    def predict(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rpn_results_list: InstanceList,
        data_samples: SampleList,
        memory: Optional[MemoryStep] = None,
        **kwargs,
    ) -> InstanceList:
        """Predict for a batch of any size.

        Args:
            x (Tensor | tuple[Tensor]): Features, [B, C, T, H, W].
            rpn_results_list (list[InstanceData]): Proposals, ``bboxes`` in pixels.
            data_samples (list[ActionDataSample]): One per row.
            memory (MemoryStep, optional): The memory step of this batch.

        Returns:
            list[InstanceData]: Per frame, ``bboxes`` [people, 4] in [0, 1] of the
            frame, and ``scores`` [people, classes].
        """
        boxes = [result.bboxes for result in rpn_results_list]
        metas = [sample.metainfo for sample in data_samples]
        rois = bbox2roi(boxes)
        scores = self._bbox_forward(x, rois, metas, memory)['cls_score']
        counts = [len(b) for b in boxes]
        return self.bbox_head.predict_by_feat(
            rois=rois.split(counts),
            cls_scores=scores.split(counts),
            batch_img_metas=metas,
            rcnn_test_cfg=self.test_cfg,
        )


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MemoryFastRCNN(MemoryOwner, FastRCNN):
    """Action detector that reads videos clip by clip and remembers what came before.

    Owns one :class:`ClipMemory` for backbone and actor head. Each sample's stream and
    time are read from its metainfo (``video_id``, ``timestamp``). Any MMAction2
    backbone works, one that takes no memory just gets none.

    At test a batch may hold anything: several clips of one video run one after the
    other, frames of different size (``img_shape``) run apart, so that padding reaches
    no result, and on a CPU every sample does (:class:`MemoryOwner` says why).

    Source: MeMViT (arXiv 2201.08383), sec. 5.1.

    Args:
        memory (dict): Config of the :class:`ClipMemory`.
        **kwargs: As mmdet's ``FastRCNN``. ``test_cfg`` also takes ``one_by_one``
            (bool): run each sample of a test batch by itself.
    """

    def __init__(self, *args, memory: dict = dict(type='ClipMemory'), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.memory = MODELS.build(memory)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Losses of a batch of clips, [B, C, T, H, W]."""
        self._check(batch_data_samples)
        step = self.memory.step(*rows_of(batch_data_samples))
        x = self._features(batch_inputs, step)
        proposals = [sample.proposals for sample in batch_data_samples]
        losses = self._call_roi_head('loss', x, proposals, batch_data_samples, step)
        step.commit()
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict: each sample gets ``pred_instances``, see the RoI head."""
        self._check(batch_data_samples, 'img_shape')
        rows = rows_of(batch_data_samples)
        shapes = [tuple(sample.img_shape) for sample in batch_data_samples]
        results: list[Any] = [None] * len(batch_data_samples)
        self.memory.expect(rows.streams)
        for group in self.test_groups(rows, shapes, batch_inputs.device):
            samples = [batch_data_samples[i] for i in group]
            step = self._step(rows, group)
            clips = take_rows(batch_inputs, group, shapes[group[0]])
            x = self._features(clips, step)
            proposals = [sample.proposals for sample in samples]
            outputs = self._call_roi_head('predict', x, proposals, samples, step)
            step.commit()
            for row, output in zip(group, outputs):
                results[row] = output
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: Optional[SampleList] = None
    ) -> tuple:
        """Features and, with data samples, the boxes' scores.

        Returns:
            tuple: The backbone's features over all rows and, with data samples, the
            scores [people, classes] of the proposals, row by row.
        """
        if batch_data_samples is None:
            return (self._features(batch_inputs, None),)
        self._check(batch_data_samples)
        rows = rows_of(batch_data_samples)
        groups = waves(rows)
        features, scores = [], [None] * len(batch_data_samples)
        for group in groups:
            step = self._step(rows, group)
            x = self._features(take_rows(batch_inputs, group), step)
            samples = [batch_data_samples[i] for i in group]
            boxes = [sample.proposals.bboxes for sample in samples]
            out = self.roi_head._bbox_forward(
                x, bbox2roi(boxes), [sample.metainfo for sample in samples], step
            )['cls_score']
            step.commit()
            features.append(x)
            for row, part in zip(group, out.split([len(b) for b in boxes])):
                scores[row] = part
        return in_row_order(features, groups), torch.cat(scores)

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

    def _step(self, rows: Rows, group: Sequence[int]) -> MemoryStep:
        return self.memory.step(
            [rows.streams[i] for i in group], [rows.times[i] for i in group]
        )

    def _features(self, inputs: Tensor, step: Optional[MemoryStep]) -> Any:
        """[B, C, T, H, W] -> the backbone's features, through the neck if there is."""
        x = self.run_backbone(inputs, step)
        return self.neck(x) if self.with_neck else x

    def _call_roi_head(
        self,
        method: str,
        x: Any,
        proposals: InstanceList,
        samples: SampleList,
        step: MemoryStep,
    ) -> Any:
        """Other RoI heads than ours take no memory."""
        kwargs = {}
        if isinstance(self.roi_head, MemoryAVARoIHead):
            kwargs = dict(memory=step)
        return getattr(self.roi_head, method)(x, proposals, samples, **kwargs)
