import logging
import time
from multiprocessing.pool import ThreadPool
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ava_at_size import EVALUATED, by_label, made_set, official
from mmaction.evaluation import ava_eval
from mmaction.evaluation.functional.ava_utils import tpfp_single
from mmaction.evaluation.metrics import AVAMetric
from mmaction.registry import METRICS
from mmaction.structures import bbox2result

from memvit_mm.evaluation import MemoryAVAMetric, ava_map

PEOPLE = [[0.1, 0.1, 0.4, 0.9], [0.5, 0.2, 0.8, 0.9]]


def write_labels(path, labels):
    path.write_text(
        ''.join(
            f'label {{\n  name: "does {label}"\n  label_id: {label}\n  label_type: '
            'PERSON_MOVEMENT\n}\n'
            for label in labels
        )
    )
    return str(path)


def write_annotations(path, rows):
    """Rows of (video, second, box, label)."""
    path.write_text(
        ''.join(
            f'{video},{second:04d},{",".join(map(str, box))},{label},0\n'
            for video, second, box, label in rows
        )
    )
    return str(path)


def sample(video, second, boxes, scores):
    return dict(
        video_id=video,
        timestamp=second,
        pred_instances=dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(scores, dtype=torch.float32),
        ),
    )


def random_case(seed, num_labels=6, num_keyframes=40):
    random = np.random.RandomState(seed)
    rows, samples = [], []
    for number in range(num_keyframes):
        video, second = f'video,{number % 3}'.replace(',', '_'), 902 + number // 3
        boxes = random.uniform(0, 0.3, (3, 4))
        boxes[:, 2:] += 0.7
        if number % 5:  # some keyframes have no ground truth
            for box in boxes[: random.randint(1, 4)]:
                count = random.randint(1, 4)
                for label in random.choice(num_labels, count, replace=False) + 1:
                    rows.append((video, second, box.round(3).tolist(), label))
        if number % 7:  # and some no detection
            seen = np.clip(
                boxes + random.normal(0, 0.1, boxes.shape).clip(-0.2, 0.2), 0, 1
            )
            scores = random.uniform(0, 1, (3, num_labels + 1))
            samples.append(sample(video, second, seen, scores))
    return rows, samples


@pytest.mark.parametrize('custom_classes', [None, [2, 5]])
@pytest.mark.parametrize('seed', [0, 1])
def test_equals_mmaction_where_both_ignore_empty_frames(tmp_path, seed, custom_classes):
    rows, samples = random_case(seed)
    if custom_classes is not None:
        for one in samples:
            scores = one['pred_instances']['scores']
            one['pred_instances']['scores'] = scores[:, [0, *custom_classes]]
    (tmp_path / 'excluded.csv').write_text('video_0,0902\nvideo_1,0905\n')
    rows = [row for row in rows if row[:2] not in {('video_0', 902), ('video_1', 905)}]
    options = dict(
        ann_file=write_annotations(tmp_path / 'ann.csv', rows),
        exclude_file=str(tmp_path / 'excluded.csv'),
        label_file=write_labels(tmp_path / 'labels.pbtxt', range(1, 7)),
        num_classes=len(custom_classes) + 1 if custom_classes else 7,
        custom_classes=custom_classes,
    )
    theirs, ours = (
        AVAMetric(**options),
        MemoryAVAMetric(**options, ignore_empty_frames=True),
    )
    theirs.process(None, samples)
    ours.process(None, samples)

    # its own file of results rounds scores: hand it one that does not
    result_file = tmp_path / 'result.csv'
    with open(result_file, 'w') as file:
        for result in theirs.results:
            for place, found in enumerate(result['outputs'], 1):
                label = custom_classes[place - 1] if custom_classes else place
                for *box, score in found.tolist():
                    where = f'{result["video_id"]},{result["timestamp"]:04d}'
                    file.write(
                        f'{where},{",".join(map(repr, box))},{label},{score!r}\n'
                    )
    with patch('multiprocessing.Pool', lambda processes: ThreadPool(2)):
        expected = ava_eval(
            str(result_file),
            'mAP',
            options['label_file'],
            options['ann_file'],
            options['exclude_file'],
            verbose=False,
            custom_classes=theirs.custom_classes,
        )
    found = ours.compute_metrics(ours.results)
    assert 0.05 < found['overall'] < 0.95
    assert found['overall'] == pytest.approx(expected['overall'], abs=1e-9)
    assert found['person_movement'] == pytest.approx(
        expected['person_movement'], abs=1e-9
    )

    strict = MemoryAVAMetric(**options)
    strict.process(None, samples)
    assert strict.compute_metrics(strict.results)['overall'] < found['overall']


