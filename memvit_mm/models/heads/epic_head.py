"""EpicHead: verb and noun of what is being done, or of what will be done next."""

from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmaction.models.heads import BaseHead
from mmaction.registry import MODELS
from mmaction.utils import SampleList
from torch import Tensor

from memvit_mm.models.kernels import to_device
from memvit_mm.structures import IGNORE


class EpicScores(NamedTuple):
    """Logits of both classifiers, [rows, classes], or [rows, T, classes]."""

    verb: Tensor
    noun: Tensor


@MODELS.register_module()
class EpicHead(BaseHead):
    """Verb and noun classifiers on one feature, for EPIC-KITCHENS-100.

    The two are trained apart, each with a cross entropy; an action's score is the sum
    of its verb's and its noun's log-probability, :func:`action_scores`, which
    :class:`EpicMetric` forms, too.

    It takes what MMAction2's backbones return:

    - a tuple with an entry per scale, as ``MeMViT`` and ``MViT``: of the last one the
      class token if there is one, else the average of the patch tokens;
    - ``[B, C, T, H, W]``, as ``ResNet3d``, ``SwinTransformer3D``, ``X3D``: the average;
    - two pathways whose channels add up to ``in_channels``, as ``ResNet3dSlowFast``:
      the average of each, side by side;
    - ``[B * num_segs, C, H, W]``, as ``ResNet`` and ``ResNetTSM`` in ``Recognizer2D``:
      the average over the segments;
    - ``[B, C]``: itself.

    **Labels** are ``gt_label = [verb, noun]``, or of a frame-level model ``[2, T]``,
    the verbs and the nouns of its time steps (``EpicFrameLabels``); -100 asks for no
    loss. The loss is the mean over what is labelled in this process's batch, so with
    many clips in between and few clips per process a labelled one weighs more where it
    is alone; if nothing is labelled, it is zero, and still reaches every parameter.

    **Predictions**, one row per sample, float32: ``verb_logits`` ``[num_verbs]`` and
    ``noun_logits`` ``[num_nouns]``: log-probabilities with ``average_clips='prob'``
    (the logarithm of the views' average probability), the views' average logits with
    'score'. For what else reads MMAction2's results: ``pred_score`` holds the verbs'
    and then the nouns' probabilities, ``[num_verbs + num_nouns]``, and ``pred_label``
    the best ``[verb, noun]``. With ``num_actions`` also the best actions, best first:
    ``action_pairs`` ``[num_actions, 2]`` (int64, verb and noun) and ``action_scores``
    ``[num_actions]``. MMAction2's ``AccMetric`` knows one label a sample and cannot
    read these; :class:`EpicMetric` does.

    Args:
        in_channels (int): Channels of the features.
        num_verbs (int): Verb classes. Defaults to 97.
        num_nouns (int): Noun classes. Defaults to 300.
        frame_level (bool): Predict at every time step of the features, averaged over
            space; the prediction of a clip is that of its last time step. With a
            ``causal=True`` backbone no time step knows of later ones. A label of a
            clip holds for all of its time steps. Defaults to False.
        dropout_ratio (float): Dropout of the features. Defaults to 0.5.
        loss_cls (dict): The loss of each classifier.
        label_smooth_eps (float): Label smoothing. Defaults to 0.
        average_clips (str): How several views of a clip are averaged, 'prob' or
            'score'. Defaults to 'prob'.
        num_actions (int): The best actions that a prediction names; a submission to
            the challenge takes 100 or none, and without them the actions are ranked
            all the same. Defaults to 0.
        init_cfg (dict | list[dict], optional): As everywhere in mmengine.

    Raises:
        ValueError: If an argument is out of its range, features have other channels
            or no time, or a label is none of the classes.

    Examples:
        >>> import torch
        >>> from mmaction.structures import ActionDataSample
        >>> head = EpicHead(in_channels=8, num_verbs=4, num_nouns=6).eval()
        >>> features = torch.rand(2, 8, 4, 7, 7)  # [B, C, T, H, W]
        >>> [tuple(logits.shape) for logits in head(features)]
        [(2, 4), (2, 6)]
        >>> samples = [ActionDataSample(), ActionDataSample()]
        >>> for sample, label in zip(samples, ([1, 5], [-100, -100])):
        ...     _ = sample.set_gt_label(label)
        >>> sorted(head.loss(features, samples))[:4]
        ['action_top1_acc', 'loss_noun', 'loss_verb', 'noun_top1_acc']
        >>> first, second = head.predict(features, samples)
        >>> tuple(first.verb_logits.shape), tuple(first.noun_logits.shape)
        ((4,), (6,))
        >>> head = EpicHead(in_channels=8, num_verbs=4, num_nouns=6, frame_level=True)
        >>> tuple(head(features).noun.shape)  # [B, T, nouns]
        (2, 4, 6)
    """

    def __init__(
        self,
        in_channels: int,
        num_verbs: int = 97,
        num_nouns: int = 300,
        frame_level: bool = False,
        dropout_ratio: float = 0.5,
        loss_cls: dict = dict(type='CrossEntropyLoss'),
        label_smooth_eps: float = 0.0,
        average_clips: str = 'prob',
        num_actions: int = 0,
        init_cfg: Optional[Union[dict, list[dict]]] = dict(
            type='TruncNormal', layer='Linear', std=0.02, bias=0.02
        ),
    ) -> None:
        sizes = dict(in_channels=in_channels, num_verbs=num_verbs, num_nouns=num_nouns)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f'{name}={value} must be at least 1.')
        if not 0 <= num_actions <= num_verbs * num_nouns:
            raise ValueError(
                f'num_actions={num_actions} must be 0 to {num_verbs * num_nouns}, '
                f'all actions of {num_verbs} verbs and {num_nouns} nouns.'
            )
        if average_clips not in ('prob', 'score'):
            raise ValueError(
                f"average_clips={average_clips!r} must be 'prob' or 'score': a segment "
                'has one prediction, however many views of it there are.'
            )
        super().__init__(
            num_classes=num_verbs + num_nouns,
            in_channels=in_channels,
            loss_cls=loss_cls,
            label_smooth_eps=label_smooth_eps,
            average_clips=average_clips,
            init_cfg=init_cfg,
        )
        self.num_verbs = num_verbs
        self.num_nouns = num_nouns
        self.num_actions = num_actions
        self.frame_level = frame_level
        self.dropout = nn.Dropout(dropout_ratio)
        self.fc_verb = nn.Linear(in_channels, num_verbs)
        self.fc_noun = nn.Linear(in_channels, num_nouns)

    # ------------------------------------------------------------------- forward

    def forward(self, x: Any, num_segs: int = 1, **kwargs) -> EpicScores:
        """Classify features.

        Args:
            x (Tensor | tuple): Features, see above.
            num_segs (int): Segments per clip, of features without a time axis.

        Returns:
            EpicScores: Logits, [rows, classes]; frame-level [rows, T, classes].
        """
        x = self.dropout(self.pre_logits(x, num_segs))
        return EpicScores(self.fc_verb(x), self.fc_noun(x))

    def pre_logits(self, x: Any, num_segs: int = 1) -> Tensor:
        """Features as one vector per row, or per time step: [rows, (T,) C]."""
        if isinstance(x, (list, tuple)):
            x = self._of_scales(x)
        channels = x.shape[1]
        if channels != self.in_channels:
            raise ValueError(
                f'EpicHead has in_channels={self.in_channels}, but the features have '
                f'{channels} channels (shape {tuple(x.shape)}): set in_channels='
                f'{channels}.'
            )
        if x.ndim == 4:
            # (B*segs, C, H, W) -> (B, segs, C, H, W) -> (B, C, segs, H, W)
            x = x.unflatten(0, (-1, num_segs)).transpose(1, 2)
        if self.frame_level:
            if x.ndim != 5:
                raise ValueError(
                    f'frame_level=True needs features with time, [B, C, T, H, W], not '
                    f'{tuple(x.shape)}: set output_cls_token=False in an MViT or '
                    'MeMViT, or frame_level=False.'
                )
            # (B, C, T, H, W) -> (B, T, C)
            return x.mean(dim=(3, 4)).transpose(1, 2)
        return x.flatten(2).mean(dim=2) if x.ndim > 2 else x

    def _of_scales(self, x: Any) -> Tensor:
        """The one feature to classify, of a backbone that returns several."""
        last = x[-1]
        if isinstance(last, (list, tuple)):
            patches, cls_token = last
            return patches if self.frame_level else cls_token
        channels = [part.shape[1] for part in x]
        if len(x) > 1 and sum(channels) == self.in_channels != channels[-1]:
            if self.frame_level:
                raise ValueError(
                    f'frame_level=True needs one pathway, not {len(x)} with '
                    f'{channels} channels: set frame_level=False.'
                )
            return torch.cat([part.flatten(2).mean(dim=2) for part in x], dim=1)
        return last

    # ---------------------------------------------------------------------- loss

    def loss_by_feat(self, cls_scores: EpicScores, data_samples: SampleList) -> dict:
        """Cross entropies of verb and noun, and how often the best one was right.

        Args:
            cls_scores (EpicScores): Logits.
            data_samples (list[ActionDataSample]): With ``gt_label``.

        Returns:
            dict: ``loss_verb`` and ``loss_noun``; ``verb_top1_acc``,
            ``noun_top1_acc`` and ``action_top1_acc`` if anything is labelled.
        """
        labels = self._labels(data_samples, cls_scores.verb)
        losses, hits, shown = {}, [], []
        # (rows, (T,) classes) -> (N, classes), and so the labels
        for name, logits, label in zip(
            ('verb', 'noun'), cls_scores, labels.unbind(dim=-1)
        ):
            logits, label = logits.flatten(0, -2), label.flatten()
            # Where labels are is known here, and not asked of a GPU again.
            rows = (label != IGNORE).nonzero().squeeze(1)
            place, label = (to_device(n, logits.device) for n in (rows, label))
            chosen, wanted = logits[place], label[place]
            losses[f'loss_{name}'] = self._loss(chosen, wanted)
            hits.append(logits.detach().argmax(dim=-1) == label)
            shown.append(rows)
            if len(rows):
                losses[f'{name}_top1_acc'] = hits[-1][place].float().mean()
        rows = shown[0][torch.isin(shown[0], shown[1])]
        if len(rows):
            hit = (hits[0] & hits[1])[to_device(rows, hits[0].device)]
            losses['action_top1_acc'] = hit.float().mean()
        return losses

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of labelled rows, [n, classes] and [n]; zero if there are none."""
        if len(logits) == 0:
            # A sum of nothing, in which all parameters had a part.
            return logits.sum()
        if self.label_smooth_eps:
            classes, eps = logits.shape[-1], self.label_smooth_eps
            label = F.one_hot(label, classes) * (1 - eps) + eps / classes
        return self.loss_cls(logits.float(), label)

    def _labels(self, data_samples: SampleList, logits: Tensor) -> Tensor:
        """Verb and noun of every row, or time step, on the host: [rows, (T,) 2]."""
        # (rows, classes) -> (2), (rows, T, classes) -> (2, T)
        shape = (2, *logits.shape[1:-1])
        labels = []
        for number, sample in enumerate(data_samples):
            if 'gt_label' not in sample:
                raise ValueError(
                    f'Sample {number} of the batch ({_name(sample)}) has no gt_label: '
                    'the dataset must give label=[verb, noun], -100 for none.'
                )
            label = sample.gt_label
            if label.is_floating_point() or label.shape not in ((2,), shape):
                raise ValueError(
                    f'Sample {number} of the batch ({_name(sample)}) has a gt_label of '
                    f'shape {tuple(label.shape)}, {label.dtype}; EpicHead takes class '
                    f'ids of shape {(2,)}, [verb, noun]'
                    f'{f", or {shape}" if len(shape) > 1 else ""}: check the dataset '
                    'and EpicFrameLabels, and blend no clips (mixup).'
                )
            if label.ndim < len(shape):
                label = label[:, None].expand(shape)
            # (2) or (2, T) -> (2) or (T, 2)
            labels.append(label.movedim(0, -1))
        # The one time that a GPU is waited for in this head.
        labels = torch.stack(labels).cpu()
        classes = labels.new_tensor([self.num_verbs, self.num_nouns])
        wrong = ((labels < 0) & (labels != IGNORE)) | (labels >= classes)
        if wrong.any():
            number, *place, kind = wrong.nonzero()[0].tolist()
            name = ('verb', 'noun')[kind]
            raise ValueError(
                f'Sample {number} of the batch ({_name(data_samples[number])}) has '
                f'{name} {labels[(number, *place, kind)].item()}, but the head has '
                f'num_{name}s={classes[kind].item()}: take 0 to '
                f'{classes[kind].item() - 1}, {IGNORE} for no label.'
            )
        # The views of a sample are rows beside each other.
        return labels.repeat_interleave(len(logits) // len(labels), dim=0)

    # ------------------------------------------------------------------- predict

    def predict_by_feat(
        self, cls_scores: EpicScores, data_samples: SampleList
    ) -> SampleList:
        """Write each sample's prediction into it.

        Args:
            cls_scores (EpicScores): Logits; the views of a sample beside each other.
            data_samples (list[ActionDataSample]): The samples.

        Returns:
            list[ActionDataSample]: The same, with ``verb_logits``, ``noun_logits``,
            ``pred_score`` and ``pred_label``, see above. Clips in between, of no
            segment, are as they were.
        """
        views = len(cls_scores.verb) // len(data_samples)
        verbs, nouns = (
            # A frame-level model answers with its last time step.
            self.average_clip(part[:, -1] if part.ndim == 3 else part, views)
            for part in cls_scores
        )
        for sample, verb, noun in zip(data_samples, verbs, nouns):
            if _is_context(sample):
                continue
            sample.set_field(verb, 'verb_logits', dtype=Tensor)
            sample.set_field(noun, 'noun_logits', dtype=Tensor)
            sample.set_pred_score(torch.cat([verb.softmax(0), noun.softmax(0)]))
            sample.set_pred_label(torch.stack([verb.argmax(), noun.argmax()]))
            if self.num_actions:
                pairs, scores = best_actions(verb, noun, self.num_actions)
                sample.set_field(pairs, 'action_pairs', dtype=Tensor)
                sample.set_field(scores, 'action_scores', dtype=Tensor)
        return data_samples

    def average_clip(self, cls_scores: Tensor, num_segs: int = 1) -> Tensor:
        """Average views: [B * views, classes] -> [B, classes], float32."""
        scores = cls_scores.float().unflatten(0, (-1, num_segs))
        if self.average_clips == 'score':
            return scores.mean(dim=1)
        # The mean of probabilities, without leaving the logarithm.
        scores = scores.log_softmax(dim=-1).logsumexp(dim=1)
        return scores.log_softmax(dim=-1)


def action_scores(verb_logits: Tensor, noun_logits: Tensor) -> Tensor:
    """Log-probability of every action: its verb's and its noun's, taken as independent.

    Args:
        verb_logits (Tensor): [..., verbs].
        noun_logits (Tensor): [..., nouns].

    Returns:
        Tensor: [..., verbs, nouns], float32; their probabilities add up to 1.

    Examples:
        >>> import torch
        >>> scores = action_scores(torch.zeros(2, 4), torch.zeros(2, 6))
        >>> tuple(scores.shape), round(float(scores[0].exp().sum()), 4)
        ((2, 4, 6), 1.0)
    """
    verbs = verb_logits.float().log_softmax(dim=-1)
    return verbs[..., :, None] + noun_logits.float().log_softmax(dim=-1)[..., None, :]


def best_actions(
    verb_logits: Tensor, noun_logits: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The best actions of one clip, best first; of equals the lower verb, then noun.

    Args:
        verb_logits (Tensor): [verbs].
        noun_logits (Tensor): [nouns].
        number (int): How many.

    Returns:
        tuple[Tensor, Tensor]: Verb and noun, int64 [number, 2]; scores [number].

    Examples:
        >>> import torch
        >>> pairs, _ = best_actions(torch.tensor([0.0, 2.0]), torch.zeros(3), 2)
        >>> pairs.tolist()
        [[1, 0], [1, 1]]
    """
    scores = action_scores(verb_logits, noun_logits)
    order = scores.flatten().argsort(descending=True, stable=True)[:number]
    nouns = scores.shape[-1]
    pairs = torch.stack([order // nouns, order % nouns], dim=1)
    return pairs, scores.flatten()[order]


def _is_context(sample: Any) -> bool:
    """Whether it is one of the clips between segments (``context_stride``)."""
    if sample.metainfo.get('narration_id', '') is not None or 'gt_label' not in sample:
        return False
    return bool((sample.gt_label == IGNORE).all())


def _name(sample: Any) -> str:
    """What a sample is called."""
    meta = sample.metainfo
    keys = ('narration_id', 'video_id', 'timestamp')
    known = [f'{key} {meta[key]}' for key in keys if meta.get(key) is not None]
    return ', '.join(known) or 'without a name in its metainfo'
