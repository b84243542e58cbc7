"""MemoryBBoxHeadAVA: AVA's classifier that also learns from boxes without a label."""

from typing import Any

import torch
import torch.nn.functional as F
from mmaction.models.roi_heads.bbox_heads import BBoxHeadAVA
from mmaction.registry import MODELS
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import ConfigDict
from torch import Tensor


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MemoryBBoxHeadAVA(BBoxHeadAVA):
    """MMAction2's ``BBoxHeadAVA`` that also learns from boxes without a label.

    A detected box that matches no ground truth is a negative: the model learns that it
    does none of the actions, as it is to say of false detections at test. MMAction2's
    head drops such boxes. The loss is the mean over all sampled boxes and all classes
    but the reserved class 0, and zero where there is no box.

    The RoI head's sampler decides which boxes there are. For all ground truth and all
    detections, set in ``train_cfg.rcnn.sampler`` of MMAction2's configs
    ``neg_pos_ub=-1`` (with 0 it leaves negatives out) and ``num`` to more than any
    keyframe has.

    Recall and precision in the log are, as MMAction2's, means over the boxes with a
    label; they are not logged where there is none.

    Source: MeMViT (arXiv 2201.08383), appendix on AVA.

    Args:
        negatives (bool): Whether boxes without a label count. ``False`` gives
            ``BBoxHeadAVA``'s loss. Defaults to True.
        *args: As ``BBoxHeadAVA``.
        **kwargs: As ``BBoxHeadAVA``.

    Raises:
        ValueError: If ``negatives`` is set with ``multilabel=False``, or if the sampler
            leaves negatives out.

    Examples:
        >>> import torch
        >>> head = MemoryBBoxHeadAVA(background_class=True, in_channels=8)
        >>> tuple(head(torch.rand(2, 8, 1, 7, 7)).shape)  # [people, C, T, H, W]
        (2, 81)
    """

    def __init__(self, *args: Any, negatives: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if negatives and not self.multilabel:
            raise ValueError(
                'negatives=True needs multilabel=True: with multilabel=False every box '
                'has a label; set negatives=False.'
            )
        self.negatives = negatives

    def forward(self, x: Tensor) -> Tensor:
        """Scores before the sigmoid: [people, C, T, H, W] -> [people, classes]."""
        # Not len(x), a number that torch.export would take for the only one.
        if x.shape[0] == 0:
            # MMAction2's cannot reshape an empty tensor.
            return self.fc_cls(x.mean(dim=(2, 3, 4)))
        return super().forward(x)

    @staticmethod
    def topk_to_matrix(probs: Tensor, k: int) -> Tensor:
        """The ``k`` highest of each row as a binary matrix, [people, classes]."""
        # MMAction2 writes row by row, some kernels per person on a GPU.
        matrix = torch.zeros_like(probs, dtype=torch.bool)
        return matrix.scatter_(1, probs.topk(k, dim=1).indices, True)

    def loss_and_target(
        self,
        cls_score: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        rcnn_train_cfg: ConfigDict,
        **kwargs: Any,
    ) -> dict:
        """The loss, recall and precision.

        Args:
            cls_score (Tensor): [people, classes].
            rois (Tensor): [people, 5].
            sampling_results (list[SamplingResult]): One per row of the batch.
            rcnn_train_cfg (ConfigDict): ``train_cfg.rcnn``.

        Returns:
            dict: ``loss_bbox``, a dict of loss, recall and precision, and
            ``bbox_targets``.
        """
        for result in sampling_results:
            if result.pos_gt_labels.ndim == 1:
                # MMAction2's assigner, where there is no box or nobody annotated.
                result.pos_gt_labels = result.pos_priors.new_zeros(0, self.num_classes)
        if not self.negatives:
            return super().loss_and_target(
                cls_score, rois, sampling_results, rcnn_train_cfg, **kwargs
            )
        if rcnn_train_cfg.get('sampler', {}).get('neg_pos_ub', -1) == 0:
            raise ValueError(
                'negatives=True, but train_cfg.rcnn.sampler.neg_pos_ub=0 leaves out '
                'the boxes without a label: set it to -1, or negatives=False.'
            )
        targets = self.get_targets(sampling_results, rcnn_train_cfg)
        first = 1 if self.background_class else 0
        scores, labels = cls_score[:, first:], targets[0][:, first:]

        loss = F.binary_cross_entropy_with_logits(scores, labels, reduction='none')
        focus = self.focal_alpha * (1 - (-loss).exp()) ** self.focal_gamma
        # The mean of nothing would be nan.
        losses = dict(loss_action_cls=(focus * loss).sum() / max(loss.numel(), 1))

        # Only with a label: a host that asked the GPU for more would wait for it.
        if any(len(result.pos_priors) for result in sampling_results):
            losses.update(self._rates(scores.detach().sigmoid(), labels))
        return dict(loss_bbox=losses, bbox_targets=targets)

    def _rates(self, probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Recall and precision, means over the people with a label.

        Args:
            probs (Tensor): [people, classes].
            labels (Tensor): [people, classes], 0 or 1.
        """
        labels, found = labels > 0, {'thr=0.5': probs > 0.5}
        for k in self.topk:
            found[f'top{k}'] = self.topk_to_matrix(probs, k)
        wanted = labels.sum(dim=1)
        # (people,)
        weights = (wanted > 0) / (wanted > 0).sum().clamp(min=1)
        rates = {}
        for name, chosen in found.items():
            right = (chosen & labels).sum(dim=1)
            recall = right / wanted.clamp(min=1)
            precision = right / (chosen.sum(dim=1) + 1e-6)
            rates[f'recall@{name}'] = (recall * weights).sum()
            rates[f'prec@{name}'] = (precision * weights).sum()
        return rates
