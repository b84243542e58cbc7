"""What goes wrong around streams: each result is right, or each sentence is."""

import gc
import itertools
import threading
import time
import warnings

import numpy as np
import pytest
import stream_data as data
from stream_data import FPS, assert_same

from memvit_mm.apis import (
    ComparingPredictor,
    MultiStream,
    VideoFile,
    VideoStream,
    inference_recognizer,
    init_recognizer,
)


@pytest.fixture(scope='module')
def model():
    return data.epic_model()


@pytest.fixture(scope='module')
def frames():
    return data.pictures(36)


@pytest.fixture(scope='module')
def video(tmp_path_factory, frames):
    # Not at the rate of frames that come with times.
    path = tmp_path_factory.mktemp('videos') / 'v.avi'
    return data.write_video(path, frames)


@pytest.fixture(scope='module')
def expected(model, video):
    return list(VideoStream(model).run(video))


def refuses(sentence):
    return pytest.raises(ValueError, match=sentence)


class TestFeed:
    @pytest.mark.parametrize('again', [True, False])
    def test_a_failure_leaves_no_trace(self, frames, again):
        """The frame was not fed: it may be once more, or the next one is."""
        model = data.epic_model()
        stream, step, failed = VideoStream(model, fps=FPS), model.test_step, []

        def interrupted(batch):
            result = step(batch)
            if len(failed) < 2 and batch['data_samples'][0].timestamp == 2:
                failed.append(1)
                raise KeyboardInterrupt
            return result

        model.test_step, found, number = interrupted, [], 0
        while number < len(frames):
            # With times: a frame that is left out is missing.
            before = stream.state_dict()
            try:
                found += stream.feed(frames[number], number / FPS)
            except KeyboardInterrupt:
                after = stream.state_dict()
                assert after['buffer']['count'] == before['buffer']['count']
                assert after['predictions'] == before['predictions'] == 1
                number += 0 if again else 1
                continue
            number += 1
        found += stream.finish()
        assert len(failed) == 2 and [p.number for p in found] == [0, 1, 2]
        if again:
            assert_same(found, list(VideoStream(model, fps=FPS).run(frames)))

    def test_the_end_can_be_interrupted(self, frames):
        model = data.epic_model()
        stream, step = VideoStream(model, fps=FPS), model.test_step
        found = [p for frame in frames for p in stream.feed(frame)]

        def interrupted(batch):
            del model.test_step
            step(batch)
            raise KeyboardInterrupt

        model.test_step = interrupted
        with pytest.raises(KeyboardInterrupt):
            stream.finish()
        found += stream.finish()
        assert_same(found, list(VideoStream(model, fps=FPS).run(frames)))
        assert stream.finish() == []

    def test_a_clock_that_jumps_by_years(self, model, frames):
        stream = VideoStream(model)
        begin = time.monotonic()
        with pytest.warns(UserWarning, match=r'clip at 3, .*Said once'):
            found = [
                p
                for number, frame in enumerate(frames)
                for p in stream.feed(frame, number / FPS + 1.7e9 * (number >= 12))
            ]
        assert time.monotonic() - begin < 10
        # The first second, and those that lie wholly after the jump.
        assert found[0].number == 0 and found[-1].time > 1.7e9
        assert stream.counts.skipped == found[-1].number + 1 - len(found)
        with refuses('is 1e.18 seconds after the first one, more than any stream'):
            stream.feed(frames[0], 1e18)

    def test_jumps_skip_the_same_clips_one_by_one(self, model, frames):
        """As if each clip in the gap was looked at."""
        counts = []
        for jump in (40.0, 40.3, 77.71):
            stream = VideoStream(model, stride=0.7)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                times = np.arange(36) / FPS + jump * (np.arange(36) >= 12)
                found = list(stream.run(zip(frames, times)))
            for prediction in found:
                assert prediction.time == pytest.approx(0.7 * (prediction.number + 1))
            late = [p for p in found if p.time > 3]
            assert late and late[-1].time <= times[-1] + 1 / FPS
            # All that are missing are counted, none of those that came.
            last = found[-1].number
            counts.append(last + 1 - len(found) - stream.counts.skipped)
            in_gap = [p for p in found if 3 < p.end < times[12]]
            assert in_gap == []
        assert counts == [0, 0, 0]

    def test_frames_and_times(self, model, frames):
        with refuses(r"Frame 0 of .* has the time 'now': expected seconds"):
            VideoStream(model).feed(frames[0], 'now')
        with refuses(r'is an array \[0, 4, 3\] of uint8, expected'):
            VideoStream(model, fps=FPS).feed(np.zeros((0, 4, 3), np.uint8))
        with refuses('without times: give fps'):
            list(VideoStream(model).run([(frame, None) for frame in frames]))


