"""Files of predictions: what is read, and every sentence of what is not."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from epic_made import make_rows, make_scores, write_annotations, write_npz
from mmaction.structures import ActionDataSample
from mmengine.evaluator import DumpResults

from memvit_mm.evaluation import EpicPredictions, read_labels, read_predictions
from memvit_mm.evaluation.epic.prediction_files import write_npz as write_predictions
from memvit_mm.evaluation.epic.predictions import fill, match
from memvit_mm.structures import ClipIndex

ROWS = make_rows(10)
NAMES = [row['narration_id'] for row in ROWS]
VERB, NOUN = make_scores(ROWS)


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp('labels') / 'annotations'
    return read_labels(str(write_annotations(folder, ROWS)))


def samples(**more):
    """Data samples as a test leaves them, with a context clip after each."""
    found = []
    for number, name in enumerate(NAMES):
        meta = dict(
            video_id='v',
            timestamp=np.float64(number),
            sample_idx=ClipIndex(number, run=1),
            img_shape=(8, 8),
        )
        sample = ActionDataSample(metainfo=dict(meta, narration_id=name))
        sample.set_gt_label(torch.tensor([1, 2]))
        sample.set_field(torch.from_numpy(VERB[number]), 'verb_logits')
        # A part of a larger tensor is pickled with all of it.
        sample.set_field(torch.from_numpy(NOUN)[number], 'noun_logits')
        for field, value in more.items():
            sample.set_field(value[number], field)
        found.append(sample)
        between = ActionDataSample(metainfo=dict(meta, narration_id=None))
        between.set_field(torch.zeros(97), 'verb_logits')
        found.append(between)
    return found


def dump(path, data_samples):
    """Write data samples as tools/test.py --dump does."""
    metric = DumpResults(str(path))
    metric.process(None, [sample.to_dict() for sample in data_samples])
    metric.evaluate(len(data_samples))
    return str(path)


def assert_same(found, **actions):
    assert list(found.narration_ids) == NAMES
    assert (found.verb == VERB).all()
    assert (found.noun == NOUN).all()
    for field, value in actions.items():
        assert (getattr(found, field) == value).all()


class TestNpz:
    def test_read(self, tmp_path):
        assert_same(
            read_predictions(str(write_npz(tmp_path / 'a.npz', ROWS, VERB, NOUN)))
        )

    def test_written_as_they_are(self, tmp_path):
        """Before anything is checked: a dump must not fail."""
        pairs = np.array([[1, 2], [3, 4]])
        scores = np.full((10, 2), np.nan)
        predictions = EpicPredictions(NAMES, VERB, NOUN, scores, pairs)
        path = str(tmp_path / 'folder' / 'a.npz')
        write_predictions(path, predictions, skipped=['P01_01_99'])
        found = read_predictions(path)
        assert_same(found, action_pairs=pairs)
        assert np.isnan(found.action_scores).all()
        assert np.load(path)['skipped'].tolist() == ['P01_01_99']

    def test_ids_of_bytes(self, tmp_path):
        names = np.array(NAMES).astype('S')
        path = str(tmp_path / 'a.npz')
        np.savez(path, narration_id=names, verb_logits=VERB, noun_logits=NOUN)
        assert_same(read_predictions(path))

    def test_errors(self, tmp_path):
        path = tmp_path / 'a.npz'

        def expect(sentence, **arrays):
            given = dict(narration_id=NAMES, verb_logits=VERB, noun_logits=NOUN)
            given.update(arrays)
            np.savez(path, **{k: v for k, v in given.items() if v is not None})
            with pytest.raises(ValueError, match=sentence) as raised:
                read_predictions(str(path))
            assert str(raised.value).startswith(str(path))

        expect("has no array 'noun_logits' .it has 'narration_id'", noun_logits=None)
        expect(
            'has an array of Python objects.*narration_id as np.array.*dtype=str',
            narration_id=np.array(NAMES, dtype=object),
        )
        expect(r'narration_id of shape \[10\] and type int', narration_id=np.arange(10))
        expect(
            'has verb_logits of type <U3, expected real',
            verb_logits=[['abc'] * 97] * 10,
        )
        path.write_bytes(b'no archive')
        with pytest.raises(ValueError, match='a.npz is not an .npz file, or damaged'):
            read_predictions(str(path))
        write_npz(path, ROWS, VERB, NOUN)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match='a.npz is not an .npz file, or damaged'):
            read_predictions(str(path))


class TestDump:
    def test_read(self, tmp_path):
        assert_same(read_predictions(dump(tmp_path / 'a.pkl', samples())))

    def test_of_an_earlier_version(self, tmp_path):
        """ClipIndex had another place."""
        path = tmp_path / 'a.pkl'
        written = Path(dump(path, samples())).read_bytes()
        old, new = b'cmemvit_mm.datasets.sampler\n', b'cmemvit_mm.structures\n'
        content = pickle.dumps(pickle.loads(written), protocol=2)
        assert new in content and old not in content
        path.write_bytes(content.replace(new, old))
        assert_same(read_predictions(str(path)))

    def test_bfloat16(self, tmp_path):
        made = samples()
        for sample in made[::2]:
            sample.set_field(sample.verb_logits.bfloat16(), 'verb_logits')
        found = read_predictions(dump(tmp_path / 'a.pkl', made))
        assert (found.verb == torch.from_numpy(VERB).bfloat16().double().numpy()).all()

    def test_explicit_actions(self, tmp_path):
        pairs = torch.arange(6).reshape(1, 3, 2).repeat(10, 1, 1)
        scores = torch.rand(10, 3)
        made = samples(action_pairs=pairs, action_scores=scores)
        found = read_predictions(dump(tmp_path / 'a.pkl', made))
        assert_same(found, action_pairs=pairs.numpy(), action_scores=scores.numpy())

    def test_it_runs_no_code(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / 'ran'),)

        path = tmp_path / 'a.pkl'
        for content in (
            [dict(narration_id='a', verb_logits=Harmful())],
            [dict(narration_id='a', other=Harmful())],
        ):
            path.write_bytes(pickle.dumps(content))
            with pytest.raises(ValueError, match='cannot be read .it holds .*mkdir'):
                read_predictions(str(path))
        # What a tensor's numbers are stored as is a pickle in the pickle.
        inner = pickle.dumps(Harmful())
        with open(path, 'wb') as file:
            pickle.dump([_TensorOf(inner)], file)
        with pytest.raises(ValueError, match='a.pkl'):
            read_predictions(str(path))
        assert not (tmp_path / 'ran').exists()

    def test_errors(self, tmp_path):
        path = tmp_path / 'a.pkl'

        def expect(sentence, content):
            path.write_bytes(pickle.dumps(content))
            with pytest.raises(ValueError, match=sentence):
                read_predictions(str(path))

        expect('holds a dict, expected a list of data samples', {})
        expect('holds a list, expected a list of data samples, each a dict', [1])
        expect('a.pkl has no prediction of any segment', [])
        expect(
            "a.pkl: A data sample has no narration_id.*add 'narration_id' to the meta",
            [dict(verb_logits=VERB[0], noun_logits=NOUN[0])],
        )
        expect(
            "sample of segment 'a' has no noun_logits: the model needs.*EpicHead",
            [dict(narration_id='a', verb_logits=VERB[0])],
        )
        good = dict(narration_id='a', verb_logits=VERB[0], noun_logits=NOUN[0])
        expect(
            r'verb_logits of shape \(5,\) or \(97,\) for 2 of 2 segments: predict all',
            [good, dict(good, narration_id='b', verb_logits=VERB[0, :5])],
        )
        path.write_bytes(b'no pickle')
        with pytest.raises(
            ValueError, match='a.pkl cannot be read .*expected what too'
        ):
            read_predictions(str(path))


class _TensorOf:
    """A data sample whose logits have a storage of other bytes."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return dict, (), None, None, iter(self.items())

    def items(self):
        yield 'narration_id', 'a'
        yield 'verb_logits', _Tensor(self.content)


