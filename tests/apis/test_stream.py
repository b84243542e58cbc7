"""VideoStream: the same predictions whichever way the frames come, and a state."""

import functools
import pickle
import time

import numpy as np
import pytest
import stream_data as data
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from stream_data import FPS, SECONDS, SIZE, assert_same, threads

from memvit_mm.apis import MultiStream, VideoStream, iter_stdet
from memvit_mm.paths import get_config_path
from memvit_mm.structures import BadClipError


@pytest.fixture(scope='module')
def model():
    return data.epic_model()


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('videos') / 'a.mp4'
    return data.write_video(path, data.pictures(FPS * SECONDS))


@pytest.fixture(scope='module')
def frames(video):
    return data.read_video(video)


@pytest.fixture(scope='module')
def expected(model, video):
    found = list(VideoStream(model).run(video))
    # The clip at 6 ends where the video does.
    assert [p.time for p in found] == [1, 2, 3, 4, 5, 6]
    return found


def slow(model, seconds: float):
    """A hook that makes the model take that long."""
    return model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


class TestSameAsTest:
    """As Runner.test, which tools/test.py calls, on the same clips."""

    def dump(self, model, dataset: dict, folder) -> dict:
        """Results of a test by video and timestamp."""
        file = folder / 'results.pkl'
        Runner(
            model=model,
            work_dir=str(folder),
            test_dataloader=dict(
                batch_size=3,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_sampler=dict(type='SequentialClipSampler', shuffle=False),
                dataset=dataset,
            ),
            test_cfg=dict(type='TestLoop'),
            test_evaluator=dict(type='DumpResults', out_file_path=str(file)),
            custom_hooks=[dict(type='MemoryResetHook')],
            default_scope='mmaction',
            log_level='ERROR',
            experiment_name=folder.name,
        ).test()
        results = pickle.loads(file.read_bytes())
        return {(r['video_id'], r['timestamp']): r for r in results}

    @pytest.mark.parametrize('fps', [12, 29.97])
    def test_recognizer(self, model, tmp_path, fps):
        rows = [
            'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,'
            'stop_timestamp,start_frame,stop_frame'
        ]
        videos = ('P01_01', 'P01_02')
        for seed, name in enumerate(videos):
            (tmp_path / 'P01' / 'videos').mkdir(parents=True, exist_ok=True)
            path = tmp_path / 'P01' / 'videos' / f'{name}.mp4'
            data.write_video(path, data.pictures(int(fps * 5.5), seed), fps)
            rows += [
                f'{name}_{n},P01,{name},,00:00:0{n + 2}.00,00:00:0{n + 3}.00,1,2'
                for n in range(5)
            ]
        (tmp_path / 'test.csv').write_text('\n'.join(rows) + '\n')
        results = self.dump(
            model,
            dict(
                type='EpicKitchensDataset',
                task='anticipation',
                tau_a=1.0,
                ann_file=str(tmp_path / 'test.csv'),
                num_classes=(4, 6),
                data_prefix=dict(video=str(tmp_path)),
                path_tmpl='{participant}/videos/{video}.mp4',
                pipeline=data.epic_pipeline(),
                test_mode=True,
            ),
            tmp_path,
        )
        assert len(results) == 10
        for name in videos:
            path = tmp_path / 'P01' / 'videos' / f'{name}.mp4'
            for prediction in VideoStream(model).run(path):
                result = results.pop((name, prediction.time))
                torch.testing.assert_close(
                    torch.from_numpy(prediction.scores),
                    result['pred_score'],
                    atol=1e-5,
                    rtol=0,
                )
        assert not results

    def test_detector(self, tmp_path):
        model = data.ava_model()
        rng = np.random.RandomState(0)
        lines, table, videos = [], {}, ('va', 'vb')
        for seed, name in enumerate(videos):
            frames = data.pictures(FPS * SECONDS, seed)
            data.write_video(tmp_path / f'{name}.mp4', frames)
            for second in range(901, 906):
                corner = rng.rand(second % 3, 2) * 0.5
                boxes = np.concatenate(
                    [corner, corner + 0.4, 0.8 + 0.2 * rng.rand(len(corner), 1)], 1
                )
                table[f'{name},{second:04d}'] = boxes.astype(np.float32)
                lines.append(f'{name},{second:04d},0.1,0.1,0.5,0.5,1,0')
        (tmp_path / 'val.csv').write_text('\n'.join(lines) + '\n')
        with open(tmp_path / 'proposals.pkl', 'wb') as file:
            pickle.dump(table, file)
        dataset = dict(
            type='MemoryAVADataset',
            ann_file=str(tmp_path / 'val.csv'),
            proposal_file=str(tmp_path / 'proposals.pkl'),
            person_det_score_thr=0.85,
            keyframes='annotated',
            num_classes=6,
            use_frames=False,
            data_prefix=dict(img=str(tmp_path)),
            pipeline=data.ava_pipeline(),
            test_mode=True,
        )
        model.cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
        results = self.dump(model, dataset, tmp_path)
        assert len(results) == 10
        people = 0
        for boxes in (str(tmp_path / 'proposals.pkl'), table):
            for name in videos:
                stream = VideoStream(model, boxes=boxes)
                for found in stream.run(tmp_path / f'{name}.mp4'):
                    result = results[name, 900 + int(found.time)]['pred_instances']
                    np.testing.assert_allclose(
                        found.scores, result['scores'].numpy(), atol=1e-5
                    )
                    size = np.array([*SIZE[::-1], *SIZE[::-1]])
                    np.testing.assert_allclose(
                        found.boxes / size, result['bboxes'].numpy(), atol=1e-5
                    )
                    people += len(found.boxes)
        assert people > 4


