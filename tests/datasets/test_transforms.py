import copy
import os
import pickle
import random

import cv2
import numpy as np
import pytest
import torch
from mmaction.datasets.transforms import DecordInit, SampleAVAFrames
from mmaction.registry import TRANSFORMS
from mmengine.dataset import BaseDataset, DefaultSampler
from torch.utils.data import DataLoader

from memvit_mm.datasets import (
    ClipIndex,
    SampleClipFrames,
    SequentialClipSampler,
    StreamConsistent,
    VideoDecode,
    VideoInit,
)
from memvit_mm.datasets.transforms.clips import seeded

USUAL = [
    dict(type='RandomRescale', scale_range=(40, 60)),
    dict(type='RandomCrop', size=32),
    dict(type='RandomResizedCrop', area_range=(0.3, 1.0)),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='ColorJitter', hue=0),
]


def image(size=(48, 64)):
    """Smooth, in colour, and different everywhere, [H, W, 3]."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8)


def sample(video, second, epoch=0, seed=0):
    return dict(
        imgs=[image(), image()],
        modality='RGB',
        video_id=video,
        timestamp=second,
        sample_idx=ClipIndex(second, epoch=epoch, seed=seed),
        gt_bboxes=np.array([[8.0, 8.0, 40.0, 40.0]]),
        proposals=np.zeros((0, 4), dtype=np.float32),
    )


def draws(results):
    """What was drawn, as far as it shows."""
    return (
        results['short_edge'],
        tuple(results['crop_bbox']),
        results['flip'],
        tuple(results['gt_bboxes'].ravel()),
        np.stack(results['imgs']).tobytes(),
    )


def test_usual_transforms_draw_once_per_video_and_epoch():
    usual = StreamConsistent(USUAL)
    streams = {
        (video, epoch, seed): {
            draws(usual(sample(video, second, epoch, seed))) for second in range(4)
        }
        for video in ('a', 'b')
        for epoch in (0, 1)
        for seed in (0, 1)
    }
    assert all(len(found) == 1 for found in streams.values())
    assert len(set.union(*streams.values())) == len(streams)
    # another one in the same pipeline draws other numbers
    other = StreamConsistent(USUAL, seed=1)
    assert draws(other(sample('a', 0))) not in streams['a', 0, 0]


def test_usual_transforms_draw_for_each_clip_where_that_is_wanted():
    usual = StreamConsistent(USUAL, per='clip')
    found = [
        [draws(usual(sample(video, second, epoch))) for second in range(4)]
        for video in 'ab'
        for epoch in (0, 1)
    ]
    assert len({draw for clips in found for draw in clips}) == 16
    again = [draws(usual(sample('b', second, 1))) for second in range(4)]
    assert again == found[-1]
    with pytest.raises(ValueError, match=r"no 'timestamp' in the sample \(its keys"):
        usual(dict(video_id='a'))
    with pytest.raises(ValueError, match="per must be 'video' or 'clip', got 'frame'"):
        StreamConsistent([], per='frame')


@pytest.mark.parametrize('stride', [0.5, 1, 1.25])
def test_strides_make_no_difference(stride):
    """Draws of a stream are its own; frame jitter is each clip's own."""
    usual = StreamConsistent(USUAL)
    frames = SampleClipFrames(clip_len=8, frame_interval=8)
    colours, jitters = set(), set()
    for number in range(8):
        second = 10 + number * stride
        index = ClipIndex(number, epoch=1, seed=2)
        colours.add(draws(usual(dict(sample('a', second), sample_idx=index))))
        options = dict(video_id='a', sample_idx=index)
        inds = frames_of(frames, second + 900, **options)
        begin = round(second * 30) - 32
        jitters.add(tuple(np.array(inds) - begin - 8 * np.arange(8)))
    assert len(colours) == 1 and len(jitters) == 8
    same = [
        frames_of(frames, time, video_id='a', sample_idx=ClipIndex(0))
        for time in (905, 905.0, np.int64(905), np.float32(905))
    ]
    assert all(inds == same[0] for inds in same)


def test_builds_transforms_alike_everywhere():
    # ColorJitter draws the order of its steps when built
    orders = set()
    for number in range(4):
        np.random.seed(number)
        built = StreamConsistent([dict(type='ColorJitter')])
        orders.add(tuple(built.transforms[0].fn_idx))
    assert len(orders) == 1


