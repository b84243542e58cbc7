"""Where frames come from: files, folders, cameras, and whatever can be iterated."""

import os.path as osp
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np
from mmaction.datasets.transforms.loading import InferencerPackInput

from .clip_buffer import ClipBuffer
from .clip_grid import check_at_least, check_positive
from .video_file import MARGIN, Frame, VideoFile, check_choice, tell_damage

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
    path = None

    def __init__(self, frames: Iterable, fps: Optional[float] = None) -> None:
        self.count = len(frames) if hasattr(frames, '__len__') else None
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


class FrameFolder:
    """The frames of a video in a folder, one picture each.

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

    live = False
    path = None

    def __init__(
        self,
        folder: str,
        fps: float,
        filename_tmpl: str = 'img_{:05}.jpg',
        start_index: int = 1,
        on_damage: str = 'stop',
    ) -> None:
        if not osp.isdir(folder):
            raise FileNotFoundError(f'There is no folder of frames {folder}.')
        self.fps = fps
        self.on_damage = on_damage
        self._template = osp.join(folder, filename_tmpl)
        self._start = start_index
        count = InferencerPackInput('rawframes', filename_tmpl, start_index=start_index)
        self.count = count(folder)['total_frames']
        if not self.count:
            raise ValueError(
                f'{folder} has no frames: expected '
                f'{self._template.format(start_index)} and so on, or name another '
                'filename_tmpl.'
            )

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self.count):
            path = self._template.format(self._start + number)
            image = cv2.imread(path)
            if image is None:
                tell_damage(f'Frames cannot be decoded ({path})', self.on_damage)
                continue
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number / self.fps)

    def close(self) -> None:
        """Nothing is open."""


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
    **options: Any,
) -> Any:
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
    if isinstance(source, (VideoFile, LiveCapture, FrameSource, FrameFolder)):
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


def open_video_of(
    video: Any, fps: float = 30.0, on_bad_clip: str = 'stop'
) -> Union[VideoFile, FrameSource, FrameFolder]:
    """Open a whole video in any of the forms that MMAction2's pipelines take.

    Its frames are counted, as ``tools/test.py`` does, whatever times the file has.

    Args:
        video (str | Path | np.ndarray | dict): A file, a folder of frames, an array
            ``[T, H, W, 3]`` uint8 RGB, or a dict with ``filename``, ``frame_dir`` or
            ``array``.
        fps (float): Frames per second of folders and arrays, if a dict has no ``fps``.
        on_bad_clip (str): ``'stop'`` where frames cannot be decoded, or ``'skip'`` them
            with a warning.

    Raises:
        FileNotFoundError, ValueError: If it cannot be opened.
    """
    check_positive('fps', fps, 'frames per second')
    check_choice('on_bad_clip', on_bad_clip, ('stop', 'skip'))
    on_damage = 'stop' if on_bad_clip == 'stop' else 'go_on'
    if isinstance(video, np.ndarray):
        video = dict(array=video)
    elif isinstance(video, (str, Path)):
        video = {'frame_dir' if osp.isdir(video) else 'filename': str(video)}
    elif not isinstance(video, Mapping):
        raise ValueError(
            f'A {type(video).__name__} is no video: give the path of a file or of a '
            'folder of frames, an array [T, H, W, 3], or a dict with one of them.'
        )
    fps = video.get('fps', fps)
    if 'array' in video:
        _check_array(video['array'])
        return FrameSource(video['array'], fps)
    if 'frame_dir' in video:
        names = {k: video[k] for k in ('filename_tmpl', 'start_index') if k in video}
        return FrameFolder(video['frame_dir'], fps, **names, on_damage=on_damage)
    if 'filename' in video:
        return VideoFile(video['filename'], timing='frames', on_damage=on_damage)
    raise ValueError(
        f'There is no video in a dict of {", ".join(map(str, video))}: it takes '
        'filename, frame_dir or array.'
    )


def _check_array(array: Any) -> None:
    shape = getattr(array, 'shape', None)
    if shape is None or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(
            f'An array of shape {shape and tuple(shape)} is no video: expected '
            '[T, H, W, 3], frames in RGB.'
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f'An array of {array.dtype} is no video: expected frames of uint8, from 0 '
            'to 255.'
        )


def path_of(source: Any) -> Optional[str]:
    """The path of a file, else None."""
    if isinstance(source, VideoFile):
        return source.path
    is_path = isinstance(source, str) or hasattr(source, '__fspath__')
    return str(source) if is_path and '://' not in str(source) else None
