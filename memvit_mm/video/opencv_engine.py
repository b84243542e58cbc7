"""A video with OpenCV: its packets, and its frames one after the other."""

from typing import NamedTuple, Optional

import cv2
import numpy as np

# How many frames earlier to try it when a seek has gone too far.
EARLIER = 64
# So few frames ahead are decoded, never sought.
NEAR = 32


class Batch(np.ndarray):
    """Frames ``[N, H, W, 3]`` that answer to ``asnumpy()``, as decord's do."""

    def asnumpy(self) -> np.ndarray:
        """A plain array."""
        return self.view(np.ndarray)


class BrokenOrderError(Exception):
    """What comes next is not the frame that should come next."""


def is_steady(times: np.ndarray) -> bool:
    """Whether a frame can be told by its time.

    Times before zero are those of frames that an edit list hides from some decoders.

    Args:
        times (np.ndarray): ``[frames]``, seconds.

    Examples:
        >>> is_steady(np.array([0.0, 0.04, 0.08])), is_steady(np.array([0.0, 0.0]))
        (True, False)
    """
    if not len(times) or not np.isfinite(times).all() or times[0] < -1e-3:
        return False
    return len(times) == 1 or float(np.diff(times).min()) > 1e-3


def open_capture(path: str, num_threads: int = 1) -> cv2.VideoCapture:
    """Open a video file with OpenCV, whose frames come upright."""
    # Named: by itself OpenCV takes clip_0001.mp4 for the first of a row of pictures.
    return cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, num_threads])


class VideoIndex(NamedTuple):
    """What the packets of a video say."""

    times: np.ndarray
    """When each frame is, float64 ``[frames]``, seconds."""
    keys: np.ndarray
    """Numbers of the key frames, int64."""
    fps: float
    """Frames per second of the container."""


def read_packets(path: str) -> VideoIndex:
    """Read a video's packets, all of them, and decode none.

    Raises:
        RuntimeError: If there is no video in it.
    """
    # Format -1: packets as they are.
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times, is_key = [], []
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        is_key.append(capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) > 0)
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    if not times:
        raise RuntimeError('OpenCV finds no video in it')
    # They come in the order of decoding, of which B frames are not shown.
    order = np.argsort(times, kind='stable')
    keys = np.flatnonzero(np.array(is_key)[order])
    return VideoIndex(np.array(times, dtype=np.float64)[order], keys, fps)


class OpenCVEngine:
    """Frames with OpenCV: none is decoded before it is asked for.

    Args:
        path (str): The file.
        times (np.ndarray): When each of its frames is, ``[frames]``, seconds.
        fps (float): Frames per second of the container.
        num_threads (int): Threads that decode.

    Raises:
        BrokenOrderError: If the file does not open, or begins with another frame.
    """

    def __init__(
        self, path: str, times: np.ndarray, fps: float, num_threads: int
    ) -> None:
        self.path = path
        self.times = times
        self.fps = fps
        self.num_threads = num_threads
        self.decoded = 0
        """Frames that were decoded; whoever counts them sets it back."""
        gaps = np.diff(times)
        self._tolerance = float(gaps.min()) / 2 if len(gaps) else 0.5
        self._open()

    def _open(self) -> None:
        self._capture = open_capture(self.path, self.num_threads)
        self._offset = 0.0
        self.position = 0
        """Number of the frame that comes next."""
        # Whether that one has been decoded already.
        self._is_here = self._grab()
        if not self._is_here:
            raise BrokenOrderError
        self._offset = float(self.times[0]) - self._time()

    def _grab(self) -> bool:
        self.decoded += 1
        return self._capture.grab()

    def _time(self) -> float:
        """The time of the frame that was decoded last, in seconds."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 + self._offset

    def _is_at(self, number: int) -> bool:
        return abs(self._time() - self.times[number]) < self._tolerance

    def go_to(self, number: int, keys: np.ndarray) -> None:
        """Let the next frame be this one, or one a little before.

        Args:
            number (int): Of the frame.
            keys (np.ndarray): Numbers of all key frames, 0 the first.
        """
        place = int(np.searchsorted(keys, number, side='right')) - 1
        key, before = int(keys[place]), int(keys[max(place - 1, 0)])
        # To seek a key frame, the part before it is decoded, and never less than 16
        # frames.
        if not min(before, number - NEAR) <= self.position <= number:
            self.jump(key, before)

    def jump(self, key: int, before: int) -> None:
        """Let a key frame be the next one.

        Every frame from there on is looked at. OpenCV seeks by decoding up to a frame,
        and does not tell what fails on its way; so it seeks a frame before.

        Args:
            key (int): Number of the key frame.
            before (int): Number of the one before.
        """
        if key == 0:
            self._open()
            return
        goal = round(float(self.times[key] - self.times[0]) * self.fps)
        for earlier in (0, EARLIER):
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, max(goal - earlier, 0))
            self.decoded += max(goal - before, 0)
            while self._grab():
                if self._is_at(key):
                    self.position, self._is_here = key, True
                    return
                if self._time() > self.times[key]:
                    break
        raise BrokenOrderError

    def next(self, is_wanted: bool = True) -> Optional[np.ndarray]:
        """The frame that comes next ``[H, W, 3]``, RGB; None if it is not wanted.

        Raises:
            BrokenOrderError: If it does not come.
        """
        if not (self._is_here or self._grab()) or not self._is_at(self.position):
            raise BrokenOrderError
        self._is_here = False
        self.position += 1
        if not is_wanted:
            return None
        found, image = self._capture.retrieve()
        if not found:
            raise BrokenOrderError
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
