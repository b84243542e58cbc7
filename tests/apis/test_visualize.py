"""annotate_video: what it writes is what the stream says, to the frame."""

import cv2
import numpy as np
import pytest
import stream_data as data
from stream_data import FPS, SECONDS, assert_same

from memvit_mm.apis import (
    ComparingPredictor,
    Interrupted,
    Look,
    Outputs,
    VideoFile,
    VideoStream,
    annotate_video,
    read_lines,
)
from memvit_mm.apis.streams.predictor import Predictor
from memvit_mm.apis.visualization import annotate as visualize
from memvit_mm.apis.visualization.annotate import Playback

NAMES = dict(
    verbs=['take', 'put', 'wash', 'cut'], nouns=[f'noun {n}' for n in range(6)]
)
KINDS = ['lines', 'report', 'timeline', 'video']
SOME = ['lines', 'video']


def annotate(
    model, path, folder, boxes=None, labels=None, look=None, kinds=KINDS, **options
):
    """All that can be made, or some, into a folder that is not there yet."""
    endings = dict(video='mp4', lines='jsonl', timeline='png', report='html')
    files = {kind: str(folder / 'new' / f'out.{endings[kind]}') for kind in kinds}
    predictor = ComparingPredictor(model, boxes=boxes, labels=labels)
    stream = VideoStream(predictor, **options)
    return annotate_video(stream, str(path), Outputs(**files), look)


def frames_of(path) -> tuple:
    """A video's frames, and its rate."""
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames, fps
        frames.append(frame[..., ::-1])


@pytest.fixture(scope='module')
def model():
    return data.epic_model()


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('videos') / 'kitchen.mp4'
    return data.write_video(path, data.pictures(FPS * SECONDS + 5))


@pytest.fixture(scope='module')
def made(model, video, tmp_path_factory):
    """The folder, and what annotate_video returned."""
    folder = tmp_path_factory.mktemp('made')
    return folder / 'new', annotate(model, video, folder, labels=NAMES)


