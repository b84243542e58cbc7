"""Pictures of predictions: what is shown when, where, and that it can be read."""

import cv2
import numpy as np
import pytest

from memvit_mm.apis import EpicPrediction, Look, PeoplePrediction, Prediction
from memvit_mm.apis.streams.playback import Pictures
from memvit_mm.apis.visualization.draw import Painter
from memvit_mm.apis.visualization.draw_text import ALONE
from memvit_mm.apis.visualization.moments import people_at, shown_at
from memvit_mm.apis.visualization.stream_info import StreamInfo, rows_of
from memvit_mm.apis.visualization.timeline import _choose, draw_timeline
from memvit_mm.io.output_files import check_output, part_of
from memvit_mm.video.writer import VideoWriter

NAMES = [f'a name of class {number}, which is long' for number in range(80)]


def info(kind='actions', stride=2.0, **more) -> StreamInfo:
    return StreamInfo(kind, dict(actions=NAMES), stride, 2.0, 4.0, **more)


def clip(time, scores, alone=None, names=NAMES) -> Prediction:
    made = Prediction('a', 0, time, time - 2, time, np.float32(scores), names)
    if alone is not None:
        made.without_memory = clip(time, alone, names=names)
    return made


def keyframe(time, boxes, ids=None, classes=80, seed=0) -> PeoplePrediction:
    boxes = np.float32(boxes).reshape(-1, 4)
    scores = np.random.RandomState(seed).rand(len(boxes), classes).astype(np.float32)
    return PeoplePrediction(
        'a', 0, time, time - 1, time + 1, scores, NAMES,
        boxes=boxes,
        box_scores=np.ones(len(boxes), np.float32),
        track_ids=None if ids is None else np.int64(ids),
    )  # fmt: skip


def scores(seed=0, classes=80) -> np.ndarray:
    found = np.random.RandomState(seed).rand(classes) ** 9
    return (found / found.sum()).astype(np.float32)


class TestWhen:
    def test_recognized_is_the_past(self):
        one, two = clip(2, scores()), clip(4, scores())
        assert shown_at(0, None, one, info()) is one
        assert shown_at(2, one, two, info()) is one
        assert shown_at(2.1, one, two, info()) is two
        assert shown_at(4.1, two, None, info()) is None
        late = clip(9, scores())
        assert shown_at(5, two, late, info()) is None, 'clips between were left out'

    def test_foreseen_is_the_future(self):
        one, two = clip(2, scores()), clip(4, scores())
        ahead = info(ahead=1.0)
        assert shown_at(1.9, None, one, ahead) is None
        assert shown_at(2.0, None, one, ahead) is one
        assert shown_at(3.9, one, two, ahead) is one
        assert shown_at(4.0, one, two, ahead) is two
        assert shown_at(5.9, two, None, ahead) is two

    def test_people_are_on_their_way(self):
        about = info('people', stride=1.0, centered=True)
        one = keyframe(1, [[0, 0, 10, 10], [50, 0, 60, 10]], [3, 5])
        two = keyframe(2, [[80, 0, 90, 10], [20, 0, 30, 10]], [7, 3])
        found = people_at(1.25, one, two, about)
        assert [(p.number, p.prediction.time) for p in found] == [(3, 1), (5, 1)]
        np.testing.assert_allclose(found[0].box, [5, 0, 15, 10])
        found = people_at(1.75, one, two, about)
        assert [(p.number, p.prediction.time) for p in found] == [(3, 2), (7, 2)]
        np.testing.assert_allclose(found[0].box, [15, 0, 25, 10])
        # Not over keyframes that were left out, and not before and after all.
        far = keyframe(4, two.boxes, [7, 3])
        assert people_at(2.5, one, far, about) == []
        assert [p.number for p in people_at(3.5, one, far, about)] == [3, 7]
        assert people_at(0.4, None, one, about) == []
        assert len(people_at(2.5, two, None, about)) == 2

    def test_people_that_are_not_tracked_stay(self):
        about = info('people', stride=1.0, centered=True)
        one, two = keyframe(1, [[0, 0, 10, 10]]), keyframe(2, [[4, 0, 14, 10]])
        assert [p.box[0] for p in people_at(1.4, one, two, about)] == [0]
        assert [p.box[0] for p in people_at(1.6, one, two, about)] == [4]


