"""open_video: a video file's reader, decord's where it is there and reads it right."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np

from .opencv_engine import (
    Batch,
    BrokenOrderError,
    OpenCVEngine,
    is_steady,
    open_capture,
)


def find_decord() -> Optional[ModuleType]:
    """The module; None where it is not installed (it has no build for aarch64)."""
    try:
        import decord
    except ImportError:
        return None
    return decord


def decode_errors() -> tuple[type[Exception], ...]:
    """What readers raise where a frame cannot be decoded."""
    decord = find_decord()
    errors = (RuntimeError, IndexError)
    return errors if decord is None else (*errors, decord.DECORDError)


def silence_decord() -> None:
    """Keep its ffmpeg from printing: it says hundreds of lines that name no file."""
    decord = find_decord()
    if decord is not None:
        decord.logging.set_level(decord.logging.QUIET)


def open_video(path: str, num_threads: int = 1) -> Any:
    """Open a video file, with decord if possible.

    OpenCV reads in its place where decord is not installed, and videos that were filmed
    with the camera turned (portrait videos of phones): decord 0.6 turns those in mp4
    and mov files, though not in mkv files, and makes more than three channels of those
    that are 16, 24, 48 or 72 pixels wide when upright. Either way frames come upright.

    Args:
        path (str): The file.
        num_threads (int): Threads that decode.

    Returns:
        decord.VideoReader | OpenCVReader: Frames by their numbers.

    Raises:
        RuntimeError, decord.DECORDError: If it cannot be opened.
    """
    decord = find_decord()
    if decord is None:
        return OpenCVReader(path, num_threads)
    reader = decord.VideoReader(path, num_threads=num_threads)
    if not _is_turned(path):
        return reader
    times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    keys = np.asarray(reader.get_key_indices(), dtype=np.int64)
    index = VideoIndex(times.astype(np.float64), keys, reader.get_avg_fps())
    return OpenCVReader(path, num_threads, index)


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


def written_frames(path: str, fps: float) -> int:
    """How many frames of a video that has just been written can be read back.

    OpenCV does not say that a disk is full. What a container says of its length is
    written last, in some of them into its beginning, so that it is missing where
    anything is; but it is no proof that the frames are there: these are counted. (10
    minutes of 1280 x 720, 250 MB, take 0.3 seconds; to decode them takes 37.)

    Args:
        path (str): The file.
        fps (float): Frames per second that it should have.

    Returns:
        int: The number; 0 if the file does not open, or lacks its length.
    """
    try:
        count = len(read_packets(path).times)
    except RuntimeError:
        return 0
    capture = open_capture(path)
    frames, rate = (
        capture.get(name) for name in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)
    )
    capture.release()
    return count if rate > 0 and frames / rate > 0.9 * count / fps else 0


class OpenCVReader:
    """A video file with OpenCV: as much of decord's ``VideoReader`` as is needed here.

    A frame is found by its time, from the key frame before it on; where times do not
    say which frame it is (AVI files with B frames), by counting all frames of the file.

    Args:
        path (str): The file.
        num_threads (int): Threads that decode.
        index (VideoIndex, optional): Of its packets, which are read else.

    Raises:
        RuntimeError: If it cannot be opened.
    """

    def __init__(
        self, path: str, num_threads: int = 1, index: Optional[VideoIndex] = None
    ) -> None:
        self.path = path
        self.num_threads = num_threads
        self._times, keys, self._fps = index or read_packets(path)
        self._keys = np.unique([0, *keys])
        self._next = 0

    def __len__(self) -> int:
        return len(self._times)

    def get_avg_fps(self) -> float:
        """Frames per second of the container."""
        return self._fps

    def get_key_indices(self) -> list[int]:
        """Numbers of the key frames."""
        return self._keys.tolist()

    def get_frame_timestamp(self, indices: Union[int, Sequence[int]]) -> np.ndarray:
        """When frames begin and end, in seconds, ``[N, 2]``."""
        ends = np.append(self._times[1:], self._times[-1] + 1 / (self._fps or 1))
        return np.stack([self._times, ends], axis=1)[np.asarray(indices)]

    def get_batch(self, indices: Sequence[int]) -> Batch:
        """Frames by their numbers, in any order, also repeated.

        Returns:
            Batch: ``[N, H, W, 3]`` uint8 RGB.

        Raises:
            IndexError: If the video has no such frame.
            RuntimeError: If one cannot be decoded.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if len(wrong):
            raise IndexError(f'Out of bound indices: {wrong}')
        wanted = np.unique(indices).tolist()
        try:
            frames = self._by_time(wanted)
        except BrokenOrderError:
            frames = self._by_count(wanted)
        return np.stack([frames[number] for number in indices.tolist()]).view(Batch)

    def __getitem__(self, number: int) -> Batch:
        return self.get_batch([number])[0]

    def seek(self, number: int) -> None:
        """Go to the key frame at or before a frame."""
        place = np.searchsorted(self._keys, number, side='right')
        self._next = int(self._keys[place - 1])

    def next(self) -> Batch:
        """The frame where it is."""
        self._next += 1
        return self[self._next - 1]

    def _by_time(self, wanted: list[int]) -> dict[int, np.ndarray]:
        if not is_steady(self._times):
            raise BrokenOrderError
        engine = OpenCVEngine(self.path, self._times, self._fps, self.num_threads)
        engine.go_to(wanted[0], self._keys)
        return {
            number: frame
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
                frames[count] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            count += 1
        capture.release()
        if count != len(self):
            raise RuntimeError(
                f'OpenCV decodes {count} of its {len(self)} frames, and not these'
            )
        return frames


def _is_turned(path: str) -> bool:
    """Whether a video was filmed with the camera turned, as its metadata says."""
    capture = open_capture(path)
    turned = capture.get(cv2.CAP_PROP_ORIENTATION_META)
    capture.release()
    return turned in (90, 180, 270)
