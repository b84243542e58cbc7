"""Whole videos in MMAction2's inference APIs: read clip by clip, one result each."""

import contextlib
import itertools
import os.path as osp
import re
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from mmaction.datasets.transforms import (
    ArrayDecode,
    DecordInit,
    RawFrameDecode,
    Resize,
    SampleAVAFrames,
)
from mmaction.datasets.transforms.loading import InferencerPackInput
from mmaction.structures import ActionDataSample
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

from memvit_mm.datasets.epic.transforms import EpicFrameLabels, SampleEpicFrames
from memvit_mm.datasets.transforms.clips import SampleClipFrames
from memvit_mm.datasets.transforms.video import VideoDecode, VideoInit
from memvit_mm.models.epic_head import EpicScores
from memvit_mm.structures import BadClipError

from .streams.clip_grid import ClipGrid, ClipRecipe, test_dataset

# How the results of a video's clips become the video's.
RULES = ('mean', 'last')

_serial = itertools.count()


class WholeVideoPipeline(Compose):
    """A test pipeline that takes a clip of a data set, or a whole video of a user.

    ``import memvit_mm`` puts it where MMAction2's ``inference_recognizer`` and
    ``ActionRecogInferencer`` build their pipelines. A pipeline that asks for the time
    of a clip (it has ``SampleClipFrames`` or ``SampleEpicFrames``) and gets a video
    without one returns a :class:`WholeVideo`; anything else goes its usual way.

    Args:
        transforms (sequence[dict | callable]): The test pipeline.
        fps (float): Frames per second of folders of frames and of arrays, which do not
            say it themselves. Defaults to 30.
        on_bad_clip (str): ``'stop'`` at a clip that cannot be decoded, or ``'skip'`` it
            with a warning. Defaults to 'stop'.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import numpy as np
        >>> pipeline = WholeVideoPipeline([
        ...     dict(type='mmaction.SampleEpicFrames', clip_len=4, frame_interval=2),
        ...     dict(type='mmaction.ArrayDecode'),
        ...     dict(type='mmaction.FormatShape', input_format='NCTHW'),
        ...     dict(type='mmaction.PackActionInputs')])
        >>> frames = np.zeros((90, 32, 48, 3), np.uint8)  # [T, H, W, RGB]
        >>> video = pipeline(dict(array=frames, modality='RGB'))['inputs']
        >>> video
        WholeVideo('array', 90 frames at 30 a second)
        >>> [round(clip['data_samples'].timestamp, 2) for clip in video.clips(stride=1)]
        [1.0, 2.0, 3.0]
        >>> tuple(next(video.clips())['inputs'].shape)  # [views, C, T, H, W]
        (1, 3, 4, 32, 48)
    """

    def __init__(
        self,
        transforms: Sequence[Union[dict, Callable]],
        fps: float = 30.0,
        on_bad_clip: str = 'stop',
    ) -> None:
        super().__init__(transforms)
        if not 0 < fps < float('inf'):
            raise ValueError(f'fps={fps} must be frames per second, above 0.')
        if on_bad_clip not in ('stop', 'skip'):
            raise ValueError(
                f"on_bad_clip={on_bad_clip!r} must be 'stop' or 'skip' (the clip)."
            )
        self.fps = float(fps)
        self.on_bad_clip = on_bad_clip
        samplers = [
            number
            for number, step in enumerate(self.transforms)
            if isinstance(step, (SampleClipFrames, SampleEpicFrames))
        ]
        self.place: Optional[int] = samplers[0] if samplers else None

    @property
    def reads_whole_videos(self) -> bool:
        """Whether it reads a video clip by clip, in time order."""
        return self.place is not None

    def __call__(self, data: Any) -> Optional[dict]:
        """Make a model's input of a sample.

        Args:
            data (dict | str | np.ndarray): As MMAction2's pipelines take it.
        """
        has_time = isinstance(data, Mapping) and 'timestamp' in data
        if has_time or not self.reads_whole_videos:
            return super().__call__(data)
        video = WholeVideo(self, self.open(data))
        return dict(inputs=video, data_samples=video.data_sample())

    def open(self, data: Any) -> dict:
        """Find the frames of a video: ``total_frames`` and ``fps``, and its reader.

        Raises:
            ValueError, FileNotFoundError: If there is no such video.
        """
        for step in self.transforms[: self.place]:
            if isinstance(step, InferencerPackInput):
                _check_kind(step, data)
                data = step(data)
        if not isinstance(data, Mapping):
            raise ValueError(
                f'A {type(data).__name__} is no video: give the path of a file or of a '
                'folder of frames, an array [T, H, W, 3], or a dict with one of them.'
            )
        results = dict(data)
        if 'array' in results:
            _check_array(results['array'])
            results.setdefault('total_frames', len(results['array']))
        elif 'frame_dir' in results:
            _check_frames(results)
        elif 'filename' in results:
            if '://' not in results['filename'] and not osp.isfile(results['filename']):
                raise FileNotFoundError(f'There is no video {results["filename"]}.')
            results = self._init_step()(results)
            results['fps'] = results['avg_fps']
        else:
            raise ValueError(
                f'There is no video in a dict of {", ".join(map(str, results))}: it '
                'takes filename, frame_dir or array.'
            )
        results.setdefault('fps', self.fps)
        results.setdefault('start_index', 0)
        return results

    def steps(self, opened: Mapping) -> list[Callable]:
        """The transforms for a clip of such a video, from the sampler on."""
        if 'array' in opened:
            kind, decode = ArrayDecode, ArrayDecode()
        elif 'frame_dir' in opened:
            kind, decode = RawFrameDecode, RawFrameDecode()
        else:
            kind, decode = VideoDecode, VideoDecode()
        steps = []
        for step in self.transforms[self.place :]:
            if isinstance(step, EpicFrameLabels):
                continue
            if type(step).__name__.endswith('Decode') and not isinstance(step, kind):
                # Frames that do not come from a video come in their own size.
                resize = getattr(step, 'resize', None)
                steps += [decode] if resize is None else [decode, Resize(**resize)]
                continue
            steps.append(step)
        return steps

    def _init_step(self) -> VideoInit:
        """What opens a file, to read it from front to back: the pipeline's settings."""
        for step in self.transforms[: self.place]:
            if isinstance(step, DecordInit):
                options = dict(step.kwargs, keep_open=1)
                return VideoInit(step.io_backend, step.num_threads, **options)
        return VideoInit(keep_open=1)


