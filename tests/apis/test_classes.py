"""Which classes a model has, what they are called, and that all outputs agree."""

import numpy as np
import pytest
import stream_data as data
from stream_data import FPS

from memvit_mm.apis import (
    Look,
    MemViTInferencer,
    MultiStream,
    Outputs,
    PeoplePrediction,
    Prediction,
    VideoStream,
    annotate_video,
    inference_stdet,
    read_lines,
    write_report,
)
from memvit_mm.apis.models.classes import classes_of
from memvit_mm.apis.report.data import pack_predictions
from memvit_mm.apis.visualization.draw import Painter
from memvit_mm.apis.visualization.stream_info import info_of, rows_of

BOXES = {1.0: [[2, 3, 30, 40]], 2.0: [[4, 3, 32, 40], [30, 5, 60, 44]]}
# The best class first: number 0, then 1, 2, ...
ORDER = -np.arange(6.0)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('videos') / 'street.mp4'
    return data.write_video(path, data.pictures(FPS * 3))


@pytest.fixture(scope='module')
def label_map(tmp_path_factory):
    """Ten labels from 1 on."""
    path = tmp_path_factory.mktemp('labels') / 'actions.pbtxt'
    items = [f'item {{\n  name: "label {n}"\n  id: {n}\n}}\n' for n in range(1, 11)]
    path.write_text(''.join(items))
    return str(path)


def boxes(image, second) -> list:
    return BOXES[second]


def detector(background_class=True, metric=None, **dataset):
    """One that says the same of everybody: class 0 first, then 1, 2, ..."""
    model = data.ava_model()
    head = model.roi_head.bbox_head
    head.background_class = background_class
    head.fc_cls.weight.data.zero_()
    head.fc_cls.bias.data = head.fc_cls.bias.new_tensor(ORDER)
    model.cfg = data.config(data.ava_pipeline(), **dataset)
    if metric is not None:
        model.cfg.test_evaluator = metric
    return model


def told_by_all(model, video, folder, labels=None) -> list:
    """Names of a person's actions, best first, as everyone tells them."""
    given = dict(boxes=boxes, labels=labels)
    found = list(VideoStream(model, **given).run(video))
    (other,) = [p for p in MultiStream(model, dict(a=video), **given) if p.time == 1]
    third = inference_stdet(model, video, BOXES, labels=labels)[0]
    told = [[name for name, _ in p.top(9)[0]] for p in (found[0], other, third)]
    stream = VideoStream(model, **given)
    made = annotate_video(stream, video, Outputs(lines=str(folder / 'o.jsonl')))
    first, lines, _ = read_lines(made.files['lines'])
    people = lines[0]['people']
    assert len(people[0]['scores']) == len(first['classes']['actions']) == 6
    top = [name for name, _ in people[0]['top']]
    assert top == told[0][:5]
    numbers = np.argsort(-np.array(people[0]['scores']), kind='stable')
    named = [first['classes']['actions'][number] for number in numbers]
    told.append(named[int(first['reserved']) :])
    (group,) = pack_predictions(found, dict(size=data.SIZE[::-1]))['groups']
    told.append(group['names'])
    (rows,) = rows_of(found)
    told.append([rows.names[n] for n in np.argsort(-rows.scores[0], kind='stable')])
    return told


def assert_all_tell(told, expected) -> None:
    for names in told:
        assert names == expected


class TestReserved:
    def test_class_0_of_ava_is_nowhere(self, video, tmp_path):
        """Its column is not trained, and stays above most of the others."""
        model = detector()
        expected = [f'class {number}' for number in range(1, 6)]
        with pytest.warns(UserWarning, match="they are called 'class 0' to 'class 5'"):
            told = told_by_all(model, video, tmp_path)
        assert_all_tell(told, expected)
        found = next(VideoStream(model, boxes=boxes).run(video))
        assert found.scores.shape == (1, 6) and found.scores[0].argmax() == 0
        assert found.top(1)[0][0] == ('class 1', pytest.approx(1 / (1 + np.e)))

    def test_nor_drawn(self, video):
        stream = VideoStream(detector(), boxes=boxes)
        found = next(stream.run(video))
        info = info_of(stream.predictor, FPS)

        def drawn(number: int) -> np.ndarray:
            """The picture, if this class had another name."""
            found.names = ['abc'] * number + ['xyz'] + ['abc'] * (5 - number)
            painter = Painter(info, data.SIZE, Look(top=3, min_score=0))
            return painter.paint(np.zeros((*data.SIZE, 3), np.uint8), 1.0, found)

        pictures = [drawn(number) for number in range(6)]
        same = [np.array_equal(pictures[0], picture) for picture in pictures]
        # Class 0, and those after the best three.
        assert same == [True, False, False, False, True, True]

    def test_class_0_of_others_is_one(self, video, tmp_path):
        """As MultiSports', whose labels begin at 0."""
        model = detector(background_class=False)
        names = list('abcdef')
        assert_all_tell(told_by_all(model, video, tmp_path, names), names)

    def test_recognizers_have_none(self):
        model = data.small_models.recognizer(data_preprocessor=data.PREPROCESSOR)
        model.cfg = data.config(data.epic_pipeline(), custom_classes=[3])
        assert classes_of(model, model.cfg) == (
            dict(actions=[f'class {number}' for number in range(6)]),
            False,
            False,
        )


