"""What can be wrong in AVA's tables: annotations, label map, exclusions, proposals."""

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os import path as osp
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .ava_files import MARGIN, _DataUnpickler

if TYPE_CHECKING:
    from .check import AvaFields, Report

_COLUMNS = 'video,second,x1,y1,x2,y2,label,person'
_EXAMPLE = '1j20qq1JyX4,0902,0.002,0.118,0.714,0.977,12,1'
# Coordinates beyond this are no fractions with an error but pixels.
_PIXELS = 2
# Of the annotated boxes, this share at least should have a proposal that overlaps.
_LEAST_RECALL = 0.3
# Keyframes on which that is looked at.
_RECALL_KEYFRAMES = 2000


@dataclass
class Annotations:
    """An annotation file, as columns.

    Attributes:
        videos (list[str]): The video ids, in order of appearance.
        line (np.ndarray): ``[n]`` each row's line number, from 1.
        video (np.ndarray): ``[n]`` each row's index into ``videos``.
        second (np.ndarray): ``[n]`` its timestamp.
        box (np.ndarray): ``[n, 4]`` x1, y1, x2, y2.
        label, person (np.ndarray): ``[n]`` its label and person id.
    """

    videos: list[str]
    line: np.ndarray
    video: np.ndarray
    second: np.ndarray
    box: np.ndarray
    label: np.ndarray
    person: np.ndarray

    @property
    def last_keyframe(self) -> dict[str, int]:
        """Each video's last timestamp."""
        last = np.full(len(self.videos), np.iinfo(np.int64).min)
        np.maximum.at(last, self.video, self.second)
        return dict(zip(self.videos, last.tolist()))

    @property
    def keyframes(self) -> list[tuple[str, int]]:
        """Every annotated (video, timestamp) once, in order."""
        pairs = np.unique(np.stack([self.video, self.second], 1), axis=0)
        return [(self.videos[video], second) for video, second in pairs.tolist()]


# ------------------------------------------------------------------ annotations


def check_label_map(report: 'Report', fields: 'AvaFields') -> Optional[dict[int, str]]:
    """Check the label map.

    Returns:
        dict | None: Label ids and names; None if there is none to be read.
    """
    path = fields.label_file
    if path is None:
        return None
    content = _content(report, path, 'label_file', fields)
    if content is None:
        return None
    labels: dict[int, str] = {}
    name = ''
    # The same rules as mmaction.evaluation.read_labelmap, which skips other lines.
    for line in content.decode('utf-8', 'replace').splitlines():
        if line.startswith('  name:'):
            name = line.split('"')[1] if line.count('"') >= 2 else line[7:].strip()
        elif line.startswith(('  id:', '  label_id:')):
            number = line.split(':', 1)[1].strip()
            if number.isdigit():
                labels[int(number)] = name
    if not labels:
        report.error(
            f'{path}: no label is read from it: MMAction2 takes lines that begin with '
            "exactly two blanks, '  name: \"walk\"' and then '  id: 12'; write it so"
        )
        return None
    if 0 in labels:
        report.error(
            f'{path}: label 0 ({labels[0]!r}) is in it, but labels count from 1: add '
            'one to all of them, here and in the annotations'
        )
    largest = max(labels)
    if fields.custom_classes is None and largest >= fields.num_classes:
        report.warning(
            f'{path}: has label {largest} ({labels[largest]!r}), too large for '
            f'num_classes={fields.num_classes}: set it to {largest + 1}, the largest '
            'label plus one'
        )
    if fields.custom_classes is not None:
        unknown = sorted(set(fields.custom_classes) - set(labels))
        if unknown:
            report.error(
                f'{path}: lacks {unknown} of custom_classes of {fields.where}: take '
                'ids that are in it'
            )
        if fields.num_classes != len(fields.custom_classes) + 1:
            report.error(
                f'{fields.where}: num_classes={fields.num_classes} with '
                f'{len(fields.custom_classes)} custom_classes: set it to '
                f'{len(fields.custom_classes) + 1}, their number plus one'
            )
    return labels