class TestEveryWay:
    def test_frame_by_frame(self, model, frames, expected):
        stream = VideoStream(model, fps=FPS)
        found, when = [], []
        for number, frame in enumerate(frames):
            new = stream.feed(frame)
            found += new
            when += [number] * len(new)
        assert_same(found + stream.finish(), expected)
        # At once: frame 12 is that of second 1.
        assert when == [12, 24, 36, 48, 60]

    def test_pauses_and_one_array_for_all(self, model, frames, expected):
        stream, same = VideoStream(model, fps=FPS), np.empty_like(frames[0])
        found = []
        for number, frame in enumerate(frames):
            same[:] = frame
            found += stream.feed(same)
            if number % 30 == 0:
                time.sleep(0.1)
        assert_same(found + stream.finish(), expected)

    @pytest.mark.parametrize('start', [0.0, 1.7e9])
    def test_iterator_with_times(self, model, frames, expected, start):
        pairs = ((frame, start + n / FPS) for n, frame in enumerate(frames))
        found = list(VideoStream(model, fps=FPS).run(pairs))
        assert [p.time for p in found] == [start + p.time for p in expected]
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
            assert one.end == pytest.approx(start + other.end)

    def test_arrays(self, model, frames, expected):
        assert_same(VideoStream(model, fps=FPS).run(np.stack(frames)), expected)
        assert_same(VideoStream(model, fps=FPS).run(iter(frames)), expected)

    def test_beside_another_stream(self, model, frames, expected):
        one, other = VideoStream(model, fps=FPS), VideoStream(model, fps=FPS)
        found = []
        for frame in frames:
            found += one.feed(frame)
            other.feed(255 - frame)
        assert_same(found + one.finish(), expected)

    def test_again(self, model, video, expected):
        stream = VideoStream(model)
        for _ in range(2):
            assert_same(stream.run(video), expected)
        assert stream.counts == (72, 6, 0, 0)

    def test_the_last_clip_may_end_with_the_stream(self, model, frames):
        # Of 6 seconds, clips of 2: the last one has the last frame on at its end.
        for count, times in ((71, [2, 4]), (72, [2, 4, 6]), (73, [2, 4, 6])):
            stream = VideoStream(model, fps=FPS, stride=2)
            found = [p for f in [*frames, frames[0]][:count] for p in stream.feed(f)]
            found += stream.finish()
            assert [p.time for p in found] == times
            assert found[-1].end == min(times[-1], (count - 1) / FPS)

    def test_memory_is_used(self, model, video, frames, expected):
        stream = VideoStream(model, clip_times=[5])
        alone = list(stream.run(video))[0]
        assert np.abs(alone.scores - expected[-1].scores).max() > 1e-4

    def test_clip_times(self, model, video, expected):
        stream = VideoStream(model, clip_times=[0.5, 1, 2.25, 6.5])
        found = list(stream.run(video))
        assert [(p.time, p.number) for p in found] == [
            (0.5, 0),
            (1, 1),
            (2.25, 2),
            (6.5, 3),
        ]
        assert found[-1].end == pytest.approx(71 / FPS)

    def test_nothing_is_read_beyond_the_last_clip(self, model, video):
        stream = VideoStream(model, clip_times=[1, 2])
        assert [p.time for p in stream.run(video)] == [1, 2]
        assert stream.counts.frames < 2 * FPS + 8

    def test_a_stream_that_ends_too_early_has_ended(self, model, video):
        stream = VideoStream(model, clip_times=[2, 50])
        with pytest.raises(ValueError, match='50'):
            list(stream.run(video))
        assert stream.counts.frames == 72
        assert stream.name not in [s.video for s in model.memory.streams]
        with pytest.raises(ValueError, match='50'):
            list(stream.run(video))

    def test_centered_clips_wait_and_end_with_the_last_frame(self, frames):
        model = data.ava_model()
        asked = []

        def boxes(image, second):
            asked.append((second, image))
            return torch.tensor([[2.0, 3.0, 30.0, 40.0, 0.9], [-5.0, 0, 9, 99, 0.8]])

        stream = VideoStream(model, boxes=boxes, fps=FPS)
        found = {}
        for number, frame in enumerate(frames[:64]):
            for prediction in stream.feed(frame):
                found[prediction.time] = number
        assert found == {1: 15, 2: 27, 3: 39, 4: 51, 5: 63}
        assert stream.finish() == []
        for frame in frames[:61]:
            stream.feed(frame)
        (last,) = stream.finish()
        assert (last.time, last.scores.shape) == (5, (2, 6))
        np.testing.assert_array_equal(last.boxes[1], [0, 0, 9, 48])
        np.testing.assert_allclose(last.box_scores, [0.9, 0.8])
        for second, image in asked:
            np.testing.assert_array_equal(image, frames[int(second * FPS)])

    def test_nobody(self, frames):
        stream = VideoStream(data.ava_model(), boxes=lambda *_: [], fps=FPS)
        found = list(stream.run(np.stack(frames)))
        assert [p.scores.shape for p in found] == [(0, 6)] * 5
        assert found[0].top() == []


