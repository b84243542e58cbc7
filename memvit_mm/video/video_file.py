"""VideoFile: the frames of a video file in order, whatever is wrong with the file."""

import os.path as osp
import warnings
from collections.abc import Iterator
from typing import NamedTuple, Optional

import cv2
import numpy as np

from memvit_mm.structures import BadClipError

from .open_video import open_video
from .opencv_engine import open_capture

# Video formats that are image formats, too.
MOVING_IMAGES = ('.gif', '.webp', '.avif', '.apng')
# Seconds by which frames may be off a constant rate before the rate counts as variable.
JITTER = 0.1
# Seconds at the end that edit lists cut off without anybody missing them.
MARGIN = 1.0
# Reads that may fail in a row where it is not known how many frames there are.
TRIES = 16


class Frame(NamedTuple):
    """A frame of a source."""

    image: np.ndarray
    """``[H, W, 3]`` uint8, RGB."""
    time: Optional[float]
    """Seconds; None for one frame after the one before."""


class VideoFile:
    """The frames of a video file, in order, at constant memory.

    Read with OpenCV, whose frames are decord's bit by bit (``tools/test.py`` reads with
    decord), but which does not decode ahead until memory is full (dmlc/decord#208).
    Portrait videos come upright, as their rotation says.

    Args:
        path (str): The file.
        timing (str): ``'frames'``: frame ``n`` is at ``n / fps``, whatever the file
            says, as in ``tools/test.py``. ``'timestamps'``: as the file says.
            ``'auto'``: the former where the frame rate is constant (the file's times
            are within 0.1 seconds of it), the latter where it is variable, so that
            second 60 is what a player shows at second 60.
        on_damage (str): ``'stop'`` with an error where frames cannot be decoded, or
            ``'go_on'`` with a warning after them. Either names the second. (Where only
            the end is missing there is a warning: it may just have been trimmed.)
        start (int): Frames to pass over.

    Raises:
        FileNotFoundError, ValueError: If there is no such file, no video in it, or an
            option is none of the above.
    """

    live = False

    def __init__(
        self,
        path: str,
        timing: str = 'auto',
        on_damage: str = 'stop',
        start: int = 0,
    ) -> None:
        check_choice('timing', timing, ('auto', 'frames', 'timestamps'))
        check_choice('on_damage', on_damage, ('stop', 'go_on'))
        path = osp.expanduser(str(path))
        self.path = path
        self.on_damage = on_damage
        self.start = start
        _check_file(path)
        count, fps, times = _index(path)
        self._capture = open_capture(path)
        if not self._capture.isOpened():
            raise ValueError(_no_video(path))
        self.fps = fps or self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < self.fps < 1000:
            raise ValueError(
                f'Video {path} says that it has {self.fps:g} frames per second: encode '
                'it again, or read it yourself and feed the frames with their times.'
            )
        self.count = count
        """Frames in the file, None where it does not say."""
        self.times = times
        """The file's time of each frame, seconds after the first, or None."""
        self.variable = timing == 'timestamps'
        if timing == 'auto' and times is not None:
            constant = np.arange(len(times)) / self.fps
            self.variable = bool(np.abs(times - constant).max() > JITTER)
        """Whether frames come with the times of the file."""
        self._first_time: Optional[float] = None
        self._file_time = 0.0
        if timing == 'timestamps' and times is None:
            raise ValueError(
                f"Video {path} has no usable times for timing='timestamps': use "
                "timing='frames'."
            )

    @property
    def duration(self) -> Optional[float]:
        """Seconds, where the file says."""
        if self.variable:
            return float(self.times[-1]) + 1 / self.fps
        return None if self.count is None else self.count / self.fps

    def __iter__(self) -> Iterator[Frame]:
        capture, number, failed = self._capture, 0, 0
        if not capture.isOpened():
            raise ValueError(f'Video {self.path} is closed: open it once more.')
        while self.count is None or number < self.count:
            if not capture.grab():
                failed += 1
                if failed > TRIES + (self.count or number) - number:
                    break
                continue
            here = self._number(number, failed)
            if here > number:
                self._damaged(number, here)
            failed, number = 0, here + 1
            if here < self.start:
                continue
            ok, image = capture.retrieve()
            if not ok:
                self._damaged(here, number)
                continue
            time = self._file_time if self.variable else here / self.fps
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time)
        if number == 0:
            raise ValueError(_no_video(self.path))
        if self.count is not None and self.count - number > MARGIN * self.fps:
            warnings.warn(
                f'Video {self.path} ends at second {self._second(number):.2f}, though '
                f'it says that it lasts until {self._second(self.count):.2f}: it was '
                'trimmed, or cut off.',
                stacklevel=2,
            )

    def _number(self, expected: int, failed: int) -> int:
        """Which frame has been read: after damage not the one that comes next."""
        if self.times is None:
            return expected + failed
        time = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._first_time is None:
            # The times in the index count from the first frame.
            self._first_time = time - self.times[expected + failed]
        time -= self._first_time
        self._file_time = max(time, 0.0)
        near = abs(time - self.times[expected]) < 1.5 / self.fps
        if near or (self.variable and not failed):
            return expected
        after = int(np.searchsorted(self.times, time - 0.5 / self.fps))
        return min(max(after, expected), self.count - 1)

    def _damaged(self, first: int, after: int) -> None:
        begin, end = (self._second(number) for number in (first, after))
        tell_damage(
            f'Video {self.path} is damaged: its frames from second {begin:.2f} to '
            f'{end:.2f} cannot be decoded',
            self.on_damage,
        )

    def _second(self, number: int) -> float:
        """When a frame is, or would be."""
        if self.variable and number < len(self.times):
            return float(self.times[number])
        return number / self.fps

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


