"""Who does what when in a video file: AVA's detectors, for which MMAction2 has no API.

``tools/test.py`` reads data sets; this reads videos (open-mmlab/mmaction2#1692).
"""

import itertools
import os.path as osp
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from mmaction.datasets.transforms import SampleAVAFrames
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from memvit_mm.datasets.transforms.clips import SampleClipFrames
from memvit_mm.structures import BadClipError

from .inference import as_dict
from .models.classes import Classes, Labels, classes_of
from .models.load_model import ConfigLike, build_model, kind_of, load_config
from .people.keyframe_people import Boxes, Detector, people_of
from .people.tracking import IoUTracker, Tracking, track_people, tracker_for
from .streams.clip_grid import ClipGrid, ClipRecipe, test_dataset
from .streams.results import PeoplePrediction
from .whole_video import WholeVideo, WholeVideoPipeline, remembering

DEFAULT_THRESHOLD = 0.9


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
    cfg = load_config(config)
    kind = kind_of(cfg)
    if kind != 'detector':
        call = 'init_recognizer and inference_recognizer'
        raise ValueError(
            f'{cfg.filename or "The config"} builds no action detector but a '
            f'{cfg.model.get("type")}'
            f'{f": use {call} of memvit_mm.apis" if kind == "recognizer" else ""}.'
        )
    return build_model(cfg, checkpoint, device)


