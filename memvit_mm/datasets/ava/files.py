"""Readers of AVA's files: annotations, excluded keyframes, person proposals.

Each refuses what it does not understand with one sentence that names file and line.
"""

import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from mmengine.fileio import get

# A box may stick out of the frame by this share of it before it counts as wrong, for
# instance as being in pixels.
MARGIN = 0.1

Keyframe = tuple[str, int]
"""Video id and timestamp."""


def read_lines(path: str, what: str, option: str) -> list[str]:
    """The lines of a text file, as :func:`read_text` reads it."""
    return read_text(path, what, option).splitlines()


def read_text(path: str, what: str, option: str) -> str:
    """A text file.

    Raises:
        FileNotFoundError, ValueError: If it does not exist, or is no text.
    """
    content = _read(path, what, option)
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{what} {path} is not a text file ({error.reason} at byte '
            f'{error.start}): check {option}.'
        ) from error


def _read(path: str, what: str, option: str) -> bytes:
    try:
        return get(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{what} {path} does not exist: check {option} of the dataset.'
        ) from error
    except OSError as error:
        raise ValueError(
            f'{what} {path} cannot be read ({error.strerror or error}): check {option} '
            'of the dataset.'
        ) from error


class Row(NamedTuple):
    """A line of an annotation file."""

    video: str
    second: int
    box: tuple[float, float, float, float]
    label: int
    person: int


def parse_annotation(line: str) -> Optional[Row]:
    """A line ``video,second,x1,y1,x2,y2,label,person``; None if there is nothing in it.

    Columns after these are left out, as in MMAction2.

    Raises:
        ValueError: If it is another line.
    """
    if not line.strip():
        return None
    video, second, x1, y1, x2, y2, label, person, *_ = line.split(',')
    box = (float(x1), float(y1), float(x2), float(y2))
    return Row(video, int(second), box, int(label), int(person))


def parse_exclusion(line: str) -> Optional[Keyframe]:
    """A line ``video,second``; None if there is nothing in it.

    Raises:
        ValueError: If it is another line.
    """
    if not line.strip():
        return None
    video, second = line.strip().split(',')
    return video, int(second)


def first_label(fps: float, multilabel: bool) -> int:
    """The least label: AVA reserves 0 for no action, MultiSports has a label 0.

    Args:
        fps (float): 1 where timestamps count frames, as in MultiSports.
        multilabel (bool): Whether a box may have several labels.
    """
    return 0 if fps == 1 or not multilabel else 1


def read_annotations(
    path: str,
    num_classes: Optional[int] = None,
    classes: Optional[Sequence[int]] = None,
    first_label: int = 1,
) -> tuple[list[str], dict[Keyframe, dict[tuple, tuple[int, list[int]]]]]:
    """Read an AVA annotation file, merging the lines of one box.

    Args:
        path (str): A CSV file with lines ``video,second,x1,y1,x2,y2,label,person``;
            coordinates are fractions of the frame, labels count from 1.
        num_classes (int, optional): Number of labels, with 0 for no action; others
            are an error. Not checked by default.
        classes (Sequence[int], optional): The labels in the file that are learned as
            labels 0, 1, ...; lines with others are left out. By default all.
        first_label (int): The least label, as :func:`first_label` tells.

    Returns:
        The videos in the file, in order, and for each keyframe its boxes
        ``(x1, y1, x2, y2)``, in order, with the person's id and the labels.

    Raises:
        FileNotFoundError, ValueError: If the file or a line cannot be read.
    """
    videos: dict[str, None] = {}
    keyframes: dict[Keyframe, dict[tuple, tuple[int, list[int]]]] = {}
    low, high = -MARGIN, 1 + MARGIN
    learned = None
    if classes is not None:
        learned = {label: place for place, label in enumerate(classes)}
    for number, line in enumerate(read_lines(path, 'Annotation file', 'ann_file'), 1):
        try:
            row = parse_annotation(line)
        except ValueError as error:
            raise ValueError(
                f'{path}:{number}: {line.strip()!r} is not a line of an AVA annotation '
                'file: expected video,second,x1,y1,x2,y2,label,person, such as '
                '1j20qq1JyX4,0902,0.002,0.118,0.714,0.977,12,1.'
            ) from error
        if row is None:
            continue
        video, second, box, label_id, person_id = row
        if not (low <= box[0] <= box[2] <= high and low <= box[1] <= box[3] <= high):
            raise ValueError(
                f'{path}:{number}: box {", ".join(line.split(",")[2:6])} is not '
                'x1, y1, x2, y2 with x1 <= x2 and y1 <= y2 as fractions of the frame: '
                'divide pixels by its width and height.'
            )
        if label_id < first_label:
            why = (
                ', since 0 means no action (for MultiSports, where they count from 0, '
                "set fps=1 in the dataset and take type='MultiSportsMetric')"
            )
            raise ValueError(
                f'{path}:{number}: label {label_id} is not possible: labels count '
                f'from {first_label}{why if first_label else ""}.'
            )
        if learned is None and num_classes is not None and label_id >= num_classes:
            raise ValueError(
                f'{path}:{number}: label {label_id} is too large for num_classes='
                f'{num_classes}: set it to the largest label plus one.'
            )
        videos[video] = None
        if learned is not None:
            label_id = learned.get(label_id)
        if label_id is not None:
            boxes = keyframes.setdefault((video, second), {})
            boxes.setdefault(box, (person_id, []))[1].append(label_id)
    return list(videos), keyframes


