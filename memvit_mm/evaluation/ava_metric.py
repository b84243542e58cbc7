"""AVA's mean average precision as the official evaluation computes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from mmaction.evaluation import read_labelmap
from mmaction.evaluation.metrics import AVAMetric
from mmaction.registry import METRICS
from mmengine.logging import MMLogger

from memvit_mm.datasets.ava.files import Keyframe, read_annotations, read_exclusions
from memvit_mm.io.text import read_lines
from memvit_mm.structures import skipped_samples

# Whose files they are, in messages: a dataset has options of the same names.
OWNER = 'MemoryAVAMetric, the evaluator'

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
        ignore_empty_frames: Leave out detections on keyframes without ground truth. By
            default they are false positives, as in the official evaluation.
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
    chosen = np.unique(np.array(list(labels), dtype=np.int64))
    # Sorted, so that equal scores rank alike however the clips were dealt to GPUs.
    keyframes = sorted(
        key
        for key in detections
        if key not in excluded and (key in ground_truth or not ignore_empty_frames)
    )
    found = _stack([detections[key] for key in keyframes], chosen)
    # What is annotated on a keyframe without detections counts, too: it comes last.
    others = set(ground_truth).difference(detections, excluded)
    nobody = (np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    boxes = [ground_truth.get(key, nobody) for key in [*keyframes, *others]]
    truth = _stack([(*pair, np.ones(len(pair[1]))) for pair in boxes], chosen)
    hits = _true_positives(found, truth, len(boxes), len(chosen), iou_threshold)

    # The rows of each label, in order.
    order = np.argsort(found.label, kind='stable')
    ends = np.cumsum(np.bincount(found.label, minlength=len(chosen)))
    count = np.bincount(truth.label, minlength=len(chosen))
    return {
        label: _average_precision(found.score[rows], hits[rows], num_truth)
        for label, rows, num_truth in zip(
            chosen.tolist(), np.split(order, ends), count.tolist()
        )
    }


class _Rows(NamedTuple):
    """The boxes of many keyframes, one row for each label of a box.

    Attributes:
        keyframe (np.ndarray): Number of the keyframe, ascending, ``[n]``.
        label (np.ndarray): Place of the label among those evaluated, ``[n]``.
        box (np.ndarray): ``[n, 4]``.
        score (np.ndarray): ``[n]``.
    """

    keyframe: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray


def _stack(parts: Sequence[Detections], chosen: np.ndarray) -> _Rows:
    """The boxes of keyframes, without those of labels that are not ``chosen``."""
    # So that there is something to stack; of the narrowest types, which change none.
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))
    boxes, labels, scores = map(np.concatenate, zip(none, *parts))
    counts = [0, *(len(part[1]) for part in parts)]
    keyframes = np.repeat(np.arange(-1, len(parts), dtype=np.int32), counts)
    rows = _Rows(keyframes, labels, boxes, scores)
    known = np.isin(labels, chosen)
    if not known.all():
        rows = _Rows(*(column[known] for column in rows))
    # Small integers: numpy sorts them in linear time.
    return rows._replace(label=np.searchsorted(chosen, rows.label).astype(np.uint16))


def _true_positives(
    found: _Rows,
    truth: _Rows,
    num_keyframes: int,
    num_labels: int,
    iou_threshold: float,
) -> np.ndarray:
    """Which detections are right: bool ``[n]``.

    A detection goes to the box of its keyframe and label it overlaps most, and is right
    if it reaches the threshold there, and none of a higher score does.
    """
    # The boxes of a keyframe and label follow each other in this order.
    where = truth.keyframe.astype(np.int64) * num_labels + truth.label
    order = np.argsort(where, kind='stable')
    count = np.bincount(where, minlength=num_keyframes * num_labels)
    start = np.cumsum(count) - count
    # Detections that have such boxes, and how many; then one row for each pair.
    where = found.keyframe.astype(np.int64) * num_labels + found.label
    (rows,) = np.nonzero(count[where])
    where = where[rows]
    count = count[where]
    begin = np.cumsum(count) - count
    of_found = np.repeat(rows, count)
    of_truth = order[np.repeat(start[where] - begin, count) + np.arange(count.sum())]

    iou = _overlaps(found.box[of_found], truth.box[of_truth])
    best = np.lexsort((-iou, of_found))[begin]
    best = best[iou[best] >= iou_threshold]
    best = best[np.lexsort((-found.score[of_found[best]], of_truth[best]))]
    _, first = np.unique(of_truth[best], return_index=True)
    hits = np.zeros(len(found.label), dtype=bool)
    hits[of_found[best[first]]] = True
    return hits


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes, ``[n, 4]`` and ``[n, 4]``."""
    # In the types of MMAction2's evaluation, for pairs that are just at the threshold.
    boxes, others = boxes.astype(np.float32), others.astype(np.float32)
    top = np.maximum(boxes[:, :2], others[:, :2])
    bottom = np.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (bottom - top).clip(0).astype(np.float64).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    other_area = (others[:, 2:] - others[:, :2]).prod(1)
    union = (area + other_area) - overlap
    return overlap / np.maximum(union, np.finfo(np.float32).tiny)


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
    - Every score is ranked, as in the official evaluation; MMAction2 drops those up to
      0.002, and with them true positives of rare labels.
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
        action_thr (float): Scores up to this one are dropped; by default (0) none is.
            A sequence and a negative one are as in ``AVAMetric``.
        options, num_classes, custom_classes, collect_device, prefix: As ``AVAMetric``,
            whose order the arguments up to ``prefix`` have.

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
        action_thr: float = 0.0,
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
            chosen = set(custom_classes).intersection(self.names)
            self.names = {label: self.names[label] for label in sorted(chosen)}
        # Now, since a missing file must not cost a whole test.
        self.ground_truth = self._ground_truth()
        self.excluded = frozenset(read_exclusions(exclude_file, of=OWNER))
        self.class_groups = dict(class_groups or {})
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
            scores = found['scores'].float().cpu().numpy()
            if len(scores) and scores.shape[1] != self.num_classes:
                raise ValueError(
                    f'The model gives scores of {scores.shape[1]} classes, and '
                    f'MemoryAVAMetric has num_classes={self.num_classes}: set it to '
                    "that of the model's bbox_head."
                )
            keyframe = (sample['video_id'], int(sample['timestamp']))
            boxes = found['bboxes'].float().cpu().numpy()
            self.results.append((keyframe, (boxes, scores)))
        for sample in skipped_samples(data_batch):
            keyframe = (sample.video_id, int(sample.timestamp))
            self.results.append((keyframe, None))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """The means over all labels and the groups, logged with the table of labels."""
        found = dict(results)
        skipped = {keyframe for keyframe, result in found.items() if result is None}
        precision = ava_map(
            {
                keyframe: self._detections(*result)
                for keyframe, result in found.items()
                if result is not None
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

    def _detections(self, boxes: np.ndarray, scores: np.ndarray) -> Detections:
        """A keyframe's boxes with each of their labels that is ranked."""
        scores = scores[:, 1:]
        labels = np.arange(1, scores.shape[1] + 1, dtype=np.int32)
        if self.custom_classes is not None:
            labels = np.array(self.custom_classes[1:], dtype=np.int32)
        if np.ndim(self.action_thr) == 0 and self.action_thr < 0:
            ranked = np.arange(len(labels)) == scores.argmax(axis=1)[:, None]
        else:
            least = np.broadcast_to(self.action_thr, len(labels) + 1)[1:]
            ranked = (scores > least) | (least == 0)
        people, places = np.nonzero(ranked)
        return boxes[people], labels[places], scores[people, places]

    def _ground_truth(self) -> dict[Keyframe, Boxes]:
        _, keyframes = read_annotations(self.ann_file, of=OWNER)
        truth = {}
        for keyframe, boxes in keyframes.items():
            rows = [
                (*box, label)
                for box, (_, labels) in boxes.items()
                for label in labels
                if label in self.names
            ]
            if rows:
                rows = np.array(rows)
                truth[keyframe] = (rows[:, :4], rows[:, 4].astype(np.int64))
        return truth

    def _log(self, precision: dict[int, float], means: dict[str, float]) -> None:
        width = max(map(len, [*self.names.values(), *means]))
        lines = ['average precision at 0.5 overlap']
        for label, value in precision.items():
            lines.append(f'{label:5d}  {self.names[label]:<{width}}  {value:.4f}')
        for name, value in means.items():
            lines.append(f'{"":5}  {name:<{width}}  {value:.4f}')
        MMLogger.get_current_instance().info('\n'.join(lines))


def _mean(precision: dict[int, float], labels: Sequence[int]) -> float:
    """The mean over those labels that have ground truth."""
    values = [precision[label] for label in labels if not np.isnan(precision[label])]
    return float(np.mean(values)) if values else float('nan')


def _label_names(path: str) -> dict[int, str]:
    """The labels of a pbtxt file and their names."""
    lines = read_lines(path, 'Label file', 'label_file', OWNER)
    labels, _ = read_labelmap(lines)
    if not labels:
        raise ValueError(
            f"Label file {path} has no labels: expected a pbtxt file such as AVA's "
            'ava_action_list_v2.2_for_activitynet_2019.pbtxt.'
        )
    return {label['id']: label['name'] for label in labels}