class TestCustomClasses:
    CHOSEN = [2, 4, 5, 9, 8]
    NAMES = [f'label {number}' for number in CHOSEN]

    @pytest.mark.parametrize('where', ['dataset', 'metric', 'metrics', 'labels'])
    def test_all_name_the_right_actions(self, where, label_map, video, tmp_path):
        told = dict(custom_classes=self.CHOSEN)
        files = {} if where == 'labels' else dict(label_file=label_map)
        metric = dict(type='MemoryAVAMetric', **told, **files)
        if where in ('dataset', 'labels'):
            model = detector(**told, **files)
        else:
            model = detector(metric=metric if where == 'metric' else [metric])
        labels = label_map if where == 'labels' else None
        assert_all_tell(told_by_all(model, video, tmp_path, labels), self.NAMES)

    def test_class_0_is_reserved_anyway(self, label_map):
        told = dict(custom_classes=self.CHOSEN, label_file=label_map)
        model = detector(background_class=False, **told)
        assert classes_of(model, model.cfg).reserved

    def test_names_of_the_models_own_classes(self):
        """As many as it has: a list of them, or what its checkpoint says."""
        model = detector(custom_classes=self.CHOSEN)
        names = ['none', *'abcde']
        assert classes_of(model, model.cfg, names).names == dict(actions=names)
        model.dataset_meta = dict(classes=tuple(names))
        assert classes_of(model, model.cfg).names == dict(actions=names)

    def test_without_names(self):
        """They are called by the labels' numbers, as annotations have them."""
        model = detector(custom_classes=self.CHOSEN)
        names = ['class 0', *(f'class {number}' for number in self.CHOSEN)]
        assert classes_of(model, model.cfg) == (dict(actions=names), True, False)

    def test_of_another_model(self):
        model = detector(custom_classes=[3, 5])
        sentence = r'custom_classes=\[3, 5\], but .*num_classes=6: set num_classes=3,'
        with pytest.raises(ValueError, match=sentence):
            VideoStream(model, boxes=boxes)


class TestFewerAndMore:
    def test_fewer_names_of_people(self, video, tmp_path):
        told = told_by_all(detector(), video, tmp_path, {1: 'sit', 3: 'run'})
        names = ['sit', 'class 2', 'run', 'class 4', 'class 5']
        assert_all_tell(told, names)

    def test_fewer_verbs(self, video, tmp_path):
        labels = dict(verbs=['take'])
        stream = VideoStream(data.epic_model(), labels=labels)
        made = annotate_video(stream, video, Outputs(lines=str(tmp_path / 'o.jsonl')))
        first, lines, _ = read_lines(made.files['lines'])
        verbs = ['take', 'class 1', 'class 2', 'class 3']
        nouns = [f'class {number}' for number in range(6)]
        assert first['classes'] == dict(verbs=verbs, nouns=nouns)
        found = made.predictions[0]
        assert {name for name, _ in found.top_verbs()} == set(verbs)
        assert {name for name, _ in found.top_nouns(9)} == set(nouns)
        assert {pair[:2] for pair in found.top_actions(99)} == {
            (verb, noun) for verb in verbs for noun in nouns
        }
        assert {name for name, _ in lines[0]['top_verbs']} == set(verbs)
        report = pack_predictions(made.predictions, {})['groups']
        assert [group['names'] for group in report] == [verbs, nouns]
        config = 'memvit_demo_epic_cls.py'
        recognize = MemViTInferencer(config, device='cpu', labels=labels)
        plain = recognize(video, progress=False)['predictions'][0]
        assert {name for name, _ in plain['top_verbs']} == set(verbs)
        assert {name for name, _ in plain['clips'][0]['top_nouns']} <= set(nouns)

    def test_of_predictions_made_by_hand(self, tmp_path):
        clip = Prediction('a', 0, 1.0, 0.0, 1.0, [0.1, 0.7, 0.2], ['sit'])
        assert clip.top(2) == [('class 1', 0.7), ('class 2', 0.2)]
        place = dict(boxes=np.float32([[0, 0, 9, 9]]), box_scores=np.ones(1))
        scores = np.float32([[0.5, 0.125, 0.25]])
        person = PeoplePrediction('a', 0, 1.0, 0.0, 2.0, scores, **place)
        assert person.top() == [[('class 2', 0.25), ('class 1', 0.125)]]
        write_report(tmp_path / 'a.html', [clip], {})

    def test_logits_are_named_too(self):
        """Scores of a model without softmax may be below 0."""
        clip = Prediction('a', 0, 1.0, 0.0, 1.0, [-1.5, -0.25, 0.5], list('abc'))
        expected = [('c', 0.5), ('b', -0.25), ('a', -1.5)]
        assert clip.top() == clip.groups[0].best() == expected

    @pytest.mark.parametrize(
        'labels, sentence',
        [
            (
                list('abcde'),
                r'5 names for 6 classes \(actions\), .* 0 is reserved: put',
            ),
            (list('abcdefg'), r'7 names for 6 classes \(actions\): give those of'),
            (dict(verbs=['a'] * 5), 'names of verbs, but the model predicts actions:'),
        ],
    )
    def test_refused_when_the_stream_is_made(self, video, labels, sentence):
        model = detector()
        with pytest.raises(ValueError, match=sentence):
            VideoStream(model, boxes=boxes, labels=labels)
        with pytest.raises(ValueError, match=sentence):
            MultiStream(model, boxes=boxes, labels=labels)
        with pytest.raises(ValueError, match=sentence):
            inference_stdet(model, video, BOXES, labels=labels)

    def test_more_verbs(self):
        labels = dict(verbs=['a'] * 5)
        with pytest.raises(ValueError, match=r'5 names for 4 classes \(verbs\)'):
            VideoStream(data.epic_model(), labels=labels)
        with pytest.raises(ValueError, match='names of actions, .* give two files, of'):
            VideoStream(data.epic_model(), labels=['a'])
