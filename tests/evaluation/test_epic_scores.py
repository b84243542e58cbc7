"""The numbers, against a second implementation by plain loops."""

import time

import numpy as np
import pytest
from epic_made import (
    NOUNS,
    VERBS,
    make_rows,
    make_scores,
    second_opinion,
    write_annotations,
    write_csv,
)

from memvit_mm.evaluation import EpicLabels, EpicPredictions, epic_metrics, read_labels
from memvit_mm.evaluation.epic.scores import (
    action_hits,
    class_mean,
    explicit_action_hits,
    format_table,
    top_k_hits,
)

TASKS = ('recognition', 'anticipation')


@pytest.fixture(scope='module')
def rows():
    return make_rows(60)


@pytest.fixture(scope='module')
def labels(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp('labels') / 'annotations'
    return read_labels(str(write_annotations(folder, rows)))


def predictions_of(rows, verb, noun, **actions):
    return EpicPredictions([row['narration_id'] for row in rows], verb, noun, **actions)


# Steps of 1/2: half of all segments have ties among their best classes and actions.
@pytest.mark.parametrize('steps', [None, 2], ids=['no ties', 'ties'])
def test_equals_the_second_opinion(rows, labels, steps):
    verb, noun = make_scores(rows, steps=steps)
    expected = second_opinion(rows, verb, noun)
    # Neither order nor a constant per segment plays a role.
    order = np.random.RandomState(1).permutation(len(rows))
    shift = np.arange(len(rows), dtype=np.float32)[order, None]
    shuffled = predictions_of(
        [rows[i] for i in order], verb[order] + shift, noun[order] - 8 * shift
    )
    for task in TASKS:
        found = epic_metrics(task, shuffled, labels).values
        assert found == pytest.approx(getattr(expected, task), abs=1e-9)
        assert all(type(value) is float for value in found.values())
    # The test would not see much if all were right, or wrong.
    assert all(5 < value < 99 for value in expected.recognition.values())
    assert len(expected.recognition) == 12 and len(expected.anticipation) == 9


@pytest.mark.parametrize('shared', [True, False], ids=['same pairs', 'own pairs'])
def test_explicit_actions_rank_alone(rows, labels, shared):
    verb, noun = make_scores(rows)
    random = np.random.RandomState(3)
    if shared:
        ids = random.permutation(14 * 17)[:150]
        pairs = np.stack(np.divmod(ids, 17), -1)
        per_row = np.repeat(pairs[None], len(rows), 0)
    else:
        ids = np.stack([random.permutation(14 * 17)[:100] for _ in rows])
        pairs = per_row = np.stack(np.divmod(ids, 17), -1)
    # Tenths: ties.
    scores = random.uniform(size=per_row.shape[:2]).round(1)
    truth = np.array([(row['verb_class'], row['noun_class']) for row in rows])
    scores[(per_row == truth[:, None]).all(-1)] += 0.4
    actions = [
        {tuple(p): s for p, s in zip(p.tolist(), s.tolist())}
        for p, s in zip(per_row, scores)
    ]
    expected = second_opinion(rows, verb, noun, actions)
    explicit = predictions_of(
        rows, verb, noun, action_scores=scores, action_pairs=pairs
    )
    for task in TASKS:
        found = epic_metrics(task, explicit, labels).values
        assert found == pytest.approx(getattr(expected, task), abs=1e-9)
    assert 5 < expected.anticipation['overall_action_mt5r'] < 95


def test_by_hand():
    """Where typical mistakes would show, each with the number they would give."""
    classes = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
    labels = EpicLabels(
        tuple('abcd'),
        ('P1', 'P1', 'P1', 'P2'),
        classes,
        num_classes=(8, 8),
        tail=(frozenset({1}), frozenset({1})),
        unseen=frozenset({'P2'}),
    )
    right = np.eye(8)[classes[:, 0]], np.eye(8)[classes[:, 1]]
    verb, noun = (part.copy() for part in right)
    verb[0] = -np.arange(8.0)[::-1]  # class 0 is last
    found = epic_metrics(
        'anticipation', EpicPredictions(list('abcd'), verb, noun), labels
    )
    # Verb 0: 2 of 3, verb 1: 1 of 1. (Of segments: 3/4; of 8 classes: 5/24.)
    assert found.values['overall_verb_mt5r'] == pytest.approx(100 * (2 / 3 + 1) / 2)
    # Actions (0, 0): 1 of 2, (0, 1) and (1, 0): all.
    assert found.values['overall_action_mt5r'] == pytest.approx(100 * 2.5 / 3)
    # Of the tail is an action whose verb or noun is; a verb only if it is itself.
    assert found.segments['tail'] == dict(verb=1, noun=1, action=2)
    assert found.classes['all'] == dict(verb=2, noun=2, action=3)
    assert found.segments['unseen'] == dict(verb=1, noun=1, action=1)


def test_an_action_among_five_is_not_verb_and_noun_among_five():
    # Verb 1 and noun 1 are each third; as a pair they are behind more than four.
    verb = noun = np.array([[2.0, 0.0, 1.0, -50, -60, -70]])
    label = np.array([[1, 1]])
    assert top_k_hits(verb, label[:, 0], 3).all()
    assert not action_hits(verb, noun, label, 5).any()


class TestTies:
    def test_lower_class_first(self):
        even = np.zeros((VERBS, VERBS))
        hits = top_k_hits(even, np.arange(VERBS), 5)
        assert hits.tolist() == [True] * 5 + [False] * (VERBS - 5)

    def test_actions_lower_verb_then_lower_noun(self):
        pairs = np.array([(v, n) for v in range(6) for n in range(6)])
        even = np.zeros((len(pairs), 6))
        expected = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
        hits = action_hits(even, even, pairs, 5)
        assert [tuple(pair) for pair in pairs[hits]] == expected
        # However the pairs are laid out.
        shuffled = pairs[np.random.RandomState(0).permutation(len(pairs))]
        scores = np.zeros((len(pairs), len(pairs)))
        hits = explicit_action_hits(shuffled, scores, pairs, 5)
        assert [tuple(pair) for pair in pairs[hits]] == expected

    def test_pairs_that_differ_and_sum_up_alike(self):
        # 1 + 0 and 0 + 1: the first has the lower verb.
        verb = noun = np.array([[1.0, 0.0]] * 2)
        labels = np.array([[0, 1], [1, 0]])
        assert action_hits(verb, noun, labels, 2).tolist() == [True, False]


def test_a_segment_with_huge_scores_leaves_the_others_alone(rows, labels):
    """The official recognition code takes one softmax over all segments."""
    verb, noun = make_scores(rows)
    expected = epic_metrics('recognition', predictions_of(rows, verb, noun), labels)
    verb[7] += 120
    noun[3] *= 1000
    found = epic_metrics('recognition', predictions_of(rows, verb, noun), labels)
    for key in ('all_verb_accuracy_at_5', 'all_noun_accuracy_at_1'):
        assert found.values[key] == expected.values[key]
    changed = abs(
        found.values['all_action_accuracy_at_5']
        - expected.values['all_action_accuracy_at_5']
    )
    assert changed <= 100 / len(rows) + 1e-9  # at most segment 3 itself


class TestSubsets:
    def test_no_unseen_participant(self, rows, labels):
        """As officially: recognition leaves the numbers out, anticipation has none."""
        some = [row for row in rows if row['participant_id'] != 'P03']
        predictions = predictions_of(some, *make_scores(some))
        recognition = epic_metrics('recognition', predictions, labels)
        assert not [key for key in recognition.values if key.startswith('unseen')]
        assert len(recognition.values) == 9
        anticipation = epic_metrics('anticipation', predictions, labels)
        assert np.isnan(anticipation.values['unseen_action_mt5r'])
        assert 'unseen   top-1         -         -         -  0 (0)' in format_table(
            recognition
        )

    def test_no_tail_class(self, rows, labels):
        some = [r for r in rows if r['verb_class'] == 0 and r['noun_class'] == 0]
        predictions = predictions_of(some, *make_scores(some))
        values = epic_metrics('recognition', predictions, labels).values
        assert np.isnan(values['tail_verb_accuracy_at_1'])
        assert not np.isnan(values['all_verb_accuracy_at_1'])

    def test_lists_that_are_not_there(self, rows, tmp_path):
        folder = tmp_path / 'annotations'
        folder.mkdir()
        header = list(rows[0])
        write_csv(folder / 'EPIC_100_validation.csv', header, rows)
        labels = read_labels(str(folder))
        result = epic_metrics(
            'recognition', predictions_of(rows, *make_scores(rows)), labels
        )
        assert {key.split('_')[0] for key in result.values} == {'all'}
        assert 'no unseen numbers.' in format_table(result, labels)

    def test_a_class_that_is_missing(self, rows, tmp_path):
        """Such a segment counts where its other class does."""
        some = [dict(row) for row in rows]
        some[4]['noun_class'] = ''
        labels = read_labels(str(write_annotations(tmp_path / 'a', some)))
        verb, noun = make_scores(rows)
        result = epic_metrics('recognition', predictions_of(rows, verb, noun), labels)
        assert result.segments['all'] == dict(verb=60, noun=59, action=59)
        rest = [i for i in range(60) if i != 4]
        expected = second_opinion([rows[i] for i in rest], verb[rest], noun[rest])
        for key in ('all_action_accuracy_at_5', 'tail_noun_accuracy_at_1'):
            assert result.values[key] == pytest.approx(expected.recognition[key])


def test_table(rows, labels):
    predictions = predictions_of(rows, *make_scores(rows))
    table = format_table(epic_metrics('recognition', predictions, labels), labels)
    first, header, *lines = table.splitlines()
    assert 'accuracy in percent, 60 segments of' in first
    assert header.split()[:3] == ['verb', 'noun', 'action']
    assert [line.split()[:2] for line in lines] == [
        ['all', 'top-1'], ['all', 'top-5'], ['unseen', 'top-1'], ['tail', 'top-1']
    ]  # fmt: skip
    table = format_table(epic_metrics('anticipation', predictions, labels))
    assert [line.split()[0] for line in table.splitlines()[2:]] == (
        ['overall', 'unseen', 'tail']
    )


def test_class_mean_of_nothing():
    assert np.isnan(class_mean(np.zeros(0, bool), np.zeros(0, int)))


def test_unknown_task(rows, labels):
    with pytest.raises(ValueError, match='task must be one of recognition, antic'):
        epic_metrics('detection', predictions_of(rows, *make_scores(rows)), labels)


def test_fast_enough_for_the_validation_set():
    random = np.random.RandomState(0)
    count = 9_668
    labels = EpicLabels(
        tuple(map(str, range(count))),
        ('P01',) * count,
        np.stack(
            [random.randint(VERBS, size=count), random.randint(NOUNS, size=count)], 1
        ),
        tail=(frozenset({1}), frozenset({2})),
        unseen=frozenset({'P02'}),
    )
    predictions = EpicPredictions(
        labels.narration_ids, random.rand(count, VERBS), random.rand(count, NOUNS)
    )
    start = time.perf_counter()
    epic_metrics('anticipation', predictions, labels)
    assert time.perf_counter() - start < 10