class WholeVideo:
    """A video that is read when its clips are asked for, and no earlier.

    Made by :class:`WholeVideoPipeline`, which says what it takes.
    """

    def __init__(self, pipeline: WholeVideoPipeline, opened: dict) -> None:
        self.pipeline = pipeline
        self.opened = opened
        name = opened.get('filename', opened.get('frame_dir', 'array'))
        self.name = str(opened.get('video_id', name))
        # Two calls with one video at a time are two streams.
        self.stream = (self.name, next(_serial))

    def __repr__(self) -> str:
        total, fps = self.opened['total_frames'], self.opened['fps']
        return f'WholeVideo({self.name!r}, {total} frames at {fps:g} a second)'

    def __getattr__(self, name: str) -> Any:
        # Who takes it for a tensor is a model that does not read whole videos.
        raise AttributeError(
            f'{type(self).__name__} has no {name!r}: it is a whole video, which '
            "MMAction2's functions give to MemoryRecognizer3D alone; for other models "
            'use inference_recognizer of memvit_mm.apis.'
        )

    def data_sample(self) -> ActionDataSample:
        """An empty result for this video."""
        return ActionDataSample(metainfo=dict(video_id=self.name))

    def clips(self, stride: Optional[float] = None) -> Iterator[dict]:
        """Its clips in time order, each as the pipeline packs it.

        The clips are those that a ``VideoStream`` of this video gives.

        Args:
            stride (float, optional): Seconds from one clip to the next; by default
                a second for clips around a keyframe, else the clips' own length.
        """
        steps = self.pipeline.steps(self.opened)
        sampler = steps[0]
        centered = isinstance(sampler, SampleAVAFrames)
        stride = stride or (1.0 if centered else None)
        recipe = ClipRecipe(sampler, [], centered, stride)
        for time in self._times(ClipGrid(recipe, self.opened['fps'])):
            # Readers are shared, everything else is the clip's own.
            results = dict(
                self.opened,
                video_id=self.stream,
                timestamp=time,
                timestamp_start=0,
                img_key=f'{self.name},{time:g}',
                narration_id=None,
            )
            try:
                for step in steps:
                    results = step(results)
            except BadClipError as error:
                if self.pipeline.on_bad_clip == 'stop':
                    raise
                warnings.warn(f'Left out: {error}', stacklevel=2)
                continue
            yield results

    def _times(self, grid: ClipGrid) -> Iterator[float]:
        """When its clips are, in seconds."""
        total, count = int(self.opened['total_frames']), 0
        while grid.contains(time := grid.time(count), total):
            yield time
            count += 1
        if not count:
            # Too short for a whole one: its middle, or its end.
            yield (total - 1) / (2 if grid.recipe.centered else 1) / grid.fps


