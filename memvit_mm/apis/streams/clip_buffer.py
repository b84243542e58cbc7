"""ClipBuffer: collects the frames of one stream into clips.

It keeps a frame only as long as a clip that has begun needs it.
"""

import warnings
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from memvit_mm.structures import BadClipError

from .clip_grid import ENDLESS, ClipGrid


@dataclass
class Clip:
    """A clip that is being collected, or complete."""

    number: int
    """0 for the stream's first."""
    time: float
    """Seconds after the first frame."""
    sampled: dict
    """What the sampler said, ``frame_inds`` among it."""
    images: list = field(default_factory=list)
    """The frames so far, ``[H, W, 3]`` uint8 RGB each."""
    gap: int = 0
    """By how many frames the oldest stand-in for a missing frame is out of date."""

    @property
    def frame_inds(self) -> np.ndarray:
        """Numbers of its frames, int64 ``[clip_len]``."""
        return self.sampled['frame_inds']

    @property
    def complete(self) -> bool:
        """Whether all its frames are there."""
        return len(self.images) == len(self.frame_inds)

    def take(self, image: np.ndarray, index: int, until: int) -> None:
        """Use a frame, number ``index``, for all places up to number ``until``."""
        inds = self.frame_inds
        while not self.complete and inds[len(self.images)] <= until:
            self.gap = max(self.gap, int(inds[len(self.images)]) - index)
            self.images.append(image)


@dataclass
class BufferState:
    """What a buffer knows of its stream. Copies share the frames."""

    count: int = 0
    """Frames taken."""
    origin: Optional[float] = None
    """When the first frame was, in seconds."""
    last_time: float = 0.0
    """When the last frame was, in seconds."""
    last_index: int = -1
    """The last frame's number on the grid."""
    last_image: Optional[np.ndarray] = None
    pending: list[Clip] = field(default_factory=list)
    """Clips that have begun, oldest first."""
    next_number: int = 0
    """Number of the clip that begins next."""
    clips: int = 0
    """Clips that were complete."""
    skipped: int = 0
    """Clips that were left out, because frames were missing."""
    ended: bool = False

    def copy(self) -> 'BufferState':
        """A copy that later frames do not change."""
        pending = [replace(clip, images=list(clip.images)) for clip in self.pending]
        return replace(self, pending=pending)


class ReadyClip(NamedTuple):
    """A complete clip, and the state from which the next one follows."""

    clip: Clip
    after: BufferState


