"""What can be wrong in AVA's tables: annotations, label map, exclusions."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os import path as osp
from typing import TYPE_CHECKING, Optional

import numpy as np
from mmaction.evaluation import read_labelmap

from memvit_mm.datasets.ava.files import (
    MARGIN,
    first_label,
    parse_annotation,
    parse_exclusion,
)

from .words import a_few, and_more, read_lines

if TYPE_CHECKING:
    from .config import AvaFields, Report

_COLUMNS = 'video,second,x1,y1,x2,y2,label,person'
_EXAMPLE = '1j20qq1JyX4,0902,0.002,0.118,0.714,0.977,12,1'
# Coordinates beyond this are no fractions with an error but pixels.
PIXELS = 2


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
    lines = read_lines(report, path, 'label_file', fields)
    if lines is None:
        return None
    try:
        labels = {label['id']: label['name'] for label in read_labelmap(lines)[0]}
    except (IndexError, ValueError) as error:
        report.error(
            f'{path}: MMAction2 cannot read it ({error}): write names in double quotes '
            "and ids as numbers, '  name: \"walk\"' and then '  id: 12'"
        )
        return None
    if not labels:
        report.error(
            f'{path}: no label is read from it: MMAction2 takes lines that begin with '
            "exactly two blanks, '  name: \"walk\"' and then '  id: 12'; write it so"
        )
        return None
    if min(labels) < first_label(fields.fps, fields.multilabel):
        report.error(
            f'{path}: label {min(labels)} ({labels[min(labels)]!r}) is in it, but '
            'labels count from 1: add one to all of them, here and in the annotations'
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
    lines = read_lines(report, path, 'ann_file', fields)
    if lines is None:
        return None
    before = report.count('ERROR') + report.count('WARNING')
    rows = _parse(report, path, lines, fields.strict)
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


def _parse(
    report: 'Report', path: str, lines: list[str], strict: bool
) -> Optional[Annotations]:
    if lines and lines[0].startswith('\ufeff'):
        lines[0] = lines[0][1:]
        report.error(
            f'{path}:1: begins with a byte order mark, which becomes part of the first '
            'video id: save it as UTF-8 without one'
        )
    places: dict[str, int] = {}
    numbers: list[int] = []
    integers: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_annotation(line)
        except ValueError:
            bad.append(number)
            continue
        if row is None:
            if not strict:  # AVADataset stops there
                bad.append(number)
            continue
        boxes.append(row.box)
        video = places.setdefault(row.video, len(places))
        integers.append((video, row.second, row.label, row.person))
        numbers.append(number)
    if bad:
        first = lines[bad[0] - 1].strip()
        report.error(
            f'{path}:{bad[0]}: {_reason(first)}{and_more(len(bad), "line")}: expected '
            f'{_COLUMNS}, such as {_EXAMPLE}'
        )
    if not numbers:
        if not bad:
            report.error(
                f'{path}: has no line: expected {_COLUMNS}, such as {_EXAMPLE}'
            )
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
    if len(parts) < 8:
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
    first = first_label(fields.fps, fields.multilabel)
    remedy = 'add one to all of them, in the label map too (0 stands for no action)'
    _rows(
        report.error,
        rows,
        path,
        labels < first,
        lambda i: f'label {labels[i]}, but labels count from {first}',
        remedy if first else 'take the row out',
    )
    if fields.custom_classes is not None:
        learned = np.isin(labels, list(fields.custom_classes))
        if not learned.any():
            report.error(
                f'{path}: has none of custom_classes={list(fields.custom_classes)} of '
                f'{fields.where}: its labels are {a_few(np.unique(labels).tolist())}'
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
        known = np.isin(labels, list(label_map)) | (labels < first)
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
                f'{a_few(missing)} are not scored; add them to the label map if they '
                'should be',
            )


def _check_boxes(report, fields, rows) -> None:
    path, box = fields.ann_file, rows.box
    finite = np.isfinite(box).all(1)
    low, high = box.min(1), box.max(1)
    pixels = finite & (high > PIXELS)
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
    turned = finite & ((box[:, 2] < box[:, 0]) | (box[:, 3] < box[:, 1]))
    flat = finite & ~turned & ((box[:, 2] == box[:, 0]) | (box[:, 3] == box[:, 1]))
    remedy = 'the order is x1, y1, x2, y2'
    if turned.mean() > 0.1:
        remedy += '; are these x, y, width, height?'
    for say, mask in ((report.error, turned), (report.warning, flat)):
        _rows(
            say,
            rows,
            path,
            mask,
            lambda i: f'box {text(i)} has x2 <= x1 or y2 <= y1',
            remedy,
        )


def _check_seconds(report, fields, rows) -> None:
    path, start, end = fields.ann_file, fields.timestamp_start, fields.timestamp_end
    early, late = rows.second < start, rows.second >= end
    if fields.fps == 1 and not fields.use_frames:
        late = np.zeros_like(late)  # frames, which end where the video does
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
    lines = read_lines(report, path, 'exclude_file', fields)
    if lines is None:
        return
    excluded, bad = set(), []
    for number, line in enumerate(lines, 1):
        try:
            keyframe = parse_exclusion(line)
        except ValueError:
            bad.append((number, line))
            continue
        if keyframe is not None:
            excluded.add(keyframe)
        elif not fields.strict:  # AVADataset stops there
            bad.append((number, line))
    if bad:
        report.error(
            f'{path}:{bad[0][0]}: {bad[0][1].strip()!r} names no keyframe'
            f'{and_more(len(bad), "line")}: expected video,second such as '
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
        more = and_more(int(mask.sum()), 'line')
        say(f'{path}:{rows.line[first]}: {what(first)}{more}: {remedy}')
