"""Whole videos in MMAction2's inference APIs: read clip by clip, one result each."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from mmaction.datasets.transforms.loading import InferencerPackInput
from mmaction.structures import ActionDataSample
from mmengine.dataset import Compose
from torch import nn

from memvit_mm.datasets.clip_recipe import test_dataset
from memvit_mm.datasets.epic.transforms import SampleEpicFrames
from memvit_mm.datasets.transforms.clips import SampleClipFrames
from memvit_mm.models.heads.epic_head import EpicScores
from memvit_mm.video.video_file import VideoFile, check_choice

from .models.results import Prediction
from .streams.clip_grid import ClipGrid, check_positive
from .streams.predictor import Predictor
from .streams.sources import FrameSource, open_source
from .streams.stream import VideoStream

# What an inferencer takes, by its input_format.
FORMATS = {'video': str, 'rawframes': str, 'array': np.ndarray}


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
        on_bad_clip (str): ``'stop'`` where frames cannot be decoded, or ``'skip'`` the
            clips that need them, with a warning. Defaults to 'stop'.

    Examples:
        >>> import numpy as np
        >>> pipeline = WholeVideoPipeline([
        ...     dict(type='mmaction.SampleEpicFrames', clip_len=4, frame_interval=2),
        ...     dict(type='mmaction.ArrayDecode'),
        ...     dict(type='mmaction.FormatShape', input_format='NCTHW'),
        ...     dict(type='mmaction.PackActionInputs')])
        >>> frames = np.zeros((90, 32, 48, 3), np.uint8)  # [T, H, W, RGB]
        >>> pipeline(dict(array=frames))['inputs']
        WholeVideo('array')
    """

    def __init__(
        self,
        transforms: Sequence[Union[dict, Callable]],
        fps: float = 30.0,
        on_bad_clip: str = 'stop',
    ) -> None:
        super().__init__(transforms)
        self.fps = fps
        self.on_bad_clip = on_bad_clip

    @property
    def reads_whole_videos(self) -> bool:
        """Whether it reads a video clip by clip, in time order."""
        samplers = (SampleClipFrames, SampleEpicFrames)
        return any(isinstance(step, samplers) for step in self.transforms)

    def __call__(self, data: Any) -> Optional[dict]:
        """Make a model's input of a sample.

        Args:
            data (dict | str | np.ndarray): As MMAction2's pipelines take it.
        """
        has_time = isinstance(data, Mapping) and 'timestamp' in data
        if has_time or not self.reads_whole_videos:
            return super().__call__(data)
        video = WholeVideo(self, data)
        return dict(inputs=video, data_samples=video.data_sample())

    def open(self, data: Any) -> Any:
        """Open a video, see :func:`open_whole_video`."""
        step = self.transforms[0]
        if isinstance(step, InferencerPackInput):
            kind = FORMATS.get(step.input_format, object)
            if not isinstance(data, kind):
                raise ValueError(
                    f'The inferencer has input_format={step.input_format!r} and got a '
                    f"{type(data).__name__}: 'video' takes the path of a file, "
                    "'rawframes' that of a folder of frames, 'array' an array "
                    '[T, H, W, 3].'
                )
            data = step(data)
        return open_whole_video(data, self.fps, self.on_bad_clip)


