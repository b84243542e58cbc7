"""How a config's test pipeline makes clips of a video: sampling, then preparing."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
from mmaction.datasets.transforms import SampleAVAFrames, SampleFrames
from mmaction.registry import TRANSFORMS

from .epic.transforms import EpicFrameLabels, SampleEpicFrames
from .transforms.clips import SampleClipFrames

Transform = Callable[[dict], Optional[dict]]

SAMPLERS = ('SampleClipFrames', 'SampleAVAFrames', 'SampleEpicFrames', 'SampleFrames')
DECODERS = (
    'VideoDecode',
    'DecordDecode',
    'OpenCVDecode',
    'PyAVDecode',
    'PIMSDecode',
    'RawFrameDecode',
    'ArrayDecode',
)


class TrailingFrames:
    """The last frames before a moment, for models whose samples are whole videos.

    It replaces MMAction2's ``SampleFrames``, which chooses clips of a whole video.
    Frames are counted as there, in those of the video. Frames before the first one
    repeat it.

    Args:
        clip_len (int): Frames in a clip.
        frame_interval (int): Frames from one frame of the clip to the next.

    Examples:
        >>> sample = TrailingFrames(clip_len=4, frame_interval=2)
        >>> sample(dict(timestamp=1.0, avg_fps=10.0, total_frames=99))['frame_inds']
        array([ 4,  6,  8, 10])
    """

    def __init__(self, clip_len: int, frame_interval: int = 1) -> None:
        self.clip_len = clip_len
        self.frame_interval = frame_interval

    def __call__(self, results: dict) -> dict:
        end = math.floor(results['timestamp'] * results['avg_fps'] + 1e-6)
        back = np.arange(self.clip_len - 1, -1, -1) * self.frame_interval
        inds = np.clip(end - back, 0, results['total_frames'] - 1)
        results.update(
            frame_inds=inds.astype(np.int64),
            clip_len=self.clip_len,
            frame_interval=self.frame_interval,
            num_clips=1,
        )
        return results


class ClipRecipe(NamedTuple):
    """How a test pipeline makes a clip, without opening and decoding the video."""

    sampler: Transform
    """Chooses ``frame_inds`` for a ``timestamp``, in seconds of the stream."""
    transforms: list[Transform]
    """What comes after decoding: resizing, cropping, packing."""
    centered: bool
    """Whether a clip's time is that of its middle frame (AVA), or of its last one."""
    stride: Optional[float]
    """Seconds from one clip to the next, if the config says so."""


def test_dataset(cfg: Mapping) -> dict:
    """The config of the dataset that ``tools/test.py`` reads, without its wrappers."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def read_recipe(cfg: Mapping, sampler: Optional[dict] = None) -> ClipRecipe:
    """Take the test pipeline of a config apart.

    Args:
        cfg (Config): A config with ``test_dataloader``, or ``test_pipeline``. The
            transforms in it may be built already.
        sampler (dict, optional): The frame sampler's config instead of the pipeline's
            own: ``SampleClipFrames``, ``SampleAVAFrames``, ``SampleEpicFrames`` or
            ``SampleFrames``.

    Raises:
        ValueError: If there is no such pipeline, or it has no known sampler or decoder.
    """
    dataset = test_dataset(cfg)
    pipeline = dataset.get('pipeline') or cfg.get('test_pipeline')
    if not pipeline:
        raise ValueError(
            'The config has no test_pipeline and no test_dataloader.dataset.pipeline, '
            'so it is not known how frames become clips: add one of them.'
        )
    if sampler is not None and _kind(sampler) not in SAMPLERS:
        raise ValueError(
            f'sampler has type={_kind(sampler)!r}, it takes one of '
            f'{", ".join(SAMPLERS)}.'
        )
    names = [_kind(step) for step in pipeline]
    decoders = [number for number, name in enumerate(names) if name in DECODERS]
    if not decoders:
        raise ValueError(
            f'The test pipeline ({", ".join(names)}) has none of {", ".join(DECODERS)}:'
            ' what comes before the frames are there cannot be told from what comes '
            'after.'
        )
    steps = [s if callable(s) else TRANSFORMS.build(s) for s in pipeline]
    samplers = steps if sampler is None else [TRANSFORMS.build(sampler)]
    chosen = next(filter(None, map(_stream_sampler, samplers)), None)
    if chosen is None:
        raise ValueError(
            f'The test pipeline ({", ".join(names)}) has none of '
            f'{", ".join(SAMPLERS)}: say how clips are sampled, such as sampler='
            "dict(type='SampleEpicFrames', clip_len=16, frame_interval=4)."
        )
    after = [s for s in steps[decoders[-1] + 1 :] if not isinstance(s, EpicFrameLabels)]
    resize = getattr(steps[decoders[-1]], 'resize', None)
    if resize is not None:
        # VideoDecode does it itself.
        after.insert(0, TRANSFORMS.build(dict(resize, type='Resize')))
    centered = isinstance(chosen, SampleClipFrames)
    stride = 1.0 if centered else dataset.get('context_stride') or None
    return ClipRecipe(chosen, after, centered, stride)


def _kind(step: Any) -> str:
    """The name of a transform, or of the type in its config."""
    name = step.get('type') if isinstance(step, Mapping) else type(step).__name__
    return str(getattr(name, '__name__', name)).rsplit('.', 1)[-1]


def _stream_sampler(step: Any) -> Optional[Transform]:
    """What samples a stream as a data set's sampler does; None for other transforms."""
    if isinstance(step, SampleAVAFrames):
        # MMAction2's own reads one frame late, and every video at 30 frames a second.
        return SampleClipFrames(step.clip_len, step.frame_interval, test_mode=True)
    if isinstance(step, SampleFrames):
        return TrailingFrames(step.clip_len, step.frame_interval)
    return step if isinstance(step, SampleEpicFrames) else None
