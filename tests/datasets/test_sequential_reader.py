"""Videos read forwards: real files, and every frame against decord's."""

import shutil
import struct
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmaction.datasets.transforms import (
    DecordDecode,
    DecordInit,
    Resize,
)

from memvit_mm.datasets import SequentialReader, VideoDecode, VideoInit
from memvit_mm.video import sequential_reader as module

decord = pytest.importorskip('decord')

# ffmpeg -f lavfi -i testsrc2=size=64x48:rate=25:duration=6 -pix_fmt yuv420p
#   -c:v libx264 -crf 30 -g 40 -keyint_min 40 -sc_threshold 0 -bf 3
#   -x264-params open-gop=0 (or 1)
DATA = Path(__file__).resolve().parents[1] / 'data'
CLOSED, OPEN = str(DATA / 'h264_closed_gop.mp4'), str(DATA / 'h264_open_gop.mp4')
FRAMES = 150


def write(path, codec, num_frames=90, size=(64, 48)):
    """A video in which something moves."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 30, size
    )
    noise = np.random.RandomState(0).randint(0, 255, (size[1], 256, 3), np.uint8)
    noise = cv2.blur(noise, (9, 9))
    for number in range(num_frames):
        writer.write(np.roll(noise, -3 * number, axis=1)[:, : size[0]].copy())
    writer.release()
    return str(path)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    odd = dict(size=(66, 50))
    return dict(
        closed_gop=CLOSED,
        open_gop=OPEN,
        mp4v=write(folder / 'a.mp4', 'mp4v', **odd),
        mkv=write(folder / 'a.mkv', 'mp4v'),
        vp9=write(folder / 'a.webm', 'VP90', num_frames=40),
        mjpeg=write(folder / 'a.avi', 'MJPG'),
    )


def opener(path):
    return partial(decord.VideoReader, path, num_threads=1)


def all_frames(path):
    """As decord reads them from the front, [N, H, W, 3]."""
    reader = opener(path)()
    return reader.get_batch(np.arange(len(reader))).asnumpy()


def clips(total, step, jitter=0, clip_len=8, interval=3, seed=0):
    """Frames of clips in order; those outside repeat the first or last one."""
    random = np.random.RandomState(seed)
    start = np.arange(clip_len) * interval - clip_len * interval // 2
    for center in range(0, total + step, step):
        moved = random.randint(-jitter, jitter + 1, clip_len)
        yield np.clip(center + start + moved, 0, total - 1)


@pytest.mark.parametrize(
    'name', ['closed_gop', 'open_gop', 'mp4v', 'mkv', 'vp9', 'mjpeg']
)
def test_frames_are_decords(videos, name):
    expected = all_frames(videos[name])
    reader = SequentialReader(videos[name], opener(videos[name]))
    assert len(reader) == len(expected)
    in_order = list(clips(len(expected), step=7, jitter=1))
    for inds in in_order:
        np.testing.assert_array_equal(reader.get_batch(inds), expected[inds])
    assert reader.in_order
    # What was decoded beside each frame once are the first 16, for the comparison.
    assert reader.decoded <= len(expected) + 2 * 16 + 1
    random = np.random.RandomState(1)
    for place in random.permutation(len(in_order))[:12]:
        inds = random.permutation(in_order[place])  # any order, and repeated
        np.testing.assert_array_equal(reader.get_batch(inds), expected[inds])


def test_is_what_mmactions_transforms_give(videos):
    init, decode = VideoInit(keep_open=1), VideoDecode()
    for inds in clips(FRAMES, step=20):
        theirs = DecordDecode()(DecordInit()(dict(filename=CLOSED, frame_inds=inds)))
        ours = decode(init(dict(filename=CLOSED, frame_inds=inds)))
        np.testing.assert_array_equal(ours['imgs'], theirs['imgs'])
        assert ours.keys() == theirs.keys()
        for key in ('total_frames', 'avg_fps', 'img_shape', 'original_shape'):
            assert ours[key] == theirs[key]


def test_is_right_where_decord_is_late_after_a_seek():
    """decord is up to three frames late after key frames of open GOPs."""
    expected = all_frames(OPEN)
    reader = SequentialReader(OPEN, opener(OPEN))
    late = 0
    for number in range(0, FRAMES, 5):
        alone = opener(OPEN)().get_batch([number]).asnumpy()[0]
        late += not np.array_equal(alone, expected[number])
        np.testing.assert_array_equal(reader.get_batch([number])[0], expected[number])
    assert late > 0


def test_keeps_the_span_of_a_clip_and_one_file():
    reader = SequentialReader(CLOSED, opener(CLOSED))
    kept = []
    for inds in clips(FRAMES, step=5, clip_len=8, interval=3):
        reader.get_batch(inds)
        kept.append(reader.frames_kept)
    assert max(kept) <= 22 * 1.125 + 1  # spans 22 frames
    assert reader.num_bytes == reader.frames_kept * 48 * 64 * 3


def test_what_it_gives_may_be_overwritten():
    expected = all_frames(CLOSED)
    reader = SequentialReader(CLOSED, opener(CLOSED))
    for inds in clips(FRAMES, step=5):
        batch = reader.get_batch(inds)
        np.testing.assert_array_equal(batch, expected[inds])
        batch[:] = 0


def test_seeks_over_key_frames_and_back():
    reader = SequentialReader(CLOSED, opener(CLOSED))
    expected = all_frames(CLOSED)
    for number, cost in ((2, 35), (141, 62), (3, 5), (70, 67), (60, 62), (50, 62)):
        before = reader.decoded
        np.testing.assert_array_equal(reader.get_batch([number])[0], expected[number])
        assert reader.decoded - before <= cost, number


def test_another_decoders_frames_are_not_taken(videos, monkeypatch):
    """A file of which OpenCV makes other pixels is read as before."""
    true = cv2.cvtColor

    def a_bit_darker(image, code):
        return np.maximum(true(image, code), 1) - 1

    monkeypatch.setattr(cv2, 'cvtColor', a_bit_darker)
    monkeypatch.setattr(module, '_told', [])
    said = []
    monkeypatch.setattr(module, 'print_log', lambda text, *_: said.append(text))
    expected = all_frames(CLOSED)
    reader = SequentialReader(CLOSED, opener(CLOSED))
    for inds in clips(FRAMES, step=30):
        np.testing.assert_array_equal(reader.get_batch(inds), expected[inds])
    assert not reader.in_order and reader.frames_kept == 0
    SequentialReader(CLOSED, opener(CLOSED)).get_batch([0])
    (sentence,) = said
    assert sentence.startswith(f'Video {CLOSED} is decoded clip by clip, each from the')


def test_no_usable_times(monkeypatch):
    assert not module.is_steady(np.array([0.0, 0.1, 0.1]))
    assert not module.is_steady(np.array([-0.5, 0.0, 0.5]))
    monkeypatch.setattr(module, 'is_steady', lambda times: False)
    reader = SequentialReader(CLOSED, opener(CLOSED))
    inds = np.arange(50, 60)
    np.testing.assert_array_equal(reader.get_batch(inds), all_frames(CLOSED)[inds])
    assert not reader.in_order


def damage(path, number, size):
    """Zeros in a video's data, from the middle of some frame on."""
    data = bytearray(Path(path).read_bytes())
    # stsz: version and flags, one size for all (0), count, then each frame's size
    place = data.index(b'stsz') + 4
    sizes = struct.unpack_from(f'>{FRAMES}I', data, place + 12)
    start = data.index(b'mdat') + 4 + sum(sizes[:number])
    data[start : start + size] = bytes(size)
    Path(path).write_bytes(data)


