"""A camera on the network: JPEG pictures over HTTP, as they come."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional

import cv2
import numpy as np


class NetworkCamera:
    """Serves frames to whoever connects, in real time, then hangs up.

    Args:
        frames (list[np.ndarray]): ``[H, W, 3]`` uint8, RGB each.
        fps (float): Frames per second.
        connections (int, optional): How many it serves before it is gone.
    """

    def __init__(
        self, frames: list, fps: float, connections: Optional[int] = None
    ) -> None:
        self.asked = 0
        """How often somebody connected."""
        jpegs = [
            cv2.imencode('.jpg', np.ascontiguousarray(frame[..., ::-1]))[1].tobytes()
            for frame in frames
        ]

        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                camera.asked += 1
                if connections is not None and camera.asked > connections:
                    self.send_error(503)
                    return
                self.send_response(200)
                kind = 'multipart/x-mixed-replace; boundary=frame'
                self.send_header('Content-Type', kind)
                self.end_headers()
                begin = time.monotonic()
                for number, jpeg in enumerate(jpegs):
                    time.sleep(max(0, begin + number / fps - time.monotonic()))
                    head = (
                        '--frame\r\nContent-Type: image/jpeg\r\n'
                        f'Content-Length: {len(jpeg)}\r\n\r\n'
                    )
                    try:
                        self.wfile.write(head.encode() + jpeg + b'\r\n')
                    except OSError:
                        return

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_port}/video'
        """Where it is."""

    def __enter__(self) -> 'NetworkCamera':
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
