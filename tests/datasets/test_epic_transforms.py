from fractions import Fraction

import numpy as np
import pytest
import torch
from epic_data import read_number, row, write_csv, write_frames, write_video
from mmaction.registry import TRANSFORMS
from mmengine.registry import init_default_scope

from memvit_mm.datasets import (
    BadClipError,
    ClipIndex,
    EpicFrameLabels,
    EpicKitchensDataset,
    SampleEpicFrames,
)

RATES = dict(pal=50, ntsc=60000 / 1001, half=30, odd=48000 / 1001, fast=90)
DECODE = [
    dict(type='VideoInit', keep_open=1),
    dict(type='SampleEpicFrames', clip_len=8, frame_interval=4),
    dict(type='VideoDecode'),
]
META = ('video_id', 'timestamp', 'narration_id', 'sample_idx')
PACK = [
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=META),
]


def numbers(packed):
    """The numbers painted into the frames of a packed clip."""
    assert packed['inputs'].shape == (1, 3, 8, 64, 64)
    # [1, C, T, H, W] -> [T, H, W, C]
    return [read_number(f.numpy()) for f in packed['inputs'][0].permute(1, 2, 3, 0)]


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmaction')


@pytest.fixture(scope='module')
def kitchens(tmp_path_factory):
    """Twelve seconds at each rate, official names, and segments in them."""
    folder = tmp_path_factory.mktemp('kitchens')
    rows = []
    for number, fps in enumerate(RATES.values()):
        video = f'P0{number}_01'
        path = folder / f'P0{number}' / 'videos' / f'{video}.MP4'
        write_video(path, fps, frames=round(12 * fps))
        times = [0, 0.5, 1, 1.01, 1.6, 3, 3.3, 5.37, 5.37, 7.02, 8.49, 9.99, 11.5]
        rows += [
            row(f'{video}_{count}', start, min(start + length, 12), 1, 2)
            for count, start in enumerate(times)
            for length in [(0.1, 1.3, 4)[count % 3]]
        ]
    return str(folder), write_csv(folder / 'ann.csv', rows)


def dataset(kitchens, **options):
    root, ann_file = kitchens
    return EpicKitchensDataset(
        **{
            'ann_file': ann_file,
            'data_prefix': dict(video=root),
            'pipeline': DECODE + PACK,
            'test_mode': True,
            **options,
        }
    )


@pytest.mark.parametrize('tau_a', [1.0, 0, 2.37])
def test_anticipation_sees_nothing_after_the_cut(kitchens, tau_a):
    """Numbers painted into real videos, read back from the clips the model gets."""
    clips = dataset(kitchens, task='anticipation', tau_a=tau_a)
    rates = list(RATES.values())
    early = 0
    assert len(clips) == 65
    for index in range(len(clips)):
        info = clips.get_data_info(index)
        fps = rates[int(info['video_id'][1:3])]
        shown = numbers(clips[index])
        cut = info['start'] - tau_a
        if cut < 0:
            # too early to observe anything: the first frame, repeated
            assert shown == [0] * 8
            early += 1
            continue
        assert max(shown) / fps <= cut + 1e-9  # no frame is later ...
        assert (max(shown) + 1) / fps > cut - 1e-3  # ... and none is left unused
        # as far apart at every rate, unless there is nothing yet
        times = np.maximum(cut - np.arange(7, -1, -1) * 4 / 30, 0)
        assert np.array(shown) / fps == pytest.approx(times, abs=1 / fps)
    assert early == 5 * sum(time < tau_a for time in (0, 0.5, 1, 1.01, 1.6))


@pytest.mark.parametrize('jitter', [None, float('inf')])
def test_recognition_stays_in_the_segment(kitchens, jitter):
    options = {} if jitter is None else dict(test_mode=False, jitter=jitter)
    clips = dataset(kitchens, **options)
    rates = list(RATES.values())
    for index in range(len(clips)):
        info = clips.get_data_info(index)
        fps = rates[int(info['video_id'][1:3])]
        shown = numbers(clips[ClipIndex(index, epoch=3)])
        first = int(info['start'] * fps + 1e-6)  # on the screen when it starts
        assert first <= min(shown) and max(shown) / fps <= info['stop'] + 1e-9
        assert shown == sorted(shown)
        if info['stop'] - info['start'] < 1 / 30:
            continue
        if info['stop'] - info['start'] <= 28 / 30:
            assert shown[0] == shown[1] == first  # shorter than the clip