class TestState:
    @pytest.mark.parametrize('stop', [5, 24, 30, 71])
    def test_today_and_tomorrow(self, frames, expected, tmp_path, stop):
        first = VideoStream(data.epic_model(), fps=FPS)
        found = [p for frame in frames[:stop] for p in first.feed(frame)]
        torch.save(first.state_dict(), tmp_path / 'state.pth')
        # another model, as in another process
        second = VideoStream(data.epic_model(), fps=FPS)
        second.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
        found += [p for frame in frames[stop:] for p in second.feed(frame)]
        assert_same(found + second.finish(), expected)
        assert second.counts == (72, 6, 0, 0)

    @pytest.mark.parametrize('leave', [1, 4])
    def test_in_the_middle_of_a_file(self, video, expected, tmp_path, leave):
        stream = VideoStream(data.epic_model())
        found = []
        for prediction in stream.run(video):
            found.append(prediction)
            if len(found) == leave:
                state = stream.state_dict()
                break
        assert not threads()
        again = VideoStream(data.epic_model())
        again.load_state_dict(state)
        assert_same(found + list(again.run(video)), expected)
        # The one that was left goes on, too.
        assert_same(found + list(stream.run(video)), expected)

    def test_at_the_end_and_before_the_start(self, model, video, expected):
        stream = VideoStream(model)
        stream.load_state_dict(VideoStream(model).state_dict())
        assert_same(stream.run(video), expected)
        state = stream.state_dict()
        stream.load_state_dict(state)
        assert_same(stream.run(video), expected)

    def test_other_settings(self, model, frames):
        stream = VideoStream(model, fps=FPS)
        stream.feed(frames[0])
        with pytest.raises(ValueError, match='saved by a stream with stride=1.0'):
            VideoStream(model, fps=FPS, stride=2).load_state_dict(stream.state_dict())

    def test_another_file(self, model, video, tmp_path):
        stream = VideoStream(model)
        for _ in stream.run(video):
            break
        with pytest.raises(ValueError, match=r'stopped at .* of .*a\.mp4: call reset'):
            next(stream.run(tmp_path / 'b.mp4'))
        stream.reset()
        assert stream.counts == (0, 0, 0, 0)

    def test_reset(self, model, frames, expected):
        stream = VideoStream(model, fps=FPS)
        for frame in frames[:30]:
            stream.feed(255 - frame)
        stream.reset()
        found = [p for f in frames for p in stream.feed(f)]
        assert_same(found + stream.finish(), expected)

    def test_damaged_file(self, tmp_path):
        path = tmp_path / 'a.mp4'
        data.write_video(path, data.pictures(FPS * SECONDS))
        data.damage(path, 0.2, 0.3)
        with pytest.warns(UserWarning, match='is damaged'):
            whole = list(VideoStream(data.epic_model(), on_damage='go_on').run(path))
            stream = VideoStream(data.epic_model(), on_damage='go_on')
            found = []
            while not found or len(found) < len(whole):
                for prediction in stream.run(path):
                    found.append(prediction)
                    break
        assert_same(found, whole)

    def test_interrupted_in_the_model(self, frames, expected):
        model = data.epic_model()
        stream, step = VideoStream(model, fps=FPS), model.test_step

        def interrupted(batch):
            step(batch)
            raise KeyboardInterrupt

        found = [p for frame in frames[:30] for p in stream.feed(frame)]
        model.test_step = interrupted
        state = stream.state_dict()
        with pytest.raises(KeyboardInterrupt):
            for frame in frames[30:]:
                stream.feed(frame)
        del model.test_step
        memory = stream.state_dict()['memory']
        assert [c['time'] for c in memory[0]['clips']] == [1.0, 2.0]
        stream.load_state_dict(state)
        found += [p for f in frames[30:] for p in stream.feed(f)]
        assert_same(found + stream.finish(), expected)


