"""Playback: reads a video again, up to where its predictions are."""

from collections.abc import Iterator
from typing import Optional

import cv2
import numpy as np

from .sources import Frame, VideoFile


class Playback:
    """Reads a file a second time, as far as predictions have come.

    A prediction comes long after most of the frames that it is about. To read them
    again costs a few per cent, and no memory however long clips and strides are.

    Args:
        path (str): The file.
        timing (str): As of the stream, see :class:`VideoFile`.

    Raises:
        FileNotFoundError, ValueError: As of :class:`VideoFile`.
    """

    def __init__(self, path: str, timing: str = 'auto') -> None:
        # What is wrong with the file, the stream says.
        self.file = VideoFile(path, timing=timing, on_damage='go_on')
        self._frames = iter(self.file)
        self._next: Optional[Frame] = next(self._frames)
        height, width = self._next.image.shape[:2]
        self.size = height, width
        """Height and width of the frames, upright, in pixels."""
        self.duration = self.file.duration
        """Seconds, where the file says."""

    def until(self, time: float) -> Iterator[Frame]:
        """The frames that have not been read and are not later, in order."""
        while self._next is not None and self._next.time <= time + 1e-6:
            frame = self._next
            self._next = next(self._frames, None)
            yield frame

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        self.file.close()


class Pictures:
    """A picture for each prediction, fewer for long videos, as JPEG.

    Args:
        limit (int): Pictures at most; where there are more, every second is left out.
        side (int): Their longer side at most, in pixels.
    """

    def __init__(self, limit: int = 600, side: int = 640) -> None:
        self.limit = limit
        self.side = side
        self.found: list[tuple[float, bytes]] = []
        """Pairs of a time in seconds and a picture."""
        self._every = 1
        self._seen = 0

    def add(self, image: np.ndarray, time: float) -> None:
        """Keep a frame ``[H, W, 3]`` uint8 RGB, or not."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        scale = min(1.0, self.side / max(image.shape[:2]))
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        self.found.append((time, jpeg.tobytes()))
        if len(self.found) > self.limit:
            self.found = self.found[::2]
            self._every *= 2
