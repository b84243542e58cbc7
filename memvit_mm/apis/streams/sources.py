"""Where frames come from: video files, cameras, and whatever can be iterated over."""

import os.path as osp
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np

from memvit_mm.video.open_video import open_video
from memvit_mm.video.opencv_engine import open_capture

from .clip_grid import check_at_least

Source = Union[str, int, Iterable]

# Video formats that are image formats, too.
MOVING_IMAGES = ('.gif', '.webp', '.avif', '.apng')
# Seconds by which frames may be off a constant rate before the rate counts as variable.
JITTER = 0.1
# Seconds at the end that edit lists cut off without anybody missing them.
MARGIN = 1.0
# Seconds before a camera that went away is opened anew.
PAUSE = 1.0
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
        num_threads (int): Threads that decode.

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
        num_threads: int = 1,
    ) -> None:
        check_choice('timing', timing, ('auto', 'frames', 'timestamps'))
        check_choice('on_damage', on_damage, ('stop', 'go_on'))
        path = osp.expanduser(str(path))
        self.path = path
        self.on_damage = on_damage
        self.start = start
        self.num_threads = num_threads
        _check_file(path)
        count, fps, times = _index(path)
        self._capture = open_capture(path, num_threads)
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
        constant = times is None or _is_constant(times, self.fps)
        self.variable = timing == 'timestamps' or (timing == 'auto' and not constant)
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
        sentence = (
            f'Video {self.path} is damaged: its frames from second {begin:.2f} to '
            f'{end:.2f} cannot be decoded'
        )
        if self.on_damage == 'stop':
            raise ValueError(
                f"{sentence}; read over them with on_damage='go_on', or encode it "
                'again.'
            )
        warnings.warn(f'{sentence}, and are left out.', stacklevel=3)

    def _second(self, number: int) -> float:
        """When a frame is, or would be."""
        if self.variable and number < len(self.times):
            return float(self.times[number])
        return number / self.fps

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class LiveCapture:
    """A camera, or a network stream: frames with the time at which they came.

    A camera that goes away is opened anew, if that is asked for. Times go on by the
    clock: frames that did not come meanwhile are missing ones, as where a camera
    stalls. Clips in which they are missing for longer than ``max_gap`` of the stream
    are left out and counted, and what the model remembers stays.

    Args:
        source (int | str): A camera's index, or an address (``'rtsp://...'``).
        fps (float, optional): Frames per second that the model gets to see. By default
            what the camera says, else 30.
        reconnect (int): How often in a row to open it anew, a second apart, when it
            goes away. (A file behind an address, which says how long it is, ends, and
            is not opened anew.)

    Raises:
        ValueError: If it cannot be opened.
        ConnectionError: While it is read, if it goes away for good.
    """

    live = True
    start = 0

    def __init__(
        self, source: Union[int, str], fps: Optional[float] = None, reconnect: int = 0
    ) -> None:
        check_at_least('reconnect', reconnect, 0, 'times')
        self.path = str(source)
        self.reconnect = reconnect
        self._source = source
        self._name = f'{"Camera" if isinstance(source, int) else "Stream"} {source}'
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise ValueError(
                f'{self._name} cannot be opened: check that it is there, and not '
                'in use by another program.'
            )
        said = self._capture.get(cv2.CAP_PROP_FPS)
        said = said if 1 <= said <= 240 else 30.0
        self.fps = fps or said
        # Above 0 for files only.
        self._length = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._margin = MARGIN * said
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        begin, count, tries = time.monotonic(), 0, 0
        while not self._stopped.is_set():
            ok, image = self._capture.read()
            now = time.monotonic() - begin
            if ok:
                count, tries = count + 1, 0
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now)
            elif 0 < self._length <= count + self._margin:
                return
            elif self._length > 0 or tries == self.reconnect:
                raise ConnectionError(self._lost(now, tries))
            else:
                tries += 1
                if not self._stopped.wait(PAUSE):
                    self._capture.open(self._source)

    def _lost(self, seconds: float, tries: int) -> str:
        told = f'{self._name} went away after {seconds:.1f} seconds'
        if self._length > 0:
            return f'{told}, before its end: it is a file, download it and try again.'
        if tries:
            return f'{told}; reconnect={tries} tries to read it anew failed: check it.'
        return f'{told}: check it, or let it be opened anew with reconnect=3.'

    def stop(self) -> None:
        """From another thread: wait for it no longer."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of the camera."""
        self._capture.release()


