"""open_video: a reader of a video file, by decord or, where that fails, by OpenCV."""

from typing import Any

import cv2

from .decord_errors import find_decord
from .opencv_engine import open_capture, read_packets
from .sequential_reader import SequentialReader, index_of


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
        decord.VideoReader | SequentialReader: Frames by their numbers.

    Raises:
        RuntimeError, decord.DECORDError: If it cannot be opened.
    """
    decord = find_decord()
    if decord is None:
        return SequentialReader(path, num_threads=num_threads)
    reader = decord.VideoReader(path, num_threads=num_threads)
    if not _is_turned(path):
        return reader
    return SequentialReader(path, num_threads=num_threads, index=index_of(reader))


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


def _is_turned(path: str) -> bool:
    """Whether a video was filmed with the camera turned, as its metadata says."""
    capture = open_capture(path)
    turned = capture.get(cv2.CAP_PROP_ORIENTATION_META)
    capture.release()
    return turned in (90, 180, 270)