class TestSources:
    def test_opened_files(self, model, video, expected):
        """At their own rate, also those that go on."""
        assert_same(list(VideoStream(model).run(VideoFile(video))), expected)
        stream, opened = VideoStream(model), VideoFile(video)
        found = [next(run := stream.run(opened))]
        run.close()
        assert_same(found + list(stream.run(VideoFile(video))), expected)
        with refuses('v.avi is closed: open it once more'):
            list(VideoStream(model).run(opened))

    def test_another_rate_after_one_that_failed_at_once(self, model, video, expected):
        def fails(frame):
            yield frame, 0.0
            raise RuntimeError('unplugged')

        stream = VideoStream(model)
        with pytest.raises(RuntimeError, match='unplugged'):
            list(stream.run(fails(data.pictures(1)[0])))
        assert_same(list(stream.run(video)), expected)

    def test_options(self, model, video):
        for option, sentence in (
            (dict(fps='30'), "fps='30' must be frames per second"),
            (dict(stride='1'), "stride='1' must be seconds"),
            (dict(clip_times=3), 'clip_times=3 must be the times of clips'),
            (dict(queue_size=0), 'queue_size=0 must be at least 1 clip'),
            (dict(max_gap='2'), "max_gap='2' must be at least 0 seconds"),
        ):
            with refuses(sentence):
                VideoStream(model, **option)
        with refuses('model is a str: give what init_recognizer'):
            VideoStream('memvit_ava.py')
        with refuses('labels=... belongs to the ComparingPredictor: give it there'):
            VideoStream(ComparingPredictor(model), labels=['a'])
        with refuses('sources is a list: give the sources by name, such as dict'):
            MultiStream(model, [video])

    def test_configs_by_name(self, model):
        stream = VideoStream(model, cfg='memvit_demo_epic_cls.py')
        assert stream.predictor.recipe.stride == 2.0

    def test_compared_among_many(self, model, video):
        found = list(MultiStream(ComparingPredictor(model), dict(a=video)))
        assert all(p.without_memory is not None for p in found)


class TestStates:
    def test_something_else(self, model, video, frames):
        streams = MultiStream(model, dict(a=video))
        for _ in streams:
            break
        for state in ({}, None, streams.state_dict()):
            with refuses('The state is none of a VideoStream: load what its'):
                VideoStream(model).load_state_dict(state)

    def test_what_does_not_fit_leaves_a_new_stream(self, model, video, expected):
        other = VideoStream(model, stride=0.5)
        next(run := other.run(video))
        run.close()
        stream = VideoStream(model)
        with refuses('stride=0.5, this one has'):
            stream.load_state_dict(other.state_dict())
        assert_same(list(stream.run(video)), expected)

    def test_a_source_that_is_not_there_yet(self, model, video, expected):
        with MultiStream(model, dict(a=video)) as streams:
            found = [next(iter(streams))]
        again = MultiStream(model)
        again.load_state_dict(streams.state_dict())
        again.add('a', 'not_yet/v.avi')
        assert isinstance(again.ended['a'].error, FileNotFoundError)
        again.add('a', video)
        assert_same(found + list(again), expected)


