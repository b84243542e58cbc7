"""What can be wrong in AVA's proposals, the boxes that a person detector found."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from memvit_mm.datasets.ava.files import MARGIN
from memvit_mm.io.data_pickle import unpickle_data

from .tables import PIXELS, Annotations
from .words import a_few, and_more, read_content

if TYPE_CHECKING:
    from .config import AvaFields, Report

# Of the annotated boxes, this share at least should have a proposal that overlaps.
_LEAST_RECALL = 0.3
# Keyframes on which that is looked at.
_RECALL_KEYFRAMES = 2000


def check_proposals(
    report: 'Report', fields: 'AvaFields', annotations: Annotations
) -> None:
    """Check the file of person boxes."""
    path = fields.proposal_file
    if path is None:
        if not fields.strict:
            report.warning(
                f'{fields.where}: has no proposal_file; boxes come from the annotations'
            )
        return
    content = read_content(report, path, 'proposal_file', fields)
    if content is None:
        return
    try:
        if path.endswith('.json'):
            table = json.loads(content)
        else:
            table = unpickle_data(content)
    except Exception as error:  # broken pickles raise nearly anything
        report.error(
            f'{path}: cannot be read ({error}): expected a pickle of '
            "{'video,0902': array [n, 5]}"
        )
        return
    if not isinstance(table, dict) or not table:
        what = f'a {type(table).__name__}' if table else 'nothing'
        report.error(
            f"{path}: holds {what}, expected a dict {{'video,0902': array [n, 5]}}"
        )
        return
    before = report.count('ERROR') + report.count('WARNING')
    found = _check_keys(report, fields, table)
    _check_values(report, fields, table)
    if found:
        _check_matches(report, fields, annotations, found)
    if report.count('ERROR') + report.count('WARNING') == before:
        total = sum(map(len, table.values()))
        report.ok(f'{path}: {total:,} boxes at {len(table):,} keyframes')


def _check_keys(report, fields, table) -> dict[tuple[str, int], Any]:
    """The entries whose keys name a keyframe; a keyframe's spelling is reported."""
    path, found = fields.proposal_file, {}
    timeless, unpadded = [], []
    for key, value in table.items():
        video, comma, second = str(key).rpartition(',')
        # As ids may hold commas, only the last one counts.
        try:
            keyframe = (video, int(second))
        except ValueError:
            comma = ''
        if not isinstance(key, str) or not comma:
            timeless.append(key)
            continue
        if key != f'{video},{keyframe[1]:04d}':
            unpadded.append(key)
        found[keyframe] = value
    if timeless:
        report.error(
            f'{path}: key {timeless[0]!r} has no timestamp'
            f'{and_more(len(timeless), "key")}: keys are the video id, a comma and the '
            "second in four digits, 'video,0902'"
        )
    if unpadded:
        video, second = str(unpadded[0]).rsplit(',', 1)
        say = report.warning if fields.strict else report.error
        say(
            f'{path}: key {unpadded[0]!r}{and_more(len(unpadded), "key")} is not found '
            "under MMAction2's spelling, which has four digits and no blanks: write "
            f'{video.strip() + f",{int(second):04d}"!r}'
        )
    return found


def _check_values(report, fields, table) -> None:
    path, strict = fields.proposal_file, fields.strict
    shapes, lists, kinds, empty = [], [], [], []
    keys, arrays = [], []
    for key, value in table.items():
        is_array = isinstance(value, np.ndarray)
        if not is_array:
            lists.append(key)
        if not is_array or (strict and value.dtype.kind not in 'fiu'):
            try:
                value = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                kinds.append(key)
                continue
        if value.dtype.kind not in 'fiu':
            kinds.append(key)
        elif value.size == 0:
            empty.append(key)
        elif value.ndim != 2 or value.shape[1] not in (4, 5):
            shapes.append(key)
        else:
            keys.append(key)
            arrays.append(value)
    if shapes:
        shape = list(np.shape(table[shapes[0]]))
        report.error(
            f'{path}: {shapes[0]!r} has an array {shape}'
            f'{and_more(len(shapes), "key")}: expected [n, 5], x1, y1, x2, y2 and '
            'score, or [n, 4] without score'
        )
    if kinds:
        kind = getattr(table[kinds[0]], 'dtype', type(table[kinds[0]]).__name__)
        report.error(
            f'{path}: {kinds[0]!r} holds {kind}, not numbers'
            f'{and_more(len(kinds), "key")}: store float32 arrays'
        )
    if not strict and lists and not path.endswith('.json'):
        report.error(
            f'{path}: {lists[0]!r} holds a {type(table[lists[0]]).__name__}, not a '
            f'numpy array{and_more(len(lists), "key")}: store '
            'np.array(boxes, dtype=np.float32)'
        )
    if not strict and empty:
        report.error(
            f'{path}: {empty[0]!r} has no box{and_more(len(empty), "key")}: AVADataset '
            'stops there; leave such keys out'
        )
    if arrays:
        _check_numbers(report, fields, keys, arrays)


