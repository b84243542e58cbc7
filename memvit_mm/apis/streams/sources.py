"""Sources of frames: files, folders, cameras, and iterables."""

import os.path as osp
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Union

import cv2
import numpy as np
from mmaction.datasets.transforms.loading import InferencerPackInput

from memvit_mm.video.video_file import MARGIN, Frame, VideoFile, tell_damage

from .clip_buffer import ClipBuffer
from .clip_grid import check_at_least

Source = Union[str, int, Iterable]

# Seconds before a camera that went away is opened anew.
PAUSE = 1.0


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
        """Stop waiting for the camera, from another thread."""
        self._stopped.set()

    def close(self) -> None:
        """Close the camera."""
        self._capture.release()


class FrameSource:
    """Frames, or pairs of a frame and its time in seconds, of an iterable.

    Args:
        frames (iterable): Arrays ``[H, W, 3]`` uint8 RGB, or pairs of one and its time.
            They are copied, so an array may be used again.
        fps (float, optional): Frames per second.
        count (int, optional): How many there are. By default ``len(frames)``.

    Raises:
        ValueError: If frames come without times and ``fps`` is not given.
    """

    live = False
    path = None

    def __init__(
        self, frames: Iterable, fps: Optional[float] = None, count: Optional[int] = None
    ) -> None:
        self.count = len(frames) if hasattr(frames, '__len__') else count
        self._frames = iter(frames)
        self._given = fps
        self.fps = fps or 30.0

    def __iter__(self) -> Iterator[Frame]:
        for item in self._frames:
            is_pair = isinstance(item, tuple) and len(item) == 2
            image, when = item if is_pair else (item, None)
            if when is None and self._given is None:
                raise ValueError(
                    'The frames come without times: give fps=..., or pairs of a frame '
                    'and its time in seconds.'
                )
            yield Frame(image.copy() if isinstance(image, np.ndarray) else image, when)

    def close(self) -> None:
        """Close the iterator, if it is a generator."""
        close = getattr(self._frames, 'close', None)
        if close is not None:
            close()


def open_folder(
    folder: str,
    fps: Optional[float] = None,
    filename_tmpl: str = 'img_{:05}.jpg',
    start_index: int = 1,
    on_damage: str = 'stop',
) -> FrameSource:
    """Open a folder that has the frames of a video, one picture each.

    Args:
        folder (str): The folder.
        fps (float): Frames per second.
        filename_tmpl (str): Names of the pictures.
        start_index (int): Number of the first one.
        on_damage (str): What to do where a picture cannot be read, as for
            :class:`VideoFile`.

    Raises:
        FileNotFoundError, ValueError: If there is no such folder, or no picture in it.
    """
    if not osp.isdir(folder):
        raise FileNotFoundError(f'There is no folder of frames {folder}.')
    template = osp.join(folder, filename_tmpl)
    counting = InferencerPackInput('rawframes', filename_tmpl, start_index=start_index)
    count = counting(folder)['total_frames']
    if not count:
        raise ValueError(
            f'{folder} has no frames: expected {template.format(start_index)} and so '
            'on, or name another filename_tmpl.'
        )

    def frames() -> Iterator[tuple]:
        for number in range(count):
            path = template.format(start_index + number)
            image = cv2.imread(path)
            if image is None:
                tell_damage(f'Frames cannot be decoded ({path})', on_damage)
                continue
            time = None if fps is None else number / fps
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time

    source = FrameSource(frames(), fps, count)
    # A stream that goes on passes over the pictures that it has had.
    source.path = folder
    return source


def frames_after(source: Any, buffer: ClipBuffer) -> Iterator[Frame]:
    """The frames of a source with which a stream begins, or goes on, on its clock."""
    state, fps = buffer.state, buffer.grid.fps
    begun, last = state.count > 0, state.last_time
    for frame in source:
        if begun and source.live:
            frame = frame._replace(time=frame.time + last + 1 / fps)
        elif begun and source.path is not None and frame.time <= last:
            continue
        yield frame


def open_source(
    source: Source,
    fps: Optional[float] = None,
    start: int = 0,
    reconnect: int = 0,
    timing: str = 'auto',
    on_damage: str = 'stop',
) -> Union[VideoFile, LiveCapture, FrameSource]:
    """Open whatever frames come from.

    Args:
        source (str | Path | int | iterable | dict): A video file, a folder of frames,
            the index of a camera, an address of a stream, or an iterable of frames; or
            a dict with a ``filename``, a ``frame_dir`` or an ``array``, as MMAction2's
            pipelines take it. What is opened already is returned as it is.
        fps (float, optional): Frames per second; of a file, its own.
        start (int): Frames of a file to pass over.
        reconnect (int): Of :class:`LiveCapture`.
        timing, on_damage (str): Of :class:`VideoFile`.

    Raises:
        FileNotFoundError, ValueError: If it cannot be opened.
    """
    if isinstance(source, (VideoFile, LiveCapture, FrameSource)):
        return source
    is_folder, options = False, {}
    if isinstance(source, Mapping):
        given = [key for key in ('filename', 'frame_dir', 'array') if key in source]
        if not given:
            raise ValueError(
                f'There is no video in a dict of {", ".join(map(str, source))}: it '
                'takes filename, frame_dir or array.'
            )
        names = ('filename_tmpl', 'start_index')
        options = {key: source[key] for key in names if key in source}
        is_folder = given[0] == 'frame_dir'
        fps, source = source.get('fps', fps), source[given[0]]
    if hasattr(source, '__fspath__'):
        source = str(source)
    if isinstance(source, bool):
        raise ValueError(f'{source} is no camera: give its index as a number.')
    if isinstance(source, int) or (isinstance(source, str) and '://' in source):
        return LiveCapture(source, fps, reconnect)
    if isinstance(source, str):
        if is_folder or osp.isdir(source):
            return open_folder(source, fps, **options, on_damage=on_damage)
        return VideoFile(source, timing, on_damage, start)
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