class TestThreads:
    def test_streams_of_one_model_in_threads(self, model, video, expected):
        """Each with a predictor of its own."""
        found: dict = {}

        def read(name):
            found[name] = list(VideoStream(ComparingPredictor(model)).run(video))

        threads = [threading.Thread(target=read, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in range(3):
            assert_same(found[name], expected)

    def test_frames_from_several_threads(self, model, frames):
        """Each clip once, whoever feeds."""
        stream, found = VideoStream(model, fps=FPS), []
        todo, taking = iter(frames), threading.Lock()

        def feed():
            while True:
                with taking:
                    frame = next(todo, None)
                if frame is None:
                    return
                found.extend(stream.feed(frame))

        threads = [threading.Thread(target=feed) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found += stream.finish()
        assert sorted(p.number for p in found) == [0, 1, 2]
        assert stream.counts.frames == len(frames)

    def test_a_stream_that_joins_while_a_batch_fails(self, video, expected):
        """What it remembers of yesterday is not taken back with the batch's."""
        model = data.epic_model()
        with MultiStream(model, dict(new=video)) as streams:
            found = dict(new=[next(iter(streams))])
        states, step = streams.state_dict(), model.test_step
        streams = MultiStream(model, dict(a=video, b=video), wait=5.0)
        streams.load_state_dict(states)

        def fails_once(batch):
            model.test_step = step
            streams.add('new', video)
            raise RuntimeError('out of memory')

        model.test_step = fails_once
        for prediction in streams:
            found.setdefault(prediction.stream, []).append(prediction)
        for name in ('a', 'b', 'new'):
            assert_same(found[name], expected)

    def test_streams_that_nobody_closes(self, model, frames):
        before = set(data.threads())
        endless = itertools.repeat(frames[0])
        streams = MultiStream(model, dict(a=endless, b=endless), fps=FPS)
        run = VideoStream(model, fps=FPS).run(endless)
        next(run)
        assert len(set(data.threads()) - before) == 3
        del streams, run
        gc.collect()
        until = time.monotonic() + 5
        while set(data.threads()) - before and time.monotonic() < until:
            time.sleep(0.01)
        assert not set(data.threads()) - before

    def test_frame_sizes_do_not_mix(self):
        """MMAction2's Resize keeps a clip's scale on itself while it resizes."""
        model = data.ava_model()
        boxes = [[4, 4, 20, 28], [10, 8, 30, 30]]
        small, large = data.pictures(36), data.pictures(36, size=(240, 320))

        def predict(sources):
            streams = MultiStream(model, sources, fps=FPS, boxes=lambda *_: boxes)
            found: dict = {}
            for p in streams:
                found.setdefault(p.stream, []).append(p)
            return found

        alone = [predict(dict(a=one))['a'] for one in (small, large)]
        names = {f'{kind}{n}': kind for n in range(3) for kind in range(2)}
        found = predict({n: (small, large)[kind] for n, kind in names.items()})
        for name, kind in names.items():
            assert_same(found[name], alone[kind])

    def test_pipelines_of_threads(self, model):
        predictor = VideoStream(model).predictor
        found = [predictor._transforms()]
        thread = threading.Thread(target=lambda: found.append(predictor._transforms()))
        thread.start()
        thread.join()
        assert found[0] is predictor._transforms()
        assert all(a is not b for a, b in zip(*found))

    def test_two_of_one_name(self, model, video, frames, expected):
        """One after the other, but not at a time: memory is kept by name."""
        first, second = (VideoStream(model, name='cam') for _ in range(2))
        assert_same(list(first.run(video)), expected)
        assert_same(list(second.run(video)), expected)
        found = [next(run := first.run(video))]
        run.close()
        VideoStream(model, name='cam')
        with refuses("Another stream of the name 'cam' began with this model"):
            list(first.run(video))
        first.reset()
        assert_same(list(first.run(video)), expected)
        assert len(found) == 1
        with refuses(r"name=\['cam'\] cannot name a stream"):
            VideoStream(model, name=['cam'])


class TestBoxes:
    def test_a_function_may_draw(self, frames):
        model = data.ava_model()

        def find(image, time):
            image[:] = 0
            return [[4, 4, 20, 28]]

        plain = VideoStream(model, boxes=lambda *_: [[4, 4, 20, 28]], fps=FPS)
        drawn = VideoStream(model, boxes=find, fps=FPS)
        assert_same(list(drawn.run(frames)), list(plain.run(frames)))

    def test_no_numbers(self, frames):
        for wrong, kind in (
            ([['a']], 'list'),
            ('here', 'str'),
            ([[1], [2, 3]], 'list'),
        ):
            stream = VideoStream(data.ava_model(), boxes=lambda *_, w=wrong: w, fps=FPS)
            with refuses(f'boxes are {kind} that are no numbers, expected'):
                list(stream.run(frames))

    def test_proposals_of_other_videos(self, frames):
        table = {'kitchen,0901': np.array([[0.1, 0.1, 0.5, 0.9, 1.0]])}
        stream = VideoStream(data.ava_model(), boxes=table, fps=FPS, name='street')
        with pytest.warns(
            UserWarning, match='no boxes for the .*they have kitchen: set'
        ):
            found = list(stream.run(frames))
        assert [len(p.boxes) for p in found] == [0, 0]

    def test_outside(self, frames):
        boxes = [[4, 4, 20, 28], [70, 4, 90, 28]]
        stream = VideoStream(data.ava_model(), boxes=lambda *_: boxes, fps=FPS)
        with pytest.warns(
            UserWarning, match=r'1 of the 2 boxes at .* lie outside the frame \(64 x'
        ):
            found = list(stream.run(frames))
        assert [len(p.boxes) for p in found] == [1, 1]

    def test_nothing(self, frames):
        stream = VideoStream(data.ava_model(), boxes=lambda *_: None, fps=FPS)
        with refuses(r'boxes returned None at 1 seconds: return \[\] where nobody is'):
            list(stream.run(frames))


class TestModels:
    def test_arguments(self, model):
        with refuses("device='gpu' cannot be used"):
            init_recognizer('memvit_demo_epic_cls.py', device='gpu')
        with refuses('config is a NoneType: it takes the path or the name'):
            init_recognizer(None)
        with refuses('labels is a int: it takes a file of names'):
            VideoStream(model, labels=3)

    def test_frames_that_are_no_bytes(self):
        """Fractions would pass for a dark video."""
        model = init_recognizer('memvit_demo_epic_cls.py', device='cpu')
        with refuses(
            r'\[48, 48, 3\] of float32, expected an array \[H, W, 3\] of uint8'
        ):
            inference_recognizer(model, np.zeros((60, 48, 48, 3), np.float32))


@pytest.mark.parametrize('key', ['street', 'street,', 'street,one', ',0902', 902])
def test_proposals_with_other_keys(key):
    from memvit_mm.apis.people.boxes import ProposalBoxes

    sentence = (
        f"has the key {key!r}, expected 'video,second' such as '1j20qq1JyX4,0902'"
    )
    with pytest.raises(ValueError, match=sentence):
        ProposalBoxes({key: [[0, 0, 1, 1, 1]]})