def _check_numbers(report, fields, keys, arrays) -> None:
    path = fields.proposal_file
    owner = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    box = np.concatenate([array[:, :4] for array in arrays]).astype(np.float64)

    def say(level, mask, what, remedy):
        if mask.any():
            first = int(np.argmax(mask))
            text = ', '.join(f'{value:g}' for value in box[first])
            level(
                f'{path}: {keys[owner[first]]!r} has the box {text}, {what}'
                f'{and_more(int(mask.sum()), "box", "boxes")}: {remedy}'
            )

    finite = np.isfinite(box).all(1)
    low, high = box.min(1), box.max(1)
    pixels = finite & (high > PIXELS)
    limit = MARGIN if fields.strict else 0
    outside = finite & ~pixels & ((low < -limit) | (high > 1 + limit))
    fractions = 'coordinates are fractions of width and height in [0, 1]'
    say(report.error, ~finite, 'which is not finite', 'take it out')
    say(
        report.error,
        pixels,
        'which seems to be in pixels',
        "divide by the frame's width and height",
    )
    say(report.error, outside, 'which is outside [0, 1]', f'{fractions}; clip them')
    turned = finite & ((box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1]))
    say(
        report.error if turned.mean() > 0.01 else report.warning,
        turned,
        'whose x2 <= x1 or y2 <= y1',
        'the order is x1, y1, x2, y2',
    )
    scores = [array[:, 4] for array in arrays if array.shape[1] == 5]
    if not scores:
        return
    scores = np.concatenate(scores)
    threshold = fields.person_det_score_thr
    if not ((scores >= 0) & (scores <= 1)).all():
        report.error(
            f'{path}: scores run from {scores.min():g} to {scores.max():g}: the fifth '
            'column is a score in [0, 1]'
        )
    elif scores.max() < threshold:
        report.error(
            f'{path}: no score reaches person_det_score_thr={threshold} (the highest '
            f'is {scores.max():.3g}): lower it in {fields.where}'
        )


def _check_matches(report, fields, annotations, found) -> None:
    """Whether proposals are of the keyframes, and of the people, that are annotated."""
    path, ann_file = fields.proposal_file, fields.ann_file
    keyframes = annotations.keyframes
    videos = {video for video, _ in found}
    without = [video for video in annotations.videos if video not in videos]
    matched = [keyframe for keyframe in keyframes if keyframe in found]
    effect = 'it gets no box' if fields.strict else 'one box of the whole frame instead'
    if len(without) == len(annotations.videos):
        report.error(
            f'{path}: has none of the videos in {ann_file}, neither {without[0]} nor '
            f'another; it has {a_few(sorted(videos))}: is it of the other split, or '
            'are videos named otherwise?'
        )
    elif not matched:
        seconds = sorted({second for _, second in found})
        report.error(
            f'{path}: has the videos of {ann_file} but none of its keyframes: '
            f'timestamps run from {seconds[0]} to {seconds[-1]}, in the annotations '
            f'from {annotations.second.min()} to {annotations.second.max()}; both '
            'count from the same second'
        )
    elif len(matched) < len(keyframes):
        lacking = [f'{v},{t:04d}' for v, t in keyframes if (v, t) not in found]
        share = len(lacking) / len(keyframes)
        say = report.error if share > 0.5 else report.warning
        videos_too = f', and {len(without):,} videos have none' if without else ''
        say(
            f'{path}: {len(lacking):,} of {len(keyframes):,} annotated keyframes '
            f'({share:.1%}) have no proposal{videos_too}, such as {a_few(lacking)}; '
            f'{effect}: run the person detector on them too'
        )
    if matched:
        _check_recall(report, fields, annotations, found, matched)


def _check_recall(report, fields, annotations, found, matched) -> None:
    chosen = matched[:: max(1, len(matched) // _RECALL_KEYFRAMES)]
    places = {video: place for place, video in enumerate(annotations.videos)}
    wanted = {(places[video], second): (video, second) for video, second in chosen}
    codes = zip(annotations.video.tolist(), annotations.second.tolist())
    truth: dict[tuple[str, int], list[int]] = {}
    for row, code in enumerate(codes):
        if code in wanted:
            truth.setdefault(wanted[code], []).append(row)
    orders = {
        'x1, y1, x2, y2': lambda b: b,
        'y1, x1, y2, x2': lambda b: b[:, [1, 0, 3, 2]],
        'x, y, width, height': lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]]),
    }
    hits, total = Counter(), 0
    for keyframe, rows in truth.items():
        boxes = _corners(found[keyframe])
        if boxes is None:
            continue
        true = np.unique(annotations.box[rows], axis=0)
        total += len(true)
        for name, order in orders.items():
            hits[name] += int((_iou(true, order(boxes)).max(1, initial=0) > 0.5).sum())
    if not total or hits['x1, y1, x2, y2'] / total >= _LEAST_RECALL:
        return
    best, count = hits.most_common(1)[0]
    hint = 'are they of other videos, or at other times?'
    if count / total > 0.5:
        hint = f'they seem to be stored as {best}; store x1, y1, x2, y2'
    report.error(
        f'{fields.proposal_file}: only {hits["x1, y1, x2, y2"] / total:.0%} of the '
        f'annotated boxes overlap with a proposal (IoU > 0.5): {hint}'
    )


def _corners(value: Any) -> Optional[np.ndarray]:
    """The corners ``[n, 4]`` of an entry; None if it is something else."""
    try:
        boxes = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return boxes[:, :4] if boxes.ndim == 2 and boxes.shape[1] >= 4 else None


def _iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Overlap of every box in ``one`` with every box in ``two``: ``[n, m]``."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(2)
    areas = (one[:, 2:] - one[:, :2]).prod(1)[:, None] + (
        (two[:, 2:] - two[:, :2]).prod(1)[None]
    )
    return inner / np.maximum(areas - inner, 1e-12)
