"""Check the files of an AVA dataset, and whether they go together.

They are read by the readers of :class:`MemoryAVADataset`, which find what is wrong in a
line or an entry. What is here compares them with each other and with the config.
"""

import math
from collections import Counter
from functools import partial
from itertools import groupby

import numpy as np
from mmaction.evaluation import read_labelmap

from memvit_mm.datasets.ava.files import read_exclusions, read_rows
from memvit_mm.io.text import read_lines

from .media import check_media
from .mmaction import check_mmaction
from .proposals import check_proposals
from .report import a_few
from .subject import AvaCheck


def check_ava(check: AvaCheck, has_memory: bool, sample: int) -> None:
    """Check all files of a dataset.

    Args:
        check (AvaCheck): The dataset.
        has_memory (bool): Whether the model has a memory.
        sample (int): How many videos to open.
    """
    errors = check.report.count('ERROR')
    steps = [_check_labels, _check_annotations]
    if has_memory and check.dataset.keyframes == 'annotated':
        steps.append(_check_holes)
    steps += [_check_exclusions, check_proposals, partial(check_media, sample=sample)]
    for step in steps:
        try:
            step(check)
        except (OSError, ValueError) as error:
            check.report.error(f'{check.where}: {error}')
        if step is _check_annotations and not check.rows:
            return
    if not check.is_ours and check.report.count('ERROR') == errors:
        check_mmaction(check)


def _check_labels(check: AvaCheck) -> None:
    path, classes = check.dataset.label_file, check.custom_classes
    if path is None:
        return
    try:
        labels, _ = read_labelmap(read_lines(path, 'Label file', 'label_file'))
    except IndexError as error:
        raise ValueError(f'{path}: MMAction2 cannot read it ({error})') from error
    names = {label['id']: label['name'] for label in labels}
    if not names:
        raise ValueError(
            f'{path}: no label is read from it: MMAction2 takes lines that begin '
            "with exactly two blanks, '  name: \"walk\"' and then '  id: 12'"
        )
    least, largest = min(names), max(names)
    if least < check.first_label:
        check.report.error(
            f'{path}: label {least} ({names[least]!r}) is in it, but labels count '
            'from 1: add one to all of them, here and in the annotations'
        )
    number = check.dataset.num_classes
    if classes is None and largest >= number:
        check.report.warning(
            f'{path}: has label {largest} ({names[largest]!r}), too large for '
            f'num_classes={number}: set it to the largest label plus one'
        )
    unknown = sorted(set(classes or ()) - set(names))
    if unknown:
        check.report.error(
            f'{path}: lacks {unknown} of custom_classes of {check.where}: take ids '
            'that are in it'
        )
    if classes is not None and number != len(classes) + 1:
        check.report.error(
            f'{check.where}: num_classes={number} with {len(classes)} '
            f'custom_classes: set it to {len(classes) + 1}, their number plus one'
        )
    check.names = names


def _check_annotations(check: AvaCheck) -> None:
    report, path, classes = check.report, check.dataset.ann_file, check.custom_classes
    before = report.count('ERROR', 'WARNING')
    number = check.dataset.num_classes if classes is None else None
    problem = report.errors_of(path)
    check.rows = list(read_rows(path, number, check.first_label, problem))
    if not check.rows:
        if report.count('ERROR', 'WARNING') == before:
            raise ValueError(f'{path}: has no line')
        return
    labels = Counter(row.label for _, row in check.rows)
    if classes is not None and not labels.keys() & set(classes):
        report.error(
            f'{path}: has none of custom_classes={list(classes)} of {check.where}: '
            f'its labels are {a_few(sorted(labels))}'
        )
    unknown = sorted(labels.keys() - check.names)
    if unknown and check.names and classes is None:
        # AVA's own files hold 20 rare labels that the evaluated map leaves out.
        many = sum(labels[label] for label in unknown) > len(check.rows) / 2
        line = next(line for line, row in check.rows if row.label in unknown)
        (report.error if many else report.warning)(
            f'{path}:{line}: label {a_few(unknown)} is not in '
            f'{check.dataset.label_file}, and not scored: add it to the label map '
            'if it should be'
        )
    _check_seconds(check)
    _check_repetitions(check)
    if report.count('ERROR', 'WARNING') == before:
        keyframes = check.keyframes
        report.ok(
            f'{path}: {len(check.rows):,} rows, {len(keyframes):,} keyframes of '
            f'{len(check.videos):,} videos, labels {min(labels)} to {max(labels)}'
        )


def _check_seconds(check: AvaCheck) -> None:
    path, start = check.dataset.ann_file, check.dataset.timestamp_start
    end, problem = check.dataset.timestamp_end, check.report.errors_of(path)
    if check.dataset._FPS == 1 and not check.dataset.use_frames:
        end = math.inf  # timestamps count frames, which end where the video does
    seconds = [row.second for _, row in check.rows]
    first, last = min(seconds), max(seconds)
    hint = 'set timestamp_start to the time of the first frame'
    if sum(second < start for second in seconds) > len(seconds) / 2:
        hint = (
            f'timestamps seem to count from {first}; set timestamp_start '
            f'and timestamp_end of {check.where}, or add {start} to all of them '
            'including the proposals'
        )
    for line, row in check.rows:
        if row.second < start:
            problem(
                'early',
                f'{path}:{line}: timestamp {row.second} is before the first frame, '
                f'timestamp_start={start}: {hint}',
            )
        elif row.second >= end:
            problem(
                'late',
                f'{path}:{line}: timestamp {row.second} is not before the end, '
                f'timestamp_end={end}: set that of {check.where} to at least '
                f'{last + 1}',
            )


def _check_repetitions(check: AvaCheck) -> None:
    path, warning = check.dataset.ann_file, check.report.warning
    people: dict[tuple, set[int]] = {}
    for line, row in check.rows:
        known = people.setdefault((row.video, row.second, row.box, row.label), set())
        if row.person in known:
            warning(
                f'{path}:{line}: the same row as one before, which counts as one more '
                'person to be found: remove one of them',
                (path, 'repetition'),
            )
        elif known:
            warning(
                f'{path}:{line}: person {row.person} has the same box as another '
                'person, and people are told apart by their boxes: change the last '
                'digit of one',
                (path, 'same box'),
            )
        known.add(row.person)


def _check_holes(check: AvaCheck) -> None:
    keyframes = sorted(check.keyframes)
    steps: Counter = Counter()
    for _, group in groupby(keyframes, key=lambda keyframe: keyframe[0]):
        steps.update(np.diff([second for _, second in group]).tolist())
    if not steps:
        return
    ((usual, count),) = steps.most_common(1)
    uneven = 1 - count / sum(steps.values())
    if uneven > 0.25:
        check.report.warning(
            f'{check.dataset.ann_file}: {uneven:.0%} of the steps from one keyframe '
            f'to the next are not the usual {usual} s, and memory counts clips, '
            "not seconds: set keyframes='detected' (MemoryAVADataset with a "
            'proposal_file)'
        )


def _check_exclusions(check: AvaCheck) -> None:
    path, errors = check.dataset.exclude_file, check.report.count('ERROR')
    excluded = read_exclusions(path, check.report.errors_of(path))
    keyframes = check.keyframes
    if excluded and keyframes <= excluded:
        check.report.error(
            f'{path}: excludes every keyframe of {check.dataset.ann_file}: check '
            f'exclude_file of {check.where}'
        )
    elif path is not None and check.report.count('ERROR') == errors:
        common = len(keyframes & excluded)
        check.report.ok(
            f'{path}: {len(excluded):,} keyframes, {common:,} of them annotated'
        )
