"""Where the people are: boxes from the caller, or from AVA's proposal files."""

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from torch import nn

from memvit_mm.datasets.ava.files import read_proposals
from memvit_mm.datasets.clip_recipe import test_dataset

from .detector import PersonDetector

BoxFinder = Callable[[np.ndarray, float], Any]
BoxSource = Union[BoxFinder, nn.Module, Mapping, str]


class PersonBoxes(NamedTuple):
    """The people in a keyframe."""

    boxes: np.ndarray
    """x1, y1, x2, y2 in pixels, ``[people, 4]`` float32."""
    scores: np.ndarray
    """``[people]`` float32."""
    track_ids: Optional[np.ndarray] = None
    """Whose they are, the same from keyframe to keyframe, int64 ``[people]``."""


class CalledBoxes:
    """Boxes from a function of a keyframe and its time, called by one thread at a time.

    Args:
        find (callable): Called as ``find(image, time)`` with a frame ``[H, W, 3]``
            uint8 RGB and its time in seconds, returns boxes in pixels, ``[people, 4]``
            or, with scores, ``[people, 5]``; or :class:`PersonBoxes`, which may say
            whose they are. What lies outside the frame is cut off. Its ``track``, if it
            has one, says whether streams number the people.
        option (str): What users call it.

    Raises:
        ValueError: If it takes other arguments or, later, returns something else.
    """

    def __init__(self, find: BoxFinder, option: str = 'boxes') -> None:
        _check_arguments(find, option)
        self.find = find
        self.track = bool(getattr(find, 'track', False))
        self._lock = threading.Lock()
        self._told = False

    def __call__(self, image: np.ndarray, video: Any, time: float) -> PersonBoxes:
        with self._lock:
            # It may draw on its frame.
            found = self.find(image.copy(), time)
        if found is None:
            raise ValueError(
                f'boxes returned None at {time:g} seconds: where nobody is, return [].'
            )
        ids = None
        if isinstance(found, PersonBoxes):
            found, ids = _with_scores(found, time)
        boxes = _as_array(found)
        if boxes.size == 0:
            boxes = np.zeros((0, 5), dtype=np.float32)
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
            raise ValueError(
                f'boxes returned {list(boxes.shape)} at {time:g} seconds, expected '
                '[people, 4] of x1, y1, x2, y2 in pixels, or [people, 5] with scores.'
            )
        if not np.isfinite(boxes).all():
            raise ValueError(f'boxes returned nan or infinity at {time:g} seconds.')
        if len(boxes) and boxes[:, :4].max() <= 1:
            raise ValueError(
                f'boxes returned fractions of the frame at {time:g} seconds '
                f'({boxes[0, :4].round(3).tolist()}), expected pixels: multiply them '
                'by its width and height.'
            )
        height, width = image.shape[:2]
        scores = boxes[:, 4] if boxes.shape[1] == 5 else np.ones(len(boxes))
        corners = np.clip(boxes[:, :4], 0, [width, height, width, height])
        inside = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        self._check_inside(inside, boxes, image, time)
        corners, scores = corners[inside], scores[inside]
        ids = None if ids is None else ids[inside]
        return PersonBoxes(corners.astype(np.float32), scores.astype(np.float32), ids)

    def _check_inside(
        self, inside: np.ndarray, boxes: np.ndarray, image: np.ndarray, time: float
    ) -> None:
        if inside.all() or self._told:
            return
        self._told = True
        row = int(np.argmin(inside))
        height, width = image.shape[:2]
        warnings.warn(
            f'Of the boxes at {time:g} seconds {int((~inside).sum())} of {len(boxes)} '
            f'have nothing of the frame ({width} x {height} pixels) in them and are '
            f'left out, the first is {boxes[row, :4].round(1).tolist()}: expected x1, '
            'y1, x2, y2 in pixels. (Said once.)',
            stacklevel=3,
        )