def test_last_frame_is_exact():
    """By exact arithmetic, for every rate and many times."""
    sample = SampleEpicFrames(clip_len=1, frame_interval=1)
    random = np.random.RandomState(0)
    for fps in map(Fraction, ['50', '60000/1001', '30', '30000/1001', '90', '25']):
        for cents in random.randint(100, 700000, 300).tolist():
            clip = sample(
                dict(
                    timestamp=cents / 100 - 1.0,
                    avg_fps=float(fps),
                    total_frames=10**7,
                )
            )
            last = int((Fraction(cents, 100) - 1) * fps)  # rounds down
            assert clip['frame_inds'].tolist() == [last]


def test_intervals_are_counted_at_the_target_rate():
    def inds(fps, **options):
        sample = SampleEpicFrames(clip_len=4, frame_interval=4, **options)
        clip = sample(dict(timestamp=2.0, avg_fps=fps, total_frames=1000))
        return clip['frame_inds'].tolist()

    assert inds(30) == [48, 52, 56, 60]
    assert inds(60) == [96, 104, 112, 120]
    assert inds(60, target_fps=60) == [108, 112, 116, 120]
    assert inds(50) == [80, 86, 93, 100]
    assert inds(10) == [16, 17, 18, 20]
    clip = SampleEpicFrames(16, 4)
    assert clip.clip_seconds == 2.0


def test_frames_past_the_end_show_the_last_one():
    sample = SampleEpicFrames(clip_len=4, frame_interval=30)
    clip = dict(timestamp=10.5, avg_fps=50, total_frames=475, narration_id='P01_1_0')
    assert sample(clip)['frame_inds'].tolist() == [375, 425, 474, 474]
    with pytest.raises(BadClipError) as caught:
        sample(dict(clip, filename='a.MP4', timestamp=10.6))
    assert str(caught.value) == (
        'a.MP4 ends after 9.50 seconds (475 frames at 50 a second), but narration '
        "'P01_1_0' has a clip that ends at 10.60: the file is cut short, or of another "
        'frame rate than the dataset says; fetch it again, or name its duration in '
        'video_info_file.'
    )


def test_extracted_frames(tmp_path):
    """Numbers in the frames' names count from 1, rates by the video's name."""
    write_frames(tmp_path / 'P01' / 'rgb_frames' / 'P01_01', 200)
    write_frames(tmp_path / 'P01' / 'rgb_frames' / 'P01_101', 200)
    rows = [row('P01_01_0', 3, 4), row('P01_101_0', 3, 4)]
    clips = EpicKitchensDataset(
        write_csv(tmp_path / 'a.csv', rows),
        [DECODE[1], dict(type='RawFrameDecode'), *PACK],
        task='anticipation',
        data_root=str(tmp_path),
        use_frames=True,
        test_mode=True,
    )
    assert numbers(clips[0])[-1] == 120 and numbers(clips[1])[-1] == 100
    info = clips.get_data_info(1)
    assert info['total_frames'] == 200 and info['fps'] == 50
    sampled = clips.pipeline.transforms[0](info)
    assert sampled['frame_inds'][-1] == 101


def test_jitter_is_drawn_per_seed_epoch_and_narration():
    sample = SampleEpicFrames(clip_len=1)

    def end(epoch=0, seed=0, narration='P01_01_0', plain=False):
        index = 5 if plain else ClipIndex(5, epoch=epoch, seed=seed)
        clip = dict(
            timestamp=10.0,
            jitter=2.0,
            avg_fps=1000,
            total_frames=20000,
            narration_id=narration,
            sample_idx=index,
        )
        return sample(clip)['frame_inds'][0] / 1000

    assert end() == end() and len({end(epoch) for epoch in range(50)}) == 50
    assert len({end(), end(1), end(0, 1), end(narration='P01_01_1')}) == 4
    drawn = np.array([end(epoch) for epoch in range(500)])
    assert drawn.min() >= 8 and drawn.max() <= 10
    assert drawn.mean() == pytest.approx(9, abs=0.1)
    np.random.seed(0)
    plain = [end(plain=True) for _ in range(5)]
    np.random.seed(0)
    assert [end(plain=True) for _ in range(5)] == plain and len(set(plain)) == 5


