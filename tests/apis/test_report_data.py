"""What a report keeps of predictions and pictures, and what is no report."""

import base64
import json
import re
import zlib

import cv2
import numpy as np
import pytest
from report_samples import COUNT, SIZE, STRIDE, clip, epic, people, plain, written

from memvit_mm.apis import KeyFrame, write_report
from memvit_mm.apis.report.media import PICTURES, VIDEO, pack_clip, pack_frames


def content(path):
    text = path.read_text(encoding='utf-8')
    return json.loads(
        re.search(r'<script type="application/json".*?>(.*?)</script>', text)[1]
    )


def unpacked(text, rows):
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    low, high = planes.reshape(2, -1).astype(int)
    return (low + 256 * high).reshape(-1, rows)


def test_scores_are_kept(tmp_path):
    found = plain()
    (group,) = content(write_report(tmp_path / 'a.html', found, {}))['groups']
    kept = group['low'] + unpacked(group['scores'], COUNT) * group['step']
    assert pytest.approx(np.stack([one.scores for one in found]), abs=6e-5) == kept.T
    # Those that are no shares, too.
    for one in found:
        one.scores = 20 * one.scores - 7
    (group,) = content(write_report(tmp_path / 'a.html', found, {}))['groups']
    kept = group['low'] + unpacked(group['scores'], COUNT) * group['step']
    assert pytest.approx(np.stack([one.scores for one in found]), abs=2e-3) == kept.T


