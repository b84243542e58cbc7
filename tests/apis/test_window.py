"""Window, on a screen that is made for it."""

import os
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest

from memvit_mm.apis.visualization.window import Window, check_display

pytestmark = pytest.mark.skipif(shutil.which('Xvfb') is None, reason='needs Xvfb')


# opencv-python-headless has none.
HAS_WINDOWS = not re.search(r'GUI: +NONE', cv2.getBuildInformation())


@pytest.fixture(scope='module')
def screen():
    """The name of a display."""
    read, write = os.pipe()
    server = subprocess.Popen(
        ['Xvfb', '-displayfd', str(write), '-screen', '0', '640x480x24'],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        number = pipe.readline().strip()
    yield f':{number}'
    server.terminate()
    server.wait()


@pytest.mark.skipif(HAS_WINDOWS, reason='is about OpenCV without windows')
def test_opencv_without_windows(screen, monkeypatch):
    monkeypatch.setenv('DISPLAY', screen)
    with pytest.raises(ValueError, match='pip install opencv-python in its place'):
        check_display()


@pytest.mark.skipif(not HAS_WINDOWS, reason='needs opencv-python, not -headless')
def test_frames_are_shown_in_their_time(screen, monkeypatch):
    monkeypatch.setenv('DISPLAY', screen)
    check_display()
    window = Window('a video')
    try:
        begin = time.monotonic()
        for number in range(6):
            window.show(np.full((48, 64, 3), 40 * number, np.uint8), 10 + number / 10)
        assert time.monotonic() - begin > 0.45
        # Ctrl-C in a terminal reaches the process group; the window is in another.
        assert os.getpgid(window._process.pid) != os.getpgid(0)
        window._process.send_signal(signal.SIGKILL)
        with pytest.raises(KeyboardInterrupt):
            window.show(np.zeros((48, 64, 3), np.uint8), 11)
    finally:
        window.close()