class TestRecognizer:
    def test_predictions_are_the_streams(self, model, video, made):
        assert_same(made[1].predictions, list(VideoStream(model).run(video)))
        assert made[1].counts == (77, 6, 0, 0)
        assert made[1].duration == pytest.approx(77 / FPS)
        assert model.memory.streams == []

    def test_without_memory(self, model, video, made):
        predictions = made[1].predictions
        for prediction in predictions:
            alone = VideoStream(model, clip_times=[prediction.time])
            (expected,) = alone.run(video)
            found = prediction.without_memory.scores
            np.testing.assert_allclose(found, expected.scores, atol=1e-5)
        # The model looks back two clips and four.
        change = [np.abs(p.scores - p.without_memory.scores).max() for p in predictions]
        assert max(change[:2]) < 1e-5 < 1e-4 < min(change[2:])

    def test_lines(self, made):
        first, lines, last = read_lines(made[0] / 'out.jsonl')
        assert first['video'] == dict(
            name='kitchen.mp4', size=[64, 48], fps=12.0, duration=6.417
        )
        assert (first['kind'], first['classes']) == ('verbs and nouns', NAMES)
        assert first['memory_seconds'] == 4.0 and first['stride'] == 1.0
        assert first['clip_seconds'] == pytest.approx(7 / FPS)
        assert [line['time'] for line in lines] == [1, 2, 3, 4, 5, 6]
        for line, prediction in zip(lines, made[1].predictions):
            np.testing.assert_allclose(
                line['verb_scores'], prediction.verb_scores, atol=1e-6
            )
            np.testing.assert_allclose(
                line['without_memory']['noun_scores'],
                prediction.without_memory.noun_scores,
                atol=1e-6,
            )
            expected = [
                [n, pytest.approx(s, abs=1e-6)] for n, s in prediction.top_nouns()
            ]
            assert line['top_nouns'] == expected
        assert last == dict(
            type='end',
            complete=True,
            reason=None,
            predictions=6,
            frames=77,
            dropped=0,
            skipped=0,
        )

    def test_video(self, video, made):
        frames, fps = frames_of(made[0] / 'out.mp4')
        originals = data.read_video(video)
        assert (len(frames), fps) == (77, FPS)
        height, width = frames[0].shape[:2]
        assert width == 640 and height > 480
        for frame, original in list(zip(frames, originals))[::7]:
            small = cv2.resize(frame[:480], (64, 48), interpolation=cv2.INTER_AREA)
            assert np.abs(small.astype(int) - original).mean() < 8
        # Frames of one clip have one strip; the clock is in its first line.
        strips = [frame[540:].astype(int) for frame in frames]
        same = [np.abs(a - b).mean() < 1 for a, b in zip(strips, strips[1:])]
        assert [n + 1 for n, equal in enumerate(same) if not equal] == [
            13, 25, 37, 49, 61, 73,
        ]  # fmt: skip
        assert strips[-1].max() < 60, 'no clip ends there'

    def test_pictures(self, made):
        timeline = cv2.imread(str(made[0] / 'out.png'))
        assert min(timeline.shape[:2]) > 400
        report = (made[0] / 'out.html').read_text()
        assert 'kitchen.mp4' in report and 'take' in report
        assert sorted(p.name for p in made[0].iterdir()) == [
            'out.html', 'out.jsonl', 'out.mp4', 'out.png',
        ]  # fmt: skip

    def test_a_model_that_remembers_nothing_runs_once(self, video, tmp_path):
        small = data.small_models
        model = small.recognizer(
            backbone=small.backbone_cfg(memory_layers=()),
            cls_head=dict(type='MViTHead', num_classes=3, in_channels=small.DIMS),
            data_preprocessor=data.PREPROCESSOR,
        )
        model.cfg = data.config(data.epic_pipeline(), context_stride=1.0)
        made = annotate(model, video, tmp_path, kinds=['timeline'])
        assert made.info.memory_seconds is None
        assert made.predictions[0].without_memory is None

    def test_without_comparison(self, model, video, tmp_path):
        stream = VideoStream(Predictor(model))
        lines = str(tmp_path / 'a.jsonl')
        found = annotate_video(stream, video, Outputs(lines=lines)).predictions
        assert all(p.without_memory is None for p in found)
        assert 'without_memory' not in read_lines(lines)[1][0]

    def test_anticipation(self, model, video, tmp_path):
        cfg = model.cfg
        try:
            model.cfg = data.config(
                data.epic_pipeline(), context_stride=2.0, task='anticipation', tau_a=0.5
            )
            info = annotate(model, video, tmp_path, kinds=SOME).info
        finally:
            model.cfg = cfg
        assert (info.ahead, info.shown_from(2.0)) == (0.5, 2.0)

    def test_plain_recognizer(self, video, tmp_path):
        small = data.small_models
        model = small.recognizer(
            cls_head=dict(type='MViTHead', num_classes=80, in_channels=small.DIMS),
            data_preprocessor=data.PREPROCESSOR,
        )
        model.cfg = data.config(data.epic_pipeline(), context_stride=1.0)
        made = annotate(model, video, tmp_path, look=Look(top=3), kinds=SOME)
        assert made.info.classes['actions'][79] == 'class 79'
        line = read_lines(made.files['lines'])[1][0]
        assert (len(line['scores']), len(line['top'])) == (80, 3)


