"""Readers of AVA's files: annotations, excluded keyframes, person proposals.

A reader stops at the first line or entry that it does not understand, with one sentence
that names file and line. Called with ``on_problem``, it hands every such sentence to
that function instead, leaves the line out and goes on.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Optional, Union

import numpy as np

from memvit_mm.io.data_pickle import unpickle_data
from memvit_mm.io.text import read_content, read_lines

# A box may stick out of the frame by this share of it before it counts as wrong, for
# instance as being in pixels.
MARGIN = 0.1

Keyframe = tuple[str, int]
"""Video id and timestamp."""

OnProblem = Callable[[str, str], None]
"""Takes the kind of a problem, such as 'box', and a sentence about it."""


def refuse(kind: str, sentence: str) -> NoReturn:
    """Stop at a problem in a file.

    Raises:
        ValueError: Always, with the sentence.
    """
    raise ValueError(sentence)


class Row(NamedTuple):
    """A line of an annotation file."""

    video: str
    second: int
    box: tuple[float, float, float, float]
    label: int
    person: int


def first_label(fps: float, multilabel: bool) -> int:
    """The least label: AVA reserves 0 for no action, MultiSports has a label 0.

    Args:
        fps (float): 1 where timestamps count frames, as in MultiSports.
        multilabel (bool): Whether a box may have several labels.
    """
    return 0 if fps == 1 or not multilabel else 1


def read_rows(
    path: str,
    num_classes: Optional[int] = None,
    first_label: int = 1,
    on_problem: OnProblem = refuse,
    of: str = 'the dataset',
) -> Iterator[tuple[int, Row]]:
    """Read the lines of an AVA annotation file, each with its number from 1.

    Columns after the eighth are ignored, as in MMAction2; so are empty lines.

    Args:
        path (str): A CSV file with lines ``video,second,x1,y1,x2,y2,label,person``;
            coordinates are fractions of the frame.
        num_classes (int, optional): Number of labels, with 0 for no action; larger
            labels are an error. Not checked by default.
        first_label (int): The least label, as :func:`first_label` tells.
        on_problem (callable): Called with 'line', 'box' or 'label' and a sentence for
            a line that is left out. By default the reader stops there.
        of (str): Whose ``ann_file`` it is, for the message.

    Raises:
        FileNotFoundError, ValueError: If the file or a line cannot be read.
    """
    low, high = -MARGIN, 1 + MARGIN
    lines = read_lines(path, 'Annotation file', 'ann_file', of)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            video, second, x1, y1, x2, y2, label, person, *_ = line.split(',')
            box = (float(x1), float(y1), float(x2), float(y2))
            row = Row(video, int(second), box, int(label), int(person))
        except ValueError:
            on_problem(
                'line',
                f'{path}:{number}: {line.strip()!r} is not a line of an AVA annotation '
                'file: expected video,second,x1,y1,x2,y2,label,person, such as '
                '1j20qq1JyX4,0902,0.002,0.118,0.714,0.977,12,1.',
            )
            continue
        if not (low <= box[0] <= box[2] <= high and low <= box[1] <= box[3] <= high):
            on_problem(
                'box',
                f'{path}:{number}: box {", ".join(line.split(",")[2:6])} is not '
                'x1, y1, x2, y2 with x1 <= x2 and y1 <= y2 as fractions of the frame: '
                'divide pixels by its width and height.',
            )
        elif row.label < first_label:
            why = (
                ', since 0 means no action (for MultiSports, where they count from 0, '
                "set fps=1 in the dataset and take type='MultiSportsMetric')"
            )
            on_problem(
                'label',
                f'{path}:{number}: label {row.label} is not possible: labels count '
                f'from {first_label}{why if first_label else ""}.',
            )
        elif num_classes is not None and row.label >= num_classes:
            on_problem(
                'large label',
                f'{path}:{number}: label {row.label} is too large for num_classes='
                f'{num_classes}: set it to the largest label plus one.',
            )
        else:
            yield number, row


def read_annotations(
    path: str,
    num_classes: Optional[int] = None,
    classes: Optional[Sequence[int]] = None,
    first_label: int = 1,
    of: str = 'the dataset',
) -> tuple[list[str], dict[Keyframe, dict[tuple, tuple[int, list[int]]]]]:
    """Read an AVA annotation file, merging the lines of one box.

    Args:
        path, num_classes, first_label, of: As :func:`read_rows`.
        classes (Sequence[int], optional): The labels in the file that are learned as
            labels 0, 1, ...; lines with others are left out. By default all.

    Returns:
        The videos in the file, in order, and for each keyframe its boxes
        ``(x1, y1, x2, y2)``, in order, with the person's id and the labels.

    Raises:
        FileNotFoundError, ValueError: If the file or a line cannot be read.
    """
    videos: dict[str, None] = {}
    keyframes: dict[Keyframe, dict[tuple, tuple[int, list[int]]]] = {}
    learned = None
    if classes is not None:
        learned = {label: place for place, label in enumerate(classes)}
        num_classes = None
    for _, row in read_rows(path, num_classes, first_label, of=of):
        videos[row.video] = None
        label = row.label if learned is None else learned.get(row.label)
        if label is not None:
            boxes = keyframes.setdefault((row.video, row.second), {})
            boxes.setdefault(row.box, (row.person, []))[1].append(label)
    return list(videos), keyframes


def read_exclusions(
    path: Optional[str], on_problem: OnProblem = refuse, of: str = 'the dataset'
) -> set[Keyframe]:
    """The keyframes in a file of lines ``video,second``; none if there is no file."""
    if path is None:
        return set()
    excluded = set()
    for number, line in enumerate(read_lines(path, 'File', 'exclude_file', of), 1):
        if not line.strip():
            continue
        try:
            video, second = line.strip().split(',')
            excluded.add((video, int(second)))
        except ValueError:
            on_problem(
                'line',
                f'{path}:{number}: {line.strip()!r} does not name a keyframe to '
                'exclude: expected video,second.',
            )
    return excluded


def read_proposals(
    path: Union[str, Mapping],
    dtype: Optional[type] = np.float32,
    on_problem: OnProblem = refuse,
) -> dict[Keyframe, np.ndarray]:
    """Read the person proposals of every keyframe.

    Args:
        path (str | Mapping): A pickle (or ``.json``) file of a dict, or the dict, from
            ``'video,second'`` to boxes ``[n, 4]`` or ``[n, 5]``: x1, y1, x2, y2 as
            fractions of the frame, and a score. The pickle may hold numpy arrays,
            strings and numbers,
            nothing that runs code.
        dtype (type, optional): Of the boxes. None: as in the file.
        on_problem (callable): Called with 'key', 'array' or 'box' and a sentence for
            an entry that is left out. By default the reader stops there.

    Returns:
        dict[(str, int), np.ndarray]: ``[n, 5]`` for each keyframe, coordinates
        clipped to [0, 1]; score 1 where the file has none.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or something else.
    """
    if isinstance(path, Mapping):
        return dict(_proposals('The table boxes', path, dtype, on_problem))
    content = read_content(path, 'Proposal file', 'proposal_file')
    try:
        if path.endswith('.json'):
            table = json.loads(content)
        else:
            table = unpickle_data(content)
    except Exception as error:
        raise ValueError(
            f'Proposal file {path} cannot be read ({error}): expected a pickle of '
            "{'video,second': array [n, 5]}."
        ) from error
    if not isinstance(table, dict):
        raise ValueError(
            f'Proposal file {path} holds a {type(table).__name__}, expected a dict '
            "{'video,second': array [n, 5]}, such as MMAction2's "
            'ava_dense_proposals_val.FAIR.recall_93.9.pkl.'
        )
    return dict(_proposals(f'Proposal file {path}', table, dtype, on_problem))


def _proposals(
    name: str, table: Mapping, dtype: Optional[type], on_problem: OnProblem
) -> Iterator[tuple[Keyframe, np.ndarray]]:
    for key, value in table.items():
        try:
            video, second = key.rsplit(',', 1)
            keyframe = (video, int(second))
            if not video:
                raise ValueError('There is no video.')
        except (AttributeError, ValueError):
            on_problem(
                'key',
                f"{name} has the key {key!r}, expected 'video,second' such as "
                "'1j20qq1JyX4,0902'.",
            )
            continue
        try:
            boxes = np.asarray(value, dtype=dtype)
            if boxes.dtype.kind != 'f':
                boxes = boxes.astype(np.float64)
        except (TypeError, ValueError):
            boxes = np.empty((1, 0))
        if boxes.size == 0 and boxes.ndim and boxes.shape[0] == 0:
            boxes = np.zeros((0, 5), dtype=dtype or np.float32)
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
            on_problem(
                'array',
                f'{name} has {_describe(value)} for {key!r}, expected an array [n, 5] '
                'of x1, y1, x2, y2 and score.',
            )
            continue
        corners = boxes[:, :4]
        if not ((corners >= -MARGIN) & (corners <= 1 + MARGIN)).all():
            on_problem(
                'box',
                f'{name} has a box with coordinates '
                f'{corners.min():g} to {corners.max():g} for {key!r}, expected '
                'fractions of the frame: divide pixels by its width and height.',
            )
            continue
        full = np.ones((len(boxes), 5), dtype=boxes.dtype)
        full[:, : boxes.shape[1]] = boxes
        np.clip(full[:, :4], 0, 1, out=full[:, :4])
        yield keyframe, full


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'an array {list(value.shape)}'
    return f'a {type(value).__name__}'