class WholeVideo:
    """A video that is read when a model plays it, and no earlier.

    Made by :class:`WholeVideoPipeline`, which says what it takes.
    """

    def __init__(self, pipeline: WholeVideoPipeline, data: Any) -> None:
        self.pipeline = pipeline
        self.data = data
        self.name = name_of(data)

    def __repr__(self) -> str:
        return f'WholeVideo({self.name!r})'

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

    def play(self, model: nn.Module) -> ActionDataSample:
        """Read the video through a recognizer, beginning with an empty memory.

        What the model remembers of other videos is not touched, and of this one nothing
        stays.

        Args:
            model (nn.Module): A recognizer.

        Returns:
            ActionDataSample: The video's result. ``pred_score``, ``pred_label`` and
            what else the head writes are those of the video: the mean over its clips,
            or for a model that anticipates the last clip's
            (``model.test_cfg.whole_video`` says 'mean' or 'last' where it is given).
            ``clip_scores`` (``[clips, classes]``) and ``clip_times`` (``[clips]``,
            seconds) keep those of its clips.

        Raises:
            ValueError, FileNotFoundError: If there is no such video, no clip of it can
                be read, or ``whole_video`` is something else.
        """
        cfg = dict(getattr(model, 'cfg', None) or {})
        dataset = dict(test_dataset(cfg), pipeline=self.pipeline.transforms)
        cfg['test_dataloader'] = dict(dataset=dataset)
        rule = whole_video_rule(model, dataset)
        predictor = Predictor(model, cfg)
        source = self.pipeline.open(self.data)
        grid, clip_times = ClipGrid(predictor.recipe, source.fps), None
        if source.count is not None and not grid.contains(grid.time(0), source.count):
            # Too short for a whole clip: there is one at its middle, or at its end.
            end = (source.count - 1) / grid.fps
            clip_times = [end / 2 if grid.recipe.centered else end]
        # Frames are missing only where a clip is to be left out.
        stream = VideoStream(predictor, clip_times=clip_times, max_gap=0)
        times, kept, last = [], {}, None
        for prediction in play(stream, source, self.name):
            last = prediction.data_sample
            times.append(prediction.time)
            kept.setdefault('pred_score', []).append(prediction.scores)
            for name in ('verb_logits', 'noun_logits'):
                if name in last:
                    kept.setdefault(name, []).append(last.get(name).float().numpy())
        if last is None:
            raise ValueError(
                f'{self.name} has no clip that can be read: encode the video again.'
            )
        # [clips, classes]
        clips = {k: torch.from_numpy(np.stack(rows)) for k, rows in kept.items()}
        result, scores = self.data_sample(), clips['pred_score']
        if rule == 'last':
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
        result.set_field(torch.tensor(times, dtype=torch.float64), 'clip_times')
        return result


def open_whole_video(
    video: Any, fps: float = 30.0, on_bad_clip: str = 'stop'
) -> Union[VideoFile, FrameSource]:
    """Open a whole video in any of the forms that MMAction2's pipelines take.

    Its frames are counted, as ``tools/test.py`` does, whatever times the file has.

    Args:
        video (str | Path | np.ndarray | dict): A file, a folder of frames, an array
            ``[T, H, W, 3]`` uint8 RGB, or a dict with ``filename``, ``frame_dir`` or
            ``array``.
        fps (float): Frames per second of folders and arrays, if a dict has no ``fps``.
        on_bad_clip (str): ``'stop'`` where frames cannot be decoded, or ``'skip'`` them
            with a warning.

    Raises:
        FileNotFoundError, ValueError: If it cannot be opened.
    """
    check_positive('fps', fps, 'frames per second')
    check_choice('on_bad_clip', on_bad_clip, ('stop', 'skip'))
    on_damage = 'stop' if on_bad_clip == 'stop' else 'go_on'
    if isinstance(video, (str, Path, np.ndarray, Mapping)):
        source = open_source(video, fps, timing='frames', on_damage=on_damage)
        if not source.live:
            return source
        source.close()
    raise ValueError(
        f'{str(video)[:80]!r} is no video: give the path of a file or of a folder of '
        'frames, an array [T, H, W, 3], or a dict with one of them. (VideoStream also '
        'reads cameras and addresses.)'
    )


def play(stream: VideoStream, source: Any, name: str) -> Iterator[Prediction]:
    """Predict the clips of one video, and forget the video at the end.

    Args:
        stream (VideoStream): A new one.
        source: As for :meth:`VideoStream.run`.
        name (str): What predictions call the video.
    """
    try:
        with contextlib.closing(stream.run(source)) as predictions:
            for prediction in predictions:
                prediction.stream = name
                yield prediction
    finally:
        stream.reset()


def name_of(video: Any) -> str:
    """What a video is called in results and errors: its path, or 'array'."""
    if isinstance(video, Mapping):
        for key in ('video_id', 'filename', 'frame_dir'):
            if key in video:
                return str(video[key])
    return 'array' if isinstance(video, (Mapping, np.ndarray)) else str(video)


def whole_video_rule(model: nn.Module, dataset: Mapping) -> str:
    """Whether a video's result is the mean of its clips' or that of its last clip."""
    rule = (getattr(model, 'test_cfg', None) or {}).get('whole_video')
    if rule is None:
        return 'last' if dataset.get('task') == 'anticipation' else 'mean'
    if rule not in ('mean', 'last'):
        raise ValueError(
            f"test_cfg has whole_video={rule!r}, it takes 'mean' (over the clips) or "
            "'last' (the last clip's)."
        )
    return rule
