"""When a stream's clips are, and which frames they take: as the config's test says."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Optional

import numpy as np
from mmaction.registry import TRANSFORMS

from memvit_mm.datasets.epic.transforms import EpicFrameLabels, SampleEpicFrames
from memvit_mm.datasets.transforms.clips import SampleClipFrames

Transform = Callable[[dict], Optional[dict]]

# More frames than any stream has: the samplers are told so until it ends.
ENDLESS = 2**50
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

    Stands in for MMAction2's ``SampleFrames``, which chooses clips of a whole video.
    Frames are counted as there, in those of the video; those before the first one
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
    """How a config's test pipeline makes a clip, without opening and decoding."""

    sampler: Transform
    """Chooses ``frame_inds`` for a ``timestamp``, in seconds of the stream."""
    transforms: list[Transform]
    """What comes after decoding: resizing, cropping, packing."""
    centered: bool
    """Whether a clip's time is that of its middle frame (AVA), or of its last one."""
    stride: Optional[float]
    """Seconds from one clip to the next that the config stands for, if it does."""


def test_dataset(cfg: Mapping) -> dict:
    """The config of the dataset that ``tools/test.py`` reads, without its wrappers."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def read_recipe(cfg: Mapping, sampler: Optional[dict] = None) -> ClipRecipe:
    """Take the test pipeline of a config apart.

    Args:
        cfg (Config): A config with ``test_dataloader``, or ``test_pipeline``.
        sampler (dict, optional): The frame sampler's config instead of the pipeline's
            own: ``SampleClipFrames``, ``SampleEpicFrames`` or ``SampleFrames``.

    Returns:
        ClipRecipe: The parts.

    Raises:
        ValueError: If there is no such pipeline, or no sampler or decoder in it that
            is known.
    """
    dataset = test_dataset(cfg)
    pipeline = dataset.get('pipeline') or cfg.get('test_pipeline')
    if not pipeline:
        raise ValueError(
            'The config has no test_dataloader.dataset.pipeline and no test_pipeline, '
            'so it is not known how frames become clips: add one of them.'
        )
    names = [str(step['type']).rsplit('.', 1)[-1] for step in pipeline]
    decoders = [number for number, name in enumerate(names) if name in DECODERS]
    if not decoders:
        raise ValueError(
            f'The test pipeline ({", ".join(names)}) has none of {", ".join(DECODERS)}:'
            ' what comes before the frames are there cannot be told from what comes '
            'after.'
        )
    if sampler is None:
        found = [step for step, name in zip(pipeline, names) if name in SAMPLERS]
        if not found:
            raise ValueError(
                f'The test pipeline ({", ".join(names)}) has none of '
                f'{", ".join(SAMPLERS)}: say how clips are sampled, such as sampler='
                "dict(type='SampleEpicFrames', clip_len=16, frame_interval=4)."
            )
        sampler = found[0]
    kind = str(sampler.get('type')).rsplit('.', 1)[-1]
    if kind not in SAMPLERS:
        raise ValueError(
            f'sampler has type={kind!r}, it takes one of {", ".join(SAMPLERS)}.'
        )
    choose, centered = SAMPLERS[kind](sampler)
    steps = list(pipeline[decoders[-1] + 1 :])
    resize = pipeline[decoders[-1]].get('resize')
    if resize is not None:
        # VideoDecode does it itself.
        steps.insert(0, dict(resize, type='Resize'))
    after = [TRANSFORMS.build(step) for step in steps]
    after = [step for step in after if not isinstance(step, EpicFrameLabels)]
    return ClipRecipe(choose, after, centered, _stride(kind, dataset))


def _ava(cfg: Mapping) -> tuple[Transform, bool]:
    # MMAction2's own reads one frame late, and every video at 30 frames a second.
    own = {key: cfg[key] for key in ('clip_len', 'frame_interval') if key in cfg}
    return SampleClipFrames(**own, test_mode=True), True


def _epic(cfg: Mapping) -> tuple[Transform, bool]:
    own = {key: value for key, value in cfg.items() if key != 'type'}
    return SampleEpicFrames(**own), False


def _trailing(cfg: Mapping) -> tuple[Transform, bool]:
    return TrailingFrames(cfg['clip_len'], cfg.get('frame_interval', 1)), False


SAMPLERS = {
    'SampleClipFrames': _ava,
    'SampleAVAFrames': _ava,
    'SampleEpicFrames': _epic,
    'SampleFrames': _trailing,
}


def _stride(kind: str, dataset: Mapping) -> Optional[float]:
    if SAMPLERS[kind] is _ava:
        return 1.0
    return dataset.get('context_stride') or None


class ClipGrid:
    """The clips of one stream at a given frame rate.

    Clip ``number`` (0, 1, ...) is at ``(number + 1) * stride`` seconds after the first
    frame, or at ``clip_times[number]``. Frames have numbers, too: frame ``n`` is at
    ``n / fps``.

    Args:
        recipe (ClipRecipe): From :func:`read_recipe`.
        fps (float): Frames per second.
        stride (float, optional): Seconds from one clip to the next. By default 1 for
            models of AVA's kind (a prediction per second), ``context_stride`` of the
            dataset for those of EPIC-KITCHENS' kind; else the clips' own length, so
            that one begins where the one before ended.
        clip_times (sequence[float], optional): The clips' times instead, in seconds
            after the first frame.

    Raises:
        ValueError: If ``stride``, ``fps`` or ``clip_times`` is out of range.

    Examples:
        >>> recipe = ClipRecipe(SampleClipFrames(4, 2, test_mode=True), [], True, 1.0)
        >>> grid = ClipGrid(recipe, fps=30)
        >>> grid.time(0), grid.sample(grid.time(0))['frame_inds']
        (1.0, array([26, 28, 30, 32]))
    """

    def __init__(
        self,
        recipe: ClipRecipe,
        fps: float,
        stride: Optional[float] = None,
        clip_times: Optional[Sequence[float]] = None,
    ) -> None:
        check_stride(stride)
        check_fps(fps)
        self.recipe = recipe
        self.fps = float(fps)
        self.stride = float(stride or recipe.stride or self._clip_seconds())
        self.clip_times = check_times(clip_times)

    def _clip_seconds(self) -> float:
        sampler = self.recipe.sampler
        frames = sampler.clip_len * sampler.frame_interval
        return frames / getattr(sampler, 'target_fps', self.fps)

    @property
    def regular(self) -> bool:
        """Whether clips come every ``stride`` seconds."""
        return self.clip_times is None

    def time(self, number: int) -> Optional[float]:
        """When a clip is, in seconds after the first frame; None after the last one."""
        if self.clip_times is None:
            return (number + 1) * self.stride
        return self.clip_times[number] if number < len(self.clip_times) else None

    def sample(self, time: float, total: int = ENDLESS, name: Any = None) -> dict:
        """What the config's sampler answers for a clip.

        Args:
            time (float): The clip's time, seconds after the first frame.
            total (int): Frames of the stream, where it has ended.
            name (optional): The stream's, for errors.

        Returns:
            dict: ``frame_inds`` (int64 ``[clip_len]``) and what goes with them.

        Raises:
            BadClipError: If such a stream has no such clip.
        """
        return self.recipe.sampler(
            dict(
                filename=str(name),
                timestamp=time,
                timestamp_start=0,
                fps=30,
                avg_fps=self.fps,
                total_frames=total,
                start_index=0,
                modality='RGB',
                narration_id=None,
            )
        )

    @property
    def keyframe(self) -> int:
        """Position, in a clip, of the frame that its time stands for."""
        length = self.recipe.sampler.clip_len
        return length // 2 if self.recipe.centered else length - 1

    def contains(self, time: float, total: int) -> bool:
        """Whether a clip's time lies in a stream of so many frames.

        A clip around a keyframe has that frame in it. One that ends at its time may end
        with the stream, at ``total / fps``: the last frame is on the screen until then.

        Args:
            time (float): The clip's time, seconds after the first frame.
            total (int): Frames of the stream.
        """
        if self.recipe.centered:
            return int(round(time * self.fps)) < total
        return time * self.fps <= total + 1e-6

    def settings(self) -> dict[str, Any]:
        """What must be equal for a saved stream to go on."""
        sampler = self.recipe.sampler
        return dict(
            fps=self.fps,
            stride=self.stride,
            clip_len=sampler.clip_len,
            frame_interval=sampler.frame_interval,
            clip_times=self.clip_times,
        )

    def check_settings(self, saved: Mapping[str, Any]) -> None:
        """Refuse a stream that was saved with others.

        Raises:
            ValueError: With the first that differs.
        """
        for key, value in self.settings().items():
            if saved[key] != value:
                raise ValueError(
                    f'The state was saved by a stream with {key}={saved[key]}, '
                    f'this one has {key}={value}: build it with the same settings.'
                )


def check_fps(fps: Optional[float]) -> None:
    """Refuse a frame rate that is none."""
    if fps is not None and not (_is_number(fps) and 0 < fps < math.inf):
        raise ValueError(f'fps={fps!r} must be frames per second, above 0.')


def check_stride(stride: Optional[float]) -> None:
    """Refuse a stride that leads nowhere."""
    if stride is not None and not (_is_number(stride) and 0 < stride < math.inf):
        raise ValueError(f'stride={stride!r} must be seconds, above 0.')


def check_at_least(name: str, value: float, least: float, unit: str) -> None:
    """Refuse a number that is too small, or none."""
    if not (_is_number(value) and value >= least):
        raise ValueError(f'{name}={value!r} must be at least {least} {unit}.')


def check_times(times: Optional[Sequence[float]]) -> Optional[list[float]]:
    """The times as a list, each later than the one before."""
    if times is None:
        return None
    try:
        times = [float(time) for time in times]
    except (TypeError, ValueError):
        raise ValueError(
            f'clip_times={times!r} must be the times of clips in seconds, such as '
            '[1, 2.5].'
        ) from None
    for before, after in zip([-math.inf, *times], times):
        if not after > before:
            raise ValueError(
                f'clip_times must grow, but {after:g} comes after {before:g}.'
            )
    return times


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
