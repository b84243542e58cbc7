"""Window: frames on the screen, or a sentence that says why not."""

import os
import subprocess
import sys
import time
from typing import Optional

import cv2
import numpy as np

# Opens a window for a moment: OpenCV ends the process where it cannot.
TRIAL = "import cv2; cv2.namedWindow('trial'); cv2.waitKey(1)"


class Window:
    """Shows frames as they are made, not faster than they were filmed.

    Args:
        title (str): Of the window.

    Raises:
        ValueError: If there is no display.
    """

    def __init__(self, title: str) -> None:
        check_display()
        self.title = title
        self._begin: Optional[float] = None
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, seconds: float) -> None:
        """Show a frame.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB.
            seconds (float): Its time.

        Raises:
            KeyboardInterrupt: If q or Escape is pressed, or the window is closed.
        """
        now = time.monotonic()
        if self._begin is None or now - self._begin > seconds:
            # Late, or the first: the clock goes on from here.
            self._begin = now - seconds
        cv2.imshow(self.title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        wait = seconds - (now - self._begin)
        key = cv2.waitKey(max(1, int(wait * 1000)))
        closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        if key & 0xFF in (ord('q'), 27) or closed:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def check_display() -> None:
    """Refuse to show where nothing can be shown."""
    missing = 'no display (DISPLAY and WAYLAND_DISPLAY are not set)'
    linux = sys.platform.startswith('linux')
    if linux and not {'DISPLAY', 'WAYLAND_DISPLAY'} & {
        k for k, v in os.environ.items() if v
    }:
        told = missing
    else:
        trial = subprocess.run([sys.executable, '-c', TRIAL], capture_output=True)
        if trial.returncode == 0:
            return
        told = 'no window that OpenCV could open here (is it opencv-python-headless?)'
        if linux and 'DISPLAY' in os.environ:
            told += f', DISPLAY is {os.environ["DISPLAY"]!r}'
    raise ValueError(
        f'--show needs a display, and there is {told}: write the video with --out, and '
        'look at it elsewhere.'
    )