class TestSlowModel:
    def test_block(self, model, frames, expected):
        pulled = []

        def source():
            for number, frame in enumerate(frames):
                pulled.append(number)
                yield frame

        stream = VideoStream(model, fps=FPS, queue_size=1)
        found = []
        for prediction in stream.run(source()):
            time.sleep(0.05)
            # One clip waits in the queue, one with the reader.
            assert len(pulled) <= 12 * (len(found) + 3) + 1
            found.append(prediction)
        assert_same(found, expected)
        assert stream.counts.dropped == 0

    def test_drop(self, model, frames):
        stream = VideoStream(model, fps=FPS, queue_size=1, when_slow='drop')
        hook = slow(model, 0.1)
        try:
            found = list(stream.run(np.concatenate([frames] * 4)))
        finally:
            hook.remove()
        counts = stream.counts
        assert counts.predictions == len(found) >= 1
        assert counts.dropped > 0
        # Clips at 1 to 24 seconds: whole ones are dropped, the last one is not.
        assert counts.dropped + len(found) == 24
        assert found[-1].time == 24 and found[-1].number == 23

    @pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
    def test_threads_end(self, model, video, error):
        stream = VideoStream(model, queue_size=1)
        with pytest.raises(error):
            for _ in stream.run(video):
                assert threads()
                raise error
        assert not threads()
        stream.reset()

    def test_reading_already(self, model, video):
        stream = VideoStream(model)
        for _ in stream.run(video):
            with pytest.raises(ValueError, match='is reading a source'):
                stream.reset()
            with pytest.raises(ValueError, match='is reading a source'):
                next(stream.run(video))
            break

    def test_failure_after_the_predictions_before_it(self, model, frames):
        def source():
            yield from frames[:30]
            raise OSError('cable pulled')

        found = []
        with pytest.raises(OSError, match='cable pulled'):
            for prediction in VideoStream(model, fps=FPS).run(source()):
                found.append(prediction.time)
        assert found == [1, 2]


def test_flat_over_many_clips():
    small = data.small_models
    arch = dict(embed_dims=8, num_layers=1, num_heads=1, downscale_indices=[])
    model = small.recognizer(
        backbone=small.backbone_cfg(arch=arch),
        cls_head=dict(type='MViTHead', num_classes=3, in_channels=8),
        data_preprocessor=data.PREPROCESSOR,
    )
    model.cfg = data.config(data.epic_pipeline(4), context_stride=1.0)
    frames = data.pictures(64, size=(32, 32))

    def source():
        for number in range(4 * 1000 + 1):
            yield frames[number % 64]

    stream, sizes = VideoStream(model, fps=4), {}
    for prediction in stream.run(source()):
        if prediction.number in (200, 999):
            sizes[prediction.number] = resident(), model.memory.num_bytes
            assert len(stream.state_dict()['buffer']['frames']) <= 12
    assert stream.counts == (4001, 1000, 0, 0)
    (early, kept), (late, kept_late) = sizes.values()
    # The frames of 800 clips take 9 MB.
    assert late - early < 4 * 2**20
    assert kept == kept_late > 0


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096


