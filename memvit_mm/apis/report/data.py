"""Predictions as the values that a report page carries: checked, rounded, packed."""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from memvit_mm.apis.models.results import PeoplePrediction, Prediction

# Scores between 0 and 1 are kept in so many steps, others in as many of their range.
STEPS = 10_000
MISSING = 65_535


def pack_predictions(
    predictions: Sequence[Prediction],
    video: Mapping[str, Any],
    without_memory: Optional[Sequence[Prediction]] = None,
) -> dict[str, Any]:
    """All that the page shows of predictions.

    Args:
        predictions (sequence[Prediction]): Of one video.
        video (Mapping): See ``write_report``.
        without_memory (sequence[Prediction], optional): The same without memory.

    Returns:
        dict: Of plain values: ``start``, ``end`` (seconds on the timeline), ``size``,
        ``clips`` (their times), ``groups`` (names and scores) and ``people`` (their
        boxes and track ids; None for recognizers).

    Raises:
        ValueError: If they do not belong together.
    """
    _check(predictions)
    clips = sorted(predictions, key=lambda prediction: prediction.time)
    others = _others(clips, without_memory)
    people = isinstance(clips[0], PeoplePrediction)
    groups = [clip.groups for clip in clips]
    # Without a person there may be no scores, and then no number of classes.
    first = next((g for g in groups if g[0].scores.size), groups[0])
    content = dict(_times(clips, video), size=_size(video, people), groups=[])
    for place, group in enumerate(first):
        classes = group.scores.shape[-1]
        scores = np.concatenate([_rows(clip, place, classes) for clip in clips])
        alone = None
        if others is not None:
            pairs = zip(clips, others)
            alone = np.concatenate([_alone(*pair, place, classes) for pair in pairs])
        title = group.kind.capitalize()
        packed = _pack_scores(scores, alone)
        content['groups'].append(dict(title=title, names=group.names, **packed))
    content['people'] = _people(clips) if people else None
    return content


def _check(predictions: Sequence[Prediction]) -> None:
    if not len(predictions):
        raise ValueError(
            'There are no predictions to report: check that the video is longer than '
            'one clip, and that all of it was read.'
        )
    for number, prediction in enumerate(predictions):
        if not isinstance(prediction, Prediction):
            raise ValueError(
                f'predictions[{number}] is a {type(prediction).__name__}, expected '
                'what VideoStream or inference_stdet give.'
            )
        told, first = (
            f'a {type(one).__name__} of the stream {one.stream!r}'
            for one in (prediction, predictions[0])
        )
        if told != first:
            raise ValueError(
                f'predictions[{number}] is {told}, and the first is {first}: write a '
                'report for each.'
            )
        if not math.isfinite(prediction.time):
            raise ValueError(
                f'predictions[{number}] has the time {prediction.time}, expected '
                'seconds.'
            )


def _others(
    clips: Sequence[Prediction], given: Optional[Sequence[Prediction]]
) -> Optional[list[Optional[Prediction]]]:
    """For each clip the prediction without memory, or None; None if there are none."""
    if given is None:
        found = [clip.without_memory for clip in clips]
        return found if any(other is not None for other in found) else None
    kind = type(clips[0])
    by_time = {round(one.time, 3): one for one in given if type(one) is kind}
    found = [by_time.get(round(clip.time, 3)) for clip in clips]
    if not any(other is not None for other in found):
        raise ValueError(
            f'without_memory has no {kind.__name__} at the times of the predictions '
            f'({clips[0].time:g} seconds and so on): read the same video with the same '
            'model and stride.'
        )
    return found


def _size(video: Mapping[str, Any], people: bool) -> Optional[list[int]]:
    size = video.get('size')
    if size is None and not people:
        return None
    try:
        width, height = (int(side) for side in size)
    except (TypeError, ValueError):
        width = height = 0
    if min(width, height) <= 0:
        raise ValueError(
            f"video['size'] is {size!r}, expected (width, height) in pixels of the "
            'frames that boxes are in.'
        )
    return [width, height]


