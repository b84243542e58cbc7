"""Boxes of people for streams: from a function, a detector, or AVA's proposals."""

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
    """A number for each person, the same in every keyframe, int64 ``[people]``."""


class CalledBoxes:
    """Boxes from a function of a keyframe and its time, called by one thread at a time.

    Args:
        find (callable): Called as ``find(image, time)`` with a frame ``[H, W, 3]``
            uint8 RGB and its time in seconds. It returns boxes in pixels, ``[people,
            4]`` or, with scores, ``[people, 5]``; or :class:`PersonBoxes`, which may
            have track ids. Boxes are cut off at the edges of the frame. If it has an
            attribute ``track``, that says whether streams track the people.
        option (str): The name of the option that ``find`` was given as, for messages.

    Raises:
        ValueError: If it takes other arguments or, later, returns something else.
    """

    def __init__(self, find: BoxFinder, option: str = 'boxes') -> None:
        _check_arguments(find, option)
        self.find = find
        self.track = bool(getattr(find, 'track', False))
        self._lock = threading.Lock()
        self._warned = False

    def __call__(self, image: np.ndarray, video: Any, time: float) -> PersonBoxes:
        with self._lock:
            # A copy, since the function may draw on it.
            found = self.find(image.copy(), time)
        corners, scores, ids = self.check(found, time)
        height, width = image.shape[:2]
        cut = np.clip(corners, 0, [width, height, width, height]).astype(np.float32)
        inside = (cut[:, 2:] > cut[:, :2]).all(axis=1)
        if not inside.all() and not self._warned:
            self._warned = True
            warnings.warn(
                f'{int((~inside).sum())} of the {len(inside)} boxes at {time:g} '
                f'seconds lie outside the frame ({width} x {height} pixels) and are '
                f'left out, the first is {corners[~inside][0].round(1).tolist()}: '
                'boxes must be x1, y1, x2, y2 in pixels. (Said once.)',
                stacklevel=2,
            )
        if ids is not None:
            ids = np.asarray(ids, dtype=np.int64)[inside]
        return PersonBoxes(cut[inside], scores[inside], ids)

    @staticmethod
    def check(found: Any, time: float) -> tuple[np.ndarray, np.ndarray, Any]:
        """What the function returned for a time, as corners, scores and track ids.

        Raises:
            ValueError: If it is something else.
        """
        if found is None:
            raise ValueError(
                f'boxes returned None at {time:g} seconds: return [] where nobody is.'
            )
        scores = ids = None
        if isinstance(found, PersonBoxes):
            found, scores, ids = found
        boxes = _as_array(found)
        if boxes.size == 0:
            boxes = np.zeros((0, 4), dtype=np.float32)
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
            raise ValueError(
                f'boxes returned {list(boxes.shape)} at {time:g} seconds, expected '
                '[people, 4] of x1, y1, x2, y2 in pixels, or [people, 5] with scores.'
            )
        if scores is None:
            scores = boxes[:, 4] if boxes.shape[1] == 5 else np.ones(len(boxes))
        for name, values in (('scores', scores), ('track_ids', ids)):
            if values is not None and np.shape(values) != (len(boxes),):
                raise ValueError(
                    f'boxes returned {len(boxes)} boxes and {name} '
                    f'{list(np.shape(values))} at {time:g} seconds, expected one for '
                    'each box.'
                )
        scores, corners = np.asarray(scores, dtype=np.float32), boxes[:, :4]
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise ValueError(
                f'boxes returned nan or infinity at {time:g} seconds: return finite '
                'numbers.'
            )
        if len(corners) and corners.max() <= 1:
            raise ValueError(
                f'boxes returned fractions of the frame at {time:g} seconds '
                f'({corners[0].round(3).tolist()}), expected pixels: multiply them '
                'by its width and height.'
            )
        return corners, scores, ids


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
        is_table = isinstance(proposals, Mapping)
        self.table = read_proposals(proposals if is_table else str(proposals))
        self.timestamp_start = timestamp_start
        self.threshold = np.float32(threshold)
        self.limit = limit
        self._known = {name for name, _ in self.table}

    def __call__(self, image: np.ndarray, video: Any, time: float) -> PersonBoxes:
        video = str(video)
        if video not in self._known:
            names = sorted(self._known)[:5]
            self._known.add(video)
            warnings.warn(
                f'The proposals have no boxes for the video {video!r}, so nobody will '
                f'be found in it; they have {", ".join(names) or "no video"}: '
                "set the stream's name=... to the video's name in the proposals.",
                stacklevel=2,
            )
        nobody = np.zeros((0, 5), dtype=np.float32)
        boxes = self.table.get((video, round(time) + self.timestamp_start), nobody)
        boxes = boxes[boxes[:, 4] >= self.threshold][: self.limit]
        height, width = image.shape[:2]
        # In float64 and then rounded, as transforms that decode frames do.
        corners = boxes[:, :4] * np.array([width, height, width, height])
        return PersonBoxes(corners.astype(np.float32), boxes[:, 4])


def box_source(
    boxes: BoxSource, cfg: Mapping
) -> Union[CalledBoxes, ProposalBoxes, None]:
    """What finds the people, for an option ``boxes=...``.

    Args:
        boxes: See :class:`VideoStream`.
        cfg (Config): The model's. Its test dataset has the thresholds.
    """
    if boxes is None or isinstance(boxes, (CalledBoxes, ProposalBoxes)):
        return boxes
    dataset = test_dataset(cfg)
    threshold = dataset.get('person_det_score_thr', 0.9)
    if isinstance(boxes, nn.Module):
        boxes = PersonDetector(boxes, score_thr=threshold)
    if callable(boxes):
        return CalledBoxes(boxes)
    if not isinstance(boxes, (Mapping, str)) and not hasattr(boxes, '__fspath__'):
        raise ValueError(
            'boxes is a function of a frame and its time, a PersonDetector, a table of '
            f'proposals or its file, got: {type(boxes).__name__}.'
        )
    start = dataset.get('timestamp_start', 900)
    limit = dataset.get('num_max_proposals', 1000)
    return ProposalBoxes(boxes, start, threshold, limit)


def _check_arguments(find: BoxFinder, option: str) -> None:
    try:
        signature = inspect.signature(find)
    except (TypeError, ValueError):
        # Functions written in C may have no signature.
        return
    try:
        signature.bind(None, 0.0)
    except TypeError:
        name = getattr(find, '__name__', type(find).__name__)
        raise ValueError(
            f'{option}=... is called with a frame [H, W, 3] and its time in seconds, '
            f'and {name}{signature} does not take these two: define it as '
            'find(image, time).'
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
