"""Action detectors (AVA) on videos: what each person does at each keyframe.

MMAction2 has no such function (open-mmlab/mmaction2#1692).
"""

import os.path as osp
import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import nn

from memvit_mm.datasets.clip_recipe import test_dataset

from .models.classes import Labels
from .models.load_model import ConfigLike, init_model
from .models.results import PeoplePrediction
from .people.boxes import CalledBoxes, ProposalBoxes
from .people.detector import PersonDetector
from .people.tracking import Tracking
from .streams.stream import VideoStream
from .whole_video import name_of, open_whole_video, play

# boxes=...: by second, AVA's by 'video,second', or a file of these.
Boxes = Union[Mapping, str, Path]
# det_model=...: mmdet's, or a function of a frame and its time.
Detector = Union[nn.Module, Callable[[np.ndarray, float], Any]]


def init_detector_model(
    config: ConfigLike,
    checkpoint: Optional[str] = None,
    device: Union[str, torch.device, None] = None,
) -> nn.Module:
    """Build an action detector (AVA), as ``init_recognizer`` does recognizers.

    Args:
        config (str | Path | Config): A file, one of this package's configs by name
            (``'memvit_ava.py'``), or a config; also MMAction2's own (``mmaction::...``
            in a ``_base_``), which have no memory.
        checkpoint (str, optional): Path or address of the weights. Random without.
        device (str | torch.device, optional): By default a GPU if there is one.

    Raises:
        ValueError, FileNotFoundError: If the config or the checkpoint is missing, is
            something else, or they do not fit each other.

    Examples:
        >>> model = init_detector_model('memvit_demo.py', device='cpu')
        >>> type(model).__name__
        'MemoryFastRCNN'
    """
    return init_model('detector', config, checkpoint, device)


def inference_stdet(
    model: nn.Module,
    video: Union[str, Path, np.ndarray, dict],
    boxes: Optional[Boxes] = None,
    det_model: Optional[Detector] = None,
    **kwargs: Any,
) -> list[PeoplePrediction]:
    """Detect what each person in a video does, keyframe by keyframe.

    The video is read forward in the background, a few clips ahead, and predicted with
    an empty memory at its beginning, as :class:`VideoStream` does. What the model
    remembers of other videos is not touched, and of this one nothing stays.

    Args:
        model (nn.Module): From :func:`init_detector_model`.
        video (str | Path | np.ndarray | dict): A file, a folder of frames
            (``img_00001.jpg``, ...), an array ``[T, H, W, 3]`` uint8 RGB, or what the
            pipeline takes.
        boxes (Mapping | str | Path, optional): Where people are, which also chooses the
            keyframes: by second of the video, ``{1.0: [people, 4], ...}`` in pixels of
            its frames (``[people, 5]`` with scores); or AVA's proposals, a file or
            ``{'video,0902': [people, 5], ...}``, fractions of the frame.
        det_model (nn.Module | callable, optional): Finds the people instead: what
            ``mmdet.apis.init_detector`` returns, a :class:`PersonDetector`, or a
            function that is called as ``det_model(image, time)``, with a frame
            ``[H, W, 3]`` uint8 RGB and its time in seconds, and returns boxes in
            pixels.
        stride (float): Seconds between keyframes, for ``det_model``. Defaults to 1: at
            1, 2, 3, ... seconds.
        labels (optional): Names of the classes: a file (``.pbtxt``, or ``.txt`` with
            one a line), a list or a mapping from numbers. By default those that the
            checkpoint or the config's label file has.
        score_thr (float): Least score of a person, of proposals and of an mmdet
            detector (a ``PersonDetector`` has its own). Defaults to the config's
            ``person_det_score_thr``, else 0.9.
        det_cat_id (int): The mmdet detector's class for people. Defaults to that which
            its ``dataset_meta`` calls 'person'.
        video_id (str): The video's name in proposals. Defaults to the file's, without
            extension.
        timestamp_start (int): The proposals' second at which the video begins. Defaults
            to the config's, else 900, as in AVA.
        fps (float): Frames per second of a folder or an array. Defaults to 30.
        on_bad_clip (str): ``'stop'`` where frames cannot be decoded, or ``'skip'`` the
            clips that need them, with a warning. Defaults to 'stop'.
        track (bool | IoUTracker): Whether people get numbers that stay theirs
            (``track_ids``), see :class:`VideoStream`. Defaults to whether an mmdet
            detector finds them.

    Returns:
        list[PeoplePrediction]: One per keyframe: ``time`` (seconds), ``boxes``
        (``[people, 4]`` float32, x1, y1, x2, y2 in pixels of the video's frames),
        ``box_scores`` and, if tracked, ``track_ids`` (``[people]``), ``scores``
        ``[people, classes]``, ``names``, and
        ``top(k, threshold)``: the best classes of each person, with their names.

    Raises:
        ValueError, FileNotFoundError: If the model is no detector, there is no such
            video, or it is damaged, or boxes are of another shape.

    Examples:
        >>> import numpy as np
        >>> model = init_detector_model('memvit_demo.py', device='cpu')
        >>> video = np.zeros((60, 96, 96, 3), np.uint8)  # [T, H, W, RGB]
        >>> boxes = {1.0: [[10, 20, 50, 90]], 1.5: [[12, 20, 52, 90], [60, 9, 90, 95]]}
        >>> labels = [f'action {number}' for number in range(15)]
        >>> for keyframe in inference_stdet(model, video, boxes, labels=labels):
        ...     print(keyframe.time, keyframe.boxes.shape, keyframe.scores.shape)
        1.0 (1, 4) (1, 15)
        1.5 (2, 4) (2, 15)
    """
    return list(iter_stdet(model, video, boxes, det_model, **kwargs))