@pytest.mark.parametrize('number', [40, 60], ids=['key frame', 'other frame'])
def test_damage(tmp_path, number):
    """The clips that fail are those that fail by themselves, with the same words."""
    path = str(shutil.copy(CLOSED, tmp_path / 'a.mp4'))
    damage(path, number, 400)

    def read(init):
        outcomes = []
        for inds in clips(FRAMES, step=25):
            results = dict(filename=path, timestamp=0, frame_inds=inds)
            try:
                outcomes.append(np.stack(VideoDecode()(init(results))['imgs']))
            except ValueError as error:
                outcomes.append(str(error).split(' (')[0])
        return outcomes

    alone, in_order = read(VideoInit()), read(VideoInit(keep_open=1))
    failed = [isinstance(outcome, str) for outcome in alone]
    assert 0 < sum(failed) < len(failed)
    for one, other in zip(alone, in_order):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


def test_no_such_frame():
    reader = SequentialReader(CLOSED, opener(CLOSED))
    with pytest.raises(IndexError, match=r'Out of bound indices: \[150 151\]'):
        reader.get_batch([148, 149, 150, 151])
    with pytest.raises(
        ValueError, match='cannot be decoded at second 6, frames 149 to'
    ):
        VideoDecode()(
            VideoInit(keep_open=1)(
                dict(filename=CLOSED, timestamp=6, frame_inds=np.array([149, 150]))
            )
        )


@pytest.mark.parametrize('keep_open', [0, 1])
@pytest.mark.parametrize(
    'resize', [dict(scale=(-1, 32)), dict(scale=(40, 24), keep_ratio=False)]
)
def test_resized_in_the_reader(keep_open, resize):
    init, decode = VideoInit(keep_open=keep_open), VideoDecode(resize=resize)
    boxes = np.array([[0.1, 0.2, 0.55, 0.77]])
    for inds in clips(FRAMES, step=25, jitter=1):
        info = dict(filename=CLOSED, frame_inds=inds, gt_bboxes=boxes, proposals=boxes)
        ours = decode(init(dict(info)))
        theirs = Resize(**resize)(VideoDecode()(VideoInit()(dict(info))))
        np.testing.assert_array_equal(ours['imgs'], theirs['imgs'])
        assert ours.keys() == theirs.keys()
        for key in ('gt_bboxes', 'proposals', 'scale_factor'):
            np.testing.assert_array_equal(ours[key], theirs[key])
            assert ours[key].dtype == theirs[key].dtype
        assert ours['img_shape'] == theirs['img_shape']
        assert ours['original_shape'] == theirs['original_shape']
    if keep_open:
        (reader,) = init._readers.here().values()
        shape = theirs['img_shape']
        assert reader.num_bytes == reader.frames_kept * shape[0] * shape[1] * 3
        # Whoever asks for another size gets that.
        whole = VideoDecode()(init(dict(filename=CLOSED, frame_inds=inds)))
        np.testing.assert_array_equal(whole['imgs'], all_frames(CLOSED)[inds])


def test_options():
    with pytest.raises(ValueError, match='keep_open must be at least 0, got -1'):
        VideoInit(keep_open=-1)
    with pytest.raises(ValueError, match='cannot resize with lazy=True'):
        VideoDecode(resize=dict(scale=(-1, 32), lazy=True))
    assert 'scale' in repr(VideoDecode(resize=dict(scale=(-1, 32))))


def test_key_frames_alone():
    info = dict(filename=CLOSED, frame_inds=np.array([45, 90]))
    init, decode = VideoInit(keep_open=1), VideoDecode(mode='efficient')
    theirs = DecordDecode(mode='efficient')(DecordInit()(dict(info)))
    np.testing.assert_array_equal(decode(init(dict(info)))['imgs'], theirs['imgs'])