def videos_of(data_batch: Any) -> list[WholeVideo]:
    """The whole videos in a collated batch, if it is one of them."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    inputs = inputs if isinstance(inputs, (list, tuple)) else []
    return [video for video in inputs if isinstance(video, WholeVideo)]


@contextlib.contextmanager
def remembering(model: nn.Module, videos: Sequence[WholeVideo]) -> Iterator[None]:
    """Read videos from an empty memory on, and forget them at the end.

    Others that the model remembers neither make room for them nor take theirs.
    """
    remembers = hasattr(model, 'reset_memory')
    try:
        for video in videos if remembers else ():
            model.memory.open(video.stream, video)
        yield
    finally:
        for video in videos if remembers else ():
            model.reset_memory(video.stream)


def play_videos(model: nn.Module, data_batch: Mapping) -> list[ActionDataSample]:
    """Read whole videos through a recognizer, each from an empty memory on.

    Several videos are read side by side, a clip of each at a time. What the model
    remembers of other videos is not touched, and of these nothing stays.

    Args:
        model (nn.Module): A recognizer.
        data_batch (dict): The collated batch, its ``inputs`` are :class:`WholeVideo`.

    Returns:
        list[ActionDataSample]: The videos' results. ``pred_score``, ``pred_label`` and
        what else the head writes are those of the video: the mean over its clips, or
        for a model that anticipates the last clip's (``model.test_cfg.whole_video``
        says 'mean' or 'last' where it is given). ``clip_scores`` (``[clips, classes]``)
        and ``clip_times`` (``[clips]``, seconds) keep those of its clips.

    Raises:
        ValueError: If a video has no clip that can be read, or ``whole_video`` is
            something else.
    """
    videos = videos_of(data_batch)
    cfg = getattr(model, 'cfg', None) or {}
    rule = rule_of(model)
    stride = test_dataset(cfg).get('context_stride') or None
    running = [video.clips(stride) for video in videos]
    played = [PlayedClips() for _ in videos]
    ends = object()
    with remembering(model, videos):
        while True:
            clips = [next(clips, ends) for clips in running]
            rows = [row for row, clip in enumerate(clips) if clip is not ends]
            if not rows:
                break
            with torch.no_grad():
                batch = pseudo_collate([clips[row] for row in rows])
                results = model.test_step(batch)
            for row, result in zip(rows, results):
                played[row].add(result)
    return [_result(model, video, clips, rule) for video, clips in zip(videos, played)]


def rule_of(model: nn.Module) -> str:
    """Whether a video's result is the mean of its clips' or that of its last clip."""
    rule = (getattr(model, 'test_cfg', None) or {}).get('whole_video')
    if rule is None:
        task = test_dataset(getattr(model, 'cfg', None) or {}).get('task')
        return 'last' if task == 'anticipation' else 'mean'
    if rule not in RULES:
        raise ValueError(
            f"test_cfg has whole_video={rule!r}, it takes 'mean' (over the clips) or "
            "'last' (the last clip's)."
        )
    return rule


class PlayedClips:
    """What the model said about the clips of a video.

    Kept in one growing array per field: small tensors that live long would lie between
    the frames that come and go, and keep their memory from being used again.
    """

    fields = ('pred_score', 'verb_logits', 'noun_logits')

    def __init__(self) -> None:
        self.times = array('d')
        self.values: dict[str, array] = {}
        self.last: Optional[ActionDataSample] = None

    def add(self, sample: ActionDataSample) -> None:
        """Take the next clip's result."""
        for name in self.fields:
            if name in sample:
                value = sample.get(name).float()
                # A head that averages no views has a row for each.
                value = value.mean(dim=0) if value.ndim == 2 else value
                self.values.setdefault(name, array('f')).extend(value.tolist())
        self.times.append(float(sample.metainfo.get('timestamp', 0.0)))
        self.last = sample

    def __len__(self) -> int:
        return len(self.times)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> torch.Tensor:
        """A field of all clips, float32 ``[clips, classes]``."""
        return torch.tensor(self.values[name]).view(len(self), -1)