class TestVideos:
    """Those that are not as one would wish."""

    @pytest.mark.parametrize('degrees', [90, 270])
    def test_portrait(self, model, tmp_path, degrees):
        path = tmp_path / 'a.mp4'
        data.write_video(path, data.pictures(FPS * 2))
        data.turn(path, degrees)
        made = annotate(model, path, tmp_path, kinds=[*SOME, 'report'])
        frames, _ = frames_of(made.files['video'])
        assert read_lines(made.files['lines'])[0]['video']['size'] == [48, 64]
        with open(made.files['report']) as page:
            assert '"size":[48,64]' in page.read()
        assert frames[0].shape[1] == 480 and frames[0].shape[0] > 640
        upright = next(iter(VideoFile(str(path)))).image
        small = cv2.resize(frames[0][:640], (48, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - upright).mean() < 8

    def test_variable_frame_rate(self, model, tmp_path):
        path = tmp_path / 'a.mp4'
        data.write_video(path, data.pictures(72))
        data.vary(path, [(36, 1), (36, 2)], seconds=9)
        made = annotate(model, path, tmp_path, kinds=SOME)
        frames, fps = frames_of(made.files['video'])
        # It lasts as long, at its mean rate.
        assert len(frames) / fps == pytest.approx(9, abs=0.2)
        assert [p.time for p in made.predictions][-1] == 9 or len(made.predictions) == 8

    def test_damaged(self, model, tmp_path):
        path = tmp_path / 'a.mp4'
        data.write_video(path, data.pictures(FPS * 8))
        data.damage(path)
        with pytest.warns(UserWarning, match='is damaged'):
            made = annotate(model, path, tmp_path, kinds=SOME, on_damage='go_on')
        frames, fps = frames_of(made.files['video'])
        assert len(frames) / fps == pytest.approx(8, abs=0.2)

    def test_what_was_made_before_the_damage_stays(self, model, tmp_path):
        path = tmp_path / 'a.mp4'
        data.write_video(path, data.pictures(FPS * 8))
        data.damage(path)
        with pytest.raises(ValueError, match='is damaged'):
            annotate(model, path, tmp_path, kinds=SOME)
        first, lines, last = read_lines(tmp_path / 'new' / 'out.jsonl')
        assert lines and not last['complete'] and 'is damaged' in last['reason']
        frames, fps = frames_of(tmp_path / 'new' / 'out.mp4')
        assert len(frames) == lines[-1]['time'] * FPS + 1

    def test_interrupted(self, video, tmp_path):
        model = data.epic_model()
        step, calls = model.test_step, []

        def interrupted(batch):
            calls.append(1)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return step(batch)

        model.test_step = interrupted
        with pytest.raises(Interrupted) as error:
            annotate(model, video, tmp_path)
        assert len(error.value.made.predictions) == 2
        assert sorted(error.value.made.files) == [
            'lines',
            'report',
            'timeline',
            'video',
        ]
        assert read_lines(tmp_path / 'new' / 'out.jsonl')[2]['reason'] == 'interrupted'
        assert len(frames_of(tmp_path / 'new' / 'out.mp4')[0]) == 25
        del model.test_step
        assert not data.threads() and model.memory.num_bytes >= 0

    def test_interrupted_before_the_first_clip(self, video, tmp_path):
        model = data.epic_model()

        def interrupted(batch):
            raise KeyboardInterrupt

        model.test_step = interrupted
        with pytest.raises(Interrupted) as error:
            annotate(model, video, tmp_path)
        assert sorted(error.value.made.files) == ['lines']
        assert not list((tmp_path / 'new').glob('.*'))

    def test_webm(self, model, video, tmp_path):
        made = annotate_video(
            VideoStream(model),
            video,
            Outputs(video=str(tmp_path / 'a.webm')),
            Look(max_side=160),
        )
        assert len(frames_of(made.files['video'])[0]) == 77

    def test_playback_stops_where_it_is_told(self, video):
        playback = Playback(video)
        assert len(list(playback.until(1.0))) == 13
        assert len(list(playback.until(1.0))) == 0
        assert len(list(playback.until(np.inf))) == 64
        playback.close()


class TestPeople:
    def test_detector(self, tmp_path):
        path = data.write_video(tmp_path / 'a.mp4', data.pictures(FPS * 4))

        def boxes(image, second):
            x = 4.0 * second
            return np.array([[x, 3, x + 20, 40, 0.9], [40, 5, 60, 45, 0.8]])[
                : 1 + (second > 1.5)
            ]

        made = annotate(
            data.ava_model(), path, tmp_path, boxes=boxes, kinds=SOME, track=True
        )
        assert made.info.kind == 'people' and made.info.centered
        _, lines, _ = read_lines(made.files['lines'])
        assert [line['time'] for line in lines] == [1, 2, 3]
        person = lines[1]['people'][0]
        assert person['box'] == [8, 3, 28, 40] and person['box_score'] == 0.9
        assert [p['track_id'] for p in lines[1]['people']] == [0, 1]
        # Class 0 is none.
        assert 'class 0' not in [name for name, _ in person['top']]
        assert len(person['scores']) == 6 and len(person['top']) == 5
        alone = lines[0]['without_memory']['people'][0]
        np.testing.assert_allclose(alone['scores'], lines[0]['people'][0]['scores'])
        frames, _ = frames_of(made.files['video'])
        assert len(frames) == FPS * 4

    def test_nobody(self, tmp_path):
        path = data.write_video(tmp_path / 'a.mp4', data.pictures(FPS * 3))
        made = annotate(data.ava_model(), path, tmp_path, boxes=lambda *_: [])
        assert [line['people'] for line in read_lines(made.files['lines'])[1]] == [
            [],
            [],
        ]
        assert sorted(made.files) == ['lines', 'report', 'timeline', 'video']


class TestErrors:
    def test_nan(self, video, tmp_path):
        model = data.epic_model()
        for weight in model.cls_head.parameters():
            weight.data.fill_(float('nan'))
        with pytest.raises(ValueError, match='at 1 seconds has scores that are nan'):
            annotate(model, video, tmp_path)
        assert not read_lines(tmp_path / 'new' / 'out.jsonl')[1]

    def test_infinite_without_memory(self, model, video, tmp_path):
        class Diverging(ComparingPredictor):
            def predict(self, clips):
                found = super().predict(clips)
                found[0].without_memory.scores[0] = np.inf
                return found

        path = str(tmp_path / 'a.jsonl')
        with pytest.raises(ValueError, match='without memory at 1 seconds has scores'):
            annotate_video(VideoStream(Diverging(model)), video, Outputs(lines=path))
        assert not read_lines(path)[1]

    def test_ctrl_c_while_files_are_finished(self, model, video, tmp_path, monkeypatch):
        calls = []

        def interrupted(*given):
            calls.append(given)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return draw(*given)

        draw = visualize.draw_timeline
        monkeypatch.setattr(visualize, 'draw_timeline', interrupted)
        with pytest.raises(Interrupted) as error:
            annotate(model, video, tmp_path)
        assert sorted(error.value.made.files) == KINDS
        assert read_lines(tmp_path / 'new' / 'out.jsonl')[2]['complete']

    def test_names_of_another_kind(self, model, video, tmp_path):
        with pytest.raises(ValueError, match='names of actions, .* give two files, of'):
            annotate(model, video, tmp_path, labels=['a'])

    def test_nothing_asked_for(self, model, video):
        with pytest.raises(ValueError, match='Give at least one of video, lines'):
            annotate_video(VideoStream(model), video, Outputs())

    @pytest.mark.parametrize(
        'look', [Look(top=0), Look(min_score=2), Look(max_side=9)], ids=str
    )
    def test_look(self, model, video, tmp_path, look):
        with pytest.raises(ValueError, match=r'(top|min_score|max_side)=\d+ must be'):
            annotate(model, video, tmp_path, look=look)

    def test_codec(self, model, video, tmp_path):
        made = Outputs(video=str(tmp_path / 'a.mp4'))
        with pytest.raises(ValueError, match="cannot write the codec 'zzzz' into"):
            annotate_video(VideoStream(model), video, made, codec='zzzz')
        with pytest.raises(ValueError, match="codec='h264x' must be four letters"):
            annotate_video(VideoStream(model), video, made, codec='h264x')
        assert not list(tmp_path.iterdir())

    def test_lines_of_something_else(self, tmp_path):
        path = tmp_path / 'a.jsonl'
        path.write_text('')
        with pytest.raises(ValueError, match='a.jsonl is empty'):
            read_lines(path)
        path.write_text('{"type": "stream"}\n{"type": "pre')
        with pytest.raises(ValueError, match='a.jsonl, line 2: expected a JSON object'):
            read_lines(path)
        path.write_text('{"type": "stream"}\n{"type": "prediction"}\n')
        assert read_lines(path)[2] is None
