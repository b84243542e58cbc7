"""IoUTracker: gives people the same number in every keyframe, by overlap."""

import copy
import warnings
from typing import Any, Optional, Union

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from scipy.optimize import linear_sum_assignment

from memvit_mm.apis.models.results import PeoplePrediction, Prediction


class IoUTracker:
    """Gives the people of one stream numbers that stay theirs.

    **The rule.** A person in a keyframe is matched with a person seen before, where the
    two boxes overlap with an IoU of at least ``min_iou``. Of all ways to pair them,
    one to one, that with the largest sum of IoUs is taken (the Hungarian method). Who
    is not matched gets the next number, from 0. Who is not seen keeps the place and the
    number for ``max_lost`` seconds, after which whoever appears there is somebody new.
    Numbers are never used again.

    Nothing is predicted: somebody who moves by a box's width from one keyframe to the
    next is taken for another. Then choose a smaller ``stride``.

    Args:
        min_iou (float): Least overlap of two boxes of one person, above 0, at most 1.
        max_lost (float): Seconds from the keyframe in which somebody was last seen to
            the last one in which he is still looked for. Keyframes that are further
            apart have nobody in common, of which the tracker warns once.

    Raises:
        ValueError: If one of them is out of range.

    Examples:
        >>> tracker = IoUTracker()
        >>> tracker.update([[0, 0, 10, 20], [50, 0, 60, 20]], time=1).tolist()
        [0, 1]
        >>> tracker.update([[52, 0, 62, 20], [90, 0, 99, 20]], time=2).tolist()
        [1, 2]
        >>> tracker.update([[1, 0, 11, 20]], time=3).tolist()
        [0]
    """

    def __init__(self, min_iou: float = 0.3, max_lost: float = 3.0) -> None:
        if not 0 < min_iou <= 1:
            raise ValueError(f'min_iou={min_iou} must be above 0 and at most 1.')
        if not max_lost >= 0:
            raise ValueError(f'max_lost={max_lost} must be at least 0 seconds.')
        self.min_iou = min_iou
        self.max_lost = max_lost
        self.reset()

    def reset(self) -> None:
        """Forget everybody: the next person gets number 0."""
        self._tracks: dict[int, tuple[np.ndarray, float]] = {}
        self._next = 0
        self._last: Optional[float] = None
        self._warned = False

    def update(self, boxes: np.ndarray, time: float) -> np.ndarray:
        """Number the people in the next keyframe.

        Args:
            boxes (np.ndarray): ``[people, 4]`` or more columns: x1, y1, x2, y2, in any
                unit.
            time (float): The keyframe's, in seconds, not before the last one's.

        Returns:
            np.ndarray: Their numbers, int64 ``[people]``.

        Raises:
            ValueError: If ``boxes`` has another shape.
        """
        boxes = np.asarray(boxes, dtype=np.float32)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] < 4:
            raise ValueError(
                f'boxes has {list(boxes.shape)} at {time:g} seconds, expected '
                '[people, 4] of x1, y1, x2, y2.'
            )
        self._check_pace(time)
        # A little more, since times are sums of floating-point numbers.
        limit = self.max_lost + 1e-6
        kept = {n: t for n, t in self._tracks.items() if time - t[1] <= limit}
        ids = np.full(len(boxes), -1, dtype=np.int64)
        known = np.array([box for box, _ in kept.values()], np.float32).reshape(-1, 4)
        pair = torch.from_numpy(known), torch.from_numpy(boxes[:, :4])
        overlap = bbox_overlaps(*pair).numpy()  # [tracks, people]
        overlap[overlap < self.min_iou] = 0
        numbers = list(kept)
        for old, new in zip(*linear_sum_assignment(overlap, maximize=True)):
            if overlap[old, new] > 0:
                ids[new] = numbers[old]
                # Who is seen now comes after those who are not.
                del kept[numbers[old]]
        for row in np.flatnonzero(ids < 0):
            ids[row] = self._next
            self._next += 1
        kept.update(
            (n, (box, float(time))) for n, box in zip(ids.tolist(), boxes[:, :4])
        )
        self._tracks = kept
        return ids

    def _check_pace(self, time: float) -> None:
        apart = 0.0 if self._last is None else time - self._last
        self._last = time
        if apart > self.max_lost + 1e-6 and self._tracks and not self._warned:
            self._warned = True
            warnings.warn(
                f'Keyframes are {apart:g} seconds apart, more than max_lost='
                f'{self.max_lost:g} of the IoUTracker, so everybody gets a new '
                'number each time: raise max_lost, or use keyframes that are closer '
                'together. (Said once.)',
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """The tracks, as plain values."""
        return dict(
            boxes=[box.tolist() for box, _ in self._tracks.values()],
            ids=list(self._tracks),
            seen=[seen for _, seen in self._tracks.values()],
            next=self._next,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        boxes = np.array(state['boxes'], dtype=np.float32).reshape(-1, 4)
        self._tracks = dict(zip(state['ids'], zip(boxes, state['seen'])))
        self._next = int(state['next'])


# The option track=...: whether to track, or a tracker with settings of its own. None:
# as the source of the boxes says.
Tracking = Union[bool, IoUTracker, None]


def tracker_for(track: Tracking, boxes: Any) -> Optional[IoUTracker]:
    """A stream's own tracker; None if people are not tracked.

    Args:
        track: The option ``track=...`` of a stream.
        boxes: The source of its boxes, with an attribute ``track``; None for
            recognizers.

    Raises:
        ValueError: If ``track`` is something else, or there are no people.
    """
    if not isinstance(track, (bool, IoUTracker, type(None))):
        raise ValueError(
            f'track is a {type(track).__name__}: it takes True, False or an '
            'IoUTracker(min_iou, max_lost).'
        )
    if boxes is None:
        if track:
            raise ValueError('The model classifies whole clips: leave track=... out.')
        return None
    if track is None:
        track = boxes.track
    if isinstance(track, bool):
        return IoUTracker() if track else None
    tracker = copy.deepcopy(track)
    tracker.reset()
    return tracker


def track_people(tracker: Optional[IoUTracker], prediction: Prediction) -> None:
    """Number the people of a keyframe, unless the source of the boxes did."""
    if tracker is None or not isinstance(prediction, PeoplePrediction):
        return
    if prediction.track_ids is None:
        prediction.track_ids = tracker.update(prediction.boxes, prediction.time)
