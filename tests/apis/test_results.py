"""Predictions as plain values, and the names of classes."""

import json

import numpy as np
import pytest
import stream_data as data
from stream_data import FPS

from memvit_mm.apis import EpicPrediction, PeoplePrediction, Prediction, VideoStream
from memvit_mm.apis.models.classes import ClassScores, find_names, read_names


@pytest.fixture(scope='module')
def frames():
    return np.stack(data.pictures(FPS * 2))


class TestPredictions:
    def test_recognizer(self, frames):
        model = data.small_models.recognizer(data_preprocessor=data.PREPROCESSOR)
        model.cfg = data.config(data.epic_pipeline())
        stream = VideoStream(model, fps=FPS, name='cam', labels=list('abcdef'))
        found = list(stream.run(frames))
        assert type(found[0]) is Prediction
        # Clips as long as they are, one after the other.
        assert [p.time for p in found] == pytest.approx([8 / FPS, 16 / FPS, 24 / FPS])
        assert found[0].top(1)[0][0] in 'abcdef'
        plain = json.loads(json.dumps(found[1].to_dict()))
        assert (plain['stream'], plain['number']) == ('cam', 1)
        assert plain['end'] == pytest.approx(16 / FPS)
        assert sum(plain['scores']) == pytest.approx(1, abs=1e-5)
        assert 'scores' not in repr(found[0])

    def test_verbs_and_nouns(self, frames):
        model = data.epic_model()
        labels = dict(verbs=list('abcd'), nouns=list('uvwxyz'))
        found, _ = VideoStream(model, fps=FPS, labels=labels).run(frames)
        assert type(found) is EpicPrediction
        assert found.scores.shape == (10,)
        assert found.verb_scores.sum() == pytest.approx(1, abs=1e-5)
        assert (
            found.top_verbs(1)[0][0] in 'abcd' and found.top_nouns()[0][0] in 'uvwxyz'
        )
        plain = json.loads(json.dumps(found.to_dict()))
        assert len(plain['verb_scores']) == 4 and len(plain['noun_scores']) == 6
        assert 'scores' not in plain

    def test_people(self, frames):
        stream = VideoStream(
            data.ava_model(),
            boxes=lambda *_: np.array([[1, 2, 30, 40, 0.7]]),
            fps=FPS,
            labels={1: 'sit', 2: 'stand', 5: 'run'},
        )
        found = next(stream.run(frames))
        assert type(found) is PeoplePrediction
        ((first, *_),) = found.top()
        assert first[0] in ('sit', 'stand', 'class 3', 'class 4', 'run')
        plain = json.loads(json.dumps(found.to_dict()))
        assert plain['boxes'] == [[1, 2, 30, 40]]
        assert plain['box_scores'] == pytest.approx([0.7])

    def test_threshold(self):
        scores = ClassScores.of('actions', None, np.array([0.1, 0.6, 0.3]))
        assert scores.best(threshold=0.3) == [('class 1', 0.6), ('class 2', 0.3)]


class TestNames:
    def test_files(self, tmp_path):
        (tmp_path / 'map.pbtxt').write_text(
            'label {\n  name: "bend"\n  label_id: 1\n}\n'
            'item {\n  name: "crouch"\n  id: 3\n}\n'
        )
        names = ['class 0', 'bend', 'class 2', 'crouch']
        assert read_names(str(tmp_path / 'map.pbtxt')) == names
        (tmp_path / 'map.txt').write_text('cut\n\nwash up\n')
        assert read_names(str(tmp_path / 'map.txt')) == ['cut', 'wash up']
        (tmp_path / 'verbs.csv').write_text('id,key,instances\n0,take,[]\n1,put,[]\n')
        found = find_names(dict(verbs=tmp_path / 'verbs.csv'), {})
        assert found == dict(verbs=['take', 'put'])
        (tmp_path / 'empty.txt').touch()
        with pytest.raises(ValueError, match=r'empty\.txt has no name of a class'):
            read_names(str(tmp_path / 'empty.txt'))
        with pytest.raises(FileNotFoundError, match=r'no\.txt does not exist'):
            read_names('no.txt')
        (tmp_path / 'other.csv').write_text('name\ncut\n')
        with pytest.raises(ValueError, match="lacks the column 'id' .*: check labels"):
            read_names(str(tmp_path / 'other.csv'))

    def test_where_they_come_from(self, tmp_path):
        assert find_names(None, {}) == {}
        found = find_names(None, {}, dict(classes=('a', 'b')))
        assert found == dict(actions=['a', 'b'])
        meta = dict(verb_classes=['a'], noun_classes=['b'])
        assert find_names(None, {}, meta) == dict(verbs=['a'], nouns=['b'])
        for name in 'vn':
            (tmp_path / f'{name}.csv').write_text(f'id,key,instances\n0,{name},[]\n')
        dataset = dict(data_root=str(tmp_path), class_files=('v.csv', 'n.csv'))
        cfg = data.config([], **dataset)
        assert find_names(None, cfg) == dict(verbs=['v'], nouns=['n'])
        (tmp_path / 'map.txt').write_text('cut\n')
        cfg = data.config([], label_file=str(tmp_path / 'map.txt'))
        assert find_names(None, cfg) == dict(actions=['cut'])
        cfg = data.config([], label_file='elsewhere.pbtxt', data_root='')
        assert find_names(None, cfg) == {}