def inference_stdet(
    model: nn.Module,
    video: Union[str, Path, np.ndarray, dict],
    boxes: Optional[Boxes] = None,
    det_model: Optional[Detector] = None,
    **kwargs: Any,
) -> list[PeoplePrediction]:
    """Detect what each person in a video does, keyframe by keyframe.

    The video is read forward, a clip at a time, beginning with an empty memory. What
    the model remembers of other videos is not touched, and of this one nothing stays.

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
        on_bad_clip (str): ``'stop'`` at a clip that cannot be decoded, or ``'skip'`` it
            with a warning. Defaults to 'stop'.
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
            video, or it is damaged or too short, or boxes are of another shape.

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
    cfg = getattr(model, 'cfg', None)
    if cfg is None:
        raise ValueError(
            'The model has no cfg that says how it is tested: make it with '
            'init_detector_model.'
        )
    dataset = test_dataset(cfg)
    if score_thr is None:
        score_thr = dataset.get('person_det_score_thr', DEFAULT_THRESHOLD)
    if timestamp_start is None:
        timestamp_start = dataset.get('timestamp_start', 900)
    pipeline = WholeVideoPipeline(detector_steps(cfg), fps, on_bad_clip)
    opened = WholeVideo(pipeline, pipeline.open(as_dict(video)))
    if video_id is None:
        video_id = osp.splitext(osp.basename(opened.name))[0]
    limit = dataset.get('num_max_proposals', 1000)
    people = people_of(
        video_id, boxes, det_model, score_thr, det_cat_id, timestamp_start, limit
    )
    tracker = tracker_for(track, people)
    classes = classes_of(model, cfg, labels)
    if not classes.known:
        count = len(classes.names['actions'])
        warnings.warn(
            f'Names of the {count} classes are not known (the label_file of the config '
            'is not there): give labels=..., a label map file or a list; till then '
            f"they are 'class 0' to 'class {count - 1}'.",
            stacklevel=2,
        )
    recipe = ClipRecipe(pipeline.transforms[pipeline.place], [], True, None)
    grid = ClipGrid(recipe, opened.opened['fps'], stride, people.times)
    if people.times:
        _check_end(people.times[-1], opened)
    return _play(model, opened, people, tracker, grid, classes, video_id)


def detector_steps(cfg: Mapping) -> list:
    """The test pipeline of a config, MMAction2's sampler replaced by ours.

    MMAction2's reads every video at 30 frames a second, and one frame late.
    """
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    steps = test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline')
    steps = Compose(steps).transforms
    samplers = [step for step in steps if isinstance(step, SampleAVAFrames)]
    if not samplers:
        raise ValueError(
            f"{cfg.get('filename') or 'The config'}'s test pipeline has neither "
            'SampleClipFrames nor SampleAVAFrames, which choose the frames around a '
            'keyframe.'
        )
    return [
        SampleClipFrames(step.clip_len, step.frame_interval, test_mode=True)
        if isinstance(step, SampleAVAFrames)
        else step
        for step in steps
    ]


def _check_end(time: float, video: WholeVideo) -> None:
    total, fps = video.opened['total_frames'], video.opened['fps']
    if round(time * fps) >= total + fps:
        raise ValueError(
            f'{video.name} is {total / fps:.2f} seconds long, but boxes has a keyframe '
            f'at {time:g}: count seconds from the beginning of the video (AVA '
            'proposals: from timestamp_start).'
        )


def _play(
    model: nn.Module,
    video: WholeVideo,
    people: Any,
    tracker: Optional[IoUTracker],
    grid: ClipGrid,
    classes: Classes,
    video_id: str,
) -> Iterator[PeoplePrediction]:
    """The keyframes of a video, in order."""
    steps = video.pipeline.steps(video.opened)
    decoded = 1 + next(
        number
        for number, step in enumerate(steps)
        if type(step).__name__.endswith('Decode')
    )
    count = model.roi_head.bbox_head.num_classes
    with remembering(model, [video]):
        for number in itertools.count():
            time = grid.time(number)
            if time is None or (grid.regular and _after(time, video, number, grid)):
                break
            results = dict(
                video.opened,
                video_id=video.stream,
                timestamp=time,
                timestamp_start=0,
                img_key=f'{video_id},{time:g}',
            )
            try:
                for step in steps[:decoded]:
                    results = step(results)
            except BadClipError as error:
                if video.pipeline.on_bad_clip == 'stop':
                    raise
                warnings.warn(f'Left out: {error}', stacklevel=2)
                continue
            found = people(results['imgs'][grid.keyframe], video_id, time)
            inds = results['frame_inds'] - results['start_index'] * (
                'frame_dir' in results
            )
            results.update(
                gt_bboxes=np.zeros((0, 4), dtype=np.float32),
                gt_labels=np.zeros((0, count), dtype=np.float32),
                proposals=found.boxes.copy(),
                scores=found.scores,
            )
            for step in steps[decoded:]:
                results = step(results)
            sample, scores = _predict(model, results, len(found.boxes), count)
            prediction = PeoplePrediction(
                stream=video.name,
                number=number,
                time=time,
                start=float(inds[0] / grid.fps),
                end=float(inds[-1] / grid.fps),
                scores=scores,
                names=classes.names['actions'],
                data_sample=sample,
                boxes=found.boxes,
                box_scores=found.scores,
                track_ids=found.track_ids,
                reserved=classes.reserved,
            )
            track_people(tracker, prediction)
            yield prediction


def _after(time: float, video: WholeVideo, number: int, grid: ClipGrid) -> bool:
    """Whether a regular keyframe is after the end of the video."""
    end = round(time * grid.fps) >= video.opened['total_frames']
    if end and number == 0:
        raise ValueError(
            f'{video.name} ends before the first keyframe, at {time:g} seconds: choose '
            'a smaller stride.'
        )
    return end


def _predict(
    model: nn.Module, packed: dict, people: int, classes: int
) -> tuple[Any, np.ndarray]:
    """The model's answer to a packed clip, and its scores [people, classes]."""
    if not people and not hasattr(model, 'memory'):
        # MMAction2's detectors fail where nobody is, and have nothing to remember.
        return packed['data_samples'], np.zeros((0, classes), dtype=np.float32)
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([packed]))[0]
    sample = sample.cpu()
    return sample, sample.pred_instances.scores.float().numpy()
