"""SequentialReader: a video that is read from front to back, each frame decoded once.

Clips of a stream overlap and go forwards. Opened or sought anew for every clip, a video
is decoded from the key frame before it: at a key frame every ten seconds, and clips of
two seconds every second, that is six times what is new.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, Optional

import cv2
import numpy as np
from mmengine.logging import print_log

from .decord_errors import decode_errors
from .opencv_engine import (
    Batch,
    BrokenOrderError,
    OpenCVEngine,
    VideoIndex,
    is_steady,
    open_capture,
    read_packets,
)

# Frames kept, in spans of a clip: jitter, and clips of other lengths, go back a bit.
SPANS = 1.125
# Frames at the beginning of a file on which OpenCV must agree with decord.
HEAD = 16


def index_of(reader: Any) -> VideoIndex:
    """What decord's reader knows of the packets of a video."""
    times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    keys = np.asarray(reader.get_key_indices(), dtype=np.int64)
    return VideoIndex(times.astype(np.float64), keys, reader.get_avg_fps())


_told: list[int] = []


def _say_once(path: str) -> None:
    """Log, once in a process, that a file is not read in order."""
    if _told != [os.getpid()]:
        _told[:] = [os.getpid()]
        print_log(
            f'Video {path} is decoded clip by clip, each from the key frame before it: '
            "OpenCV's frames are not bit for bit decord's, or have no usable times. "
            'Encoding it anew, as H.264 of 8 bits, makes it faster to read. (There is '
            'no such line about other videos.)',
            'current',
            logging.WARNING,
        )


