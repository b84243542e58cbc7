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
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
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
    memory without people. Takes the configs that ``AVARoIHead`` takes. ``init_cfg``
    holds for the box head, too, which takes none in MMAction2.
    """

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; without, the box head in its own way."""
        if self.init_cfg and self.with_bbox:
            self.bbox_head.is_init = True
        super().init_weights()

    def loss(
        self,
        x: Union[Tensor, tuple[Tensor]],
        rpn_results_list: InstanceList,
        data_samples: SampleList,
        memory: Optional[MemoryStep] = None,
        **kwargs,
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
        sampled = self.sample(rpn_results_list, data_samples)
        metas = [sample.metainfo for sample in data_samples]
        return self.bbox_loss(x, sampled, metas, memory)['loss_bbox']

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

    def bbox_loss(
        self,
        x: Union[Tensor, tuple[Tensor]],
        sampling_results: list[SamplingResult],
        batch_img_metas: list[dict],
        memory: Optional[MemoryStep] = None,
        **kwargs,
    ) -> dict:
        """Scores and losses of the sampled boxes."""
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(x, rois, batch_img_metas, memory)
        losses = self.loss_of(results['cls_score'], sampling_results)
        return {**results, 'loss_bbox': losses}

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
        memory: Optional[MemoryStep] = None,
    ) -> dict:
        """Scores of boxes: [people, classes] for rois [people, 5].

        Where there is no box, one is made up and left out of the results: RoIAlign of
        none is an invalid launch on a GPU, and in training a gradient of zero still
        has to reach every parameter.
        """
        remembers = memory is not None and self.with_shared_head
        remembers = remembers and isinstance(self.shared_head, ActorMemoryHead)
        people = len(rois)
        some = rois if people else rois.new_tensor([[0, 0, 0, 1, 1]])
        if not remembers:
            results = super()._bbox_forward(x, some, batch_img_metas)
            return {name: value[:people] for name, value in results.items()}
        features, _ = self.bbox_roi_extractor(x, some)
        # Also when there is nobody: the clip takes its place in the memory.
        features = self.shared_head(
            features[:people], rois=rois, img_metas=batch_img_metas, memory=memory
        )
        spare = features.new_zeros(len(some) - people, *features.shape[1:])
        scores = self.bbox_head(torch.cat([features, spare]))[:people]
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
            data_samples (list[ActionDataSample]): One per row. With
                ``whole_frame_boxes`` in the metainfo (:class:`MemoryAVADataset`),
                people are reported by these, not by what a crop left of them.
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
        results = self.bbox_head.predict_by_feat(
            rois=rois.split(counts),
            cls_scores=scores.split(counts),
            batch_img_metas=metas,
            rcnn_test_cfg=self.test_cfg,
        )
        for result, meta in zip(results, metas):
            whole = meta.get('whole_frame_boxes')
            if whole is not None:
                result.bboxes = torch.as_tensor(whole['proposals']).to(result.bboxes)
        return results


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
        ours = isinstance(self.roi_head, MemoryAVARoIHead)
        actors = getattr(self.roi_head, 'shared_head', None) if ours else None
        actors = isinstance(actors, ActorMemoryHead) and actors.memory_specs()
        return self.backbone_remembers or bool(actors)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Losses of a batch of clips, [B, C, T, H, W]."""
        self._check(batch_data_samples)
        proposals = [sample.proposals for sample in batch_data_samples]
        if not isinstance(self.roi_head, MemoryAVARoIHead):
            x, _ = self._play(batch_inputs, batch_data_samples)
            return self.roi_head.loss(x, proposals, batch_data_samples)
        sampled = self.roi_head.sample(proposals, batch_data_samples)
        boxes = [result.priors for result in sampled]
        _, scores = self._play(batch_inputs, batch_data_samples, boxes)
        return self.roi_head.loss_of(scores, sampled)

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
            # Other RoI heads than ours take no memory.
            ours = isinstance(self.roi_head, MemoryAVARoIHead)
            kwargs = dict(memory=step) if ours else {}
            outputs = self.roi_head.predict(x, proposals, samples, **kwargs)
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
        boxes = [sample.proposals.bboxes for sample in batch_data_samples]
        return self._play(batch_inputs, batch_data_samples, boxes)

    def _play(
        self,
        inputs: Tensor,
        samples: SampleList,
        boxes: Optional[Sequence[Tensor]] = None,
    ) -> tuple[Any, Optional[Tensor]]:
        """Run clips and remember them; those of one stream one after the other.

        Args:
            inputs (Tensor): [B, C, T, H, W].
            samples (list[ActionDataSample]): One per row.
            boxes (sequence[Tensor], optional): [people, 4] per row; None leaves the
                RoI head out.

        Returns:
            tuple: The backbone's features over all rows, and the scores [people,
            classes] of the boxes, row by row.
        """
        rows = rows_of(samples)
        groups = waves(rows)
        features, scores = [], {}
        for group in groups:
            step = self._step(rows, group)
            x = self._features(take_rows(inputs, group), step)
            features.append(x)
            if boxes is not None:
                parts = [boxes[i] for i in group]
                metas = [samples[i].metainfo for i in group]
                out = self.roi_head._bbox_forward(
                    x, bbox2roi(parts), metas, memory=step
                )['cls_score']
                scores.update(zip(group, out.split([len(part) for part in parts])))
            step.commit()
        found = None
        if boxes is not None:
            found = torch.cat([scores[i] for i in range(len(samples))])
        return in_row_order(features, groups), found

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