def iter_stdet(
    model: nn.Module,
    video: Union[str, Path, np.ndarray, dict],
    boxes: Optional[Boxes] = None,
    det_model: Optional[Detector] = None,
    stride: float = 1.0,
    labels: Labels = None,
    score_thr: Optional[float] = None,
    det_cat_id: Optional[int] = None,
    video_id: Optional[str] = None,
    timestamp_start: Optional[int] = None,
    fps: float = 30.0,
    on_bad_clip: str = 'stop',
    track: Tracking = None,
) -> Iterator[PeoplePrediction]:
    """As :func:`inference_stdet`, each keyframe as soon as it is done.

    Wrong arguments are refused at once, before the first keyframe is asked for.
    """
    if not hasattr(model, 'roi_head'):
        raise ValueError(
            f'{type(model).__name__} is no action detector: make one with '
            'init_detector_model; recognizers take inference_recognizer.'
        )
    dataset = test_dataset(getattr(model, 'cfg', None) or {})
    if score_thr is None:
        score_thr = dataset.get('person_det_score_thr', 0.9)
    if timestamp_start is None:
        timestamp_start = dataset.get('timestamp_start', 900)
    name = name_of(video)
    if video_id is None:
        video_id = osp.splitext(osp.basename(name))[0]
    if (boxes is None) == (det_model is None):
        told = 'neither' if boxes is None else 'both'
        raise ValueError(
            'inference_stdet needs to know where people are: give boxes (by second, or '
            f"AVA's proposals) or det_model (an mmdet detector), got {told}."
        )
    if boxes is None:
        people = Keyframes(None, _detected(det_model, score_thr, det_cat_id))
    elif isinstance(boxes, Mapping) and not all(isinstance(k, str) for k in boxes):
        people = _timed(boxes)
    else:
        limit = dataset.get('num_max_proposals', 1000)
        people = _proposed(boxes, video_id, timestamp_start, score_thr, limit)
    stream = VideoStream(
        model,
        boxes=people.find,
        stride=stride,
        clip_times=people.times,
        labels=labels,
        track=track,
        # Frames are missing only where a clip is to be left out.
        max_gap=0,
    )
    classes = stream.predictor.classes
    if not classes.known:
        count = len(classes.names['actions'])
        warnings.warn(
            f'Names of the {count} classes are not known (the label_file of the '
            "config does not exist), so they are called 'class 0' to "
            f"'class {count - 1}': give labels=..., a label map file or a list.",
            stacklevel=2,
        )
    source = open_whole_video(video, fps, on_bad_clip)
    last, total = max(people.times or [0]), source.count
    if total is not None and round(last * source.fps) >= total + source.fps:
        raise ValueError(
            f'{name} is {total / source.fps:.2f} seconds long, but boxes has a '
            f'keyframe at {last:g}: count seconds from the beginning of the video '
            '(AVA proposals: from timestamp_start).'
        )
    return play(stream, source, name)