def test_draws_spread():
    flip = StreamConsistent([dict(type='Flip', flip_ratio=0.5)])
    flips = [flip(sample(f'video{i}', 0))['flip'] for i in range(200)]
    assert 75 < sum(flips) < 125


def test_leaves_random_states_alone():
    def generators():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def draw_all(results):
        results['drawn'] = generators()
        return results

    consistent = StreamConsistent([draw_all])
    with seeded(5):
        expected = generators()
    with seeded(5):
        drawn = consistent(sample('a', 0))['drawn']
        assert generators() == expected != drawn
    assert consistent(sample('a', 1))['drawn'] == drawn

    def fail(results):
        generators()
        raise RuntimeError

    with seeded(5):
        with pytest.raises(RuntimeError):
            StreamConsistent([fail])(sample('a', 0))
        assert generators() == expected


def test_passes_on_a_refused_sample_and_works_without_the_sampler():
    assert (
        StreamConsistent([lambda results: None, dict(type='Flip')])({'video_id': 1})
        is None
    )
    plain = StreamConsistent(USUAL)
    results = [sample('a', second) for second in range(3)]
    for result in results:
        result['sample_idx'] = int(result['sample_idx'])
    assert len({draws(plain(result)) for result in results}) == 1


def test_stream_errors():
    with pytest.raises(
        ValueError, match=r"no 'video_id' in the sample \(its keys: imgs"
    ):
        StreamConsistent([])(dict(imgs=[]))
    with pytest.raises(ValueError, match=r'takes a list of transforms, got one'):
        StreamConsistent(dict(type='Flip'))


class Clips(BaseDataset):
    def load_data_list(self):
        return [
            dict(video_id=video, timestamp=900 + second)
            for second in range(6)
            for video in 'abc'
        ]


class Load:
    def __call__(self, results):
        return dict(results, **{'imgs': [image()], 'modality': 'RGB',
                    'gt_bboxes': np.zeros((0, 4))})  # fmt: skip


def test_equal_in_all_workers():
    frames = SampleClipFrames(clip_len=4, frame_interval=3)
    clock = dict(timestamp_start=900, fps=30, total_frames=900)
    pipeline = [Load(), StreamConsistent(USUAL), lambda r: frames(dict(r, **clock))]
    dataset = Clips(pipeline=pipeline)
    orders = []
    for workers in (0, 2):
        sampler = SequentialClipSampler(DefaultSampler(dataset, seed=0), 2, True)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=list,
        )
        seen, inds = {}, []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for batch in loader:
                for result in batch:
                    key = (result['video_id'], epoch)
                    seen.setdefault(key, set()).add(draws(result))
                    inds.append(tuple(result['frame_inds']))
        assert len(seen) == 6 and all(len(found) == 1 for found in seen.values())
        assert len(set.union(*seen.values())) == 6
        assert len(set(inds)) > len(inds) // 2  # jitter differs
        orders.append((seen, inds))
    assert orders[0] == orders[1]


# --- frames


def frames_of(sampler, second=905, **options):
    results = dict(timestamp=second, timestamp_start=900, fps=30, total_frames=900)
    results.update(options)
    return sampler(results)['frame_inds'].tolist()


def test_frames_around_a_keyframe():
    sampler = SampleClipFrames(clip_len=4, frame_interval=4, test_mode=True)
    assert frames_of(sampler) == [142, 146, 150, 154]
    # img_00001.jpg is frame 0
    assert frames_of(sampler, start_index=1) == [143, 147, 151, 155]
    assert frames_of(sampler, second=900) == [0, 0, 0, 4]
    assert frames_of(sampler, second=930) == [892, 896, 899, 899]
    assert frames_of(sampler, total_frames=None, shot_info=(0, 153)) == [
        142, 146, 150, 152,
    ]  # fmt: skip
    # the container's own rate, and its frames count from 0
    assert frames_of(sampler, avg_fps=23.976, start_index=1) == [112, 116, 120, 124]
    # timestamps that count frames
    assert frames_of(sampler, fps=1, avg_fps=25.0, timestamp_start=0) == [
        897, 899, 899, 899,
    ]  # fmt: skip


