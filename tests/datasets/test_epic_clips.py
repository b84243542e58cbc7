import math
import warnings

import numpy as np
import pytest

from memvit_mm.datasets import ClipIndex, SampleEpicFrames
from memvit_mm.datasets.epic.clips import ClipRule
from memvit_mm.datasets.epic.files import Segment
from memvit_mm.models import ClipMemory
from memvit_mm.structures import Stream


def segment(number, start, stop):
    return Segment(f'P01_01_{number}', 'P01', 'P01_01', start, stop, 0, 0, number)


def made_segments(count=300, seed=0):
    """Segments of a video as they are: overlapping, nested, equal, short, long."""
    random = np.random.RandomState(seed)
    starts = np.round(random.randint(0, 60000, count) / 100, 2)
    lengths = np.round(random.choice([0, 0.1, 0.5, 1, 2, 2.5, 5, 20, 140], count), 2)
    starts[::7] = starts[1::7][: len(starts[::7])]
    return [
        segment(number, start, round(start + length, 2))
        for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist()))
    ]


def shown(rule, segments):
    """When clips end, and of which segment's number (None in between) they are."""
    return [
        (clip.timestamp, clip.segment and clip.segment.number)
        for clip in rule.clips(segments)
    ]


def test_recognition_lies_in_the_segment():
    rule = ClipRule('recognition', clip_seconds=2.0)
    assert rule.end(segment(0, 10, 20)) == (16, 0)  # in its middle: 14 to 16
    assert rule.end(segment(0, 10, 12)) == (12, 0)
    assert rule.end(segment(0, 10, 11)) == (11, 0)
    assert rule.end(segment(0, 10, 10)) == (10, 0)


def test_training_reaches_all_of_the_segment():
    """Ends lie between start + clip and stop, with every place as likely."""
    whole = ClipRule('recognition', clip_seconds=2.0, jitter=math.inf)
    assert whole.end(segment(0, 10, 20)) == (20, 8)
    assert whole.end(segment(0, 10, 11)) == (11, 0)
    rule = ClipRule('recognition', clip_seconds=2.0, jitter=3.0)
    assert rule.end(segment(0, 10, 14.5)) == (14.5, 2.5)
    ends = [rule.end(segment(number, 10, 20)) for number in range(500)]
    assert {jitter for _, jitter in ends} == {3}
    latest = np.array([end for end, _ in ends])
    assert latest.min() >= 15 and latest.max() <= 20
    assert (latest - 1.5).mean() == pytest.approx(16, abs=0.2)
    assert rule.end(segment(7, 10, 20)) == rule.end(segment(7, 10, 20))


@pytest.mark.parametrize('tau_a', [0, 0.25, 1.0, 10])
def test_anticipation_ends_before_the_segment(tau_a):
    rule = ClipRule('anticipation', tau_a=tau_a, jitter=2.0)
    assert rule.end(segment(0, 20, 30)) == (20 - tau_a, 0)


def test_clips_are_in_the_order_in_which_they_end():
    rule = ClipRule('recognition', clip_seconds=2.0)
    long, inside, after = segment(0, 0, 60), segment(1, 10, 12), segment(2, 30, 40)
    assert shown(rule, [long, inside, after]) == [(12, 1), (31, 0), (36, 2)]
    rule = ClipRule('anticipation')
    assert shown(rule, [after, long, inside]) == [(-1, 0), (9, 1), (29, 2)]


def test_clips_that_end_together_follow_each_other_by_as_little_as_possible():
    rule = ClipRule('anticipation')
    together = [
        segment(10, 5, 9),
        segment(2, 5, 9),
        segment(3, 5, 7),
        segment(1, 5, 9),
    ]
    found = shown(rule, together)
    assert [number for _, number in found] == [3, 1, 2, 10]
    assert [time for time, _ in found] == [
        4,
        np.nextafter(4, 5),
        np.nextafter(np.nextafter(4, 5), 5),
        np.nextafter(np.nextafter(np.nextafter(4, 5), 5), 5),
    ]
    recognition = ClipRule('recognition', clip_seconds=2.0, jitter=2.0)
    found = recognition.clips([segment(0, 1, 3), segment(1, 0, 3)])
    assert [clip.segment.number for clip in found] == [1, 0]  # by start
    assert found[1].jitter == 0  # nor may it end before the other one


