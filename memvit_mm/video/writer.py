"""VideoWriter: frames and their times, written as a video file that plays."""

import os.path as osp
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from memvit_mm.io.output_files import check_output, part_of

from .open_video import written_frames

# What every OpenCV can write, by the file's ending. Players know all of it; browsers
# play only .webm. (H.264 is 'avc1' where OpenCV was built with it: PyPI's is not.)
CODECS = {
    '.mp4': 'mp4v',
    '.mov': 'mp4v',
    '.mkv': 'mp4v',
    '.avi': 'MJPG',
    '.webm': 'VP80',
}


class VideoWriter:
    """Writes frames into a video file of constant frame rate.

    Where a frame is missing, the frame before it is repeated; of two frames that fall
    on the same place, the first one stays. The file gets its name at :meth:`close`,
    when its frames have been read back; until then it is ``.NAME.PID.part.mp4``. There
    is no sound.

    Args:
        path (str): The file: ``.mp4``, ``.mov`` and ``.mkv`` get MPEG-4, ``.avi``
            Motion JPEG, and ``.webm`` VP8, which browsers play.
        fps (float): Frames per second.
        codec (str, optional): Another one, as four letters, such as ``'avc1'`` (H.264),
            if OpenCV can write it.

    Raises:
        ValueError, PermissionError: At the first frame, if OpenCV cannot write this, or
            the disk is full.
    """

    def __init__(self, path: str, fps: float, codec: Optional[str] = None) -> None:
        ending = osp.splitext(path)[1].lower()
        self.codec = codec or CODECS[ending]
        if len(self.codec) != 4:
            raise ValueError(
                f'codec={codec!r} must be four letters, such as {CODECS[ending]!r}.'
            )
        self.path = path
        self.fps = fps
        self.count = 0
        """Frames written."""
        self._writer: Optional[cv2.VideoWriter] = None
        self._last: Optional[np.ndarray] = None

    def write(self, image: np.ndarray, time: float) -> None:
        """Show a frame from a moment on.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB, of one size and even sides.
            time (float): Seconds after the first frame.
        """
        place = int(round(time * self.fps))
        if place < self.count:
            return
        if self._writer is None:
            self._open(image)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        last = image if self._last is None else self._last
        for shown in [last] * (place - self.count) + [image]:
            self._writer.write(shown)
            self.count += 1
        self._last = image

    def close(self) -> None:
        """Finish the file. Without a frame there is none.

        Raises:
            OSError: If not all frames can be read back, as the disk is full. Nothing is
                left of the file then, and what had its name before stays.
        """
        if self._writer is None:
            return
        # In this order it can be called again, where Ctrl-C came in between.
        self._writer.release()
        part = Path(part_of(self.path))
        if part.exists():
            written = written_frames(str(part), self.fps)
            # Ctrl-C may have come between a frame and its count.
            if written < self.count:
                part.unlink()
                self._writer = None
                raise OSError(
                    f'The video {self.path} could not be written: {written} of its '
                    f'{self.count} frames can be read back, as if the disk was full; '
                    'nothing is left of it: make room or name a file on another disk.'
                )
            part.replace(self.path)
        self._writer = None

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        part = part_of(self.path)
        code = cv2.VideoWriter_fourcc(*self.codec)
        writer = cv2.VideoWriter(part, cv2.CAP_FFMPEG, code, self.fps, (width, height))
        if not writer.isOpened():
            writer.release()
            Path(part).unlink(missing_ok=True)
            # Where the disk is full, OpenCV says no more than that it cannot.
            check_output('video', self.path)
            ending = osp.splitext(self.path)[1].lower()
            raise ValueError(
                f"OpenCV cannot write the codec '{self.codec}' into {self.path}: leave "
                f"codec out, which takes '{CODECS[ending]}', or write a .webm file, "
                'which browsers play, too.'
            )
        self._writer = writer
