"""Predictions as arrays that a page of HTML can carry: checked, rounded, packed."""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps

from memvit_mm.apis.models.classes import ClassScores, Names
from memvit_mm.apis.streams.results import EpicPrediction, PeoplePrediction, Prediction

# Scores between 0 and 1 are kept to this, others to as many steps of their range.
STEPS = 10_000
MISSING = 65_535
# Boxes that overlap by this (IoU) are the same person's, with memory and without.
SAME_PERSON = 0.5


class Group(NamedTuple):
    """Classes that compete or stand together: actions, or verbs, or nouns."""

    title: str
    field: str
    names: Names


def pack_predictions(
    predictions: Sequence[Prediction],
    video: Mapping[str, Any],
    without_memory: Optional[Sequence[Prediction]] = None,
) -> dict[str, Any]:
    """All that the page says about predictions.

    Args:
        predictions (sequence[Prediction]): Of one video.
        video (Mapping): See ``write_report``.
        without_memory (sequence[Prediction], optional): The same without memory.

    Returns:
        dict: Of plain values: ``start``, ``end`` (seconds on the timeline), ``size``,
        ``clips`` (their times), ``groups`` (names and scores) and ``people`` (their
        boxes and whose they are; None where there are none).

    Raises:
        ValueError: If they do not belong together.
    """
    kind = _kind(predictions)
    clips = sorted(predictions, key=lambda prediction: prediction.time)
    people = issubclass(kind, PeoplePrediction)
    groups = _groups(clips[0], people)
    others = _without(clips, without_memory, kind)
    times = _times(clips, video)
    content = dict(
        times, size=_size(video, people), groups=[], people=_people(clips, people)
    )
    for group in groups:
        scores = [_scores(clips, group, people)]
        if others is not None:
            scores.append(_aligned(clips, others, group, scores[0], people))
        about = group.title.lower(), group.names
        reserved = people and clips[0].reserved
        shown = [ClassScores.of(*about, part, reserved) for part in scores]
        content['groups'].append(_pack_group(group.title, *shown))
    return content


# ---------------------------------------------------------------- what belongs together


def _kind(predictions: Sequence[Prediction]) -> type:
    if not len(predictions):
        raise ValueError(
            'There are no predictions to report: is the video shorter than one clip, '
            'or its end not read?'
        )
    first = predictions[0]
    for number, prediction in enumerate(predictions):
        if not isinstance(prediction, Prediction):
            raise ValueError(
                f'predictions[{number}] is a {type(prediction).__name__}, expected '
                'what VideoStream or inference_stdet give.'
            )
        if type(prediction) is not type(first):
            raise ValueError(
                f'predictions[{number}] is a {type(prediction).__name__}, and the '
                f'first a {type(first).__name__}: write a report of each kind.'
            )
        if prediction.stream != first.stream:
            raise ValueError(
                f'predictions[{number}] is of the stream {prediction.stream!r}, and '
                f'the first of {first.stream!r}: write a report of each stream.'
            )
        if not math.isfinite(prediction.time):
            raise ValueError(f'predictions[{number}] has the time {prediction.time}.')
    return type(first)


def _groups(first: Prediction, people: bool) -> list[Group]:
    if isinstance(first, EpicPrediction):
        return [
            Group('Verbs', 'verb_scores', first.verbs),
            Group('Nouns', 'noun_scores', first.nouns),
        ]
    return [Group('Actions', 'scores', first.names)]


def _size(video: Mapping[str, Any], people: bool) -> Optional[list[int]]:
    size = video.get('size')
    try:
        width, height = (int(side) for side in size)
        good = width > 0 and height > 0
    except (TypeError, ValueError):
        good = False
    if good:
        return [width, height]
    if people or size is not None:
        raise ValueError(
            f"video['size'] is {size!r}, expected (width, height) in pixels of the "
            'frames that boxes are in.'
        )
    return None