def check_annotations(
    report: 'Report', fields: 'AvaFields', label_map: Optional[dict[int, str]]
) -> Optional[Annotations]:
    """Check the annotation file.

    Returns:
        Annotations | None: Its rows; None if there is none that can be read.
    """
    path = fields.ann_file
    content = _content(report, path, 'ann_file', fields)
    if content is None:
        return None
    before = report.count('ERROR') + report.count('WARNING')
    rows = _parse(report, path, content, fields.strict)
    if rows is None:
        return None
    _check_labels(report, fields, rows, label_map)
    _check_boxes(report, fields, rows)
    _check_seconds(report, fields, rows)
    _check_duplicates(report, fields, rows)
    if fields.for_memory and fields.keyframes == 'annotated':
        _check_holes(report, fields, rows)
    if report.count('ERROR') + report.count('WARNING') == before:
        report.ok(
            f'{path}: {len(rows.line):,} rows, {len(rows.keyframes):,} keyframes of '
            f'{len(rows.videos):,} videos, labels {rows.label.min()} to '
            f'{rows.label.max()}'
        )
    return rows


def _content(
    report: 'Report', path: str, option: str, fields: 'AvaFields'
) -> Optional[bytes]:
    if '://' in path:
        report.warning(f'{path}: not a local file; it is not checked')
        return None
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        hint = ''
        if option != 'ann_file' and fields.data_root and not osp.isabs(path):
            hint = ' (data_root is joined with ann_file and data_prefix only)'
        reason = error.strerror or error
        report.error(
            f'{path}: cannot be read ({reason}): check {option} of {fields.where}{hint}'
        )
        return None
    if not content:
        report.error(f'{path}: is empty: fetch or write it again ({option})')
        return None
    return content


def _parse(
    report: 'Report', path: str, content: bytes, strict: bool
) -> Optional[Annotations]:
    if content.startswith(b'\xef\xbb\xbf'):
        content = content[3:]
        say = report.warning if strict else report.error
        say(
            f'{path}:1: begins with a byte order mark, which becomes part of the first '
            'video id: save it as UTF-8 without one'
        )
    places: dict[str, int] = {}
    numbers: list[int] = []
    integers: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    bad: list[int] = []
    lines = content.decode('utf-8', 'replace').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            video, second, x1, y1, x2, y2, label, person = line.split(',')
            box = float(x1), float(y1), float(x2), float(y2)
            row = int(second), int(label), int(person)
        except ValueError:
            bad.append(number)
            continue
        boxes.append(box)
        integers.append((places.setdefault(video, len(places)), *row))
        numbers.append(number)
    if bad:
        first = lines[bad[0] - 1].strip()
        report.error(
            f'{path}:{bad[0]}: {_reason(first)}{_more(len(bad), "line")}: expected '
            f'{_COLUMNS}, such as {_EXAMPLE}'
        )
    if not numbers:
        return None
    try:
        columns = np.array(integers, np.int64)
    except OverflowError:
        report.error(f'{path}: holds a timestamp, label or id of over 18 digits')
        return None
    return Annotations(
        videos=list(places),
        line=np.array(numbers),
        video=columns[:, 0],
        second=columns[:, 1],
        box=np.array(boxes),
        label=columns[:, 2],
        person=columns[:, 3],
    )


def _reason(line: str) -> str:
    if not line:
        return 'an empty line'
    parts = line.split(',')
    if len(parts) != 8:
        return f'{len(parts)} columns instead of 8 in {line!r}'
    if all(not part.strip().lstrip('-').replace('.', '').isdigit() for part in parts):
        return f'a line of headings, {line!r}, which must go'
    for name, part in zip(_COLUMNS.split(',')[1:], parts[1:]):
        whole = name in ('second', 'label', 'person')
        try:
            int(part) if whole else float(part)
        except ValueError:
            return f'{name} is {part!r}, not a {"whole " if whole else ""}number'
    return f'{line!r} cannot be read'


def _check_labels(report, fields, rows, label_map) -> None:
    path, labels = fields.ann_file, rows.label
    _rows(
        report.error,
        rows,
        path,
        labels < 1,
        lambda i: f'label {labels[i]}, but labels count from 1',
        'add one to all of them, in the label map too (0 stands for no action)',
    )
    if fields.custom_classes is not None:
        learned = np.isin(labels, list(fields.custom_classes))
        if not learned.any():
            report.error(
                f'{path}: has none of custom_classes={list(fields.custom_classes)} of '
                f'{fields.where}: its labels are {_few(np.unique(labels).tolist())}'
            )
    else:
        _rows(
            report.error,
            rows,
            path,
            labels >= fields.num_classes,
            lambda i: (
                f'label {labels[i]} is too large for num_classes={fields.num_classes} '
                f'of {fields.where}'
            ),
            f'set num_classes to {labels.max() + 1}, the largest label plus one, in '
            'dataset, bbox_head and evaluator',
        )
    if label_map is not None:
        known = np.isin(labels, list(label_map)) | (labels < 1)
        missing = np.unique(labels[~known]).tolist()
        if fields.custom_classes is None and missing:
            # AVA's own files hold 20 rare labels that the evaluated map leaves out.
            every = known.mean() < 0.5
            _rows(
                report.error if every else report.warning,
                rows,
                path,
                ~known,
                lambda i: f'label {labels[i]} is not in {fields.label_file}',
                f'{_few(missing)} are not scored; add them to the label map if they '
                'should be',
            )