@pytest.mark.parametrize('clip_len, interval', [(16, 4), (5, 3), (32, 2)])
def test_agrees_with_mmaction_but_for_its_start_index(clip_len, interval):
    ours = SampleClipFrames(clip_len, interval, test_mode=True)
    theirs = SampleAVAFrames(clip_len, interval, test_mode=True)
    results = dict(timestamp=910, timestamp_start=900, fps=30, total_frames=900)
    found, expected = ours(dict(results)), theirs(dict(results))
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])
    # MMAction2 adds start_index to the keyframe and once more to the frames
    found = ours(dict(results, start_index=1))['frame_inds']
    expected = theirs(dict(results, start_index=1))['frame_inds']
    np.testing.assert_array_equal(found + 1, expected)


@pytest.mark.parametrize(
    'interval, inner, first, last',
    [
        (4, [-2, -1, 0, 1], [0, 1], [-2, -1]),
        (3, [-2, -1, 0], [0], [-2, -1]),
        (2, [-1, 0], [0], [-1]),
        (1, [0], [0], [0]),
    ],
)
def test_jitter_moves_each_frame_within_its_interval(interval, inner, first, last):
    sampler = SampleClipFrames(clip_len=6, frame_interval=interval)
    plain = frames_of(SampleClipFrames(6, interval, jitter=False))
    assert plain == [150 + i * interval for i in range(-3, 3)]
    with seeded(0):
        offsets = np.array([frames_of(sampler) for _ in range(2000)]) - plain
    for column, moves in zip(offsets.T, [first, *[inner] * 4, last]):
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == moves
        share = len(offsets) / len(moves)
        assert abs(counts - share).max() < 4 * share**0.5
    if interval > 1:
        # each frame by itself
        together = np.corrcoef(offsets[:, 1:-1].T)
        assert abs(together - np.eye(4)).max() < 0.1


def test_jitter_at_the_ends_and_when_it_is_drawn_anew():
    sampler = SampleClipFrames(clip_len=4, frame_interval=4)
    for second, kept in ((900, slice(0, 2)), (930, slice(3, 4))):
        with seeded(0):
            draws = np.array([frames_of(sampler, second) for _ in range(50)])
        # frames before the first repeat it, and after the last
        edge = 0 if second == 900 else 899
        assert (draws[:, kept] == edge).all() and len(np.unique(draws)) > 3
        assert draws.min() >= 0 and draws.max() <= 899

    def one(video='a', second=905, epoch=0):
        index = ClipIndex(0, epoch=epoch)
        return frames_of(sampler, second, video_id=video, sample_idx=index)

    assert one() == one()
    assert one() != one(video='b') and one() != one(epoch=1)
    assert one() != [i - 30 for i in one(second=906)]


def test_frame_errors():
    sampler = SampleClipFrames(clip_len=16, frame_interval=4, test_mode=True)
    with pytest.raises(
        ValueError,
        match=r'a.mp4 has 60 frames, fewer than the 61 that a clip of 16 frames, 4 '
        r'apart, spans: use a smaller clip_len or frame_interval',
    ):
        frames_of(sampler, 901, total_frames=60, filename='a.mp4')
    frames_of(sampler, 901, total_frames=61)
    with pytest.raises(
        ValueError,
        match=r'clip has 900 frames, but the keyframe at second 5 is frame -26850: '
        'check that timestamps count from timestamp_start=900',
    ):
        frames_of(sampler, 5, frame_dir='clip')
    with pytest.raises(ValueError, match='the keyframe at second 932 is frame 960'):
        frames_of(sampler, 932)
    with pytest.raises(ValueError, match='frame_interval must be at least 1, got 0'):
        SampleClipFrames(4, 0)


# --- videos


