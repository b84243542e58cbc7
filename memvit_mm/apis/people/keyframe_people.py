"""Where the people of a video file are: keyframes and boxes, from what users have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from torch import nn

from memvit_mm.datasets.ava.files import read_proposals

from .boxes import CalledBoxes, PersonBoxes, ProposalBoxes
from .detector import PersonDetector

# boxes=...: by second, AVA's by 'video,second', or a file of these.
Boxes = Union[Mapping, str, Path]
# det_model=...: mmdet's, or a function of a frame and its time.
Detector = Union[nn.Module, Callable[[np.ndarray, float], Any]]


class KeyframePeople:
    """The people of one video: when to look, and who is there.

    Args:
        times (list[float], optional): Seconds of the keyframes; None where any will do.
        find (callable): Takes a keyframe ``[H, W, 3]`` uint8 RGB, the video's name and
            the time in seconds, and returns :class:`PersonBoxes`, in pixels. Its
            ``track`` says whether the people are to be tracked.
    """

    def __init__(self, times: Optional[list[float]], find: Callable) -> None:
        self.times = times
        self.find = find
        self.track = find.track

    def __call__(self, image: np.ndarray, video: str, time: float) -> PersonBoxes:
        return self.find(image, video, time)


def people_of(
    video: str,
    boxes: Optional[Boxes],
    detector: Optional[Detector],
    threshold: float,
    category: Optional[int],
    timestamp_start: int,
    limit: int,
) -> KeyframePeople:
    """What ``inference_stdet`` is told about people, in one form.

    Args:
        video (str): The video's name in proposals.
        boxes: See ``inference_stdet``.
        detector: See ``inference_stdet``.
        threshold (float): Least score of proposals and of an mmdet detector's boxes.
        category (int, optional): The detector's class for people. By default that
            called 'person'.
        timestamp_start (int): The second of proposals at which the video begins.
        limit (int): Proposals of a keyframe at most.

    Raises:
        ValueError, FileNotFoundError: If there are no people, or in another form.
    """
    if (boxes is None) == (detector is None):
        told = 'neither' if boxes is None else 'both'
        raise ValueError(
            'inference_stdet needs to know where people are: give boxes (by second, or '
            f"AVA's proposals) or det_model (an mmdet detector), got {told}."
        )
    if isinstance(detector, nn.Module):
        person = 'person' if category is None else category
        found = PersonDetector(detector, score_thr=threshold, person=person)
        return KeyframePeople(None, CalledBoxes(found))
    if detector is not None:
        if not callable(detector):
            raise ValueError(
                f'det_model is a {type(detector).__name__}: it takes what '
                'mmdet.apis.init_detector returns, or a function of a frame '
                '[H, W, 3] and its time in seconds that returns boxes.'
            )
        return KeyframePeople(None, CalledBoxes(detector, 'det_model'))
    if isinstance(boxes, (str, Path)):
        table = read_proposals(str(boxes))
        return _proposed(video, table, threshold, timestamp_start, limit)
    if not isinstance(boxes, Mapping):
        raise ValueError(
            f'boxes is a {type(boxes).__name__}: it takes a dict from seconds to '
            'boxes [people, 4] in pixels, or AVA proposals or their file.'
        )
    named = [isinstance(key, str) for key in boxes]
    if named and all(named):
        table = read_proposals(boxes)
        return _proposed(video, table, threshold, timestamp_start, limit)
    return _timed(boxes)


def _timed(boxes: Mapping) -> KeyframePeople:
    """Boxes in pixels by second."""
    table = {}
    for key, value in boxes.items():
        try:
            second = float(key)
        except (TypeError, ValueError):
            second = float('nan')
        if not 0 <= second < float('inf'):
            raise ValueError(
                f'boxes has the key {key!r}, expected seconds from 0 on (or, for AVA '
                "proposals, 'video,second')."
            )
        table[second] = _boxes(key, value)
    if not table:
        raise ValueError('boxes is empty: there is no keyframe to look at.')
    corners = np.concatenate([value[:, :4] for value in table.values()])
    if len(corners) and corners.max() <= 1:
        raise ValueError(
            f'boxes has coordinates up to {corners.max():g}, fractions it seems: boxes '
            'by second are in pixels; multiply by the width and height of the frame.'
        )
    times = sorted(table)
    return KeyframePeople(times, CalledBoxes(lambda image, time: table[time]))


def _proposed(
    video: str, table: Mapping, threshold: float, timestamp_start: int, limit: int
) -> KeyframePeople:
    """AVA's proposals: fractions, by video and AVA's second."""
    seconds = sorted(second for name, second in table if name == video)
    if not seconds:
        found = ', '.join(dict.fromkeys(name for name, _ in list(table)[:100]))
        raise ValueError(
            f'The proposals have no boxes for {video!r}; they are of '
            f'{found[:200] or "no video"}: name the video as there with video_id.'
        )
    if seconds[0] < timestamp_start:
        raise ValueError(
            f'The proposals of {video!r} begin at second {seconds[0]}, before the '
            f'video does (timestamp_start={timestamp_start}): say at which of their '
            'seconds it begins with timestamp_start.'
        )
    # As the data set does: no clip where nobody is.
    kept = [
        second
        for second in seconds
        if (table[video, second][:, 4] >= np.float32(threshold)).any()
    ]
    strings = {f'{video},{second:04d}': table[video, second] for second in kept}
    find = ProposalBoxes(strings, timestamp_start, threshold, limit)
    return KeyframePeople([float(second - timestamp_start) for second in kept], find)


def _boxes(key: Any, value: Any) -> np.ndarray:
    """A keyframe's boxes as float32 ``[people, 5]``."""
    if hasattr(value, 'detach'):
        value = value.detach().cpu().numpy()
    try:
        boxes = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        boxes = np.empty((1, 0))
    if boxes.size == 0 and boxes.ndim and boxes.shape[0] == 0:
        boxes = np.zeros((0, 5), dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
        raise ValueError(
            f'boxes has {list(np.shape(value))} at {key!r}, expected [people, 4] of '
            'x1, y1, x2, y2, or [people, 5] with scores.'
        )
    left, top, right, bottom = boxes[:, :4].T
    sound = np.isfinite(boxes).all(axis=1) & (left < right) & (top < bottom)
    if not sound.all():
        row = int(np.argmin(sound))
        raise ValueError(
            f'boxes has {boxes[row, :4].tolist()} in row {row} at {key!r}, which holds '
            'nothing: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2.'
        )
    full = np.ones((len(boxes), 5), dtype=np.float32)
    full[:, : boxes.shape[1]] = boxes
    return full