class TestFrames:
    """What frames and times are good for."""

    def test_gap(self, model, frames):
        stream = VideoStream(model, fps=FPS, max_gap=0.5)
        times = np.arange(72) / FPS
        times[30:] += 3.3  # the camera stalls at 2.4
        with pytest.warns(
            UserWarning, match=r'no frame for .* in its clip at 3, .*0\.5'
        ):
            found = [p for f, t in zip(frames, times) for p in stream.feed(f, t)]
        # 3 shows a frame that is 0.6 old, 4 and 5 nothing else, 6 some of it.
        assert [p.time for p in found] == [1, 2, 7, 8, 9]
        assert stream.counts.skipped == 4
        assert stream.frames_kept <= 12

    def test_irregular_times(self, model, frames, expected):
        rng = np.random.RandomState(0)
        times = (np.arange(72) + rng.uniform(-0.4, 0.4, 72)) / FPS
        times[0] = 0
        stream = VideoStream(model, fps=FPS)
        found = [p for f, t in zip(frames, times) for p in stream.feed(f, t)]
        assert_same(found + stream.finish(), expected)

    def test_half_and_twice_the_rate(self, model, frames, expected):
        twice = [pair for n, f in enumerate(frames) for pair in ((f, n), (f, n + 0.3))]
        found = VideoStream(model, fps=FPS).run((f, t / FPS) for f, t in twice)
        assert_same(found, expected)
        half = VideoStream(model, fps=FPS).run(
            (frames[n], n / FPS) for n in range(0, 72, 2)
        )
        doubled = VideoStream(model, fps=FPS).run(
            np.stack([frames[n // 2 * 2] for n in range(71)])
        )
        assert_same(list(half), list(doubled))

    def test_errors(self, model, frames):
        stream = VideoStream(model, fps=FPS, name='cam')
        for wrong, what in (
            (frames[0][..., 0], r'an array \[48, 64\] of uint8'),
            (frames[0] / 255, '.* of float64'),
            ('frame.jpg', 'a str'),
        ):
            with pytest.raises(ValueError, match=f'Frame 0 of cam is {what}, expected'):
                stream.feed(wrong)
        stream.feed(frames[0], 5.0)
        with pytest.raises(ValueError, match='has 32 x 48 pixels, those .* 64 x 48'):
            stream.feed(frames[0][:, :32], 6.0)
        with pytest.raises(ValueError, match='at 4.9 seconds, the one before it at 5:'):
            stream.feed(frames[0], 4.9)
        with pytest.raises(ValueError, match='has the time nan'):
            stream.feed(frames[0], float('nan'))
        with pytest.raises(ValueError, match='without a time: .* fps=...'):
            VideoStream(model).feed(frames[0])
        with pytest.raises(ValueError, match='without times: give fps'):
            list(VideoStream(model).run(frames))

    def test_short(self, model, frames):
        stream = VideoStream(model, fps=FPS, stride=2)
        (only,) = stream.run(np.stack(frames[:20]))
        assert only.end == pytest.approx(19 / FPS)
        assert list(stream.run([])) == []
        assert stream.finish() == []
        with pytest.raises(
            BadClipError, match=r'after 0\.42 .*at 2 seconds: lower stride'
        ):
            list(stream.run(np.stack(frames[:5])))
        detector = VideoStream(data.ava_model(), boxes=lambda *_: [], fps=FPS)
        detector.stride = 0.25
        assert [p.time for p in detector.run(np.stack(frames[:5]))] == [0.25]
        detector.stride = None
        assert [p.time for p in detector.run(np.stack(frames[:9]))] == [1]


class OfAPicture:
    """Not of its time."""

    def __call__(self, image):
        return []


class TestOptions:
    @pytest.mark.parametrize(
        'option, sentence',
        [
            (dict(fps=0), 'fps=0 must be'),
            (dict(stride=-1), 'stride=-1 must be'),
            (dict(clip_times=[1, 1]), 'clip_times must grow, but 1 comes after 1'),
            (
                dict(when_slow='wait'),
                "when_slow must be one of block, drop, got 'wait'",
            ),
            (dict(timing='x'), 'timing must be one of'),
            (dict(on_damage='x'), 'on_damage must be one of stop, go_on'),
            (dict(boxes=lambda *_: []), 'classifies whole clips: leave boxes'),
            (dict(sampler=dict(type='Sample')), "type='Sample', it takes one of"),
        ],
    )
    def test_wrong(self, model, option, sentence):
        with pytest.raises(ValueError, match=sentence):
            VideoStream(model, **option)

    def test_wrong_when_it_reads(self, model, frames):
        with pytest.raises(ValueError, match='queue_size=0 must be'):
            list(VideoStream(model, fps=FPS, queue_size=0).run(frames))
        with pytest.raises(ValueError, match='max_gap=-1 must be'):
            list(VideoStream(model, fps=FPS, max_gap=-1).run(frames))

    def test_boxes(self, frames):
        model = data.ava_model()
        with pytest.raises(ValueError, match='classifies people in boxes: give boxes'):
            VideoStream(model)
        with pytest.raises(ValueError, match='its file, got: int'):
            VideoStream(model, boxes=3)
        for boxes, sentence in (
            (np.zeros((2, 3)), r'returned \[2, 3\] at 1 seconds'),
            ([[0.1, 0.1, 0.5, 0.6]], 'returned fractions of the frame at 1'),
            ([[0, 0, float('inf'), 3]], 'nan or infinity'),
        ):
            stream = VideoStream(model, boxes=lambda *_, b=boxes: b, fps=FPS)
            with pytest.raises(ValueError, match=sentence):
                list(stream.run(np.stack(frames)))

    @pytest.mark.parametrize(
        'boxes',
        [
            lambda image: [],
            lambda: [],
            lambda image, video, time: [],
            lambda image, *, time: [],
            functools.partial(lambda image, time: [], time=1.0),
            OfAPicture(),
        ],
    )
    def test_functions_of_something_else(self, boxes, tmp_path):
        """Told when the stream is made, not at its first keyframe."""
        model = data.ava_model()
        sentence = r'{}=... is called with a frame .* and its time in seconds, and '
        for make in (VideoStream, MultiStream):
            with pytest.raises(ValueError, match=sentence.format('boxes')):
                make(model, boxes=boxes)
        path = data.write_video(tmp_path / 'a.mp4', data.pictures(FPS))
        with pytest.raises(ValueError, match=sentence.format('det_model')):
            iter_stdet(model, path, det_model=boxes)

    @pytest.mark.parametrize(
        'boxes',
        [
            lambda image, time: [],
            lambda *_: [],
            lambda image, time, margin=0: [],
            functools.partial(lambda margin, image, time: [], 1),
            # It does not say what it takes.
            dict(a=1).pop,
        ],
    )
    def test_functions_of_image_and_time(self, boxes):
        VideoStream(data.ava_model(), boxes=boxes)

    def test_config(self, frames):
        model = data.epic_model()
        cfg, model.cfg = model.cfg, None
        with pytest.raises(ValueError, match=r'has no config \(model.cfg\)'):
            VideoStream(model)
        VideoStream(model, cfg=cfg)
        for pipeline, sentence in (
            ([], 'no test_pipeline'),
            (data.PACKING, 'has none of VideoDecode'),
            ([dict(type='DecordDecode'), *data.PACKING], 'say how clips are sampled'),
        ):
            with pytest.raises(ValueError, match=sentence):
                VideoStream(model, cfg=data.config(pipeline))

    def test_pipelines_that_resize_while_they_decode(self, model, video, expected):
        init, sample, _, resize, *packing = data.epic_pipeline()
        resize = {k: v for k, v in resize.items() if k != 'type'}
        steps = [init, sample, dict(type='VideoDecode', resize=resize), *packing]
        cfg = data.config(steps, context_stride=1.0)
        found = list(VideoStream(model, cfg=cfg).run(video))
        assert_same(found, expected, atol=0)

    def test_other_sampler(self, model, frames):
        sampler = dict(type='SampleFrames', clip_len=8, frame_interval=2, num_clips=5)
        stream = VideoStream(model, sampler=sampler, fps=FPS, stride=2)
        found = list(stream.run(np.stack(frames)))
        assert [p.time for p in found] == [2, 4, 6]
        assert found[0].start == pytest.approx((24 - 14) / FPS)

    @pytest.mark.parametrize(
        'name',
        [
            'memvit_ava.py',
            'memvit_epic_cls.py',
            'memvit_16_k400.py',
            'videomae_memory_ava.py',
        ],
    )
    def test_configs_of_ours(self, model, frames, name):
        # Their pipelines, with a model that takes their clips' size.
        cfg = Config.fromfile(get_config_path(name))
        from memvit_mm.apis.streams.clip_buffer import ClipBuffer
        from memvit_mm.apis.streams.clip_grid import ClipGrid
        from memvit_mm.datasets.clip_recipe import read_recipe

        buffer = ClipBuffer(ClipGrid(read_recipe(cfg), fps=30))
        ready = [c for f in frames * 3 for c in buffer.feed(f)] + buffer.finish()
        assert len(ready) >= 3
        assert all(len(r.clip.images) == 16 for r in ready)