def _without(
    clips: Sequence[Prediction], given: Optional[Sequence[Prediction]], kind: type
) -> Optional[list[Optional[Prediction]]]:
    """Of each clip what is said about it without memory; None where nothing is."""
    if given is None:
        found = [getattr(clip, 'without_memory', None) for clip in clips]
        return found if any(other is not None for other in found) else None
    if not len(given):
        raise ValueError('without_memory is empty: leave it out, or predict the clips.')
    for number, other in enumerate(given):
        if type(other) is not kind:
            raise ValueError(
                f'without_memory[{number}] is a {type(other).__name__}, and the '
                f'predictions with memory are {kind.__name__}: use the same model.'
            )
    given = sorted(given, key=lambda prediction: prediction.time)
    times = np.array([prediction.time for prediction in given])
    steps = np.diff([clip.time for clip in clips])
    tolerance = max(1e-3, float(np.median(steps)) / 4) if len(steps) else 0.25
    places = [int(np.abs(times - clip.time).argmin()) for clip in clips]
    found = [
        given[place] if abs(times[place] - clip.time) <= tolerance else None
        for place, clip in zip(places, clips)
    ]
    if not any(other is not None for other in found):
        raise ValueError(
            'without_memory has none of the times of the predictions (its first is '
            f'{times[0]:g} seconds, theirs {clips[0].time:g}): read the same video '
            'with the same stride.'
        )
    return found


# -------------------------------------------------------------------------------- times


def _times(clips: Sequence[Prediction], video: Mapping[str, Any]) -> dict[str, Any]:
    """Where the timeline begins and ends, and each clip on it, in seconds."""
    time = np.array([clip.time for clip in clips], np.float64)
    first = np.array([clip.start for clip in clips], np.float64)
    last = np.array([clip.end for clip in clips], np.float64)
    duration = video.get('duration')
    if duration is not None and not (math.isfinite(duration) and duration >= 0):
        raise ValueError(f"video['duration'] is {duration}, expected seconds.")
    end = max(time[-1], duration or 0)
    lasts = time[-1] - time[0]
    start = 0.0 if duration or time[0] <= 2 * lasts + 60 else min(first[0], time[0])
    # A clip's place on the timeline: up to its time if that is its end, else around it.
    steps = np.diff(time)
    length = float(np.median(last - first))
    step = float(np.median(steps)) if len(steps) else length or 1.0
    if np.median(np.abs(last - time)) <= step / 4:
        left = np.maximum(time - 1.5 * step, np.r_[-np.inf, time[:-1]])
        left = np.where(left < time - 1.25 * step, time - step, left)
        right = time
    else:
        middle = (time[1:] + time[:-1]) / 2
        left = np.maximum(time - 0.75 * step, np.r_[time[0] - step / 2, middle])
        right = np.minimum(time + 0.75 * step, np.r_[middle, time[-1] + step / 2])
        if not duration:
            end = max(end, right[-1])
    left = np.maximum(left, start)
    right = np.maximum(np.minimum(right, end), left + 1e-3)

    def values(array):
        return [round(value, 3) for value in array.tolist()]

    return dict(
        start=round(float(start), 3),
        end=round(float(max(end, right[-1])), 3),
        clips=dict(
            time=values(time),
            left=values(left),
            right=values(right),
            first=values(np.maximum(first, min(start, first[0]) if start else 0)),
            last=values(last),
        ),
    )


# ------------------------------------------------------------------------------- people


def _people(clips: Sequence[Prediction], people: bool) -> Optional[dict[str, Any]]:
    if not people:
        return None
    counts = [len(clip.boxes) for clip in clips]
    boxes = [np.reshape(clip.boxes, (-1, 4)) for clip in clips]
    sure = [
        np.ones(count) if clip.box_scores is None else np.reshape(clip.box_scores, -1)
        for clip, count in zip(clips, counts)
    ]
    tracks = [getattr(clip, 'track_ids', None) for clip in clips]
    tracked = all(ids is not None for ids, count in zip(tracks, counts) if count)
    ids = None
    if tracked and sum(counts):
        ids = [int(n) for one in tracks if one is not None for n in np.ravel(one)]
    return dict(
        counts=counts,
        boxes=_pack(np.rint(np.concatenate(boxes)).clip(0, 65_535), np.uint16),
        sure=_pack(np.rint(np.concatenate(sure).clip(0, 1) * 1000), np.uint16),
        tracks=ids,
    )