def write_video(path, num_frames=50, fps=12.5, size=(64, 48)):
    """Frame i is grey of level 5 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
    for number in range(num_frames):
        writer.write(np.full((size[1], size[0], 3), 5 * number, np.uint8))
    writer.release()
    return str(path)


def levels(imgs):
    return [round((img.mean() + 2.7) / 5) for img in imgs]  # the codec darkens a bit


def test_video_is_opened_decoded_and_closed(tmp_path):
    pytest.importorskip('decord')  # MMAction2's own needs it
    results = dict(
        filename=write_video(tmp_path / 'a.mp4'),
        timestamp=902,
        timestamp_start=900,
        fps=30,  # not this video's
        start_index=1,
        gt_bboxes=np.array([[0.25, 0.5, 0.5, 1.0]]),
        proposals=np.zeros((0, 4), dtype=np.float32),
    )
    open_video = TRANSFORMS.build(dict(type='VideoInit'))
    results = open_video(results)
    assert (results['total_frames'], results['avg_fps']) == (50, 12.5)
    reference = DecordInit()(dict(results))
    assert reference['total_frames'] == 50
    results = SampleClipFrames(4, 3, test_mode=True)(results)
    assert results['frame_inds'].tolist() == [19, 22, 25, 28]
    results = TRANSFORMS.build(dict(type='VideoDecode'))(results)
    assert levels(results['imgs']) == [19, 22, 25, 28]
    assert results['video_reader'] is None
    assert results['img_shape'] == (48, 64)
    np.testing.assert_allclose(results['gt_bboxes'], [[16, 24, 32, 48]])
    assert results['proposals'].shape == (0, 4)


def count_open():
    """Files and threads of this process."""
    return [len(os.listdir(f'/proc/self/{what}')) for what in ('fd', 'task')]


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('keep_open', [0, 1, 2])
def test_no_reader_is_left_open(tmp_path, keep_open):
    paths = [write_video(tmp_path / f'{name}.mp4') for name in 'abcd']
    init, decode = VideoInit(keep_open=keep_open), VideoDecode()

    def use(path):
        return decode(init(dict(filename=path, frame_inds=np.arange(4))))

    for path in paths:
        use(path)
    files, threads = count_open()
    for path in paths * 5:
        use(path)
    assert count_open()[0] <= files and count_open()[1] <= threads
    assert len(init._readers.here()) == keep_open
    init._readers.here().clear()
    assert count_open()[0] == files - keep_open


def test_kept_readers_give_the_same_frames(tmp_path):
    paths = [write_video(tmp_path / f'{name}.mp4') for name in 'ab']
    init = VideoInit(keep_open=2)
    random = np.random.RandomState(0)
    readers = set()
    for number in range(40):
        results = init(dict(filename=paths[number % 2], timestamp=0))
        readers.add(id(results['video_reader']))
        inds = np.sort(random.choice(range(1, 50), 4))
        assert levels(VideoDecode()(dict(results, frame_inds=inds))['imgs']) == [*inds]
    assert len(readers) == 2
    copies = pickle.loads(pickle.dumps(init)), copy.deepcopy(init)
    assert all(one.keep_open == 2 and not one._readers.here() for one in copies)


class Frames(BaseDataset):
    def load_data_list(self):
        return [
            dict(filename=path, frame_inds=np.arange(start, start + 3))
            for start in range(1, 40, 3)
            for path in self.metainfo['paths']
        ]


def test_kept_readers_do_not_follow_into_workers(tmp_path):
    paths = [write_video(tmp_path / f'{name}.mp4') for name in 'ab']
    pipeline = [VideoInit(keep_open=2), VideoDecode()]
    dataset = Frames(metainfo=dict(paths=paths), pipeline=pipeline)
    expected = [levels(result['imgs']) for result in dataset]  # opens them here
    assert expected[0] == [1, 2, 3]
    for _ in range(2):
        loader = DataLoader(
            dataset, batch_size=None, num_workers=2, timeout=60, collate_fn=lambda x: x
        )
        assert [levels(result['imgs']) for result in loader] == expected


def test_video_errors(tmp_path):
    init = VideoInit()
    with pytest.raises(
        FileNotFoundError, match='Video .*none.mp4 does not exist: check'
    ):
        init(dict(filename=str(tmp_path / 'none.mp4')))
    (tmp_path / 'text.mp4').write_text('this is no video')
    with pytest.raises(ValueError, match='Video .*text.mp4 cannot be opened'):
        init(dict(filename=str(tmp_path / 'text.mp4')))
    (tmp_path / 'empty.mp4').write_bytes(b'')
    with pytest.raises(ValueError, match='Video .*empty.mp4 cannot be opened'):
        init(dict(filename=str(tmp_path / 'empty.mp4')))
    path = write_video(tmp_path / 'a.mp4')
    whole = (tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match='Video .*cut.mp4 cannot be opened'):
        init(dict(filename=str(tmp_path / 'cut.mp4')))
    results = init(dict(filename=path, timestamp=902))
    with pytest.raises(
        ValueError, match=r'a.mp4 cannot be decoded at second 902, frames 48 to 51 \('
    ):
        VideoDecode()(dict(results, frame_inds=np.arange(48, 52)))


def test_reprs():
    text = repr(StreamConsistent([dict(type='RandomCrop', size=8)]))
    assert text == (
        'StreamConsistent(transforms=[RandomCrop(size=8, lazy=False)], seed=0, '
        "per='video')"
    )
    assert 'jitter=True' in repr(SampleClipFrames())