class ClipBuffer:
    """Collects the frames of one stream into clips.

    Frames are put on a grid of constant rate: the frame at time ``t`` has the number
    ``round((t - t0) * fps)``. Of two with the same number the first counts; a number
    that no frame has shows the frame before it. That is what ffmpeg does with
    ``-fps_mode cfr``; where frames come at a constant rate, it changes nothing.

    Args:
        grid (ClipGrid): When clips are and which frames they take.
        max_gap (float): Seconds by which a frame may be missing. A clip in which one
            is missing for longer (a camera stalled, a file is damaged) is left out.
        name (optional): The stream's, for errors.
    """

    def __init__(self, grid: ClipGrid, max_gap: float = 2.0, name: Any = None) -> None:
        self.grid = grid
        self.max_gap = max_gap
        self.name = name
        self._told = False
        self.restore(BufferState())

    def restore(self, state: BufferState) -> None:
        """Go back to a state."""
        self.state = state.copy()
        self._upcoming = self._next()

    # ------------------------------------------------------------------- frames in

    def feed(self, image: np.ndarray, time: Optional[float] = None) -> list[ReadyClip]:
        """Take the next frame.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB. It is kept: hand over a copy
                of what will change.
            time (float, optional): Seconds, on any clock. Without it the frame is
                ``1 / fps`` after the one before.

        Returns:
            list[ReadyClip]: The clips that are complete now.

        Raises:
            ValueError: If the frame is no frame, or of another size or earlier than
                the ones before.
        """
        state = self.state
        self._check_image(image)
        index, state.last_time = self._place(time)
        state.count += 1
        if index == state.last_index:
            return []
        self._begin_clips(index)
        for clip in state.pending:
            if state.last_image is not None:
                clip.take(state.last_image, state.last_index, index - 1)
            clip.take(image, index, index)
        state.last_index, state.last_image = index, image
        return self._ready()

    @property
    def complete(self) -> bool:
        """Whether no clip needs another frame: all ``clip_times`` are behind it."""
        return self._upcoming is None and not self.state.pending

    def finish(self) -> list[ReadyClip]:
        """The stream ends: return the clips that only lack frames after its end.

        They repeat the last frame. A stream that ends before its first clip is
        complete gives that clip.

        Raises:
            BadClipError: If not even one clip has begun, or if clips need more frames
                than the stream had.
        """
        state = self.state
        ended, state.ended = state.ended, True
        if ended or not state.count:
            return []
        state.pending = self._last_clips(total=state.last_index + 1)
        for clip in state.pending:
            clip.take(state.last_image, state.last_index, int(clip.frame_inds[-1]))
        # The stream has ended after the last of them, not before.
        state.ended = False
        ready = self._ready()
        state.ended = True
        if ready:
            ready[-1] = ready[-1]._replace(after=state.copy())
        return ready

    def _last_clips(self, total: int) -> list[Clip]:
        """The clips of a stream that turns out to have so many frames."""
        grid, state = self.grid, self.state
        clips = list(state.pending)
        while self._upcoming is not None and (
            not grid.regular or grid.contains(self._upcoming.time, total)
        ):
            clips.append(self._begin())
        if grid.regular:
            inside = [clip for clip in clips if grid.contains(clip.time, total)]
            if not clips and not state.clips and not state.skipped:
                raise BadClipError(
                    f'{self.name} ended after {total / grid.fps:.2f} seconds, before '
                    f'its first clip, which is at {grid.time(0):g} seconds: lower '
                    'stride.'
                )
            is_first = not inside and not state.clips and not state.skipped
            clips = clips[:1] if is_first else inside
        for clip in clips:
            centered = grid.recipe.centered and not grid.contains(clip.time, total)
            if centered or not grid.regular:
                # Refuses what lies outside the stream.
                clip.sampled = grid.sample(clip.time, total, self.name)
            else:
                last = np.minimum(clip.frame_inds, total - 1)
                clip.sampled = dict(clip.sampled, frame_inds=last)
        return clips

    def _begin_clips(self, index: int) -> None:
        """Begin the clips that have a frame up to this number."""
        state, in_gap = self.state, False
        while self._upcoming is not None and self._upcoming.frame_inds[0] <= index:
            was_in_gap, in_gap = in_gap, self._lies_in_gap(self._upcoming, index)
            if not (in_gap and was_in_gap):
                state.pending.append(self._begin())
                continue
            # The first clip in a gap stands for all of them. The others are not looked
            # at one by one: a clock may jump by years.
            frames_left = index - int(self._upcoming.frame_inds[-1]) - 2
            more = max(0, int(frames_left / (self.grid.stride * self.grid.fps)))
            state.skipped += 1 + more
            state.next_number += 1 + more
            self._upcoming = self._next()

    def _lies_in_gap(self, clip: Clip, index: int) -> bool:
        """Whether frames are missing from before a clip's first frame to its last."""
        first, last = int(clip.frame_inds[0]), int(clip.frame_inds[-1])
        before = self.state.last_index
        return (
            self.grid.regular
            and self.state.last_image is not None
            and before < first
            and last < index
            and last - before > self.max_gap * self.grid.fps
        )

    def _begin(self) -> Clip:
        clip = self._upcoming
        self.state.next_number += 1
        self._upcoming = self._next()
        return clip

    def _next(self) -> Optional[Clip]:
        """The clip that begins next; None after the last one."""
        number = self.state.next_number
        return None if self.grid.time(number) is None else self._clip(number)

    def _clip(self, number: int) -> Clip:
        time = self.grid.time(number)
        return Clip(number, time, self.grid.sample(time, name=self.name))

    def _ready(self) -> list[ReadyClip]:
        state, ready = self.state, []
        while state.pending and state.pending[0].complete:
            clip = state.pending.pop(0)
            if clip.gap > self.max_gap * self.grid.fps:
                self._tell_skipped(clip)
                state.skipped += 1
                continue
            state.clips += 1
            ready.append(ReadyClip(clip, state.copy()))
        return ready

    def _tell_skipped(self, clip: Clip) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f'{self.name} has no frame for {clip.gap / self.grid.fps:.2f} seconds '
                f'in its clip at {clip.time:g}, which is left out, as others will be '
                f'where frames are missing for more than max_gap={self.max_gap:g} '
                'seconds. (Said once.)',
                stacklevel=2,
            )

    # ---------------------------------------------------------------------- checks

    def _check_image(self, image: np.ndarray) -> None:
        is_array = isinstance(image, np.ndarray)
        if (
            not is_array
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            told = f'a {type(image).__name__}'
            if is_array:
                told = f'an array {list(image.shape)} of {image.dtype}'
            raise ValueError(
                f'Frame {self.state.count} of {self.name} is {told}, expected an '
                'array [H, W, 3] of uint8, RGB.'
            )
        last = self.state.last_image
        if last is not None and image.shape != last.shape:
            raise ValueError(
                f'Frame {self.state.count} of {self.name} has {image.shape[1]} x '
                f'{image.shape[0]} pixels, those before it {last.shape[1]} x '
                f'{last.shape[0]}: a stream has one frame size; scale the frame, or '
                'call reset() first.'
            )

    def _place(self, time: Optional[float]) -> tuple[int, float]:
        """The next frame's number and time."""
        state, fps = self.state, self.grid.fps
        if time is None:
            state.origin = state.origin or 0.0
            index = state.last_index + 1
            return index, state.origin + index / fps
        name = f'Frame {state.count} of {self.name}'
        try:
            seconds = float(time)
        except (TypeError, ValueError):
            seconds = float('nan')
        if not abs(seconds) < float('inf'):
            raise ValueError(f'{name} has the time {time!r}: expected seconds.')
        if state.count and seconds < state.last_time:
            raise ValueError(
                f'{name} is at {seconds:g} seconds, the one before it at '
                f'{state.last_time:g}: time must not go back; leave such frames out, '
                'or call reset() first.'
            )
        if not state.count:
            state.origin = seconds
        index = round((seconds - state.origin) * fps)
        if index > ENDLESS // 2:
            raise ValueError(
                f'{name} is {seconds - state.origin:g} seconds after the first one, '
                'more than any stream lasts: expected seconds.'
            )
        return index, seconds

    # ----------------------------------------------------------------- saved states

    @property
    def frames_kept(self) -> int:
        """Frames that are held now."""
        held = [clip.images for clip in self.state.pending] + [[self.state.last_image]]
        return len({id(i) for images in held for i in images if i is not None})

    def pack(self, state: BufferState) -> dict[str, Any]:
        """A state as plain values and tensors, each frame once."""
        frames: dict[int, tuple[int, np.ndarray]] = {}

        def number_of(image: np.ndarray) -> int:
            return frames.setdefault(id(image), (len(frames), image))[0]

        packed = {f.name: getattr(state, f.name) for f in fields(state)}
        last = state.last_image
        packed['last_image'] = -1 if last is None else number_of(last)
        packed['pending'] = [
            dict(
                number=clip.number, gap=clip.gap, images=[*map(number_of, clip.images)]
            )
            for clip in state.pending
        ]
        packed['frames'] = [torch.from_numpy(image) for _, image in frames.values()]
        return packed

    def unpack(self, packed: dict[str, Any]) -> BufferState:
        """The state that :meth:`pack` packed."""
        packed = dict(packed)
        frames = [frame.numpy().copy() for frame in packed.pop('frames')]
        last = packed['last_image']
        packed['last_image'] = frames[last] if last >= 0 else None
        packed['pending'] = [
            replace(
                self._clip(saved['number']),
                images=[frames[number] for number in saved['images']],
                gap=saved['gap'],
            )
            for saved in packed['pending']
        ]
        return BufferState(**packed)
