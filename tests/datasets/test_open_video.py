"""Videos of turned cameras, and videos where decord is missing: all read by OpenCV."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from turned import turn

from memvit_mm.datasets import SequentialReader, VideoDecode, VideoInit
from memvit_mm.video.open_video import open_video
from memvit_mm.video.opencv_engine import read_packets

DATA = Path(__file__).resolve().parents[1] / 'data'
CLOSED, OPEN = DATA / 'h264_closed_gop.mp4', DATA / 'h264_open_gop.mp4'
FRAMES = 60


def write(path, size=(96, 72), codec='mp4v'):
    """A video in which something moves; size is width and height."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 30, size
    )
    noise = np.random.RandomState(0).randint(0, 255, (size[1], 256, 3), np.uint8)
    noise = cv2.blur(noise, (9, 9))
    for number in range(FRAMES):
        writer.write(np.roll(noise, -3 * number, axis=1)[:, : size[0]].copy())
    writer.release()
    return path


def all_frames(path):
    """From the front, [N, H, W, 3]."""
    reader = open_video(str(path))
    return reader.get_batch(range(len(reader))).asnumpy()


def clips(total, step=10):
    for center in range(0, total, step):
        yield np.clip(center + np.arange(8) * 3 - 12, 0, total - 1)


# decord itself gives those of 72 pixels with four channels when they are upright.
@pytest.mark.parametrize('size', [(96, 72), (96, 64)])
@pytest.mark.parametrize('degrees', [90, 180, 270])
@pytest.mark.parametrize('keep_open', [0, 1])
def test_turned_videos_are_upright_and_read_in_order(
    tmp_path, size, degrees, keep_open
):
    path = write(tmp_path / 'a.mp4', size)
    upright = np.rot90(all_frames(path), -degrees // 90, axes=(1, 2))
    turn(path, degrees)
    init, decode = VideoInit(keep_open=keep_open), VideoDecode()
    boxes = np.array([[0, 0, 1, 1]])
    for inds in clips(FRAMES):
        results = dict(filename=str(path), frame_inds=inds, gt_bboxes=boxes)
        results = decode(init(results))
        np.testing.assert_array_equal(results['imgs'], upright[inds])
        height, width = upright.shape[1:3]
        assert results['img_shape'] == results['original_shape'] == (height, width)
        np.testing.assert_array_equal(results['gt_bboxes'], [[0, 0, width, height]])
        assert (results['total_frames'], results['avg_fps']) == (FRAMES, 30)
    if keep_open:
        (reader,) = init._readers.here().values()
        assert reader.in_order and reader.decoded <= FRAMES + 1


CODE = """
import runpy, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'decord':
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Hidden())
import numpy as np
from pathlib import Path
from memvit_mm.apis import VideoFile
from memvit_mm.datasets import VideoDecode, VideoInit
from memvit_mm.video.open_video import open_video

decode = VideoDecode()
for path in sys.argv[1:]:
    expected = np.load(path + '.npz')
    frames, total = expected['frames'], len(expected['frames'])
    for init in VideoInit(), VideoInit(keep_open=1), VideoInit(io_backend='http'):
        name = Path(path).as_uri() if init.io_backend == 'http' else path
        for center in range(0, total, 20):
            inds = np.clip(center + np.arange(8) * 3 - 12, 0, total - 1)
            results = decode(init(dict(filename=name, frame_inds=inds)))
            np.testing.assert_array_equal(results['imgs'], frames[inds])
        assert (results['total_frames'], results['avg_fps']) == (total, expected['fps'])
        for reader in init._readers.here().values():
            assert reader.in_order and reader.decoded <= total + 1, reader.decoded
    np.testing.assert_array_equal([frame.image for frame in VideoFile(path)], frames)
    assert VideoFile(path).count == total
    reader = open_video(path)
    assert (len(reader), reader.get_avg_fps()) == (total, expected['fps'])
inds = np.array([3, 45, 90])
keys = VideoDecode(mode='efficient')(VideoInit()(dict(filename=path, frame_inds=inds)))
np.testing.assert_array_equal(keys['imgs'], frames[[0, 40, 80]])
try:
    decode(VideoInit()(dict(filename=path, frame_inds=np.array([total]), timestamp=9)))
except ValueError as error:
    assert 'cannot be decoded at second 9' in str(error), error
else:
    raise AssertionError('There is no such frame.')
sys.argv[1:] = [
    path, '--config', 'memvit_demo_epic_cls.py', '--json', path + '.jsonl',
    '--device', 'cpu', '--no-comparison',
]
sys.path.insert(0, str(Path(TOOL).parent))
runpy.run_path(TOOL, run_name='__main__')
"""


def test_without_decord(tmp_path, checkout):
    """Everything works with OpenCV, and frames and times are decord's."""
    decord = pytest.importorskip('decord')
    paths = [
        tmp_path / 'a.avi',
        tmp_path / 'a.webm',
        tmp_path / 'open.mp4',
        tmp_path / 'a.mp4',
    ]
    write(paths[0], codec='MJPG')
    write(paths[1], codec='VP90')
    shutil.copy(OPEN, paths[2])
    shutil.copy(CLOSED, paths[3])
    for path in paths:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = reader.get_batch(range(len(reader))).asnumpy()
        np.savez(f'{path}.npz', frames=frames, fps=reader.get_avg_fps())
    tool = str(checkout / 'tools' / 'deployment' / 'stream_video.py')
    code = CODE.replace('TOOL', repr(tool))
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = Path(f'{paths[-1]}.jsonl').read_text().splitlines()
    header, *lines, last = map(json.loads, lines)
    assert header['video']['duration'] == 6 and len(lines) == 3 and last['complete']


def test_frames_whose_times_do_not_tell_them_apart_are_counted(tmp_path):
    path = write(tmp_path / 'a.mp4')
    frames = all_frames(path)
    index = read_packets(str(path))
    np.testing.assert_allclose(index.times, np.arange(FRAMES) / 30, atol=1e-6)
    same = index._replace(times=np.zeros(FRAMES))
    reader = SequentialReader(str(path), index=same)
    np.testing.assert_array_equal(reader.get_batch([50, 3]), frames[[50, 3]])
    more = index._replace(times=np.zeros(FRAMES + 1))
    with pytest.raises(RuntimeError, match='OpenCV decodes 60 of its 61 frames'):
        SequentialReader(str(path), index=more).get_batch([0])
    with pytest.raises(IndexError, match=r'Out of bound indices: \[60\]'):
        reader.get_batch([60])
