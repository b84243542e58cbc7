"""Transforms that open and decode videos, in order where clips come in order."""

import os
import os.path as osp
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Optional

import mmcv
import numpy as np
from mmaction.datasets.transforms import DecordDecode, DecordInit, Resize
from mmaction.registry import TRANSFORMS
from mmengine.fileio import FileClient

from memvit_mm.structures import BadClipError, MissingClipError, stream_of
from memvit_mm.video.decord_errors import decode_errors, find_decord, silence_decord
from memvit_mm.video.open_video import open_video
from memvit_mm.video.sequential_reader import SequentialReader


@TRANSFORMS.register_module()
class VideoInit(DecordInit):
    """Open a video with decord, or OpenCV: :func:`open_video` says which.

    As MMAction2's ``DecordInit``, but frames come upright, a file on disk is opened
    where it is (an hour of video is not read into memory for two seconds of it), and a
    file that is missing or damaged is named. ``VideoDecode`` closes it.

    Required key: ``filename``. Added keys: ``video_reader``, ``total_frames`` and
    ``avg_fps`` (frames per second of the container).

    Videos that are kept open are read forwards, each frame decoded once: see
    :class:`SequentialReader`. Frames are the same either way, except where decord is
    late after a seek.

    Args:
        io_backend (str): Where the file is. Defaults to ``'disk'``; others are read
            into memory, and clip by clip.
        num_threads (int): Threads that decode it.
        keep_open (int, optional): Videos that each worker keeps open, the ones used
            last; there should be one for every batch row that it reads. An open video
            holds the frames of a clip's span (64 of 340 x 256 pixels: 17 MB; two
            seconds of full HD at 60 frames a second: 800 MB) and a file.
            Defaults to None: ``LaneWorkersHook`` keeps one per row, and without it
            none is kept.

    Raises:
        FileNotFoundError, ValueError: If it does not exist, or cannot be opened.
    """

    def __init__(
        self,
        io_backend: str = 'disk',
        num_threads: int = 1,
        keep_open: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(io_backend, num_threads, **kwargs)
        if keep_open is not None and keep_open < 0:
            raise ValueError(f'keep_open must be at least 0, got {keep_open}.')
        self.keep_open = keep_open
        self.lanes = 0
        """Batch rows that a process reads; :func:`by_lanes` sets it."""
        self._readers = _Readers()

    def transform(self, results: dict) -> dict:
        """Open the video, or take the reader that is open in the same place of it."""
        filename = results['filename']
        keep_open = self.lanes if self.keep_open is None else self.keep_open
        if keep_open:
            # A video that is cut between two batch rows is read in two places.
            key = (filename, stream_of(results).run)
            readers = self._readers.here()
            reader = readers.pop(key, None)
            # What decord does after an error depends on the error: open it anew.
            if reader is None or getattr(reader, 'failed', False):
                reader = self._open_to_keep(filename)
            readers[key] = reader
            while len(readers) > keep_open:
                del readers[next(iter(readers))]
        else:
            reader = self._get_video_reader(filename)
        results['video_reader'] = reader
        results['total_frames'] = len(reader)
        results['avg_fps'] = reader.get_avg_fps()
        return results

    @property
    def _on_disk(self) -> bool:
        return self.io_backend in ('disk', 'local')

    def _open_to_keep(self, filename: str) -> Any:
        reader = self._get_video_reader(filename)
        if not self._on_disk or isinstance(reader, SequentialReader):
            return reader
        return SequentialReader(filename, reader.reopen, self.num_threads)

    def _get_video_reader(self, filename: str) -> Any:
        if self._on_disk and not osp.isfile(filename):
            raise MissingClipError(
                f'Video {filename} does not exist: check data_prefix and video_ext of '
                'the dataset, or leave the video out.'
            )
        try:
            if self._on_disk:
                reader = open_video(filename, self.num_threads)
            elif find_decord() is None:
                reader = self._open_copy(filename)
            else:
                reader = super()._get_video_reader(filename)
            if len(reader) == 0:
                raise ValueError('no frames')
        except Exception as error:
            raise BadClipError(
                f'Video {filename} cannot be opened ({_first_line(error)}): it is '
                'damaged or no video; download or encode it again, or leave it out.'
            ) from error
        if not isinstance(reader, SequentialReader):
            reader.reopen = partial(self._get_video_reader, filename)
        return reader

    def _open_copy(self, filename: str) -> SequentialReader:
        """Open a video that is not on disk with OpenCV, which needs a file."""
        if self.file_client is None:
            self.file_client = FileClient(self.io_backend, **self.kwargs)
        ending = osp.splitext(filename)[1]
        copy = tempfile.NamedTemporaryFile(suffix=ending)  # noqa: SIM115
        copy.write(self.file_client.get(filename))
        copy.flush()
        reader = open_video(copy.name, self.num_threads)
        # It is deleted with the reader.
        reader.file = copy
        return reader


@TRANSFORMS.register_module()
class VideoDecode(DecordDecode):
    """Decode the chosen frames of the video that ``VideoInit`` opened, and let it go.

    As MMAction2's ``DecordDecode``, but an error names the file and the second.

    While it is waited for, decord decodes ahead, and what it finds damaged there it
    reports for the frames that were asked for. So after an error the video is opened
    anew for these frames alone, until they come or it has failed often enough to tell
    that they are damaged themselves: chance must not choose which clips are bad. (On
    videos of 340 x 256 pixels one more try was enough; those of 96 x 96 took dozens.)

    Args:
        mode (str): As ``DecordDecode``'s: ``'accurate'``, or ``'efficient'`` for key
            frames only.
        resize (dict, optional): Arguments of MMAction2's ``Resize``, such as
            ``dict(scale=(-1, 256))``. Each frame is resized once, right after it is
            decoded, and what is kept is small. Bit for bit what ``Resize`` gives after
            ``VideoDecode()``, boxes too: put it in its place.

    Raises:
        ValueError: If a frame cannot be decoded, or ``resize`` is lazy.
    """

    tries, least_tries, seconds = 100, 4, 1.0

    def __init__(self, mode: str = 'accurate', resize: Optional[dict] = None) -> None:
        super().__init__(mode)
        self.resize = resize
        self._resize = None if resize is None else _ResizeInReader(**resize)

    def transform(self, results: dict) -> dict:
        """Add ``imgs`` (list of ``[H, W, 3]`` uint8 RGB) and their shape in pixels."""
        start = time.monotonic()
        try:
            for number in range(1, self.tries + 1):
                try:
                    results = super().transform(results)
                    return self._resize.transform(results) if self._resize else results
                except decode_errors() as error:
                    reader, failure = results['video_reader'], error
                if not isinstance(reader, SequentialReader):
                    reader.failed = True
                late = time.monotonic() - start > self.seconds
                reopen = getattr(reader, 'reopen', None)
                if reopen is None or late and number >= self.least_tries:
                    break
                silence_decord()  # it has said it once
                results['video_reader'] = reopen()
        finally:
            results['video_reader'] = None
        raise BadClipError(
            f'Video {results.get("filename")} cannot be decoded at second '
            f'{results.get("timestamp")}, frames {results["frame_inds"].min()} to '
            f'{results["frame_inds"].max()} ({_first_line(failure)}): it is damaged; '
            'download or encode it again, or leave it out.'
        ) from failure

    def _decord_load_frames(self, container: Any, frame_inds: np.ndarray) -> list:
        """The frames; where they come resized, something of the size they had."""
        is_sequential = isinstance(container, SequentialReader)
        if is_sequential and self.mode == 'efficient' and container.reopen is not None:
            # decord seeks key frames, and decodes none of those between.
            container, is_sequential = container.reopen(), False
        if not is_sequential:
            frames = super()._decord_load_frames(container, frame_inds)
            if self._resize is not None:
                self._resize.put(map(self._resize.convert, frames))
            return frames
        if self.mode == 'efficient':
            keys = np.asarray(container.get_key_indices())
            frame_inds = keys[np.searchsorted(keys, frame_inds, side='right') - 1]
        if self._resize is None:
            return list(container.get_batch(frame_inds).asnumpy())
        self._resize.put(
            container.get_batch(frame_inds, self._resize.convert).asnumpy()
        )
        pixel = np.zeros((1, 1, 3), np.uint8)
        frame = np.broadcast_to(pixel, (*container.shape, 3))
        return [frame] * len(frame_inds)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mode={self.mode}, resize={self.resize})'


