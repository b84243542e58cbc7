"""IoUTracker: who in a keyframe is whom in the keyframes before, by overlap."""

import copy
import warnings
from typing import Any, Optional, Union

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from scipy.optimize import linear_sum_assignment

from memvit_mm.apis.streams.results import PeoplePrediction, Prediction


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
        """Forget everybody: the next one is number 0."""
        self._boxes = np.zeros((0, 4), dtype=np.float32)
        self._ids = np.zeros(0, dtype=np.int64)
        self._seen = np.zeros(0)
        self._next = 0
        self._last = self._told = None

    def update(self, boxes: np.ndarray, time: float) -> np.ndarray:
        """Who the people in the next keyframe are.

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
        boxes = boxes[:, :4]
        # A little more: times are sums of floating-point numbers.
        known = time - self._seen <= self.max_lost + 1e-6
        self._check_pace(time)
        self._keep(known)
        ids = np.full(len(boxes), -1, dtype=np.int64)
        pair = torch.from_numpy(self._boxes), torch.from_numpy(boxes)
        overlap = bbox_overlaps(*pair).numpy()  # [tracks, people]
        overlap[overlap < self.min_iou] = 0
        for old, new in zip(*linear_sum_assignment(overlap, maximize=True)):
            if overlap[old, new] > 0:
                ids[new] = self._ids[old]
        new = ids < 0
        ids[new] = np.arange(self._next, self._next + new.sum())
        self._next += int(new.sum())
        self._keep(~np.isin(self._ids, ids))
        self._boxes = np.concatenate([self._boxes, boxes])
        self._ids = np.concatenate([self._ids, ids])
        self._seen = np.concatenate([self._seen, np.full(len(ids), float(time))])
        return ids

    def _check_pace(self, time: float) -> None:
        apart = 0.0 if self._last is None else time - self._last
        self._last = time
        if apart > self.max_lost + 1e-6 and len(self._seen) and not self._told:
            self._told = True
            warnings.warn(
                f'Keyframes are {apart:g} seconds apart, more than max_lost='
                f'{self.max_lost:g} of the tracker: everybody is taken for somebody '
                'new; raise max_lost, or look more often. (Said once.)',
                stacklevel=3,
            )

    def _keep(self, rows: np.ndarray) -> None:
        self._boxes, self._ids = self._boxes[rows], self._ids[rows]
        self._seen = self._seen[rows]

    def state_dict(self) -> dict[str, Any]:
        """What it knows, as plain values."""
        return dict(
            boxes=self._boxes.tolist(),
            ids=self._ids.tolist(),
            seen=self._seen.tolist(),
            next=self._next,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._boxes = np.array(state['boxes'], dtype=np.float32).reshape(-1, 4)
        self._ids = np.array(state['ids'], dtype=np.int64)
        self._seen = np.array(state['seen'], dtype=float)
        self._next = int(state['next'])


# track=...: whether to, or as this tracker does; None: as the boxes say.
Tracking = Union[bool, IoUTracker, None]


def tracker_for(track: Tracking, boxes: Any) -> Optional[IoUTracker]:
    """A stream's own tracker, None where people are not tracked.

    Args:
        track: ``track=...`` of a stream.
        boxes: Where its people come from, with ``track``; None for recognizers.

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
    """Say whose the boxes of a keyframe are, unless the boxes' source did."""
    if tracker is None or not isinstance(prediction, PeoplePrediction):
        return
    if prediction.track_ids is None:
        prediction.track_ids = tracker.update(prediction.boxes, prediction.time)
