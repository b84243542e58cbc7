"""ClipGrid: when the clips of a stream are, and which frames they take."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Optional

from memvit_mm.datasets.clip_recipe import ClipRecipe

# More frames than any stream has: samplers are told so until the stream ends.
ENDLESS = 2**50


class ClipGrid:
    """The clips of one stream at a given frame rate.

    Clip ``number`` (0, 1, ...) is at ``(number + 1) * stride`` seconds after the first
    frame, or at ``clip_times[number]``. Frames have numbers, too: frame ``n`` is at
    ``n / fps``.

    Args:
        recipe (ClipRecipe): How the model's config samples clips.
        fps (float): Frames per second.
        stride (float, optional): Seconds from one clip to the next. By default 1 for
            models of AVA's kind (a prediction per second), ``context_stride`` of the
            dataset for those of EPIC-KITCHENS' kind; else the clips' own length, so
            that one begins where the one before ended.
        clip_times (sequence[float], optional): The clips' times instead, in seconds
            after the first frame.

    Examples:
        >>> from memvit_mm.datasets import SampleClipFrames
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
        self.recipe = recipe
        self.fps = float(fps)
        sampler = recipe.sampler
        own = sampler.clip_len * sampler.frame_interval
        own /= getattr(sampler, 'target_fps', None) or self.fps
        self.stride = float(stride or recipe.stride or own)
        self.clip_times = check_times(clip_times)

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
        """Refuse a stream that was saved with other settings.

        Raises:
            ValueError: With the first that differs.
        """
        for key, value in self.settings().items():
            if saved[key] != value:
                raise ValueError(
                    f'The state was saved by a stream with {key}={saved[key]}, '
                    f'this one has {key}={value}: build it with the same settings.'
                )


def check_positive(name: str, value: Optional[float], unit: str) -> None:
    """Refuse what is neither None nor a finite number above 0."""
    if value is not None and not (_is_number(value) and 0 < value < math.inf):
        raise ValueError(f'{name}={value!r} must be {unit}, above 0.')


def check_stride(stride: Optional[float]) -> None:
    """Refuse a stride that is no number of seconds above 0."""
    check_positive('stride', stride, 'seconds')


def check_at_least(name: str, value: float, least: float, unit: str) -> None:
    """Refuse a value that is too small, or no number."""
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