def test_an_hour_is_small(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.random((3600, 80), dtype=np.float32)  # packs worse than any model's
    found = [clip(number, row) for number, row in enumerate(noise)]
    path = write_report(tmp_path / 'a.html', found, {}, found[::-1])
    assert path.stat().st_size < 1_600_000


def test_memory_may_be_in_the_predictions(tmp_path):
    found, others = plain(), plain(seed=1)
    for one, other in zip(found[:-1], others):
        one.without_memory = other
    (group,) = content(write_report(tmp_path / 'a.html', found, {}))['groups']
    without = unpacked(group['without'], COUNT)
    assert without[:, 0] / 10_000 == pytest.approx(others[0].scores, abs=6e-5)
    assert np.all(without[:, -1] == 65_535)


def test_people_without_memory(tmp_path):
    """Only of those who are in the same boxes there."""
    found, others = people(0), people(1)
    others[6].boxes = others[6].boxes[::-1]
    others[7].boxes = others[7].boxes + 1000
    others[8].boxes, others[8].scores = others[8].boxes[:1], others[8].scores[:1]
    others[5].boxes = others[5].boxes + 0.3
    kept = content(write_report(tmp_path / 'a.html', found, dict(size=SIZE), others))
    without = unpacked(kept['groups'][0]['without'], 4 + 2 * 7).T / 10_000
    expected = np.concatenate([other.scores[:, 1:] for other in others[:6]])
    assert without[:8] == pytest.approx(expected, abs=6e-5)
    assert np.all(without[8:14] > 6)
    assert without[14:16] == pytest.approx(others[9].scores[:, 1:], abs=6e-5)


@pytest.mark.parametrize(
    'first, duration, start, end',
    [
        (0, 30, 0, 30),
        (0, None, 0, 24),
        (902, None, 900, 924),  # an excerpt
        (1.7e9 + 2, None, 1.7e9, 1.7e9 + 24),  # a camera with the time of day
    ],
)
def test_axis(tmp_path, first, duration, start, end):
    found = plain()
    for one in found:
        for name in ('time', 'start', 'end'):
            setattr(one, name, getattr(one, name) + max(0, first - STRIDE))
    kept = content(write_report(tmp_path / 'a.html', found, dict(duration=duration)))
    assert (kept['start'], kept['end']) == (start, end)


def test_short_clips_around_their_time(tmp_path):
    found = people(0)
    for one in found:
        one.start, one.end = one.time - 1 / 3, one.time + 1 / 4
    clips = content(write_report(tmp_path / 'a.html', found, dict(size=SIZE)))['clips']
    assert clips['left'][1:3] == [1.5, 2.5] and clips['right'][1:3] == [2.5, 3.5]


def test_dropped_clips_leave_a_gap(tmp_path):
    found = plain()
    del found[3:6]
    clips = content(write_report(tmp_path / 'a.html', found, {}))['clips']
    assert clips['left'][2:5] == [4, 12, 14]
    assert clips['right'][2:5] == [6, 14, 16]


def test_pictures_fit(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (90, 160, 3), np.uint8)
    large = cv2.imencode('.jpg', cv2.resize(noise, (1280, 720)))[1].tobytes()
    frames = [KeyFrame(float(number), large) for number in range(20)]
    kept = pack_frames(frames, budget=20 * len(large))
    assert len(kept['jpegs']) == 20 and base64.b64decode(kept['jpegs'][0]) == large
    kept = pack_frames(frames, budget=4 * len(large))
    sizes = [len(base64.b64decode(one)) for one in kept['jpegs']]
    assert sum(sizes) <= 4 * len(large)
    small = cv2.imdecode(
        np.frombuffer(base64.b64decode(kept['jpegs'][0]), np.uint8), cv2.IMREAD_COLOR
    )
    assert small.shape == (360, 640, 3)
    kept = pack_frames(frames, budget=3 * sizes[0])
    assert kept['times'] == [0, 10, 19] or kept['times'] == [0, 9, 19]
    assert pack_frames([])['jpegs'] == []
    for limit in (PICTURES, VIDEO):
        told = f'at most\n? *{limit / 1e6:g} MB'
        assert len(re.findall(told, write_report.__doc__)) == 2


def kinds():
    found = plain()
    return [found[0], people(0)[0]]


def streams():
    return [clip(0, np.ones(3), stream='a'), clip(1, np.ones(3), stream='b')]


def uneven():
    return [clip(0, np.ones(3)), clip(1, np.ones(4))]


@pytest.mark.parametrize(
    'predictions, options, sentence',
    [
        (list, {}, 'There are no predictions to report: check that the video is'),
        (
            kinds,
            {},
            r'\[1\] is a PeoplePrediction of .*, and the first is a Prediction',
        ),
        (
            streams,
            {},
            r"predictions\[1\] is .* of the stream 'b', and the first .* 'a'",
        ),
        (lambda: [3], {}, r'predictions\[0\] is a int, expected what VideoStream'),
        (uneven, {}, r'at 4 seconds has scores \[4\], expected \[3\] as of the first'),
        (lambda: [clip(0, np.full(3, np.nan))], {}, 'at 2 seconds has .* nan'),
        (lambda: [clip(np.inf, np.ones(3))], {}, r'predictions\[0\] has the time inf'),
        (lambda: people(0), {}, r"video\['size'\] is None, expected \(width, height\)"),
        (plain, dict(video=dict(size=3)), r"video\['size'\] is 3, expected"),
        (plain, dict(video=dict(duration=-1)), r"video\['duration'\] is -1, expected"),
        (
            plain,
            dict(without_memory=[]),
            'without_memory has no Prediction at the times',
        ),
        (
            plain,
            dict(without_memory=epic(0)),
            'without_memory has no Prediction at the',
        ),
        (
            plain,
            dict(without_memory=plain(classes=5)),
            r'at 2 seconds has scores \[5\], expected \[4\] as of the first: use one',
        ),
        (
            plain,
            dict(without_memory=[clip(99, np.ones(4))]),
            r'has no Prediction at the times of the predictions \(2 seconds and so on',
        ),
        (
            plain,
            dict(keyframes=[KeyFrame(1.0, b'\x89PNG')]),
            r'keyframes\[0\] at 1 seconds is not JPEG: encode it',
        ),
        (plain, dict(keyframes=[KeyFrame(np.nan, b'')]), r'keyframes\[0\] has the'),
        (plain, dict(memory_seconds=-3), 'memory_seconds=-3 must be a number'),
    ],
)
def test_what_is_no_report(tmp_path, predictions, options, sentence):
    options = dict(dict(video={}), **options)
    with pytest.raises(ValueError, match=sentence):
        write_report(tmp_path / 'a.html', predictions(), **options)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(ValueError, match=r'folder cannot be written \(Is a directory'):
        write_report(tmp_path / 'folder', plain(), {})
    (tmp_path / 'folder').rmdir()
    with pytest.raises(FileNotFoundError, match=r'clip_file .*b\.mp4 does not exist'):
        write_report(tmp_path / 'a.html', plain(), {}, clip_file=tmp_path / 'b.mp4')
    long = tmp_path / ('a' * 250)
    long.write_text('the last report')
    with pytest.raises(ValueError, match='cannot be written .*File name too long'):
        write_report(long, plain(), {})
    assert long.read_text() == 'the last report'
    assert list(tmp_path.iterdir()) == [long]


def test_what_browsers_do_not_play(tmp_path):
    webm = written(tmp_path / 'b.webm', 'VP80')
    assert pack_clip(webm)['type'] == 'video/webm'
    assert pack_clip(written(tmp_path / 'a.mp4', 'mp4v')) is None
    assert pack_clip(written(tmp_path / 'a.avi', 'MJPG')) is None
    assert pack_clip(webm, budget=100) is None
    (tmp_path / 'a.webm').write_bytes(b'no video')
    assert pack_clip(tmp_path / 'a.webm') is None
