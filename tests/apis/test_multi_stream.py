"""MultiStream: many sources, one model, and none of them touches another."""

import threading
import time

import numpy as np
import pytest
import stream_data as data
import torch
from stream_data import FPS, assert_same, threads

from memvit_mm.apis import MultiStream, VideoStream, inference_stdet, iter_stdet

NAMES = 'abcd'


@pytest.fixture(scope='module')
def model():
    return data.epic_model()


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    return {
        name: data.write_video(
            folder / f'{name}.mp4', data.pictures(FPS * (3 + number), number)
        )
        for number, name in enumerate(NAMES)
    }


@pytest.fixture(scope='module')
def expected(model, videos):
    return {name: list(VideoStream(model).run(video)) for name, video in videos.items()}


def by_stream(predictions) -> dict:
    found: dict = {}
    for prediction in predictions:
        found.setdefault(prediction.stream, []).append(prediction)
    return found


def assert_all(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, predictions in expected.items():
        assert_same(found[name], predictions)


def batches(model) -> tuple:
    """Sizes of the batches that the model gets from now on."""
    sizes: list = []
    step = model.test_step

    def counted(batch):
        sizes.append([s.video_id for s in batch['data_samples']])
        return step(batch)

    model.test_step = counted
    return sizes, lambda: delattr(model, 'test_step')


@pytest.mark.parametrize('one_by_one', [True, False])
def test_as_one_by_one(model, videos, expected, one_by_one):
    model.test_cfg = dict(one_by_one=one_by_one)
    sizes, undo = batches(model)
    try:
        streams = MultiStream(model, videos, wait=1.0)
        found = by_stream(streams)
    finally:
        undo()
        model.test_cfg = None
    assert_all(found, expected)
    # Together, each stream once.
    assert max(map(len, sizes)) == 4
    assert all(len(set(names)) == len(names) for names in sizes)
    assert {n: e.counts.predictions for n, e in streams.ended.items()} == {
        name: len(predictions) for name, predictions in expected.items()
    }
    assert all(end.error is None for end in streams.ended.values())
    assert not threads() and not len(model.memory)


def test_max_batch_and_turns(model, videos, expected):
    sizes, undo = batches(model)
    try:
        found = by_stream(MultiStream(model, videos, max_batch=3, wait=0.5))
    finally:
        undo()
    assert max(map(len, sizes)) == 3
    assert set(sizes[0]) | set(sizes[1]) == set(NAMES)
    assert_all(found, expected)


def test_join_and_leave(model, videos, expected):
    found: dict = {}
    streams = MultiStream(model, dict(a=videos['a'], b=videos['b']), queue_size=1)
    for number, prediction in enumerate(streams):
        found.setdefault(prediction.stream, []).append(prediction)
        if number == 1:
            streams.add('d', videos['d'])
            with pytest.raises(ValueError, match="is a stream 'd' already"):
                streams.add('d', videos['d'])
        if number == 2 and 'b' in streams.streams:
            streams.remove('b')
    assert_same(found['a'], expected['a'])
    assert_same(found['d'], expected['d'])
    assert len(found.get('b', [])) <= 3
    assert streams.streams == [] and streams.ended['b'].error is None
    with pytest.raises(ValueError, match="no stream 'x', there are: none"):
        streams.remove('x')
    with pytest.raises(ValueError, match="no stream 'x'"):
        streams.counts('x')


def test_failures_touch_no_other(model, videos, expected, tmp_path):
    def torn():
        yield from data.pictures(30)
        raise OSError('cable pulled')

    (tmp_path / 'empty.mp4').touch()
    streams = MultiStream(model, videos, fps=FPS)
    streams.add('torn', torn())
    streams.add('empty', tmp_path / 'empty.mp4')
    streams.add('odd', [np.zeros((4, 4), np.uint8)])
    streams.add('short', data.pictures(3))
    found = by_stream(streams)
    assert [p.time for p in found.pop('torn')] == [1, 2]
    assert_all(found, expected)
    errors = {n: str(e.error) for n, e in streams.ended.items() if e.error}
    assert set(errors) == {'torn', 'empty', 'odd', 'short'}
    assert errors['torn'] == 'cable pulled'
    assert 'is empty' in errors['empty']
    assert 'Frame 0 of odd is an array' in errors['odd']
    assert 'before its first clip, which is at' in errors['short']
    assert streams.counts('torn').predictions == 2


def test_a_clip_that_the_model_refuses(model, videos, expected):
    step = model.test_step

    def refusing(batch):
        result = step(batch)
        samples = batch['data_samples']
        if any(s.video_id == 'b' and s.timestamp > 1 for s in samples):
            raise RuntimeError('out of luck')
        return result

    model.test_step = refusing
    try:
        streams = MultiStream(model, videos, wait=0.5)
        found = by_stream(streams)
    finally:
        del model.test_step
    assert_same(found.pop('b'), expected['b'][:1])
    # What ran in one batch with it ran again, with the memory that it had before.
    assert_all(found, {name: expected[name] for name in 'acd'})
    assert str(streams.ended['b'].error) == 'out of luck'


def test_a_stall_holds_up_nobody(model, videos, expected):
    go_on = threading.Event()

    def stalled():
        frames = data.pictures(36)
        yield from frames[:20]
        go_on.wait(20)
        yield from frames[20:]

    streams = MultiStream(model, dict(videos, stalled=stalled()), fps=FPS)
    found: dict = {}
    total = sum(map(len, expected.values()))
    for number, prediction in enumerate(streams, 1):
        found.setdefault(prediction.stream, []).append(prediction)
        if number == total + 1:
            assert 'stalled' in streams.streams
            go_on.set()
    assert [p.time for p in found.pop('stalled')] == [1, 2, 3]
    assert_all(found, expected)


def test_dropping_is_counted_by_stream(model):
    hook = model.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    try:
        streams = MultiStream(model, fps=FPS, queue_size=1)
        streams.add('fast', data.pictures(FPS * 20), when_slow='drop')
        streams.add('file', data.pictures(FPS * 6))
        found = by_stream(streams)
    finally:
        hook.remove()
    fast, file = (streams.counts(name) for name in ('fast', 'file'))
    assert fast.dropped > 0 and fast.dropped + fast.predictions == 20
    assert (file.dropped, file.predictions) == (0, 6)
    assert len(found['file']) == 6


def test_leaving_the_loop_ends_the_threads(model, videos):
    with MultiStream(model, videos) as streams, pytest.raises(KeyboardInterrupt):
        for _ in streams:
            assert threads()
            raise KeyboardInterrupt
    streams.close()
    assert not threads() and set(streams.ended) == set(NAMES)


class TestState:
    def stop(self, model, videos, after: int) -> tuple:
        """What is found until the loop is left, and the state then."""
        found: dict = {}
        # They start together: a batch is not all handed out when the loop is left.
        streams = MultiStream(model, videos, wait=1.0)
        for number, prediction in enumerate(streams, 1):
            found.setdefault(prediction.stream, []).append(prediction)
            if number == after:
                break
        assert not threads()
        return found, streams.state_dict()

    @pytest.mark.parametrize('after', [1, 6, 11])
    def test_today_and_tomorrow(self, videos, expected, after, tmp_path):
        found, state = self.stop(data.epic_model(), videos, after)
        torch.save(state, tmp_path / 'state.pth')
        streams = MultiStream(data.epic_model())
        streams.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
        # Not yet begun again: the state is still that.
        assert set(streams.state_dict()) == set(state)
        for name in state:
            streams.add(name, videos[name])
        for prediction in streams:
            found.setdefault(prediction.stream, []).append(prediction)
        assert_all(found, expected)
        assert streams.state_dict() == {}

    def test_in_the_loop(self, videos, expected):
        found: dict = {}
        streams = MultiStream(data.epic_model(), videos, wait=1.0)
        for number, prediction in enumerate(streams, 1):
            found.setdefault(prediction.stream, []).append(prediction)
            if number == 2:
                state = streams.state_dict()
                until = {name: len(of_one) for name, of_one in found.items()}
        assert_all(found, expected)
        again = MultiStream(data.epic_model())
        again.load_state_dict(state)
        for name in state:
            again.add(name, videos[name])
        rest = by_stream(again)
        for name, predictions in expected.items():
            assert_same(rest[name], predictions[until.get(name, 0) :])

    def test_of_a_vision_transformer(self, videos):
        vit = data.small_models.vit_map_cfg()
        model = data.epic_model(backbone=vit)
        expected = {name: list(VideoStream(model).run(v)) for name, v in videos.items()}
        found, state = self.stop(data.epic_model(backbone=vit), videos, 6)
        streams = MultiStream(data.epic_model(backbone=vit))
        streams.load_state_dict(state)
        for name in state:
            streams.add(name, videos[name])
        for prediction in streams:
            found.setdefault(prediction.stream, []).append(prediction)
        assert_all(found, expected)
        # Earlier clips count in it.
        model.register_forward_pre_hook(lambda *_: model.reset_memory())
        cleared = list(VideoStream(model).run(videos['d']))
        with pytest.raises(AssertionError):
            assert_same(cleared, expected['d'], atol=1e-3)

    def test_interrupted_in_the_model(self, videos, expected):
        model = data.epic_model()
        step, found = model.test_step, {}

        def interrupted(batch):
            result = step(batch)
            if batch['data_samples'][0].timestamp > 1:
                raise KeyboardInterrupt
            return result

        model.test_step = interrupted
        streams = MultiStream(model, videos, wait=1.0)
        with pytest.raises(KeyboardInterrupt):
            for prediction in streams:
                found.setdefault(prediction.stream, []).append(prediction)
        again = MultiStream(data.epic_model())
        again.load_state_dict(streams.state_dict())
        for name in videos:
            again.add(name, videos[name])
        for prediction in again:
            found[prediction.stream].append(prediction)
        assert_all(found, expected)

    def test_what_does_not_fit(self, model, videos):
        _, state = self.stop(data.epic_model(), videos, 6)
        streams = MultiStream(model, dict(a=videos['a']))
        with pytest.raises(ValueError, match="is a stream 'a' already: load the"):
            streams.load_state_dict(state)
        streams.close()
        streams = MultiStream(model, stride=2)
        streams.load_state_dict(state)
        streams.add('d', videos['d'])
        assert 'stride=1.0, this one has' in str(streams.ended['d'].error)
        assert not len(model.memory)


def test_a_stream_that_is_removed_while_its_prediction_waits(model, videos, expected):
    found: dict = {}
    streams = MultiStream(model, videos, wait=1.0)
    for number, prediction in enumerate(streams):
        found.setdefault(prediction.stream, []).append(prediction)
        if number == 0:
            # One of its name that joins at once has nothing to do with it.
            streams.remove('d')
            streams.add('d', videos['c'])
    assert_same(found.pop('d'), expected['c'])
    assert_all(found, {name: expected[name] for name in 'abc'})


def test_more_streams_than_memory_has_room_for(videos):
    model = data.epic_model(max_streams=2)
    with pytest.raises(ValueError, match='for 3 streams, .* max_streams=2'):
        MultiStream(model, videos)
    assert not threads()


def test_more_views_than_memory_has_room_for(model, videos, expected):
    """Streams that do not fit end with that error, the others go on."""
    small = data.epic_model(max_streams=5)
    small.cfg.test_dataloader.dataset.pipeline = data.epic_pipeline(views=3)
    streams = MultiStream(small, dict(a=videos['a'], b=videos['b']), wait=1.0)
    found = by_stream(streams)
    errors = [str(end.error) for end in streams.ended.values() if end.error]
    assert len(found) == 1 and len(errors) == 1
    assert 'for 6 streams, but it keeps max_streams=5' in errors[0]
    (name,) = found
    assert len(found[name]) == len(expected[name])


class TestFedInTurn:
    """VideoStreams of one model."""

    def feed_in_turn(self, streams) -> list:
        found: list = [[] for _ in streams]
        for frame in data.pictures(FPS * 6):
            for predictions, stream in zip(found, streams):
                predictions += stream.feed(frame)
        return found

    def test_more_than_memory_has_room_for(self):
        model = data.epic_model(max_streams=2)
        streams = [VideoStream(model, fps=FPS) for _ in range(3)]
        with pytest.raises(ValueError, match='for 3 streams, .* max_streams=2'):
            self.feed_in_turn(streams)
        # Those before it are as they were, and it can go on when there is room.
        assert [stream.counts.predictions for stream in streams] == [1, 1, 0]
        streams[0].reset()
        model.memory.max_streams = 3
        (alone,) = self.feed_in_turn([VideoStream(model, fps=FPS)])
        third = streams[2]
        after = data.pictures(FPS * 6)[third.counts.frames :]
        found = [p for frame in after for p in third.feed(frame)]
        assert_same(found, alone)

    def test_as_many_as_there_is_room_for(self):
        model = data.epic_model(max_streams=3)
        found = self.feed_in_turn([VideoStream(model, fps=FPS) for _ in range(3)])
        (alone,) = self.feed_in_turn([VideoStream(data.epic_model(), fps=FPS)])
        for predictions in found:
            assert_same(predictions, alone)

    def test_those_that_are_over_take_no_room(self, videos):
        model, streams = data.epic_model(max_streams=2), []
        for video in videos.values():
            # Left early, and gone.
            next(VideoStream(model).run(video))
        for video in videos.values():
            streams.append(VideoStream(model))
            assert len(list(streams[-1].run(video))) > 2

    def test_whole_videos_beside_them(self, videos):
        """They make no room for a video either, nor does it for them."""
        model = data.ava_model()
        model.memory.max_streams = 2
        boxes = {second: [[1, 2, 30, 40]] for second in (1.0, 2.0, 3.0)}
        streams = [VideoStream(model, boxes=lambda *_: [], fps=FPS) for _ in range(2)]
        self.feed_in_turn(streams)
        with pytest.raises(ValueError, match='for 3 streams, .* max_streams=2'):
            inference_stdet(model, videos['b'], boxes)
        streams[0].reset()
        playing = iter_stdet(model, videos['b'], boxes)
        next(playing)
        with pytest.raises(ValueError, match='for 3 streams, .* max_streams=2'):
            self.feed_in_turn([streams[0]])
        assert len(list(playing)) == 2
        assert self.feed_in_turn([streams[0]])[0]


def test_options(model):
    with pytest.raises(ValueError, match='max_batch=0 must be'):
        MultiStream(model, max_batch=0)
    with pytest.raises(ValueError, match='wait=-1 must be'):
        MultiStream(model, wait=-1)
    assert list(MultiStream(model)) == []


@pytest.mark.parametrize('detector', ['detector', 'vit_detector'])
def test_detectors(videos, detector):
    model = data.ava_model(getattr(data.small_models, detector))

    def boxes(image, second):
        return np.array([[2, 3, 30, 40, 0.9]] * (int(second) % 3))

    expected = {
        name: list(VideoStream(model, boxes=boxes).run(video))
        for name, video in videos.items()
    }
    assert_all(by_stream(MultiStream(model, videos, boxes=boxes)), expected)