class SequentialReader:
    """A video file for clips that come in order; other orders give the same frames.

    What was decoded for a clip and may be in the next one is kept: the frames of the
    last 1.125 spans of a clip. A clip that goes on from the one before has its new
    frames decoded, and nothing else; one that jumps back, or far ahead, costs a seek.

    OpenCV decodes, a frame when it is asked for. (decord decodes ahead while it is
    waited for: up to 2 GB of frames of a video in full HD, dmlc/decord#208.) The
    frames are bit for bit those that decord gives when it reads from the front, unless
    :func:`open_video` does without decord:

    - The first 16 frames of every file are read with both. If a pixel differs, the
      file is read with decord, clip by clip; so are files whose frames have no usable
      times, or times before zero.
    - Every frame's time must be the one in decord's table.
    - If a frame fails, is missing, or comes at another time, on the way to a clip from
      the key frame before it, the clip is read with decord from there, with the errors
      that this raises.

    Where frames after a key frame need some before it (open GOPs; MPEG-4 with B
    frames), decord, having sought, is up to that many frames late. This reader is not.

    Args:
        path (str): The file.
        open_reader (callable, optional): Opens it with decord, anew with every call.
            Without, OpenCV alone decodes: a clip that does not come in order is found
            by counting all frames of the file.
        num_threads (int): Threads that decode.
        index (VideoIndex, optional): Of the file. By default that of decord, or else of
            its packets.

    Raises:
        RuntimeError: If OpenCV cannot open it.
        Exception: What ``open_reader`` raises.
    """

    def __init__(
        self,
        path: str,
        open_reader: Optional[Callable[[], Any]] = None,
        num_threads: int = 1,
        index: Optional[VideoIndex] = None,
    ) -> None:
        self.path = path
        self.reopen = open_reader
        self.num_threads = num_threads
        if index is None:
            index = index_of(open_reader()) if open_reader else read_packets(path)
        self._times, keys, self._fps = index
        self._keys = np.unique([0, *keys])
        self.decoded = 0
        """Frames decoded until now, with what seeks and comparisons cost."""
        self.shape: Optional[tuple[int, int]] = None
        """Height and width of its frames in pixels, once some were read."""
        self._frames: dict[int, np.ndarray] = {}
        self._convert: Optional[Callable] = None
        self._window = 0
        self._engine: Any = None
        self._is_exact = is_steady(self._times)
        # Without decord there is nothing to compare with.
        self._is_proved = open_reader is None

    def __len__(self) -> int:
        return len(self._times)

    def get_avg_fps(self) -> float:
        """Frames per second of the container."""
        return self._fps

    def get_key_indices(self) -> list[int]:
        """Numbers of the key frames."""
        return self._keys.tolist()

    def get_frame_timestamp(self, indices: Any) -> np.ndarray:
        """When frames begin and end, in seconds, ``[N, 2]``."""
        ends = np.append(self._times[1:], self._times[-1] + 1 / (self._fps or 1))
        return np.stack([self._times, ends], axis=1)[np.asarray(indices)]

    def __getitem__(self, number: int) -> Batch:
        return self.get_batch([number])[0]

    @property
    def in_order(self) -> bool:
        """Whether it reads in order; else, clip by clip as decord does."""
        return self._is_exact

    @property
    def frames_kept(self) -> int:
        """How many frames it holds."""
        return len(self._frames)

    @property
    def num_bytes(self) -> int:
        """What these take."""
        return sum(frame.nbytes for frame in self._frames.values())

    def get_batch(
        self, indices: Any, convert: Optional[Callable[[Any], Any]] = None
    ) -> Batch:
        """Frames by their numbers.

        Args:
            indices (sequence[int]): Numbers of frames, in any order, also repeated.
            convert (callable, optional): Makes of each frame ``[H, W, 3]`` what is
                kept and returned, once, as soon as it is decoded.

        Returns:
            Batch: ``[N, H, W, 3]`` uint8 RGB, a copy.

        Raises:
            IndexError: If the video has no such frame.
            RuntimeError, decord.DECORDError: If one cannot be decoded.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if len(wrong):
            raise IndexError(f'Out of bound indices: {wrong}')  # as decord says it
        if convert != self._convert:
            self._frames.clear()
            self._convert = convert
        wanted = np.unique(indices).tolist()
        frames = self._in_order(wanted)
        return np.stack([frames[number] for number in indices.tolist()]).view(Batch)

    def _in_order(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Frames in order, or, where they do not come so, at random."""
        if not self._is_proved:
            self._is_exact = self._is_exact and self._opencv_is_exact()
            self._is_proved = True
            if not self._is_exact:
                _say_once(self.path)
        if not self._is_exact:
            return self._at_random(wanted)
        try:
            self._read(wanted)
        except BrokenOrderError:
            self._engine = None
            return self._at_random(wanted)
        return {number: self._frames[number] for number in wanted}

    def _open(self) -> OpenCVEngine:
        return OpenCVEngine(self.path, self._times, self._fps, self.num_threads)

    def _opencv_is_exact(self) -> bool:
        first = range(min(HEAD, len(self)))
        try:
            engine = self._open()
            ours = [engine.next() for _ in first]
            self.decoded += 2 * len(first)
            theirs = self.reopen().get_batch(list(first)).asnumpy()
        except (BrokenOrderError, *decode_errors()):
            return False
        return all(np.array_equal(*pair) for pair in zip(ours, theirs))

    def _read(self, wanted: list[int]) -> None:
        """Let all frames that are wanted be among those that are kept."""
        missing = [number for number in wanted if number not in self._frames]
        last = wanted[-1]
        # Also what this clip leaves out may be in the next one.
        self._window = max(self._window, int((last - wanted[0] + 1) * SPANS) + 1)
        kept_from = last - self._window + 1
        self._forget(last)
        if not missing:
            return
        first = missing[0]
        if self._engine is None:
            self._engine = self._open()
        engine = self._engine
        try:
            engine.go_to(first, self._keys)
            for number in range(engine.position, last + 1):
                frame = engine.next(is_wanted=number >= kept_from)
                if frame is not None:
                    self._frames[number] = self._converted(frame)
        finally:
            self.decoded += engine.decoded
            engine.decoded = 0

    def _at_random(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Frames of a clip that is read by itself; none is kept."""
        if self.reopen is None:
            try:
                return self._by_time(wanted)
            except BrokenOrderError:
                return self._by_count(wanted)
        place = int(np.searchsorted(self._keys, wanted[0], side='right')) - 1
        self.decoded += wanted[-1] + 1 - int(self._keys[place])
        frames = self.reopen().get_batch(wanted).asnumpy()
        return dict(zip(wanted, map(self._converted, frames)))

    def _by_time(self, wanted: list[int]) -> dict[int, np.ndarray]:
        if not self._is_exact:
            raise BrokenOrderError
        engine = self._open()
        engine.go_to(wanted[0], self._keys)
        return {
            number: self._converted(frame)
            for number in range(engine.position, wanted[-1] + 1)
            if (frame := engine.next(number in wanted)) is not None
        }

    def _by_count(self, wanted: list[int]) -> dict[int, np.ndarray]:
        # All frames, also those after the last one: one that is missing may be before.
        capture = open_capture(self.path, self.num_threads)
        frames, count = {}, 0
        while capture.grab():
            if count in wanted:
                image = capture.retrieve()[1]
                if image is None:
                    break
                frames[count] = self._converted(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            count += 1
        capture.release()
        if count != len(self):
            raise RuntimeError(
                f'OpenCV decodes {count} of its {len(self)} frames, and not these'
            )
        return frames

    def _converted(self, frame: np.ndarray) -> np.ndarray:
        self.shape = frame.shape[:2]
        return self._convert(frame) if self._convert else frame

    def _forget(self, last: int) -> None:
        """Drop the frames that no clip near one that ends there has."""
        self._frames = {
            number: frame
            for number, frame in self._frames.items()
            if abs(number - last) < self._window
        }