# ------------------------------------------------------------------------------- scores


def _scores(clips: Sequence[Prediction], group: Group, people: bool) -> np.ndarray:
    """``[clips or people, classes]``."""
    rows = [np.asarray(getattr(clip, group.field), np.float64) for clip in clips]
    # Where nobody ever was, arrays still say how many classes there are.
    wide = [row for row in rows if row.size] or rows
    width = wide[0].shape[-1]
    for clip, row in zip(clips, rows):
        expected = (len(clip.boxes), width) if people else (width,)
        if row.size != int(np.prod(expected)) or (row.size and row.shape != expected):
            raise ValueError(
                f'The prediction at {clip.time:g} seconds has {group.field} '
                f'{list(row.shape)}, expected {list(expected)} as of the first.'
            )
        if not np.isfinite(row).all():
            raise ValueError(
                f'The prediction at {clip.time:g} seconds has {group.field} that are '
                'nan or infinite: is the checkpoint of a run that diverged?'
            )
    return np.concatenate([row.reshape(-1, width) for row in rows])


def _aligned(
    clips: Sequence[Prediction],
    others: Sequence[Optional[Prediction]],
    group: Group,
    scores: np.ndarray,
    people: bool,
) -> np.ndarray:
    """Scores without memory in the places of ``scores``, nan where there are none."""
    aligned = np.full_like(scores, np.nan)
    present = [other for other in others if other is not None]
    found = _scores(present, group, people)
    if found.shape[1] != scores.shape[1] and found.size:
        raise ValueError(
            f'without_memory has {found.shape[1]} {group.title.lower()}, and the '
            f'predictions {scores.shape[1]}: use the same model.'
        )
    place = start = 0
    for clip, other in zip(clips, others):
        count = len(clip.boxes) if people else 1
        if other is not None:
            theirs = len(other.boxes) if people else 1
            rows = found[start : start + theirs]
            if not people:
                aligned[place] = rows[0]
            elif count and theirs:
                pair = (
                    torch.from_numpy(np.array(one.boxes, np.float32, order='C'))
                    for one in (clip, other)
                )
                overlap = bbox_overlaps(*pair).numpy()  # [people, theirs]
                same = overlap.argmax(1)
                good = overlap[np.arange(count), same] >= SAME_PERSON
                aligned[place : place + count][good] = rows[same[good]]
            start += theirs
        place += count
    return aligned


def _pack_group(
    title: str, group: ClassScores, alone: Optional[ClassScores] = None
) -> dict[str, Any]:
    parts = [group.scores] if alone is None else [group.scores, alone.scores]
    both = np.concatenate(parts)
    low, high = 0.0, 1.0
    if both.size and (np.nanmin(both) < 0 or np.nanmax(both) > 1 + 1e-6):
        low, high = float(np.nanmin(both)), float(np.nanmax(both))
    step = (high - low) / STEPS or 1.0

    def pack(values):
        whole = np.rint((values - low) / step).clip(0, STEPS)
        # [clips, classes] -> [classes, clips], in which neighbours are alike
        return _pack(np.where(np.isnan(values), MISSING, whole).T, np.uint16)

    return dict(
        title=title,
        names=group.names,
        low=low,
        step=step,
        scores=pack(group.scores),
        without=None if alone is None else pack(alone.scores),
    )


def _pack(values: np.ndarray, dtype: type) -> str:
    """Little-endian bytes, low ones before high ones, deflated, in base64."""
    flat = np.ascontiguousarray(values).astype(np.dtype(dtype).newbyteorder('<'))
    bytes_ = flat.reshape(-1).view(np.uint8).reshape(-1, flat.itemsize).T
    return base64.b64encode(zlib.compress(bytes_.tobytes(), 6)).decode()
