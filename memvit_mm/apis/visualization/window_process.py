"""The process that shows frames; :mod:`.window` starts it, by its path.

It imports OpenCV alone: in one process with decord, OpenCV's windows (Qt's) crash or
hang (opencv-python 5.0, decord 0.6). It reads from its standard input: the title's
length and the title, then for each frame height, width, the time in seconds and the
pixels, BGR. It answers each with a letter: g(o on), or q(uit), if q or Escape was
pressed or the window closed.
"""

import struct
import sys
import time

import cv2
import numpy as np

HEADER = struct.Struct('<IId')
# It may be resized, and has no buttons.
WINDOW = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL


def main() -> None:
    frames, answers = sys.stdin.buffer, sys.stdout.buffer
    (length,) = struct.unpack('<I', frames.read(4))
    title = frames.read(length).decode()
    cv2.namedWindow(title, WINDOW)
    cv2.waitKey(1)
    answers.write(b'g')
    answers.flush()
    begin, resized = None, False
    while len(header := frames.read(HEADER.size)) == HEADER.size:
        height, width, seconds = HEADER.unpack(header)
        pixels = np.frombuffer(frames.read(height * width * 3), np.uint8)
        if not resized:
            cv2.resizeWindow(title, width, height)
            resized = True
        now = time.monotonic()
        if begin is None or now - begin > seconds:
            # Late, or the first: the clock goes on from here.
            begin = now - seconds
        cv2.imshow(title, pixels.reshape(height, width, 3))
        wait = seconds - (now - begin)
        key = cv2.waitKey(max(1, int(wait * 1000)))
        closed = cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1
        answers.write(b'q' if key & 0xFF in (ord('q'), 27) or closed else b'g')
        answers.flush()


if __name__ == '__main__':
    main()