def test_equals_the_official_evaluation_of_every_score(tmp_path):
    # `python tests/evaluation/ava_at_size.py 57000 --official`: at AVA's size
    files, samples = made_set(tmp_path, 150)
    metric = by_label(files)
    metric.process(None, samples)
    result = metric.compute_metrics(metric.results)
    for label, value in official(files, samples).items():
        assert result[str(label)] == pytest.approx(value, abs=1e-9, nan_ok=True)
    assert 0.3 < result['overall'] < 0.6
    # and the scores below MMAction2's threshold make a difference
    metric.action_thr = 0.002
    fewer = metric.compute_metrics(metric.results)
    assert any(fewer[str(label)] < result[str(label)] for label in EVALUATED)


def test_overlaps_at_the_threshold_are_as_mmactions():
    # On a grid, where many overlaps are one half but for the last digit.
    random = np.random.RandomState(0)
    found, truth, expected = {}, {}, 0
    for second in range(300):
        boxes = random.randint(0, 6, (2, 4, 4)) / 10
        boxes[:, :, 2:] = boxes[:, :, :2] + random.randint(1, 5, (2, 4, 2)) / 10
        key, score = ('v', second), np.array([0.9, 0.8, 0.7, 0.6])
        found[key] = (boxes[0], np.ones(4, int), score)
        truth[key] = (boxes[1], np.ones(4, int))
        at = [box[:, [1, 0, 3, 2]].tolist() for box in boxes]
        _, hits = tpfp_single((at[1], [1] * 4, at[0], [1] * 4, score.tolist()))
        one = ava_map({key: found[key]}, {key: truth[key]}, [1])[1]
        right = np.cumsum(hits[1]) / np.arange(1, 5)
        right = np.maximum.accumulate(right[::-1])[::-1]
        assert one == pytest.approx(right[hits[1]].sum() / 4, abs=1e-9)
        expected += hits[1].sum()
    assert expected > 50


@pytest.fixture
def metric(tmp_path):
    """Two people who do 1 and 2 at 902, one who does 1 at 904; nobody does 3."""
    rows = [
        ('v', 902, PEOPLE[0], 1),
        ('v', 902, PEOPLE[1], 2),
        ('v', 904, PEOPLE[0], 1),
        ('v', 906, PEOPLE[0], 70),
        ('v', 906, PEOPLE[0], 99),  # not in label_file
    ]

    def make(**options):
        return MemoryAVAMetric(
            write_annotations(tmp_path / 'ann.csv', rows),
            label_file=write_labels(tmp_path / 'labels.pbtxt', [1, 2, 3, 70]),
            num_classes=71,
            **options,
        )

    return make


def scores(*rows):
    """Scores of 71 labels, for each box those given."""
    table = np.zeros((len(rows), 71))
    for row, given in enumerate(rows):
        for label, score in given.items():
            table[row, label] = score
    return table


def found_by_hand():
    return [
        # 1 right, and 1 on the wrong person
        sample('v', 902, PEOPLE, scores({1: 0.9}, {1: 0.8, 2: 0.5})),
        # nobody is annotated here
        sample('v', 903, PEOPLE[:1], scores({1: 0.95, 2: 0.1})),
        sample('v', 904, PEOPLE[:1], scores({1: 0.7, 3: 0.7})),
        sample('v', 905, [], np.zeros((0, 71))),
    ]