class Keyframes(NamedTuple):
    """When to look for people in a video, and what finds them."""

    times: Optional[list[float]]
    """Seconds of the video; None for every ``stride`` seconds."""
    find: CalledBoxes


def _detected(
    detector: Detector, threshold: float, category: Optional[int]
) -> CalledBoxes:
    """People that a detector finds."""
    if isinstance(detector, nn.Module):
        person = 'person' if category is None else category
        detector = PersonDetector(detector, score_thr=threshold, person=person)
    elif not callable(detector):
        raise ValueError(
            f'det_model is a {type(detector).__name__}: it takes what '
            'mmdet.apis.init_detector returns, or a function of a frame [H, W, 3] and '
            'its time in seconds that returns boxes.'
        )
    return CalledBoxes(detector, 'det_model')


def _timed(boxes: Mapping) -> Keyframes:
    """Boxes in pixels by second."""
    for key in boxes:
        if not (isinstance(key, Real) and 0 <= key < float('inf')):
            raise ValueError(
                f'boxes has the key {key!r}, expected seconds from 0 on (or, for AVA '
                "proposals, 'video,second')."
            )
    table = {float(key): value for key, value in boxes.items()}
    find = CalledBoxes(lambda image, time: table[time])
    for time, found in table.items():
        corners, *_ = find.check(found, time)
        for box in corners[(corners[:, 2:] <= corners[:, :2]).any(axis=1)]:
            raise ValueError(
                f'boxes has {box.tolist()} at {time:g} seconds, which is empty: '
                'expected x1, y1, x2, y2 with x1 < x2 and y1 < y2.'
            )
    return Keyframes(sorted(table), find)


def _proposed(
    boxes: Boxes, video: str, timestamp_start: int, threshold: float, limit: int
) -> Keyframes:
    """AVA's proposals: fractions, by video and AVA's second."""
    if not isinstance(boxes, (Mapping, str, Path)):
        raise ValueError(
            f'boxes is a {type(boxes).__name__}: it takes a dict from seconds to '
            'boxes [people, 4] in pixels, or AVA proposals or their file.'
        )
    if not boxes:
        raise ValueError('boxes is empty: give the boxes of one keyframe or more.')
    find = ProposalBoxes(boxes, timestamp_start, threshold, limit)
    seconds = sorted(second for name, second in find.table if name == video)
    if not seconds:
        found = ', '.join(dict.fromkeys(name for name, _ in find.table))
        raise ValueError(
            f'The proposals have no boxes for {video!r}; they have '
            f"{found[:200] or 'no video'}: set video_id to the video's name there."
        )
    if seconds[0] < timestamp_start:
        raise ValueError(
            f'The proposals of {video!r} begin at second {seconds[0]}, before the '
            f'video does (timestamp_start={timestamp_start}): set timestamp_start to '
            'the second of the proposals at which the video begins.'
        )
    # As the data set does: no clip where nobody is.
    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    times = [float(second - timestamp_start) for second in seconds]
    times = [time for time in times if len(find(pixel, video, time).boxes)]
    return Keyframes(times, CalledBoxes(lambda image, time: find(image, video, time)))
