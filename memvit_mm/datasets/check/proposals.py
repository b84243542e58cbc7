"""Check the proposals of AVA: scores, keyframes, and whether they show the people."""

from itertools import islice

import numpy as np
from mmaction.evaluation.functional.ava_evaluation.np_box_ops import iou

from memvit_mm.datasets.ava.files import Keyframe, read_proposals

from .report import a_few
from .subject import AvaCheck

# Of the annotated boxes, this share at least should have a proposal that overlaps.
LEAST_RECALL = 0.3
# Keyframes on which that is looked at.
RECALL_KEYFRAMES = 2000

# The order of a box's coordinates, as corners.
ORDERS = {
    'x1, y1, x2, y2': lambda box: box,
    'y1, x1, y2, x2': lambda box: box[:, [1, 0, 3, 2]],
    'x, y, width, height': lambda box: np.hstack([box[:, :2], box[:, :2] + box[:, 2:]]),
}


def check_proposals(check: AvaCheck) -> None:
    """Check the proposal file, if there is one.

    Raises:
        FileNotFoundError, ValueError: If nothing in it can be read.
    """
    report, path = check.report, check.cfg.get('proposal_file')
    if path is None:
        if not check.is_ours:
            report.warning(
                f'{check.where}: has no proposal_file; boxes come from the annotations'
            )
        return
    before = report.count('ERROR', 'WARNING')
    found = read_proposals(path, None, report.errors_of(path))
    check.found = found
    is_read = report.count('ERROR', 'WARNING') == before
    boxes = np.concatenate([np.empty((0, 5)), *found.values()])
    scores, empty = boxes[:, 4], (boxes[:, 2:4] <= boxes[:, :2]).any(axis=1)
    if empty.any():
        (report.error if empty.mean() > 0.01 else report.warning)(
            f'{path}: {int(empty.sum()):,} of {len(boxes):,} boxes have nothing in '
            'them: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2'
        )
    threshold = check.dataset.person_det_score_thr
    if not ((scores >= 0) & (scores <= 1)).all():
        report.error(
            f'{path}: scores run from {scores.min():g} to {scores.max():g}: the fifth '
            'column is a score in [0, 1]'
        )
    elif len(scores) and scores.max() < threshold:
        report.error(
            f'{path}: no score reaches person_det_score_thr={threshold} (the highest '
            f'is {scores.max():.3g}): lower it in {check.where}'
        )
    if found or is_read:
        _check_keyframes(check, path)
        _check_recall(check, path)
    if report.count('ERROR', 'WARNING') == before:
        report.ok(f'{path}: {len(scores):,} boxes at {len(found):,} keyframes')


def _check_keyframes(check: AvaCheck, path: str) -> None:
    """Whether proposals are of the keyframes that are annotated."""
    report, found, ann_file = check.report, check.found, check.dataset.ann_file
    truth = sorted(check.keyframes)
    videos = {video for video, _ in found}
    lacking = [f'{v},{t:04d}' for v, t in truth if (v, t) not in found]
    if not videos & check.videos:
        report.error(
            f'{path}: has none of the videos in {ann_file}, neither {truth[0][0]} nor '
            f'another; it has {a_few(sorted(videos)) or "none"}: is it of the other '
            'split, or are videos named otherwise?'
        )
    elif len(lacking) == len(truth):
        ours, theirs = ([second for _, second in of] for of in (truth, found))
        report.error(
            f'{path}: has the videos of {ann_file} but none of its keyframes: '
            f'timestamps run from {min(theirs)} to {max(theirs)}, in the annotations '
            f'from {min(ours)} to {max(ours)}; both count from the same second'
        )
    elif lacking:
        share = len(lacking) / len(truth)
        (report.error if share > 0.5 else report.warning)(
            f'{path}: {len(lacking):,} of {len(truth):,} annotated keyframes '
            f'({share:.1%}) have no proposal, such as {a_few(lacking)}; there is no '
            'box there, or with AVADataset the whole frame: run the person detector '
            'on them too'
        )


def _check_recall(check: AvaCheck, path: str) -> None:
    """Whether proposals show the people that are annotated."""
    truth: dict[Keyframe, set[tuple]] = {}
    for _, row in check.rows:
        if row[:2] in check.found:
            truth.setdefault(row[:2], set()).add(row.box)
    if not truth:
        return
    hits, total = dict.fromkeys(ORDERS, 0), 0
    step = max(1, len(truth) // RECALL_KEYFRAMES)
    for keyframe, people in islice(truth.items(), 0, None, step):
        true = np.array(list(people))
        total += len(true)
        for name, corners in ORDERS.items():
            with np.errstate(invalid='ignore', divide='ignore'):
                overlap = iou(true, corners(check.found[keyframe][:, :4]))
            hits[name] += int((overlap > 0.5).any(axis=1).sum())
    recall = {name: count / total for name, count in hits.items()}
    best = max(recall, key=recall.get)
    if recall['x1, y1, x2, y2'] < LEAST_RECALL:
        hint = 'are they of other videos, or at other times?'
        if recall[best] > 0.5:
            hint = f'they seem to be stored as {best}; store x1, y1, x2, y2'
        check.report.error(
            f'{path}: only {recall["x1, y1, x2, y2"]:.0%} of the annotated boxes '
            f'overlap with a proposal (IoU > 0.5): {hint}'
        )