class TestPainter:
    @pytest.mark.parametrize('size', [(48, 64), (64, 48), (97, 33), (1080, 1920)])
    def test_sizes(self, size):
        painter = Painter(info(), size)
        image = np.full((*size, 3), 200, np.uint8)
        painted = painter.paint(image, 3.0, None, clip(4, scores(), scores(1)))
        assert painted.shape == (*painter.size, 3)
        assert painter.size[0] % 2 == painter.size[1] % 2 == 0
        assert painted[: painter.picture_height].min() == 200, 'nothing is hidden'
        assert 640 <= max(painter.picture_height, painter.width) <= 1280
        assert (painted == ALONE).all(axis=-1).any()

    def test_without_memory(self):
        painter = Painter(info(), (48, 64))
        image = np.full((48, 64, 3), 200, np.uint8)
        painted = painter.paint(image, 3.0, None, clip(4, scores()))
        assert not (painted == ALONE).all(axis=-1).any()

    @pytest.mark.parametrize('people', [1, 4, 9])
    def test_people(self, people):
        """Each panel is above its box, as wide as it, and inside of the picture."""
        about = info('people', stride=1.0, centered=True)
        painter = Painter(about, (480, 640), Look(min_score=0.0))
        boxes = [[60 * n, 200, 60 * n + 59, 470] for n in range(people)]
        image = np.full((480, 640, 3), 200, np.uint8)
        painted = painter.paint(image, 1, keyframe(1, boxes, range(people)))
        high = 2 * 11 * (4 if people <= 4 else 2)
        for left in (60 * n for n in range(people)):
            assert (painted[200 - high, left + 3] != 200).any()
            assert (painted[198 - high, left + 3] == 200).all()
        # At the edges it stays in the picture.
        corner = keyframe(2, [[630, 0, 640, 480]], [3])
        painted = painter.paint(image, 2, corner)
        assert painted.shape == (*painter.size, 3)
        assert (painted[3, 560] != 200).any()

    def test_min_score(self):
        about = info('people', stride=1.0, centered=True)
        image = np.full((480, 640, 3), 200, np.uint8)
        found = keyframe(1, [[100, 200, 200, 470]])
        for least, rows in ((0.0, 4), (1.0, 1)):
            painter = Painter(about, (480, 640), Look(min_score=least))
            painted = painter.paint(image, 1, found)
            changed = (painted[:200, 110] != 200).any(axis=-1)
            assert changed.sum() == rows * 22