class FrameSource:
    """Frames, or pairs of a frame and its time in seconds, of an iterable.

    Args:
        frames (iterable): Arrays ``[H, W, 3]`` uint8 RGB, or pairs of one and its time.
            They are copied, so an array may be used again.
        fps (float, optional): Frames per second.

    Raises:
        ValueError: If frames come without times and ``fps`` is not given.
    """

    live = False
    start = 0
    path = None

    def __init__(self, frames: Iterable, fps: Optional[float] = None) -> None:
        self._frames = iter(frames)
        self._given = fps
        self.fps = fps or 30.0

    def __iter__(self) -> Iterator[Frame]:
        for item in self._frames:
            image, when = item if _is_pair(item) else (item, None)
            if when is None and self._given is None:
                raise ValueError(
                    'The frames come without times: give fps=..., or pairs of a frame '
                    'and its time in seconds.'
                )
            yield Frame(np.array(image) if _is_array(image) else image, when)

    def close(self) -> None:
        """Close the iterator, if it is a generator."""
        close = getattr(self._frames, 'close', None)
        if close is not None:
            close()


class Retimed:
    """A source on the clock of a stream that goes on with it.

    Args:
        source: As :func:`open_source` gives it, with times.
        later (float): Seconds to add to its times.
        after (float): Frames up to this time, in seconds, are left out.
    """

    def __init__(
        self, source: Any, later: float = 0.0, after: float = float('-inf')
    ) -> None:
        self.source = source
        self.later = later
        self.after = after
        self.live, self.path, self.fps = source.live, source.path, source.fps
        self.stop = getattr(source, 'stop', None)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.source:
            time = frame.time + self.later
            if time > self.after:
                yield frame._replace(time=time)

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def going_on(opened: Any, last: float, fps: float) -> Any:
    """A source, from where a stream stopped on, on the stream's clock.

    Args:
        opened: As :func:`open_source` gives it.
        last (float): When the stream's last frame was, in seconds.
        fps (float): The stream's.
    """
    if opened.live:
        return Retimed(opened, later=last + 1 / fps)
    if opened.path is not None:
        return Retimed(opened, after=last)
    return opened


def open_source(
    source: Source,
    fps: Optional[float] = None,
    start: int = 0,
    reconnect: int = 0,
    **options: Any,
) -> Union[VideoFile, LiveCapture, FrameSource]:
    """Open whatever frames come from.

    Args:
        source (str | Path | int | iterable): A video file, the index of a camera, an
            address of a stream, or an iterable of frames; what is opened already is
            returned as it is.
        fps (float, optional): Frames per second; of a file, its own.
        start (int): Frames of a file to pass over.
        reconnect (int): Of :class:`LiveCapture`.
        **options: Of :class:`VideoFile`.

    Raises:
        FileNotFoundError, ValueError: If it cannot be opened.
    """
    if isinstance(source, (VideoFile, LiveCapture)):
        return source
    if hasattr(source, '__fspath__'):
        source = str(source)
    if isinstance(source, bool):
        raise ValueError(f'{source} is no camera: give its index as a number.')
    if isinstance(source, int) or (isinstance(source, str) and '://' in source):
        return LiveCapture(source, fps, reconnect)
    if isinstance(source, str):
        return VideoFile(source, start=start, **options)
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise ValueError(
            f'Frames are an array [frames, H, W, 3] or an iterable of [H, W, 3], got '
            f'an array {list(source.shape)}.'
        )
    if not hasattr(source, '__iter__'):
        raise ValueError(
            'A source is a path, the index of a camera, or an iterable of frames, got: '
            f'{type(source).__name__}.'
        )
    return FrameSource(source, fps)


def path_of(source: Any) -> Optional[str]:
    """The path of a file, else None."""
    if isinstance(source, VideoFile):
        return source.path
    is_path = isinstance(source, str) or hasattr(source, '__fspath__')
    return str(source) if is_path and '://' not in str(source) else None


def name_of(path: Optional[str]) -> Optional[str]:
    """A file's name: it may have moved since a stream was saved."""
    return None if path is None else Path(path).name


def check_choice(name: str, value: str, choices: tuple) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, got {value!r}.')


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _check_file(path: str) -> None:
    if osp.isdir(path):
        raise ValueError(
            f'{path} is a folder, not a video: of a folder of frames, give an iterable '
            'of the frames, and fps=....'
        )
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


def _is_constant(times: np.ndarray, fps: float) -> bool:
    return bool(np.abs(times - np.arange(len(times)) / fps).max() <= JITTER)


def _no_video(path: str) -> str:
    return (
        f'Video {path} cannot be opened or decoded: it is damaged or no video; '
        'download or encode it again.'
    )