def test_by_hand(metric):
    # Label 1, by score: wrong .95 (903), right .9, wrong .8, right .7: precision
    # 1/2 and 2/4 at recall 1/2 and 1. Label 2: right .5. Label 3: no truth. Label 70:
    # not found.
    counts = metric(class_groups=dict(memory=[1], present=[2, 3], none=[3]))
    counts.process(None, found_by_hand())
    result = counts.evaluate(size=4)
    assert result == pytest.approx(
        {
            'mAP/overall': (0.5 + 1.0 + 0.0) / 3,
            'mAP/person_movement': 0.75,
            'mAP/person_interaction': 0.0,
            'mAP/memory': 0.5,
            'mAP/present': 1.0,
            'mAP/none': float('nan'),
        },
        nan_ok=True,
    )
    # Without 903, label 1 is right, wrong, right: precision 1 and 2/3.
    ignores = metric(ignore_empty_frames=True)
    ignores.process(None, found_by_hand())
    assert ignores.evaluate(size=4)['mAP/person_movement'] == pytest.approx(
        ((1 + 2 / 3) / 2 + 1) / 2
    )


def test_every_score_is_ranked_by_default(metric):
    # A sigmoid in half precision is 0 long before it should be.
    counts = metric(class_groups=dict(one=[1], two=[2]))
    low = scores({1: 1e-7}, {2: 0.0})
    counts.process(None, [sample('v', 902, PEOPLE, low)])
    result = counts.evaluate(size=1)
    # of the two who do 1, one is found, before another box with a score of zero
    assert result['mAP/one'] == 0.5
    # he who does 2 ranks behind the other box, whose score is zero, too
    assert result['mAP/two'] == 0.5


@pytest.mark.parametrize('threshold', [0.3, -1.0, [0.0, *np.linspace(0.1, 0.8, 70)]])
def test_a_threshold_is_as_mmactions(metric, threshold):
    table = torch.rand(3, 71, generator=torch.Generator().manual_seed(0))
    boxes = torch.rand(3, 4)
    counts = metric(action_thr=threshold)
    counts.process(None, [sample('v', 902, boxes.tolist(), table.tolist())])
    found, labels, of_box = counts._detections(*counts.results[0][1])
    expected = bbox2result(boxes, table, num_classes=71, thr=threshold)
    for label, rows in enumerate(expected, 1):
        ours = np.column_stack([found, of_box])[labels == label]
        np.testing.assert_array_equal(ours, rows)
    assert 0 < len(labels) < 3 * 70


def test_excluded_keyframes_do_not_count(metric, tmp_path):
    excluded = tmp_path / 'excluded.csv'
    excluded.write_text('v,0902\nv,0903\n\n')
    counts = metric(exclude_file=str(excluded), class_groups=dict(one=[1], two=[2]))
    counts.process(None, found_by_hand())
    result = counts.evaluate(size=4)
    assert result['mAP/one'] == 1.0
    assert np.isnan(result['mAP/two'])


def test_order_of_results_makes_no_difference(tmp_path):
    # all scores are equal: on several GPUs, the clips come in any order
    rows, samples = random_case(3)
    for one in samples:
        one['pred_instances']['scores'][:] = 0.5
    values = []
    for seed in range(3):
        metric = MemoryAVAMetric(
            write_annotations(tmp_path / 'ann.csv', rows),
            label_file=write_labels(tmp_path / 'labels.pbtxt', range(1, 7)),
            num_classes=7,
        )
        order = np.random.RandomState(seed).permutation(len(samples))
        metric.process(None, [samples[i] for i in order])
        values.append(metric.evaluate(size=len(samples))['mAP/overall'])
    assert values[0] == values[1] == values[2]