def _times(clips: Sequence[Prediction], video: Mapping[str, Any]) -> dict[str, Any]:
    """The beginning and end of the timeline, and of each clip on it, in seconds."""
    time, first, last = (
        np.array([getattr(clip, name) for clip in clips], np.float64)
        for name in ('time', 'start', 'end')
    )
    duration = video.get('duration')
    if duration is not None and not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"video['duration'] is {duration}, expected seconds.")
    # An excerpt of a longer video begins with its first clip.
    late = time[0] > 2 * (time[-1] - time[0]) + 60
    start = min(first[0], time[0]) if late and not duration else 0.0
    # A clip's place on the timeline ends at its time, or is around it.
    length = float(np.median(last - first))
    step = float(np.median(np.diff(time))) if len(time) > 1 else length or 1.0
    off_end, off_middle = np.abs(last - time), np.abs((first + last) / 2 - time)
    at_end = np.median(off_end) <= np.median(off_middle)
    right = time if at_end else time + step / 2
    left = np.maximum(right - step, np.append(start, right[:-1]))
    end = max(time[-1], duration or right[-1])
    right = np.maximum(np.minimum(right, end), left + 1e-3)
    times = dict(time=time, left=left, right=right, first=first, last=last)
    return dict(
        start=round(float(start), 3),
        end=round(float(max(end, right[-1])), 3),
        clips={name: values.round(3).tolist() for name, values in times.items()},
    )


def _people(clips: Sequence[PeoplePrediction]) -> dict[str, Any]:
    seen = [clip for clip in clips if len(clip.boxes)]
    boxes = np.array([box for clip in seen for box in clip.boxes])
    sure = np.array([score for clip in seen for score in clip.box_scores])
    tracks = None
    if seen and all(clip.track_ids is not None for clip in seen):
        tracks = [int(number) for clip in seen for number in clip.track_ids]
    return dict(
        counts=[len(clip.boxes) for clip in clips],
        boxes=_pack(np.rint(boxes).clip(0, 65_535)),
        sure=_pack(np.rint(sure.clip(0, 1) * 1000)),
        tracks=tracks,
    )


def _rows(clip: Prediction, place: int, classes: int) -> np.ndarray:
    """Scores of a clip, ``[1 or people, classes]``."""
    people = isinstance(clip, PeoplePrediction)
    expected = (len(clip.boxes), classes) if people else (classes,)
    scores = np.asarray(clip.groups[place].scores, np.float64)
    if 0 in expected:
        return np.zeros(expected)
    if scores.shape != expected:
        raise ValueError(
            f'The prediction at {clip.time:g} seconds has scores {list(scores.shape)}, '
            f'expected {list(expected)} as of the first: use one model.'
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f'The prediction at {clip.time:g} seconds has scores that are nan or '
            'infinite: use a checkpoint of a training that did not diverge.'
        )
    return scores.reshape(-1, classes)


def _alone(
    clip: Prediction, other: Optional[Prediction], place: int, classes: int
) -> np.ndarray:
    """Scores of a clip without memory, nan where they are not of the same people."""
    rows = None if other is None else _rows(other, place, classes)
    if isinstance(other, PeoplePrediction):
        same = len(clip.boxes) == len(other.boxes)
        # The detector may round otherwise, by less than a pixel.
        if not same or not np.allclose(clip.boxes, other.boxes, rtol=0, atol=1):
            rows = None
    return np.full_like(_rows(clip, place, classes), np.nan) if rows is None else rows


def _pack_scores(scores: np.ndarray, alone: Optional[np.ndarray]) -> dict[str, Any]:
    parts = scores if alone is None else np.concatenate([scores, alone])
    low, high = 0.0, 1.0
    if parts.size and (np.nanmin(parts) < 0 or np.nanmax(parts) > 1 + 1e-6):
        low, high = float(np.nanmin(parts)), float(np.nanmax(parts))
    step = (high - low) / STEPS or 1.0

    def pack(values: np.ndarray) -> str:
        whole = np.rint((values - low) / step).clip(0, STEPS)
        # [clips, classes] -> [classes, clips], in which neighbours are alike
        return _pack(np.where(np.isnan(values), MISSING, whole).T)

    without = None if alone is None else pack(alone)
    return dict(low=low, step=step, scores=pack(scores), without=without)


def _pack(values: np.ndarray) -> str:
    """Low bytes of 16-bit numbers before their high bytes, deflated, in base64."""
    flat = np.ascontiguousarray(values, '<u2').reshape(-1, 1)
    planes = flat.view(np.uint8).T  # [numbers, 1] -> [2, numbers]
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()