def _result(
    model: nn.Module, video: WholeVideo, clips: PlayedClips, rule: str
) -> ActionDataSample:
    """A video's result from those of its clips."""
    if not len(clips):
        raise ValueError(f'{video.name} has no clip that can be read.')
    result = video.data_sample()
    scores = clips['pred_score']
    if rule == 'last':
        last = clips.last.cpu()
        for name in last.keys():  # noqa: SIM118 (a data sample is no dict)
            if not name.startswith('gt_'):
                result.set_field(last.get(name), name)
    elif 'verb_logits' in clips:
        # Clips are averaged as the head averages views.
        logits = EpicScores(clips['verb_logits'], clips['noun_logits'])
        model.cls_head.predict_by_feat(logits, [result])
    else:
        mean = scores.mean(dim=0)
        result.set_pred_score(mean).set_pred_label(mean.argmax())
    result.set_field(scores, 'clip_scores')
    result.set_field(torch.tensor(clips.times, dtype=torch.float64), 'clip_times')
    return result


def _check_kind(step: InferencerPackInput, data: Any) -> None:
    """Refuse what is not of the inferencer's ``input_format``."""
    expected = {'video': str, 'rawframes': str, 'array': np.ndarray, 'dict': dict}
    kind = expected.get(step.input_format)
    if kind is not None and not isinstance(data, kind):
        raise ValueError(
            f'The inferencer has input_format={step.input_format!r} and got a '
            f"{type(data).__name__}: 'video' takes the path of a file, 'rawframes' "
            "that of a folder of frames, 'array' an array [T, H, W, 3]."
        )
    if step.input_format == 'rawframes':
        _check_folder(data)
    if step.input_format == 'array':
        _check_array(data)


def _check_folder(folder: str) -> None:
    if not osp.isdir(folder):
        raise FileNotFoundError(f'There is no folder of frames {folder}.')


def _check_array(array: Any) -> None:
    shape = getattr(array, 'shape', None)
    if shape is None or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(
            f'An array of shape {shape and tuple(shape)} is no video: expected '
            '[T, H, W, 3], frames in RGB.'
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f'An array of {array.dtype} is no video: expected frames of uint8, from 0 '
            'to 255.'
        )


def _check_frames(results: dict) -> None:
    """Refuse a folder without frames, and lead those that are there to the sampler."""
    folder = results['frame_dir']
    _check_folder(folder)
    name = results.setdefault('filename_tmpl', 'img_{:05}.jpg')
    results.setdefault('modality', 'RGB')
    results.setdefault('start_index', 1)
    if 'total_frames' not in results:
        keys = ('filename_tmpl', 'modality', 'start_index')
        count = InferencerPackInput('rawframes', **{key: results[key] for key in keys})
        results['total_frames'] = count(folder)['total_frames']
    if not results['total_frames']:
        example = osp.join(folder, name.format(results['start_index']))
        example = re.sub(r'[{}]', '', example)
        raise ValueError(
            f'{folder} has no frames: expected {example} and so on, or name '
            'another filename_tmpl.'
        )