def test_no_predictions(metric):
    empty = metric()
    result = empty.evaluate(size=0)
    assert result['mAP/overall'] == 0.0
    empty.process(None, [sample('v', 902, [], np.zeros((0, 71)))])
    assert empty.evaluate(size=1)['mAP/overall'] == 0.0


def test_one_right_detection_per_box():
    box = np.array([PEOPLE[0]])
    truth = {('v', 1): (box, np.array([1]))}
    twice = (np.repeat(box, 2, 0), np.array([1, 1]), np.array([0.2, 0.9]))
    assert ava_map({('v', 1): twice}, truth, [1]) == {1: 1.0}
    missed = (np.array([[0.4, 0.1, 0.7, 0.9]]), np.array([1]), np.array([0.9]))
    assert ava_map({('v', 1): missed}, truth, [1]) == {1: 0.0}
    flat = (np.array([[0.1, 0.1, 0.1, 0.1]]), np.array([1]), np.array([0.9]))
    assert ava_map({('v', 1): flat}, {('v', 1): flat[:2]}, [1]) == {1: 0.0}


def test_logs_the_table_and_writes_no_file(
    metric, tmp_path, monkeypatch, capsys, caplog
):
    folder = tmp_path / 'cwd'
    folder.mkdir()
    monkeypatch.chdir(folder)
    counts = METRICS.build(
        dict(type='MemoryAVAMetric', ann_file=metric().ann_file,
             label_file=metric().label_file, num_classes=71)
    )  # fmt: skip
    counts.process(None, found_by_hand())
    with caplog.at_level(logging.INFO, logger='mmengine'):
        logger = logging.getLogger('mmengine')
        with patch(
            'memvit_mm.evaluation.ava_metric.MMLogger.get_current_instance',
            return_value=logger,
        ):
            counts.evaluate(size=4)
    assert '    1  does 1              0.5000\n' in caplog.text
    assert 'overall' in caplog.text
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().out == ''


def test_fast_enough_for_ava():
    # A tenth of AVA's validation set, in well under a tenth of a minute.
    random = np.random.RandomState(0)
    labels = np.tile(np.arange(1, 81), 3)
    found, truth = {}, {}
    for second in range(5_700):
        boxes = random.uniform(0, 0.5, (3, 4)) + [0, 0, 0.5, 0.5]
        key = ('v', second)
        found[key] = (np.repeat(boxes, 80, 0), labels, random.uniform(size=240))
        truth[key] = (boxes.repeat(2, 0), random.randint(1, 81, 6))
    start = time.perf_counter()
    ava_map(found, truth, range(1, 81))
    assert time.perf_counter() - start < 10


def test_errors(metric, tmp_path):
    def told(kind: str) -> str:
        return f'exist: check {kind}_file of MemoryAVAMetric, the evaluator.'

    with pytest.raises(ValueError, match=r"class_groups\['x'\] has the labels \[4\]"):
        metric(class_groups=dict(x=[1, 4]))
    with pytest.raises(FileNotFoundError, match=told('ann')):
        MemoryAVAMetric(str(tmp_path / 'none.csv'), label_file=metric().label_file)
    with pytest.raises(FileNotFoundError, match=told('exclude')):
        metric(exclude_file=str(tmp_path / 'none.csv'))
    with pytest.raises(FileNotFoundError, match=told('label')):
        MemoryAVAMetric(metric().ann_file, label_file=str(tmp_path / 'none'))
    with pytest.raises(ValueError, match='Label file .*ann.csv has no labels'):
        MemoryAVAMetric(metric().ann_file, label_file=metric().ann_file)
    with pytest.raises(
        ValueError, match='scores of 15 classes, .* num_classes=71: set'
    ):
        metric().process(None, [sample('v', 902, PEOPLE, np.zeros((2, 15)))])
    with pytest.raises(ValueError, match='needs label_file'):
        MemoryAVAMetric(metric().ann_file)