class _ResizeInReader(Resize):
    """MMAction2's ``Resize`` whose frames have been resized already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.lazy:
            raise ValueError('VideoDecode cannot resize with lazy=True: leave it out.')
        self._frames: list[np.ndarray] = []

    def convert(self, frame: np.ndarray) -> np.ndarray:
        """One frame, resized."""
        height, width = frame.shape[:2]
        size = self.scale
        if self.keep_ratio:
            size = mmcv.rescale_size((width, height), self.scale)
        return super()._resize_imgs([frame], *size)[0]

    def put(self, frames: Iterable) -> None:
        """Take the resized frames, for ``transform``."""
        self._frames = list(frames)

    def _resize_imgs(self, imgs: list, new_w: int, new_h: int) -> list:
        frames, self._frames = self._frames, []
        return frames


class _Readers:
    """The open readers of this process, least recently used first."""

    def __init__(self) -> None:
        self._readers: dict[int, dict[tuple[str, int], Any]] = {}

    def here(self) -> dict[tuple[str, int], Any]:
        # A forked worker must not touch its parent's readers, not even to close them:
        # their threads stayed behind.
        return self._readers.setdefault(os.getpid(), {})

    def __reduce__(self) -> tuple:
        return type(self), ()


def _first_line(error: Exception) -> str:
    """An error's message without decord's stack trace."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ''
    return text.split('Check failed:')[-1].strip() or type(error).__name__