class ProposalBoxes:
    """Boxes from AVA's proposals: ``{'video,0902': [people, 5]}``, fractions.

    Args:
        proposals (Mapping | str): The table, or its file.
        timestamp_start (int): AVA's second at which the video starts.
        threshold (float): Least score of a box.
        limit (int): Boxes of a keyframe at most.
    """

    track = False

    def __init__(
        self,
        proposals: Union[Mapping, str],
        timestamp_start: int = 900,
        threshold: float = 0.9,
        limit: int = 1000,
    ) -> None:
        if isinstance(proposals, Mapping):
            self.table = {parse_keyframe(k): _as_array(v) for k, v in proposals.items()}
        else:
            self.table = read_proposals(str(proposals))
        self.timestamp_start = timestamp_start
        self.threshold = np.float32(threshold)
        self.limit = limit
        self._videos = {name for name, _ in self.table}

    def _check_video(self, video: str) -> None:
        if video in self._videos:
            return
        # Said once.
        self._videos.add(video)
        names = ', '.join(sorted({name for name, _ in self.table})[:5])
        warnings.warn(
            f'The proposals have no boxes for {video!r}: nobody will be found there; '
            f'they are of {names or "no video"}: give the stream its name there, '
            'name=....',
            stacklevel=2,
        )

    def __call__(self, image: np.ndarray, video: Any, time: float) -> PersonBoxes:
        self._check_video(str(video))
        second = round(time) + self.timestamp_start
        boxes = self.table.get((str(video), second))
        if boxes is None or not len(boxes):
            boxes = np.zeros((0, 5), dtype=np.float32)
        if boxes.shape[1] == 4:
            boxes = np.concatenate([boxes, np.ones((len(boxes), 1), np.float32)], 1)
        boxes = boxes[boxes[:, 4] >= self.threshold][: self.limit]
        height, width = image.shape[:2]
        # As the decoders do, to the bit.
        corners = boxes[:, :4] * np.array([width, height, width, height])
        return PersonBoxes(corners.astype(np.float32), boxes[:, 4])


def box_source(
    boxes: BoxSource, cfg: Mapping
) -> Union[CalledBoxes, ProposalBoxes, None]:
    """What ``boxes=...`` stands for; thresholds are those of the config's dataset."""
    if boxes is None or isinstance(boxes, (CalledBoxes, ProposalBoxes)):
        return boxes
    if callable(boxes) and not isinstance(boxes, nn.Module):
        return CalledBoxes(boxes)
    dataset = test_dataset(cfg)
    if isinstance(boxes, nn.Module):
        threshold = dataset.get('person_det_score_thr', 0.9)
        return CalledBoxes(PersonDetector(boxes, score_thr=threshold))
    if not isinstance(boxes, (Mapping, str)) and not hasattr(boxes, '__fspath__'):
        raise ValueError(
            'boxes is a function of a frame and its time, a PersonDetector, a table of '
            f'proposals or its file, got: {type(boxes).__name__}.'
        )
    return ProposalBoxes(
        boxes,
        dataset.get('timestamp_start', 900),
        dataset.get('person_det_score_thr', 0.9),
        dataset.get('num_max_proposals', 1000),
    )


def _check_arguments(find: BoxFinder, option: str) -> None:
    try:
        signature = inspect.signature(find)
    except (TypeError, ValueError):
        # Written in C, it need not say what it takes.
        return
    try:
        signature.bind(None, 0.0)
    except TypeError:
        name = getattr(find, '__name__', type(find).__name__)
        raise ValueError(
            f'{option}=... is called with a frame [H, W, 3] and its time in seconds, '
            f'and {name}{signature} does not take these two: let it be find(image, '
            'time).'
        ) from None


def _as_array(boxes: Any) -> np.ndarray:
    if hasattr(boxes, 'detach'):
        boxes = boxes.detach().cpu().numpy()
    try:
        return np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f'boxes are {type(boxes).__name__} that are no numbers, expected '
            '[people, 4] of x1, y1, x2, y2, or [people, 5] with scores.'
        ) from None


def _with_scores(found: PersonBoxes, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``[people, 5]`` and numbers ``[people]`` of what a function returned."""
    boxes = _as_array(found.boxes).reshape(-1, 4)
    columns = [('scores', found.scores, np.float32)]
    if found.track_ids is not None:
        columns.append(('track_ids', found.track_ids, np.int64))
    read = []
    for name, values, kind in columns:
        values = np.asarray(values, dtype=kind)
        if values.shape != (len(boxes),):
            raise ValueError(
                f'boxes returned {len(boxes)} boxes and {name} {list(values.shape)} at '
                f'{time:g} seconds, expected one for each box.'
            )
        read.append(values)
    return np.column_stack([boxes, read[0]]), read[1] if read[1:] else None


def parse_keyframe(key: Any) -> tuple[str, int]:
    """Video and AVA second of a key of proposals, such as ``'1j20qq1JyX4,0902'``."""
    video, _, second = str(key).rpartition(',')
    if not video or not second.strip().isdigit():
        raise ValueError(
            f"boxes has the key {key!r}, expected 'video,second' such as "
            "'1j20qq1JyX4,0902'."
        )
    return video, int(second)
