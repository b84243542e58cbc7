"""IoUTracker: whose a box is."""

import json

import numpy as np
import pytest
import stream_data as data
from stream_data import FPS

from memvit_mm.apis import (
    IoUTracker,
    MultiStream,
    PersonBoxes,
    VideoStream,
    inference_stdet,
)


def box(left: float, top: float = 0.0, size: float = 10.0) -> list:
    return [left, top, left + size, top + size]


class TestTheRule:
    def test_overlap(self):
        tracker = IoUTracker(min_iou=0.5)
        assert tracker.update([box(0), box(20)], 1).tolist() == [0, 1]
        # An IoU of 9 / 11, and one of 6 / 14.
        assert tracker.update([box(24), box(1)], 2).tolist() == [2, 0]
        assert IoUTracker(min_iou=0.4).min_iou == 0.4

    def test_the_largest_sum(self):
        tracker = IoUTracker(min_iou=0.1)
        tracker.update([box(0), box(6)], 0)
        # IoUs of 0.43 and 0.33; 4 and 6 overlap by 0.67, and 11 and 0 not at all.
        assert tracker.update([box(4), box(11)], 1).tolist() == [0, 1]

    def test_out_of_sight(self):
        tracker = IoUTracker(max_lost=2)
        tracker.update([box(0)], 0.1)
        assert tracker.update([], 1.1).shape == (0,)
        assert tracker.update([box(1)], 2.1).tolist() == [0]
        tracker.update(np.zeros((0, 5)), 3)
        assert tracker.update([box(1)], 4.2).tolist() == [1]

    def test_sums_of_floats(self):
        tracker = IoUTracker(max_lost=0.3)
        tracker.update([box(0)], 0.1 + 0.2)
        assert tracker.update([box(0)], 0.6000000000000001).tolist() == [0]

    def test_keyframes_far_apart(self):
        tracker = IoUTracker(max_lost=2)
        tracker.update([box(0)], 0)
        with pytest.warns(UserWarning, match='are 5 seconds apart, more than max_lost'):
            assert tracker.update([box(0)], 5).tolist() == [1]

    def test_numbers_are_never_used_again(self):
        tracker = IoUTracker()
        for number in range(5):
            assert tracker.update([box(100 * number)], number).tolist() == [number]
        assert len(tracker.state_dict()['ids']) == 4

    def test_state(self):
        one, other = IoUTracker(), IoUTracker()
        boxes = np.array([box(n) for n in range(0, 90, 30)])
        one.update(boxes, 0)
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        rows = [2, 0]
        for tracker in (one, other):
            assert tracker.update(boxes[rows] + 1, 1).tolist() == rows
        one.reset()
        assert one.update(boxes[rows], 1).tolist() == [0, 1]
        other.load_state_dict(IoUTracker().state_dict())
        assert other.update(boxes, 2).tolist() == [0, 1, 2]

    def test_errors(self):
        with pytest.raises(ValueError, match=r'min_iou=0 must be above 0'):
            IoUTracker(min_iou=0)
        with pytest.raises(ValueError, match=r'max_lost=-1 must be at least 0'):
            IoUTracker(max_lost=-1)
        with pytest.raises(ValueError, match=r'boxes has \[1, 3\] at 2 seconds'):
            IoUTracker().update([[1, 2, 3]], 2)


@pytest.fixture(scope='module')
def model():
    return data.ava_model()


@pytest.fixture(scope='module')
def frames():
    return data.pictures(FPS * 6)


def walk(image, second: float) -> np.ndarray:
    """One stays, one walks by, and one comes and goes."""
    people = [box(2, 3, 12), box(5 + 4 * second, 20, 20)]
    if second % 4 != 2:
        people.insert(int(second) % 2, box(45, 30, 15))
    return np.array(people)


def ids_of(predictions) -> list:
    return [p.track_ids.tolist() for p in predictions]


EXPECTED = [[0, 1, 2], [0, 2], [0, 1, 2], [1, 0, 2], [0, 1, 2]]


