"""ClipBuffer: frames in, complete clips out, and no frame kept that no clip needs."""

import copy
import warnings
from collections import deque
from dataclasses import dataclass, field
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


class Snapshot(NamedTuple):
    """A buffer's state between two of its clips, without copies of frames."""

    count: int
    origin: Optional[float]
    last_time: float
    last_index: int
    last_image: Optional[np.ndarray]
    pending: list
    next_number: int
    clips: int
    skipped: int
    ended: bool


class ReadyClip(NamedTuple):
    """A complete clip, and the state from which the next one follows."""

    clip: Clip
    after: Snapshot


class ClipBuffer:
    """Collects the frames of one stream into clips.

    Frames are put on a grid of constant rate: the frame at time ``t`` has the number
    ``round((t - t0) * fps)``. Of two with the same number the first counts; a number
    that no frame has shows the frame before it. That is what ffmpeg does with
    ``-fps_mode cfr``; where frames come at a constant rate, it changes nothing.

    A frame is kept only where a clip that has begun needs it.

    Args:
        grid (ClipGrid): When clips are and which frames they take.
        max_gap (float): Seconds by which a frame may be missing. A clip in which one
            is missing for longer (a camera stalled, a file is damaged) is left out.
        name (optional): The stream's, for errors.

    Raises:
        ValueError: If ``max_gap`` is negative.
    """

    def __init__(self, grid: ClipGrid, max_gap: float = 2.0, name: Any = None) -> None:
        if not max_gap >= 0:
            raise ValueError(f'max_gap={max_gap} must be at least 0 seconds.')
        self.grid = grid
        self.max_gap = max_gap
        self.name = name
        self._told = False
        self.restore(Snapshot(0, None, 0.0, -1, None, [], 0, 0, 0, False))

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
        self._check_image(image)
        index, time = self._place(time)
        self.count += 1
        self._last_time = time
        if index == self._last_index:
            return []
        self._begin_clips(index)
        for clip in self._pending:
            if self._last_image is not None:
                clip.take(self._last_image, self._last_index, index - 1)
            clip.take(image, index, index)
        self._last_index, self._last_image = index, image
        return self._ready()

    def finish(self) -> list[ReadyClip]:
        """The stream ends: the clips that only lack frames after its end.

        They repeat the last frame. A stream that ends before its first clip is
        complete gives that clip.

        Raises:
            BadClipError: If not even one clip has begun, or if clips need more frames
                than the stream had.
        """
        ready, ended = [], self.ended
        self.ended = True
        if self.count and not ended:
            self._pending = deque(self._last_clips(total=self._last_index + 1))
            for clip in self._pending:
                clip.take(self._last_image, self._last_index, int(clip.frame_inds[-1]))
            self.ended = False
            ready = self._ready()
            self.ended = True
        if ready:
            ready[-1] = ready[-1]._replace(after=self.snapshot())
        return ready

    def _last_clips(self, total: int) -> list[Clip]:
        grid, clips = self.grid, list(self._pending)
        if not grid.regular:
            while (time := grid.time(self._next_number)) is not None:
                clips.append(Clip(self._next_number, time, {}))
                self._next_number += 1
            self._upcoming = None
        else:
            while grid.contains(self._upcoming.time, total):
                clips.append(self._upcoming)
                self._next_number += 1
                self._upcoming = self._next()
            inside = [clip for clip in clips if grid.contains(clip.time, total)]
            if inside or self.clips or self.skipped:
                clips = inside
            elif clips:
                clips = clips[:1]
            else:
                raise BadClipError(
                    f'{self.name} ended after {total / grid.fps:.2f} seconds, before '
                    f'its first clip began, which is the one at {grid.time(0):g}: '
                    'lower stride.'
                )
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
        in_gap = False
        while self._upcoming is not None and self._upcoming.frame_inds[0] <= index:
            if in_gap and self._lies_in_gap(self._upcoming, index):
                # The first one stands for all of them: a clock may jump by years.
                self._pass_over(index)
                continue
            in_gap = self._lies_in_gap(self._upcoming, index)
            self._pending.append(self._upcoming)
            self._next_number += 1
            self._upcoming = self._next()

    def _lies_in_gap(self, clip: Clip, index: int) -> bool:
        """Whether frames are missing from before a clip's first frame to its last."""
        first, last = int(clip.frame_inds[0]), int(clip.frame_inds[-1])
        return (
            self.grid.regular
            and self._last_image is not None
            and self._last_index < first
            and last < index
            and last - self._last_index > self.max_gap * self.fps
        )

    def _pass_over(self, index: int) -> None:
        """Skip all clips that end before a frame; the next one of them does."""
        inside, step = self._next_number, 1
        while self._ends_before(inside + step, index):
            inside += step
            step *= 2
        while step > 1:
            step //= 2
            if self._ends_before(inside + step, index):
                inside += step
        self.skipped += inside + 1 - self._next_number
        self._next_number = inside + 1
        self._upcoming = self._next()

    def _ends_before(self, number: int, index: int) -> bool:
        time = self.grid.time(number)
        return int(self.grid.sample(time, name=self.name)['frame_inds'][-1]) < index

    def _next(self) -> Optional[Clip]:
        time = self.grid.time(self._next_number)
        if time is None:
            return None
        sampled = self.grid.sample(time, name=self.name)
        return Clip(self._next_number, time, sampled)

    def _ready(self) -> list[ReadyClip]:
        ready = []
        while self._pending and self._pending[0].complete:
            clip = self._pending.popleft()
            if clip.gap > self.max_gap * self.grid.fps:
                self._skip(clip)
                continue
            self.clips += 1
            ready.append(ReadyClip(clip, self.snapshot()))
        return ready

    def _skip(self, clip: Clip) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f'{self.name} has no frame for {clip.gap / self.fps:.2f} seconds in '
                f'its clip at {clip.time:g}, which is left out, as others will be: '
                f'raise max_gap={self.max_gap:g} to predict them all the same. (Said '
                'once.)',
                stacklevel=2,
            )
        self.skipped += 1

    # ---------------------------------------------------------------------- checks

    def _check_image(self, image: np.ndarray) -> None:
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            raise ValueError(
                f'Frame {self.count} of {self.name} is {describe(image)}, expected an '
                'array [H, W, 3] of uint8, RGB.'
            )
        size = image.shape[:2]
        if self._last_image is not None and size != self._last_image.shape[:2]:
            was = self._last_image.shape
            raise ValueError(
                f'Frame {self.count} of {self.name} has {size[1]} x {size[0]} pixels, '
                f'those before it {was[1]} x {was[0]}: a stream has one frame size; '
                'scale the frame, or call reset() first.'
            )

    def _place(self, time: Optional[float]) -> tuple[int, float]:
        """The frame's number and time."""
        if time is None:
            if not self.count:
                self.origin = 0.0
            return self._last_index + 1, self.origin + (self._last_index + 1) / self.fps
        try:
            seconds = float(time)
        except (TypeError, ValueError):
            seconds = float('nan')
        if not abs(seconds) < float('inf'):
            raise ValueError(
                f'Frame {self.count} of {self.name} has the time {time!r}: expected '
                'seconds.'
            )
        time = seconds
        if not self.count:
            self.origin = time
        elif time < self._last_time:
            raise ValueError(
                f'Frame {self.count} of {self.name} is at {time:g} seconds, the one '
                f'before it at {self._last_time:g}: time must not go back; leave such '
                'frames out, or call reset() first.'
            )
        index = round((time - self.origin) * self.fps)
        if index > ENDLESS // 2:
            raise ValueError(
                f'Frame {self.count} of {self.name} is {time - self.origin:g} seconds '
                'after the first one, more than any stream lasts: expected seconds.'
            )
        return index, time

    # ------------------------------------------------------------------- the state

    @property
    def fps(self) -> float:
        """Frames per second of the grid."""
        return self.grid.fps

    @property
    def last_time(self) -> float:
        """When the last frame was, in seconds, on the clock of the frames."""
        return self._last_time

    @property
    def frames_kept(self) -> int:
        """Frames that are held now."""
        held = [clip.images for clip in self._pending] + [[self._last_image]]
        return len({id(i) for images in held for i in images if i is not None})

    def snapshot(self) -> Snapshot:
        """The state, in which only references to frames are copied."""
        pending = [copy.copy(clip) for clip in self._pending]
        for clip in pending:
            clip.images = list(clip.images)
        return Snapshot(
            self.count,
            self.origin,
            self._last_time,
            self._last_index,
            self._last_image,
            pending,
            self._next_number,
            self.clips,
            self.skipped,
            self.ended,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        self.count, self.origin = snapshot.count, snapshot.origin
        self._last_time, self._last_index = snapshot.last_time, snapshot.last_index
        self._last_image = snapshot.last_image
        self._pending = deque(copy.copy(clip) for clip in snapshot.pending)
        for clip in self._pending:
            clip.images = list(clip.images)
        self._next_number = snapshot.next_number
        self.clips, self.skipped = snapshot.clips, snapshot.skipped
        self.ended = snapshot.ended
        self._upcoming = self._next()

    def pack(self, snapshot: Snapshot) -> dict[str, Any]:
        """A snapshot as plain values and tensors, each frame once."""
        frames: dict[int, tuple[int, np.ndarray]] = {}

        def number_of(image: Optional[np.ndarray]) -> int:
            if image is None:
                return -1
            return frames.setdefault(id(image), (len(frames), image))[0]

        packed = snapshot._asdict()
        packed['last_image'] = number_of(snapshot.last_image)
        packed['pending'] = [
            dict(
                number=clip.number,
                gap=clip.gap,
                images=[number_of(image) for image in clip.images],
            )
            for clip in snapshot.pending
        ]
        packed['frames'] = [torch.from_numpy(image) for _, image in frames.values()]
        return packed

    def unpack(self, packed: dict[str, Any]) -> Snapshot:
        """The snapshot that :meth:`pack` packed."""
        packed = dict(packed)
        frames = [frame.numpy().copy() for frame in packed.pop('frames')]
        pending = []
        for saved in packed['pending']:
            time = self.grid.time(saved['number'])
            sampled = self.grid.sample(time, name=self.name)
            images = [frames[number] for number in saved['images']]
            pending.append(Clip(saved['number'], time, sampled, images, saved['gap']))
        last = packed['last_image']
        packed['last_image'] = frames[last] if last >= 0 else None
        packed['pending'] = pending
        return Snapshot(**packed)


def describe(value: Any) -> str:
    """What something is, in a few words.

    Examples:
        >>> describe(np.zeros((2, 3))), describe('a')
        ('an array [2, 3] of float64', 'a str')
    """
    if isinstance(value, np.ndarray):
        return f'an array {list(value.shape)} of {value.dtype}'
    return f'a {type(value).__name__}'