def read_exclusions(path: Optional[str]) -> set[Keyframe]:
    """The keyframes in a file of lines ``video,second``; none if there is no file."""
    if path is None:
        return set()
    excluded = set()
    for number, line in enumerate(read_lines(path, 'File', 'exclude_file'), 1):
        try:
            keyframe = parse_exclusion(line)
        except ValueError as error:
            raise ValueError(
                f'{path}:{number}: {line.strip()!r} does not name a keyframe to '
                'exclude: expected video,second.'
            ) from error
        if keyframe is not None:
            excluded.add(keyframe)
    return excluded


def read_proposals(
    path: Union[str, Mapping], dtype: Optional[type] = np.float32
) -> dict[Keyframe, np.ndarray]:
    """Read the person proposals of every keyframe.

    Args:
        path (str | Mapping): A pickle (or ``.json``) file of a dict, or the dict, from
            ``'video,second'`` to boxes ``[n, 4]`` or ``[n, 5]``: x1, y1, x2, y2 as
            fractions of the frame, and a score. The pickle may hold numpy arrays,
            strings and numbers,
            nothing that runs code.
        dtype (type, optional): Of the boxes. None: as in the file.

    Returns:
        dict[(str, int), np.ndarray]: ``[n, 5]`` for each keyframe, coordinates
        clipped to [0, 1]; score 1 where the file has none.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or something else.
    """
    if isinstance(path, Mapping):
        return dict(_proposals('The table boxes', path, dtype))
    content = _read(path, 'Proposal file', 'proposal_file')
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
    return dict(_proposals(f'Proposal file {path}', table, dtype))


def _proposals(
    name: str, table: Mapping, dtype: Optional[type]
) -> Iterator[tuple[Keyframe, np.ndarray]]:
    for key, value in table.items():
        try:
            video, second = key.rsplit(',', 1)
            keyframe = (video, int(second))
            if not video:
                raise ValueError('There is no video.')
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"{name} has the key {key!r}, expected 'video,second' "
                "such as '1j20qq1JyX4,0902'."
            ) from error
        try:
            boxes = np.asarray(value, dtype=dtype)
            if boxes.dtype.kind != 'f':
                boxes = boxes.astype(np.float64)
        except (TypeError, ValueError):
            boxes = np.empty((1, 0))
        if boxes.size == 0 and boxes.ndim and boxes.shape[0] == 0:
            boxes = np.zeros((0, 5), dtype=dtype or np.float32)
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
            raise ValueError(
                f'{name} has {_describe(value)} for {key!r}, expected '
                'an array [n, 5] of x1, y1, x2, y2 and score.'
            )
        corners = boxes[:, :4]
        if not ((corners >= -MARGIN) & (corners <= 1 + MARGIN)).all():
            raise ValueError(
                f'{name} has a box with coordinates '
                f'{corners.min():g} to {corners.max():g} for {key!r}, expected '
                'fractions of the frame: divide pixels by its width and height.'
            )
        full = np.ones((len(boxes), 5), dtype=boxes.dtype)
        full[:, : boxes.shape[1]] = boxes
        np.clip(full[:, :4], 0, 1, out=full[:, :4])
        yield keyframe, full


def unpickle_data(content: bytes) -> Any:
    """What a pickle of arrays, containers, strings and numbers holds; runs no code.

    Raises:
        pickle.UnpicklingError: If it holds anything else.
    """
    return _DataUnpickler(io.BytesIO(content), encoding='latin1').load()


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'an array {list(value.shape)}'
    return f'a {type(value).__name__}'


class _DataUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, containers, strings and numbers, and nothing else."""

    _numpy = {
        ('multiarray', '_reconstruct'),
        ('multiarray', 'scalar'),
        ('numeric', '_frombuffer'),
    }
    _other = {
        ('numpy', 'ndarray'),
        ('numpy', 'dtype'),
        ('_codecs', 'encode'),
        ('builtins', 'bytes'),
        ('__builtin__', 'bytes'),  # its name in pickles for Python 2
        ('collections', 'OrderedDict'),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle of arrays needs, under numpy 1's and 2's names."""
        package, _, part = module.rpartition('.')
        if package in ('numpy.core', 'numpy._core') and (part, name) in self._numpy:
            core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
            return super().find_class(f'{core}.{part}', name)
        if (module, name) in self._other or (
            module == 'numpy.dtypes' and name.endswith('DType')
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f'it holds {module}.{name}, and only numpy arrays, dicts, lists, strings '
            'and numbers are read'
        )
