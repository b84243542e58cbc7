"""Window: frames on the screen, or a sentence that says why not."""

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from .window_process import HEADER

PROCESS = Path(__file__).with_name('window_process.py')


class Window:
    """Shows frames as they are made, not faster than they were filmed.

    Args:
        title (str): Of the window.

    Raises:
        ValueError: If there is no display.
    """

    def __init__(self, title: str) -> None:
        _check_display()
        # Ctrl-C is for this process alone, which then closes the other.
        self._process = subprocess.Popen(
            [sys.executable, str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        name = title.encode()
        if self._send(struct.pack('<I', len(name)), name) != b'g':
            self.close()
            raise ValueError(_no_display(_why()))

    def show(self, image: np.ndarray, seconds: float) -> None:
        """Show a frame, when it is its time.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB.
            seconds (float): Its time.

        Raises:
            KeyboardInterrupt: If q or Escape is pressed, or the window is closed.
        """
        # [H, W, RGB] -> [H, W, BGR]
        pixels = np.ascontiguousarray(image[..., ::-1])
        header = HEADER.pack(*pixels.shape[:2], seconds)
        if self._send(header, pixels.tobytes()) != b'g':
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the window."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.kill()
        self._process.wait()

    def _send(self, *parts: bytes) -> bytes:
        """Send something, and wait for the answer; empty if nobody is there."""
        try:
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()
            return self._process.stdout.read(1)
        except OSError:
            return b''


def check_display() -> None:
    """Refuse to show where nothing can be shown.

    Raises:
        ValueError: If no window can be opened.
    """
    Window('trial').close()


def _check_display() -> None:
    if not sys.platform.startswith('linux'):
        return
    if not os.environ.get('DISPLAY') and not os.environ.get('WAYLAND_DISPLAY'):
        raise ValueError(
            _no_display('no display (DISPLAY and WAYLAND_DISPLAY are not set)')
        )


def _why() -> str:
    told = (
        'no window that OpenCV could open here (opencv-python-headless has none: pip '
        'install opencv-python in its place)'
    )
    if os.environ.get('DISPLAY'):
        told += f', DISPLAY is {os.environ["DISPLAY"]!r}'
    return told


def _no_display(told: str) -> str:
    return (
        f'--show needs a display, and there is {told}: write the video with --out, and '
        'look at it elsewhere.'
    )