def test_clips_in_between():
    rule = ClipRule('anticipation', tau_a=0, context_stride=2.0)
    assert shown(rule, [segment(0, 5, 9)]) == [(1, None), (3, None), (5, 0)]
    assert shown(rule, [segment(0, 2.9, 9)]) == [(2.9, 0)]
    assert shown(rule, [segment(0, 3.1, 9)]) == [(pytest.approx(1.1), None), (3.1, 0)]
    # 1.5 strides are filled, less is not
    assert shown(rule, [segment(0, 2, 9), segment(1, 4.9, 9)]) == [(2, 0), (4.9, 1)]
    assert shown(rule, [segment(0, 2, 9), segment(1, 5, 9)]) == [
        (2, 0),
        (3, None),
        (5, 1),
    ]
    assert shown(rule, [segment(0, 0, 9), segment(1, 0, 9), segment(2, 6, 7)]) == [
        (0, 0),
        (np.nextafter(0, 1), 1),
        (2, None),
        (4, None),
        (6, 2),
    ]
    early = ClipRule('anticipation', context_stride=2.0)
    assert shown(early, [segment(0, 0, 9), segment(1, 0.5, 2)]) == [(-1, 0), (-0.5, 1)]


@pytest.mark.parametrize('stride', [0, 1.0, 2.5])
@pytest.mark.parametrize('task', ['recognition', 'anticipation'])
def test_clips_in_between_leave_no_hole_and_repeat_nothing(task, stride):
    segments = made_segments()
    clips = ClipRule(task, context_stride=stride).clips(segments)
    kept = [clip.segment.narration_id for clip in clips if clip.segment]
    assert sorted(kept) == sorted(s.narration_id for s in segments)
    times = np.array([clip.timestamp for clip in clips])
    between = np.array([clip.segment is None for clip in clips])
    assert between.any() == bool(stride)
    if stride:
        gaps = np.diff(times)
        assert gaps.max() <= 1.5 * stride + 1e-9
        assert gaps[between[1:]].min() >= 0.5 * stride - 1e-9
        assert gaps[between[:-1]] == pytest.approx(stride)


def memory_of(clips):
    """The real memory, fed with clips; it must never warn."""
    memory = ClipMemory()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for clip in clips:
            memory.step([Stream('a')], [clip.timestamp]).commit()


@pytest.mark.parametrize('stride', [0, 2.0])
@pytest.mark.parametrize('jitter', [0, 2.0, math.inf])
@pytest.mark.parametrize('task', ['recognition', 'anticipation'])
def test_nothing_in_memory_ends_later_than_the_clip(task, jitter, stride):
    """Whatever is drawn, and with frames that are really chosen."""
    sample = SampleEpicFrames(clip_len=16, frame_interval=4)
    for seed in range(3):
        rule = ClipRule(task, jitter=jitter, context_stride=stride)
        clips = rule.clips(made_segments(seed=seed))
        memory_of(clips)
        times = np.array([clip.timestamp for clip in clips])
        assert (np.diff(times) > 0).all()
        earliest = times - [clip.jitter for clip in clips]
        assert (earliest[1:] >= times[:-1]).all()
        for epoch in range(2):
            last = -1
            for number, clip in enumerate(clips):
                name = clip.segment and clip.segment.narration_id
                frames = sample(
                    dict(
                        timestamp=clip.timestamp,
                        jitter=clip.jitter,
                        avg_fps=59.94,
                        total_frames=10**6,
                        narration_id=name,
                        sample_idx=ClipIndex(number, epoch=epoch, seed=seed),
                    )
                )['frame_inds']
                assert frames[-1] >= last and frames[-1] == frames.max()
                assert frames[-1] / 59.94 <= max(clip.timestamp, 0) + 1e-9
                last = frames[-1]
