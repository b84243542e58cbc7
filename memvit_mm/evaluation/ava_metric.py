"""AVA's mean average precision, for streams in which not every frame is annotated."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from mmaction.evaluation import read_labelmap
from mmaction.evaluation.metrics import AVAMetric
from mmaction.registry import METRICS
from mmaction.structures import bbox2result
from mmengine.logging import MMLogger

from ..datasets.ava_files import (
    Keyframe,
    read_annotations,
    read_exclusions,
    read_lines,
)
from ..datasets.bad_clips import skipped_samples

Boxes = tuple[np.ndarray, np.ndarray]
"""Boxes ``[n, 4]`` (x1, y1, x2, y2 as fractions of the frame), their labels ``[n]``."""

Detections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes ``[n, 4]``, their labels ``[n]`` and their scores ``[n]``."""


def ava_map(
    detections: Mapping[Keyframe, Detections],
    ground_truth: Mapping[Keyframe, Boxes],
    labels: Sequence[int],
    excluded: frozenset = frozenset(),
    ignore_empty_frames: bool = False,
    iou_threshold: float = 0.5,
) -> dict[int, float]:
    """Average precision of every label, as the official AVA evaluation has it.

    Args:
        detections: The detections of each keyframe (video id, second).
        ground_truth: The annotated boxes of each keyframe, a box with two labels twice.
        labels: The labels to evaluate. Others are left out.
        excluded: Keyframes that do not count, neither their detections nor their truth.
        ignore_empty_frames: Leave out detections on keyframes that have no ground
            truth. By default they are false positives, as officially.
        iou_threshold: Least overlap of a detection with its box.

    Returns:
        dict[int, float]: The average precision of each label in [0, 1]; nan for one
        without ground truth, 0 for one without a detection.

    MMAction2's ``ava_eval`` differs: it always ignores empty frames (its metric sets
    that), averages over detected labels only, and counts truth of excluded keyframes.

    Examples:
        >>> box = np.array([[0.1, 0.1, 0.5, 0.9]])
        >>> truth = {('v', 902): (box, np.array([1]))}
        >>> found = {('v', 902): (box, np.array([1]), np.array([0.6])),
        ...          ('v', 903): (box, np.array([1]), np.array([0.9]))}
        >>> ava_map(found, truth, [1, 2])
        {1: 0.5, 2: nan}
        >>> ava_map(found, truth, [1, 2], ignore_empty_frames=True)
        {1: 1.0, 2: nan}
    """
    count = dict.fromkeys(sorted(set(labels)), 0)
    for keyframe, (_, of_box) in ground_truth.items():
        for label in of_box.tolist() if keyframe not in excluded else ():
            if label in count:
                count[label] += 1

    scores, hits, found = [], [], []
    nothing = (np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    # Sorted, so that equal scores rank alike however the clips were dealt to GPUs.
    for keyframe in sorted(detections):
        if keyframe in excluded or (
            ignore_empty_frames and keyframe not in ground_truth
        ):
            continue
        boxes, of_box, score = detections[keyframe]
        order = np.argsort(-score, kind='stable')
        boxes, of_box = boxes[order], of_box[order]
        truth = ground_truth.get(keyframe, nothing)
        scores.append(score[order])
        found.append(of_box)
        hits.append(_true_positives(boxes, of_box, *truth, iou_threshold))

    if not scores:
        return {label: 0.0 if num else float('nan') for label, num in count.items()}
    all_scores, all_found, all_hits = map(np.concatenate, (scores, found, hits))
    return {
        label: _average_precision(
            all_scores[all_found == label], all_hits[all_found == label], num
        )
        for label, num in count.items()
    }


def _true_positives(
    boxes: np.ndarray,
    labels: np.ndarray,
    truth: np.ndarray,
    truth_labels: np.ndarray,
    iou_threshold: float,
) -> np.ndarray:
    """Which detections of a keyframe, best first, are right: bool ``[n]``.

    A detection goes to the box of its label it overlaps most, and is right if it is the
    first to reach the threshold there.
    """
    hits = np.zeros(len(boxes), dtype=bool)
    if len(boxes) == 0 or len(truth) == 0:
        return hits
    boxes, truth = boxes.astype(np.float32), truth.astype(np.float32)
    # [n, 1, 2], [1, m, 2] -> [n, m]
    top = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    bottom = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    overlap = (bottom - top).clip(0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    truth_area = (truth[:, 2:] - truth[:, :2]).prod(1)
    union = area[:, None] + truth_area[None] - overlap
    iou = overlap / np.maximum(union, np.finfo(np.float32).tiny)
    iou = np.where(labels[:, None] == truth_labels[None], iou, -1.0)
    best = iou.argmax(1)
    (near,) = np.nonzero(iou[np.arange(len(boxes)), best] >= iou_threshold)
    _, first = np.unique(best[near], return_index=True)
    hits[near[first]] = True
    return hits


def _average_precision(scores: np.ndarray, hits: np.ndarray, num_truth: int) -> float:
    """Area under the precision-recall curve with its precision made monotonous."""
    if num_truth == 0:
        return float('nan')
    hits = hits[np.argsort(-scores, kind='stable')]
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[hits].sum() / num_truth)


@METRICS.register_module()
class MemoryAVAMetric(AVAMetric):
    """Mean average precision at 0.5 overlap over AVA's labels.

    As MMAction2's ``AVAMetric`` (same arguments, same files, same numbers on the same
    keyframes), with these differences:

    - Detections on keyframes without ground truth are false positives, as in the
      official evaluation; MMAction2 leaves them out
      (https://github.com/open-mmlab/mmaction2/issues/1268).
      ``ignore_empty_frames=True`` does so, too.
    - A label that has ground truth and no detection counts 0; MMAction2's mean is over
      the detected labels.
    - Keyframes whose clip could not be read (``on_bad_clip='skip'`` in the dataset) do
      not count, neither their detections nor their truth.
    - Scores are not rounded to four digits, nothing is written to the working
      directory, no processes are started, and ``exclude_file`` may be missing.
    - The table of labels goes to the log.

    Args:
        ann_file (str): AVA's CSV file.
        exclude_file (str, optional): CSV file of keyframes that do not count.
        label_file (str): AVA's pbtxt file: the labels that count, and their names.
        class_groups (dict[str, list[int]], optional): Labels (as in ``ann_file``) by
            the name of a group; adds the mean of each as ``mAP/<name>``.
        ignore_empty_frames (bool): See above.
        options, action_thr, num_classes, custom_classes, collect_device, prefix: As
            ``AVAMetric``, whose order the arguments up to ``prefix`` have.

    Results: ``mAP/overall``, AVA's own three groups ``mAP/person_movement`` (labels to
    14), ``mAP/object_manipulation`` (to 63) and ``mAP/person_interaction`` (from 64)
    where there are such labels, and those in ``class_groups``. A mean over no
    label with ground truth is nan.

    Raises:
        ValueError, FileNotFoundError: If a file is missing or of another format, or
            a group has a label that is not in ``label_file``.
    """

    def __init__(
        self,
        ann_file: str,
        exclude_file: Optional[str] = None,
        label_file: Optional[str] = None,
        options: Sequence[str] = ('mAP',),
        action_thr: float = 0.002,
        num_classes: int = 81,
        custom_classes: Optional[list[int]] = None,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
        *,
        class_groups: Optional[Mapping[str, Sequence[int]]] = None,
        ignore_empty_frames: bool = False,
    ) -> None:
        if label_file is None:
            raise ValueError(
                'MemoryAVAMetric needs label_file, the pbtxt file of the labels.'
            )
        if tuple(options) != ('mAP',):
            raise ValueError(f"options={options!r} must be ('mAP',), as in AVAMetric.")
        super().__init__(
            ann_file,
            exclude_file,
            label_file,
            options,
            action_thr=action_thr,
            num_classes=num_classes,
            custom_classes=custom_classes,
            collect_device=collect_device,
            prefix=prefix,
        )
        self.ignore_empty_frames = ignore_empty_frames
        self.names = _label_names(label_file)
        if custom_classes is not None:
            self.names = {
                label: name
                for label, name in self.names.items()
                if label in custom_classes
            }
        # Now, since a missing file must not cost a whole test.
        self.ground_truth = self._ground_truth()
        self.excluded = frozenset(read_exclusions(exclude_file))
        self.class_groups = {
            name: list(group) for name, group in (class_groups or {}).items()
        }
        for name, group in self.class_groups.items():
            unknown = sorted(set(group) - set(self.names))
            if unknown:
                raise ValueError(
                    f'class_groups[{name!r}] has the labels {unknown}, which are not '
                    f'in {label_file}: choose from {sorted(self.names)}.'
                )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the detections of a batch.

        Args:
            data_batch: As the DataLoader gave it; tells which clips were skipped.
            data_samples: One per clip, with ``video_id``, ``timestamp`` (seconds) and
                ``pred_instances`` of ``bboxes`` ``[n, 4]`` (fractions of the frame) and
                ``scores`` ``[n, num_classes]``.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            outputs = bbox2result(
                found['bboxes'].float(),
                found['scores'].float(),
                num_classes=self.num_classes,
                thr=self.action_thr,
            )
            self.results.append(
                dict(
                    video_id=sample['video_id'],
                    timestamp=sample['timestamp'],
                    outputs=outputs,
                )
            )
        for sample in skipped_samples(data_batch):
            self.results.append(
                dict(video_id=sample.video_id, timestamp=sample.timestamp, outputs=None)
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """The means over all labels and the groups, logged with the table of labels."""
        found = {
            (result['video_id'], int(result['timestamp'])): result for result in results
        }
        skipped = {key for key, result in found.items() if result['outputs'] is None}
        precision = ava_map(
            {
                keyframe: self._detections(result)
                for keyframe, result in found.items()
                if keyframe not in skipped
            },
            self.ground_truth,
            list(self.names),
            excluded=self.excluded | skipped,
            ignore_empty_frames=self.ignore_empty_frames,
        )
        groups = {
            'overall': list(self.names),
            'person_movement': [label for label in self.names if label <= 14],
            'object_manipulation': [label for label in self.names if 14 < label < 64],
            'person_interaction': [label for label in self.names if label >= 64],
        }
        groups = {name: group for name, group in groups.items() if group}
        groups.update(self.class_groups)
        means = {name: _mean(precision, group) for name, group in groups.items()}
        self._log(precision, means)
        return means

    def _detections(self, result: dict) -> Detections:
        """All labels' boxes of a keyframe in one array each."""
        rows = result['outputs']  # per label from 1 on: x1, y1, x2, y2, score
        labels = np.arange(1, len(rows) + 1)
        if self.custom_classes is not None:
            labels = np.asarray(self.custom_classes[1:])
        labels = np.repeat(labels[: len(rows)], [len(row) for row in rows])
        stacked = np.concatenate([np.asarray(row).reshape(-1, 5) for row in rows])
        return stacked[:, :4], labels, stacked[:, 4]

    def _ground_truth(self) -> dict[Keyframe, Boxes]:
        _, keyframes = read_annotations(self.ann_file)
        truth = {}
        for keyframe, boxes in keyframes.items():
            pairs = [
                (box, label)
                for box, (_, labels) in boxes.items()
                for label in labels
                if label in self.names
            ]
            if pairs:
                truth[keyframe] = (
                    np.array([box for box, _ in pairs]),
                    np.array([label for _, label in pairs]),
                )
        return truth

    def _log(self, precision: dict[int, float], means: dict[str, float]) -> None:
        width = max(map(len, [*self.names.values(), *means]))
        lines = ['average precision at 0.5 overlap']
        lines += [
            f'{label:5d}  {self.names[label]:<{width}}  {value:.4f}'
            for label, value in precision.items()
        ]
        lines += [
            f'       {name:<{width}}  {value:.4f}' for name, value in means.items()
        ]
        MMLogger.get_current_instance().info('\n'.join(lines))


def _mean(precision: dict[int, float], labels: Sequence[int]) -> float:
    """The mean over those labels that have ground truth."""
    values = [precision[label] for label in labels if not np.isnan(precision[label])]
    return float(np.mean(values)) if values else float('nan')


def _label_names(path: str) -> dict[int, str]:
    """The labels of a pbtxt file and their names."""
    lines = read_lines(path, 'Label file', 'label_file')
    labels, _ = read_labelmap(lines)
    if not labels:
        raise ValueError(
            f"Label file {path} has no labels: expected a pbtxt file such as AVA's "
            'ava_action_list_v2.2_for_activitynet_2019.pbtxt.'
        )
    return {label['id']: label['name'] for label in labels}