def _check_boxes(report, fields, rows) -> None:
    path, box = fields.ann_file, rows.box
    finite = np.isfinite(box).all(1)
    low, high = box.min(1), box.max(1)
    pixels = finite & (high > _PIXELS)
    outside = finite & ~pixels & ((low < -MARGIN) | (high > 1 + MARGIN))
    slightly = finite & ~pixels & ~outside & ((low < 0) | (high > 1))

    def text(i):
        return ', '.join(f'{value:g}' for value in box[i])

    _rows(
        report.error,
        rows,
        path,
        ~finite,
        lambda i: f'box {text(i)} is not finite',
        'take the row out',
    )
    _rows(
        report.error,
        rows,
        path,
        pixels,
        lambda i: f'box {text(i)} seems to be in pixels',
        "divide by the frame's width and height",
    )
    _rows(
        report.error,
        rows,
        path,
        outside,
        lambda i: f'box {text(i)} is outside [0, 1]',
        'coordinates are fractions of width and height',
    )
    _rows(
        report.warning,
        rows,
        path,
        slightly,
        lambda i: f'box {text(i)} is slightly outside [0, 1]',
        'clip it',
    )
    turned = finite & ((box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1]))
    remedy = 'the order is x1, y1, x2, y2'
    if turned.mean() > 0.1:
        remedy += '; are these x, y, width, height?'
    _rows(
        report.error,
        rows,
        path,
        turned,
        lambda i: f'box {text(i)} has x2 <= x1 or y2 <= y1',
        remedy,
    )


def _check_seconds(report, fields, rows) -> None:
    path, start, end = fields.ann_file, fields.timestamp_start, fields.timestamp_end
    early, late = rows.second < start, rows.second >= end
    remedy = f'set timestamp_start of {fields.where} to the time of the first frame'
    if early.mean() > 0.5:
        remedy = (
            f'timestamps seem to count from {rows.second.min()}; set timestamp_start '
            f'and timestamp_end of {fields.where}, or add {start} to all of them '
            'including the proposals'
        )
    _rows(
        report.error,
        rows,
        path,
        early,
        lambda i: (
            f'timestamp {rows.second[i]} is before the first frame, '
            f'timestamp_start={start}'
        ),
        remedy,
    )
    _rows(
        report.error,
        rows,
        path,
        late,
        lambda i: (
            f'timestamp {rows.second[i]} is not before the end, timestamp_end={end}'
        ),
        f'set timestamp_end of {fields.where} to at least {rows.second.max() + 1}',
    )