class TestTimeline:
    def test_80_classes(self, tmp_path):
        path = str(tmp_path / 'a.png')
        clips = [clip(2 * n + 2, scores(n), scores(n + 50)) for n in range(40)]
        draw_timeline(path, clips, info(), [c.without_memory for c in clips], 'a.mp4')
        height, width = cv2.imread(path).shape[:2]
        assert 600 < height < 1600 and 800 < width < 2600

    def test_rows(self):
        many = np.zeros((5, 80), np.float32)
        many[1, 7], many[3, 7], many[0, 60], many[4, 2] = 0.9, 0.95, 0.5, 0.7
        (group,) = rows_of([clip(n, row) for n, row in enumerate(many)])
        # The best, in the order of when they come.
        assert _choose(group, None, 3) == [60, 7, 2]
        twin = group._replace(scores=np.zeros_like(many))
        twin.scores[2, 11] = 0.99
        assert 11 in _choose(group, twin, 3)

    def test_people(self, tmp_path):
        clips = [keyframe(1, [[0, 0, 9, 9]] * 2), keyframe(2, []), keyframe(5, [])]
        (group,) = rows_of(clips)
        assert group.names[0] == NAMES[1] and group.scores.shape == (3, 79)
        np.testing.assert_array_equal(group.scores[0], clips[0].scores[:, 1:].max(0))
        assert np.isnan(group.scores[1:]).all()
        about = info('people', stride=1.0, centered=True)
        draw_timeline(str(tmp_path / 'a.svg'), clips, about, clips)
        draw_timeline(str(tmp_path / 'b.jpg'), clips[1:], about)
        text = (tmp_path / 'a.svg').read_text()
        assert '<svg' in text and not list(tmp_path.glob('*.part.*'))

    def test_verbs_and_nouns(self):
        both = np.arange(10, dtype=np.float32)
        made = EpicPrediction(
            **vars(clip(1, both)),
            verb_scores=both[:4],
            noun_scores=both[4:],
            verbs=None,
            nouns=list('abcdef'),
        )
        verbs, nouns = rows_of([made])
        assert (verbs.kind, verbs.names[3]) == ('verbs', 'class 3')
        assert (nouns.kind, nouns.names[5], nouns.scores[0, 5]) == ('nouns', 'f', 9)

    def test_errors(self):
        with pytest.raises(ValueError, match='no prediction to draw in a.png'):
            draw_timeline('a.png', [], info())
        with pytest.raises(ValueError, match='rows=0 must be'):
            draw_timeline('a.png', [clip(1, scores())], info(), rows=0)


class TestFiles:
    def test_frames_are_where_their_times_say(self, tmp_path):
        path = str(tmp_path / 'a.avi')
        writer = VideoWriter(path, fps=10)
        for value, second in ((0, 0.0), (50, 0.1), (90, 0.11), (200, 0.5)):
            writer.write(np.full((32, 32, 3), value, np.uint8), second)
        assert part_of(path) in map(str, tmp_path.iterdir())
        writer.close()
        capture, found = cv2.VideoCapture(path), []
        for _ in range(6):
            found.append(round(float(capture.read()[1].mean())))
        np.testing.assert_allclose(found, [0, 50, 50, 50, 50, 200], atol=3)
        assert [p.name for p in tmp_path.iterdir()] == ['a.avi']

    def test_what_is_there_stays(self, tmp_path):
        path = tmp_path / 'a.mp4'
        path.write_text('old')
        assert check_output('video', path) == str(path)
        VideoWriter(str(path), fps=10).close()
        assert path.read_text() == 'old'

    def test_ctrl_c_before_a_frame_is_counted(self, tmp_path):
        writer = VideoWriter(str(tmp_path / 'a.mp4'), fps=10)
        image = np.zeros((32, 32, 3), np.uint8)
        writer.write(image, 0)
        writer._writer.write(image)
        writer.close()
        assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']

    def test_files_of_the_user_stay(self, tmp_path):
        mine = tmp_path / 'out.part.mp4'
        mine.write_text('mine')
        path = check_output('video', str(tmp_path / 'out.mp4'))
        writer = VideoWriter(path, fps=10)
        writer.write(np.zeros((32, 32, 3), np.uint8), 0)
        writer.close()
        assert mine.read_text() == 'mine'
        assert sorted(p.name for p in tmp_path.iterdir()) == ['out.mp4', mine.name]

    def test_pictures_of_long_videos(self):
        pictures = Pictures(limit=10, side=32)
        for second in range(100):
            pictures.add(np.zeros((48, 64, 3), np.uint8), second)
        times = [time for time, _ in pictures.found]
        assert len(times) <= 10 and times[:3] == [0, 16, 32] and times[-1] == 96
        jpeg = cv2.imdecode(np.frombuffer(pictures.found[0][1], np.uint8), 1)
        assert jpeg.shape == (24, 32, 3)