class _Tensor:
    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        storage = _Storage(self.content)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1,), (1,), False, {})


class _Storage:
    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no file .*none.npz'):
        read_predictions(str(tmp_path / 'none.npz'))
    with pytest.raises(ValueError, match='The file of predictions .*a.csv must end in'):
        read_predictions(str(tmp_path / 'a.csv'))
    (tmp_path / 'a.npz').mkdir()
    with pytest.raises(ValueError, match='a.npz cannot be read .Is a directory'):
        read_predictions(str(tmp_path / 'a.npz'))


class TestMatch:
    def test_order_of_the_annotations(self, labels):
        order = np.random.RandomState(0).permutation(10)
        shuffled = EpicPredictions(NAMES, VERB, NOUN).rows(order)
        assert_same(match(shuffled, labels))

    def test_missing(self, labels):
        some = EpicPredictions(NAMES, VERB, NOUN, source='a.npz').rows(range(8))
        with pytest.raises(
            ValueError,
            match=f'a.npz has no prediction for 2 segments .{NAMES[8]}, {NAMES[9]}. of '
            'the 10 in .*validation.csv: predict all.*.--allow-missing',
        ):
            match(some, labels)
        assert len(match(some, labels, allow_missing=True)) == 8
        assert len(match(some, labels, left_out=NAMES[8:])) == 8

    def test_twice(self, labels):
        twice = EpicPredictions(NAMES, VERB, NOUN).rows([*range(10), 4])
        with pytest.raises(
            ValueError, match=rf'predicts 1 segment \({NAMES[4]}\) more than once'
        ):
            match(twice, labels)

    def test_unknown(self, labels):
        others = EpicPredictions([*NAMES[:9], 'P99_01_0'], VERB, NOUN)
        with pytest.raises(ValueError, match=r'predicts 1 segment \(P99_01_0\) not in'):
            match(others, labels, allow_missing=True)

    @pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
    def test_not_finite(self, labels, value):
        noun = NOUN.copy()
        noun[3, 44] = noun[5, 0] = value
        with pytest.raises(
            ValueError,
            match=f"the noun_logits {value} for segment '{NAMES[3]}', entry 44 .and "
            '1 more such',
        ):
            match(EpicPredictions(NAMES, VERB, noun), labels)

    def test_shapes(self, labels):
        for verb, sentence in (
            (VERB[:, :5], r'verb_logits of shape \[10, 5\], expected \[10, 97\]'),
            (VERB[:9], r'verb_logits of shape \[9, 97\], expected \[10, 97\]'),
            (VERB[0], r'verb_logits of shape \[97\], expected \[10, 97\]'),
        ):
            with pytest.raises(ValueError, match=sentence):
                match(EpicPredictions(NAMES, verb, NOUN), labels)

    def test_actions(self, labels):
        pairs = np.array([[1, 2], [3, 4], [5, 6]])
        scores = np.zeros((10, 3))
        wrong = np.repeat(pairs[None], 10, 0)
        wrong[2, 1] = 97, 4
        twice = np.repeat(pairs[None], 10, 0)
        twice[6, 2] = twice[6, 0]
        bad = scores.copy()
        bad[9, 2] = np.nan
        for s, p, sentence in (
            (scores, None, 'only one of action_scores and action_pairs'),
            (scores[:9], pairs, r'action_scores of shape \[9, 3\], expected \[10,'),
            (scores, pairs[:2], r'action_pairs of shape \[2, 2\] and type int'),
            (scores, pairs * 1.0, r'of shape \[3, 2\] and type float64, expected int'),
            (scores, wrong, rf"action \[97, 4\] for segment '{NAMES[2]}', expected v"),
            (scores, -pairs, r'action \[-1, -2\] for all segments, expected verbs be'),
            (scores, twice, rf"action \[1, 2\] for segment '{NAMES[6]}', twice in one"),
            (bad, pairs, f"the action_scores nan for segment '{NAMES[9]}', entry 2"),
        ):
            with pytest.raises(ValueError, match=sentence):
                match(EpicPredictions(NAMES, VERB, NOUN, s, p), labels)


def test_pairs_of_small_integers(labels):
    pairs = np.array([[90, 90], [91, 91], [1, 115]], dtype=np.uint8)
    match(EpicPredictions(NAMES, VERB, NOUN, np.zeros((10, 3)), pairs), labels)


def test_fill():
    pairs = np.stack([np.arange(6).reshape(3, 2)] * 10)
    predictions = EpicPredictions(NAMES, VERB, NOUN, np.ones((10, 3)), pairs)
    found = fill(predictions, ['x', 'y'])
    found.check((97, 300))
    assert found.narration_ids == [*NAMES, 'x', 'y']
    assert (found.verb[10:] == 0).all() and (found.verb[:10] == VERB).all()