SEGMENTS = np.array(
    [
        [0, 3, 1, 11],
        [2, 6, 2, 12],
        [2, 5, 3, 13],
        [7, 8, 4, -100],
        [8.5, 8.5, 5, 15],
    ]
)


def labels(times, own=None, tau_a=0.0, positions=None, **options):
    transform = EpicFrameLabels(num_positions=positions or len(times), **options)
    start, stop, *label = SEGMENTS[own].tolist() if own is not None else [None, None]
    found = transform(
        dict(
            frame_times=np.array(times, dtype=float),
            segments=SEGMENTS,
            start=start,
            stop=stop,
            label=[int(part) for part in label] or [-100, -100],
            tau_a=tau_a,
            narration_id=None if own is None else f'P01_01_{own}',
        )
    )['label']
    assert found.dtype == np.int64 and found.shape[0] == 2
    return found.tolist()


def test_labels_along_a_clip():
    none = -100
    # in 2..5 the segment that started last, later in the file
    assert labels([1, 2.5, 5.5, 6.5, 7.5], own=3) == [
        [1, 3, 2, none, 4],
        [11, 13, 12, none, none],
    ]
    # the clip's own segment comes first, and the last position is always its
    assert labels([1, 2.5, 5.5, 6.5, 7.5], own=0)[0] == [1, 1, 2, none, 1]
    assert labels([8.4, 8.5], own=4)[0] == [none, 5]
    assert labels([2.5, 5.5], own=1, only_last=True)[0] == [none, 2]


def test_labels_along_a_clip_in_anticipation():
    # each position has the action one second after it
    assert labels([0, 1.5, 4.5, 5.5, 6], own=3, tau_a=1.0)[0] == [1, 3, 2, -100, 4]


def test_labels_of_positions_are_those_of_their_last_frames():
    assert labels([0, 2.5, 3, 6.5, 6.8, 7.5], own=3, positions=3)[0] == [3, -100, 4]


def test_labels_of_clips_in_between():
    assert labels([1, 2.5]) == [[-100, -100]] * 2
    assert labels([1, 2.5], label_context=True) == [[1, 3], [11, 13]]


def test_labels_through_the_pipeline(kitchens):
    pipeline = [*DECODE, dict(type='EpicFrameLabels', num_positions=4), *PACK]
    for task in ('recognition', 'anticipation'):
        clips = dataset(kitchens, task=task, pipeline=pipeline, context_stride=1.0)
        for index in (0, 3, 7, 20, len(clips) - 1):
            label = clips[index]['data_samples'].gt_label
            assert label.shape == (2, 4) and label.dtype == torch.int64
            assert label[:, -1].tolist() == clips.get_data_info(index)['label']


@pytest.mark.parametrize(
    'config, sentence',
    [
        (dict(type='SampleEpicFrames', clip_len=0), 'clip_len must be at least 1'),
        (dict(type='SampleEpicFrames', frame_interval=0), 'frame_interval must be at'),
        (dict(type='SampleEpicFrames', target_fps=0), 'target_fps must be above 0'),
        (dict(type='EpicFrameLabels', num_positions=0), 'num_positions must be at'),
    ],
)
def test_arguments_that_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        TRANSFORMS.build(config)


def test_clips_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r'of 2 frames cannot .* num_positions=3: cho'):
        labels([0, 1], positions=3, own=0)


def test_transforms_say_what_they_are():
    assert str(SampleEpicFrames(8, 2)) == (
        'SampleEpicFrames(clip_len=8, frame_interval=2, target_fps=30.0)'
    )
    assert str(EpicFrameLabels(8)) == (
        'EpicFrameLabels(num_positions=8, only_last=False, label_context=False)'
    )


def test_positions_that_memory_has_seen_are_not_labelled():
    """The clip before ended at 1.6 s: what was done until then is in memory."""
    results = dict(
        frame_times=np.arange(8) / 2,
        segments=np.array([[0.0, 9.0, 7, 8]]),
        start=0.0,
        stop=9.0,
        label=[7, 8],
        tau_a=0.0,
        narration_id='a',
    )
    label = EpicFrameLabels(num_positions=4)
    assert label(dict(results))['label'][0].tolist() == [7, 7, 7, 7]
    later = label(dict(results, previous=1.6))['label'][0].tolist()
    assert later == [-100, -100, 7, 7]
