"""Pictures and videos as a page of HTML carries them."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np

# Bytes of all pictures of a page, and of its video; in base64 they are 12 MB.
PICTURES = 9_000_000
VIDEO = 9_000_000
# Of pictures that only stand in for the video.
FALLBACK = 1_000_000
# Pixels of a picture's longer side, where pictures take more than that.
LONGER_SIDE = 640
QUALITY = 75
# What browsers play: file endings and codes of codecs, as OpenCV gives them.
PLAYABLE = {
    '.mp4': ('video/mp4', ('avc1', 'h264', 'av01')),
    '.m4v': ('video/mp4', ('avc1', 'h264', 'av01')),
    '.webm': ('video/webm', ('vp80', 'vp90', 'av01')),
}


@dataclass
class KeyFrame:
    """A picture of a video."""

    time: float
    """In seconds, on the clock of the predictions."""
    jpeg: bytes = field(repr=False)
    """The content of a JPEG file."""


def pack_frames(
    keyframes: Sequence[KeyFrame], budget: int = PICTURES
) -> dict[str, list]:
    """Pictures by time, no more of them than fit.

    Args:
        keyframes (sequence[KeyFrame]): In any order.
        budget (int): Bytes that they may take.

    Returns:
        dict: ``times`` in seconds and ``jpegs`` in base64.

    Raises:
        ValueError: If one is not JPEG, or has no time.
    """
    for number, frame in enumerate(keyframes):
        if not np.isfinite(frame.time):
            raise ValueError(
                f'keyframes[{number}] has the time {frame.time}, expected seconds.'
            )
        if not bytes(frame.jpeg[:3]) == b'\xff\xd8\xff':
            raise ValueError(
                f'keyframes[{number}] at {frame.time:g} seconds is not JPEG: encode it '
                "with cv2.imencode('.jpg', image)[1].tobytes()."
            )
    chosen = sorted(keyframes, key=lambda frame: frame.time)
    if sum(len(frame.jpeg) for frame in chosen) > budget:
        chosen = [KeyFrame(frame.time, _smaller(frame.jpeg)) for frame in chosen]
        chosen = _thin(chosen, budget)
    return dict(
        times=[round(float(frame.time), 3) for frame in chosen],
        jpegs=[base64.b64encode(frame.jpeg).decode() for frame in chosen],
    )


def _smaller(jpeg: bytes) -> bytes:
    """Scaled down and packed more tightly, if that helps."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:  # the browser may still read it
        return jpeg
    scale = LONGER_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, None, scale, scale, cv2.INTER_AREA)
    done, packed = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return packed.tobytes() if done and packed.size < len(jpeg) else jpeg


def _thin(frames: list[KeyFrame], budget: int) -> list[KeyFrame]:
    """As many of them as fit, evenly."""
    count, kept = len(frames), frames
    while sum(len(frame.jpeg) for frame in kept) > budget and count > 1:
        count -= 1
        kept = [
            frames[n]
            for n in np.linspace(0, len(frames) - 1, count).round().astype(int)
        ]
    return kept


def pack_clip(
    path: Union[str, os.PathLike], budget: int = VIDEO
) -> Optional[dict[str, Any]]:
    """A video, if it is small and browsers play it; else None.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'clip_file {path} does not exist: check its path.')
    kind, codecs = PLAYABLE.get(path.suffix.lower(), ('', ()))
    if not kind or path.stat().st_size > budget or _codec(path) not in codecs:
        return None
    return dict(type=kind, data=base64.b64encode(path.read_bytes()).decode())


def _codec(path: Path) -> str:
    """Four letters, in lower case; zeros if the file cannot be read."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    number = int(capture.get(cv2.CAP_PROP_FOURCC))
    capture.release()
    return (number & 0xFFFFFFFF).to_bytes(4, 'little').decode('latin1').lower()