class TestStreams:
    def test_every_way(self, model, frames):
        stream = VideoStream(model, boxes=walk, fps=FPS, track=True)
        found = list(stream.run(frames))
        assert ids_of(found) == EXPECTED
        assert found[1].to_dict()['track_ids'] == [0, 2]
        # A run that ended is followed by a new stream.
        assert ids_of(stream.run(frames)) == EXPECTED
        fed = [p for frame in frames for p in stream.feed(frame)]
        assert ids_of(fed + stream.finish()) == EXPECTED
        options = dict(det_model=walk, fps=FPS, track=True, labels=list('abcdef'))
        stdet = inference_stdet(model, np.stack(frames), **options)
        assert ids_of(stdet) == EXPECTED

    def test_only_if_asked(self, model, frames):
        (first, *_) = VideoStream(model, boxes=walk, fps=FPS).run(frames)
        assert first.track_ids is None and 'track_ids' not in first.to_dict()

    def test_own_settings(self, model, frames):
        tracker = IoUTracker(min_iou=0.99, max_lost=1)
        stream = VideoStream(model, boxes=walk, fps=FPS, track=tracker)
        assert ids_of(stream.run(frames))[:3] == [[0, 1, 2], [0, 3], [0, 4, 5]]
        # It is copied: the one that was given knows nobody.
        assert tracker.state_dict()['next'] == 0

    def test_today_and_tomorrow(self, frames):
        made = dict(boxes=walk, fps=FPS, track=True)
        first = VideoStream(data.ava_model(), **made)
        found = [p for frame in frames[:30] for p in first.feed(frame)]
        assert len(found) == 2
        second = VideoStream(data.ava_model(), **made)
        second.load_state_dict(first.state_dict())
        found += [p for frame in frames[30:] for p in second.feed(frame)]
        assert ids_of(found + second.finish()) == EXPECTED
        # One that does not track goes on, too; and from a state of before there was.
        state = dict(first.state_dict())
        del state['tracker']
        VideoStream(data.ava_model(), **made).load_state_dict(state)

    def test_in_the_middle_of_a_run(self, frames):
        made = dict(boxes=walk, fps=FPS, track=True)
        stream, found = VideoStream(data.ava_model(), **made), []
        for prediction in stream.run(frames):
            found.append(prediction)
            if len(found) == 2:
                # What has been read ahead is not in it.
                assert len(stream.state_dict()['tracker']['ids']) == 3
                assert set(stream.state_dict()['tracker']['seen']) == {1.0, 2.0}
        assert ids_of(found) == EXPECTED

    def test_many_streams(self, model, frames):
        sources = {name: list(frames) for name in 'abc'}
        streams = MultiStream(model, sources, boxes=walk, fps=FPS, track=True)
        found = {name: [] for name in sources}
        for prediction in streams:
            found[prediction.stream].append(prediction)
        assert all(ids_of(of_one) == EXPECTED for of_one in found.values())

    def test_numbers_from_the_caller(self, model, frames):
        def boxes(image, second):
            found = walk(image, second)
            return PersonBoxes(found, np.ones(len(found)), range(7, 7 + len(found)))

        stream = VideoStream(model, boxes=boxes, fps=FPS, track=True)
        assert ids_of(stream.run(frames))[0] == [7, 8, 9]

    def test_errors(self, model, frames):
        with pytest.raises(ValueError, match='track is a str: it takes True, False'):
            VideoStream(model, boxes=walk, track='yes')
        with pytest.raises(ValueError, match='classifies whole clips: leave track'):
            VideoStream(data.epic_model(), track=True)
        for columns, told in (((np.ones(1), None), 'scores'), ((None, [1]), 'track')):
            scores = np.ones(2) if columns[0] is None else columns[0]
            wrong = PersonBoxes(np.array([box(2), box(4)]), scores, columns[1])
            stream = VideoStream(model, boxes=lambda *_, w=wrong: w, fps=FPS)
            with pytest.raises(ValueError, match=f'2 boxes and {told}.* one for each'):
                list(stream.run(frames))