def check_choice(name: str, value: str, choices: tuple) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, got {value!r}.')


def tell_damage(sentence: str, on_damage: str) -> None:
    """Stop at frames that cannot be decoded, or warn of them.

    Raises:
        BadClipError: If ``on_damage`` is ``'stop'``.
    """
    if on_damage == 'stop':
        raise BadClipError(
            f"{sentence}; read over them with on_damage='go_on' (--on-damage go_on; in "
            "the inference functions on_bad_clip='skip'), or encode the video again."
        )
    warnings.warn(f'{sentence}, and are left out.', stacklevel=4)


def _check_file(path: str) -> None:
    if osp.isdir(path):
        raise ValueError(f'{path} is a folder, not a video: give a video file.')
    if not osp.isfile(path):
        raise FileNotFoundError(f'Video {path} does not exist: check its path.')
    if osp.getsize(path) == 0:
        raise ValueError(
            f'Video {path} is empty (0 bytes): record or download it again.'
        )
    if cv2.haveImageReader(path) and not path.lower().endswith(MOVING_IMAGES):
        raise ValueError(
            f'{path} is a still image: actions are recognised in videos; give a video '
            'file, or an iterable of frames.'
        )


def _index(path: str) -> tuple[Optional[int], Optional[float], Optional[np.ndarray]]:
    """Number of frames, rate and times, from the file's packets; nothing is decoded.

    The times are seconds after the first frame, float64 ``[frames]``; each is None
    where they cannot be told.
    """
    try:
        reader = open_video(path)
        count, fps = len(reader), reader.get_avg_fps()
        times = reader.get_frame_timestamp(np.arange(count))[:, 0].astype(np.float64)
    except Exception as error:
        if 'cannot find video stream' in str(error):
            raise ValueError(
                f'{path} has sound, but no video: give a file with a video in it.'
            ) from None
        return None, None, None
    times = times - times[:1]
    usable = np.isfinite(times).all() and (np.diff(times) > 0).all()
    return count, fps, times if usable else None


def _no_video(path: str) -> str:
    return (
        f'Video {path} cannot be opened or decoded: it is damaged or no video; '
        'download or encode it again.'
    )
