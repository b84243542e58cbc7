"""Cameras that go away, and come back: a real one on the network."""

import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import stream_data as data
from network_camera import NetworkCamera
from stream_data import FPS

from memvit_mm.apis import LiveCapture, MultiStream, VideoStream
from memvit_mm.apis.streams import sources

# Half a second beyond the last clip, by which the first frame may come late.
FRAMES = data.pictures(2 * FPS + FPS // 2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sources, 'PAUSE', 0.3)


def read(source) -> tuple:
    """Its frames, and what ended them."""
    frames = []
    try:
        for frame in source:
            frames.append(frame)
    except ConnectionError as error:
        return frames, str(error)
    finally:
        source.close()
    return frames, None


def test_a_camera_that_goes_away_is_an_error():
    with NetworkCamera(FRAMES, FPS) as camera:
        frames, error = read(LiveCapture(camera.url))
        assert len(frames) == len(FRAMES) and camera.asked == 1
    assert error.startswith(f'Stream {camera.url} went away after 2.')
    assert error.endswith('or let it be opened anew with reconnect=3.')


def test_it_is_opened_anew_and_times_go_on():
    with NetworkCamera(FRAMES, FPS, connections=3) as camera:
        frames, error = read(LiveCapture(camera.url, reconnect=2))
        assert camera.asked == 3 + 2
    assert error.endswith('; reconnect=2 tries to read it anew failed: check it.')
    times = [frame.time for frame in frames]
    assert len(frames) == 3 * len(FRAMES)
    steps = np.diff(times)
    gaps = steps[[len(FRAMES) - 1, 2 * len(FRAMES) - 1]]
    assert (steps >= 0).all() and (gaps > 0.3).all() and times[-1] > 6.5


@pytest.fixture
def server(tmp_path):
    """Files of a folder, of which those that are called short end too early."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            content = source.read()
            half = len(content) // 2
            outputfile.write(content[:half] if 'short' in self.path else content)

    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=str(tmp_path))
    )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_a_file_behind_an_address_ends(server, tmp_path):
    for name in ('whole', 'short'):
        data.write_video(tmp_path / f'{name}.avi', data.pictures(4 * FPS))
    frames, error = read(LiveCapture(f'{server}/whole.avi', reconnect=2))
    assert (len(frames), error) == (4 * FPS, None)
    frames, error = read(LiveCapture(f'{server}/short.avi', reconnect=2))
    assert 0 < len(frames) < 3 * FPS and 'short.avi went away after' in error
    assert 'before its end: it is a file' in error and 'reconnect' not in error


def test_streams_say_it(tmp_path):
    old = data.write_video(tmp_path / 'old.mp4', data.pictures(2 * FPS))
    model = data.epic_model()
    with NetworkCamera(FRAMES, FPS, connections=2) as camera:
        streams = MultiStream(model, fps=FPS, stride=1.0, queue_size=9)
        streams.add('door', camera.url, reconnect=1)
        streams.add('old', old)
        found = list(streams)
    ended = streams.ended
    assert isinstance(ended['door'].error, ConnectionError)
    assert f'{camera.url} went away' in str(ended['door'].error)
    assert ended['old'].error is None and not data.threads()
    assert ended['door'].counts.frames == 2 * len(FRAMES)
    times = np.array([p.time for p in found if p.stream == 'door'])
    # By the clock: also while it was away.
    np.testing.assert_allclose(times - times[0], np.arange(len(times)))
    assert len(times) >= 4


def test_the_next_run_goes_on():
    stream = VideoStream(data.epic_model(), fps=FPS, stride=1.0, queue_size=9)
    found = []
    with NetworkCamera(FRAMES, FPS) as camera:
        for _ in range(2):
            with pytest.raises(ConnectionError, match='went away'):
                for prediction in stream.run(camera.url):
                    found.append(prediction)
    np.testing.assert_allclose(np.diff([prediction.time for prediction in found]), 1)
    assert [prediction.number for prediction in found] == [0, 1, 2, 3]


def test_nobody_waits_for_a_stream_that_is_closed(monkeypatch):
    monkeypatch.setattr(sources, 'PAUSE', 100.0)
    with NetworkCamera(FRAMES[:FPS], FPS) as camera:
        stream = MultiStream(data.epic_model(), fps=FPS, reconnect=100)
        stream.add('door', camera.url)
        time.sleep(2)
        assert data.threads()
        stream.close()
        assert not data.threads() and camera.asked == 1


@pytest.mark.parametrize('reconnect', [-1, None])
def test_options(reconnect):
    with pytest.raises(ValueError, match=f'reconnect={reconnect} must be at least 0'):
        VideoStream(data.epic_model(), reconnect=reconnect)