def _check_duplicates(report, fields, rows) -> None:
    keys = np.column_stack([rows.video, rows.second, rows.box, rows.label, rows.person])
    order = np.lexsort(keys.T[::-1])
    same = np.zeros(len(keys), bool)
    same[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(1)
    _rows(
        report.warning,
        rows,
        fields.ann_file,
        same,
        lambda i: 'the same row as one before',
        'take the repetition out: it is counted as one more person to be found',
    )
    # The same box for two people: MMAction2 tells people apart by their boxes.
    order = np.lexsort(keys[:, :6].T[::-1])
    twins = np.zeros(len(keys), bool)
    one, two = keys[order[1:]], keys[order[:-1]]
    twins[order[1:]] = (one[:, :6] == two[:, :6]).all(1) & (one[:, 7] != two[:, 7])
    _rows(
        report.warning,
        rows,
        fields.ann_file,
        twins,
        lambda i: f'person {rows.person[i]} has the same box as another person',
        'MMAction2 merges people whose boxes are equal: change the last digit of one',
    )


def _check_holes(report, fields, rows) -> None:
    pairs = np.unique(np.stack([rows.video, rows.second], 1), axis=0)
    steps = np.diff(pairs[:, 1])[np.diff(pairs[:, 0]) == 0]
    if not len(steps):
        return
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    uneven = float((steps != usual).mean())
    if uneven > 0.25:
        report.warning(
            f'{fields.ann_file}: {uneven:.0%} of the steps from one keyframe to the '
            f'next are not the usual {usual} s, and memory counts clips, not seconds: '
            "set keyframes='detected' (MemoryAVADataset with a proposal_file)"
        )


# ------------------------------------------------------------------- exclusions


def check_exclusions(
    report: 'Report', fields: 'AvaFields', annotations: Annotations
) -> None:
    """Check the file of keyframes to leave out."""
    path = fields.exclude_file
    if path is None:
        return
    if '://' not in path and osp.isfile(path) and osp.getsize(path) == 0:
        return  # nothing is excluded
    content = _content(report, path, 'exclude_file', fields)
    if content is None:
        return
    excluded, bad = set(), []
    for number, line in enumerate(content.decode('utf-8', 'replace').splitlines(), 1):
        try:
            video, second = line.split(',')
            excluded.add((video, int(second)))
        except ValueError:
            bad.append((number, line))
    if bad:
        report.error(
            f'{path}:{bad[0][0]}: {bad[0][1].strip()!r} names no keyframe'
            f'{_more(len(bad), "line")}: expected video,second such as '
            '1j20qq1JyX4,0902'
        )
    keyframes = set(annotations.keyframes)
    if excluded and keyframes <= excluded:
        report.error(
            f'{path}: excludes every keyframe of {fields.ann_file}: check exclude_file '
            f'of {fields.where}'
        )
    elif not bad:
        common = len(keyframes & excluded)
        report.ok(f'{path}: {len(excluded):,} keyframes, {common:,} of them annotated')


# -------------------------------------------------------------------- proposals


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
    content = _content(report, path, 'proposal_file', fields)
    if content is None:
        return
    try:
        if path.endswith('.json'):
            table = json.loads(content)
        else:
            table = _DataUnpickler(io.BytesIO(content), encoding='latin1').load()
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
            f'{_more(len(timeless), "key")}: keys are the video id, a comma and the '
            "second in four digits, 'video,0902'"
        )
    if unpadded:
        video, second = str(unpadded[0]).rsplit(',', 1)
        say = report.warning if fields.strict else report.error
        say(
            f'{path}: key {unpadded[0]!r}{_more(len(unpadded), "key")} is not found '
            "under MMAction2's spelling, which has four digits and no blanks: write "
            f'{video.strip() + f",{int(second):04d}"!r}'
        )
    return found


def _check_values(report, fields, table) -> None:
    path, strict = fields.proposal_file, fields.strict
    shapes, lists, kinds, empty = [], [], [], []
    keys, arrays = [], []
    for key, value in table.items():
        if not isinstance(value, np.ndarray):
            lists.append(key)
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
            f'{path}: {shapes[0]!r} has an array {shape}{_more(len(shapes), "key")}: '
            'expected [n, 5], x1, y1, x2, y2 and score, or [n, 4] without score'
        )
    if kinds:
        kind = getattr(table[kinds[0]], 'dtype', type(table[kinds[0]]).__name__)
        report.error(
            f'{path}: {kinds[0]!r} holds {kind}, not numbers'
            f'{_more(len(kinds), "key")}: store float32 arrays'
        )
    if not strict and lists and not path.endswith('.json'):
        report.error(
            f'{path}: {lists[0]!r} holds a {type(table[lists[0]]).__name__}, not a '
            f'numpy array{_more(len(lists), "key")}: store '
            'np.array(boxes, dtype=np.float32)'
        )
    if not strict and empty:
        report.error(
            f'{path}: {empty[0]!r} has no box{_more(len(empty), "key")}: AVADataset '
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
                f'{_more(int(mask.sum()), "box", "boxes")}: {remedy}'
            )

    finite = np.isfinite(box).all(1)
    low, high = box.min(1), box.max(1)
    pixels = finite & (high > _PIXELS)
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
            f'another; it has {_few(sorted(videos))}: is it of the other split, or are '
            'videos named otherwise?'
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
            f'({share:.1%}) have no proposal{videos_too}, such as {_few(lacking)}; '
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


# ---------------------------------------------------------------------- wording


def _rows(
    say: Callable[[str], None],
    rows: Annotations,
    path: str,
    mask: np.ndarray,
    what: Callable[[int], str],
    remedy: str,
) -> None:
    """Report the first row of a mask, and how many more there are."""
    if mask.any():
        first = int(np.argmax(mask))
        more = _more(int(mask.sum()), 'line')
        say(f'{path}:{rows.line[first]}: {what(first)}{more}: {remedy}')


def _more(count: int, noun: str, plural: Optional[str] = None) -> str:
    if count == 1:
        return ''
    noun = noun if count == 2 else plural or f'{noun}s'
    return f' (and {count - 1:,} more {noun})'


def _few(items: list, limit: int = 3) -> str:
    text = ', '.join(map(str, items[:limit]))
    return text + (', ...' if len(items) > limit else '')
