"""Submissions: written, read back, and every reason to refuse one.

`tests/reference/check_epic_reference.py` compares the verdicts with the official ones.
"""

import copy
import json
import zipfile

import numpy as np
import pytest
import torch
from epic_made import make_rows, make_scores, write_annotations

from memvit_mm.evaluation import (
    EpicPredictions,
    epic_metrics,
    read_labels,
    read_predictions,
    read_submission,
    validate_submission,
    write_submission,
)
from memvit_mm.evaluation.epic.submission import (
    SubmissionError,
    header_of,
    load_submission,
    log_probabilities,
)

ROWS = make_rows(40)
NAMES = [row['narration_id'] for row in ROWS]


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp('labels') / 'annotations'
    return read_labels(str(write_annotations(folder, ROWS)))


def explicit(count, seed=0):
    random = np.random.RandomState(seed)
    ids = np.stack([random.permutation(14 * 17)[:count] for _ in ROWS])
    scores = random.uniform(size=ids.shape).round(1)
    return dict(action_pairs=np.stack(np.divmod(ids, 17), -1), action_scores=scores)


class TestLogProbabilities:
    @pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
    def test_what_was_equal_stays_equal(self, dtype):
        """Half precision makes many sums of verb and noun alike."""
        torch.manual_seed(0)
        half = getattr(torch, dtype)
        verb, noun = (
            (torch.randn(50, number) * 4).to(half).double().numpy()
            for number in (97, 300)
        )
        sums = verb[:, :, None] + noun[:, None]
        written = log_probabilities(verb)[:, :, None] + log_probabilities(noun)[:, None]
        for before, after in zip(sums.reshape(50, -1), written.reshape(50, -1)):
            ranks = [np.unique(x, return_inverse=True)[1] for x in (before, after)]
            assert (ranks[0] == ranks[1]).all()

    def test_values(self):
        scores = np.random.RandomState(0).normal(size=(20, 97)) * 30
        found = log_probabilities(scores)
        expected = torch.from_numpy(scores).log_softmax(1).numpy()
        assert np.abs(found - expected).max() < 1e-6
        assert (found <= 0).all()
        assert np.isfinite(log_probabilities(scores * 1e6)).all()


class TestWrite:
    @pytest.mark.parametrize('suffix', ['json', 'zip'])
    @pytest.mark.parametrize('actions', [0, 100, 150])
    @pytest.mark.parametrize('steps', [None, 2], ids=['no ties', 'ties'])
    def test_reads_back_and_scores_the_same(
        self, labels, tmp_path, suffix, actions, steps
    ):
        more = explicit(actions) if actions else {}
        written = EpicPredictions(NAMES, *make_scores(ROWS, steps=steps), **more)
        path = str(tmp_path / f'out.{suffix}')
        write_submission(path, written, 'anticipation')
        found = read_predictions(path)
        assert found.challenge == 'action_anticipation' and found.source == path
        for task in ('recognition', 'anticipation'):
            expected = epic_metrics(task, written, labels).values
            assert epic_metrics(task, found, labels).values == expected
        # And once more: what was read is written as it was.
        write_submission(str(tmp_path / 'again.json'), found, 'anticipation')
        assert (
            epic_metrics(
                task, read_predictions(str(tmp_path / 'again.json')), labels
            ).values
            == expected
        )

    def test_content(self, tmp_path):
        verb, noun = make_scores(ROWS)
        path = tmp_path / 'out.zip'
        write_submission(
            str(path),
            EpicPredictions(NAMES, verb, noun, **explicit(150)),
            'recognition',
            dict(sls_td=4, team='us'),
        )
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ['test.json']
            content = json.loads(archive.read('test.json'))
        results = content.pop('results')
        assert content == {
            'version': '0.2', 'challenge': 'action_recognition',
            'sls_pt': 2, 'sls_tl': 3, 'sls_td': 4, 'team': 'us',
        }  # fmt: skip
        assert list(results) == NAMES
        blocks = results[NAMES[3]]
        assert list(blocks) == ['verb', 'noun', 'action']
        assert list(blocks['verb']) == [str(number) for number in range(97)]
        assert list(blocks['noun']) == [str(number) for number in range(300)]
        # Log-probabilities, and neither logits nor probabilities.
        assert np.exp(list(blocks['noun'].values())).sum() == pytest.approx(1, abs=1e-5)
        assert max(blocks['noun'].values()) <= 0
        assert len(blocks['action']) == 100
        best = max(blocks['action'].values())
        assert best == explicit(150)['action_scores'][3].max()
        assert all(len(key.split(',')) == 2 for key in blocks['action'])

    def test_without_actions(self, tmp_path):
        path = str(tmp_path / 'out.json')
        write_submission(
            path, EpicPredictions(NAMES, *make_scores(ROWS)), 'recognition'
        )
        header, _ = read_submission(path)
        assert set(load_submission(path)['results'][NAMES[0]]) == {'verb', 'noun'}
        assert header['sls_pt'] == 2 and 'results' not in header

    def test_other_numbers_of_classes(self, tmp_path):
        path = str(tmp_path / 'out.json')
        written = EpicPredictions(['a', 'b'], np.zeros((2, 4)), np.zeros((2, 6)))
        write_submission(path, written, 'recognition')
        assert read_predictions(path, (4, 6)).noun.shape == (2, 6)
        with pytest.raises(ValueError, match='out.json: Segment .a. lacks verb 4'):
            read_predictions(path)

    def test_errors(self, tmp_path):
        verb, noun = make_scores(ROWS)

        def expect(sentence, predictions=None, name='out.json', **options):
            predictions = predictions or EpicPredictions(NAMES, verb, noun)
            with pytest.raises(ValueError, match=sentence):
                write_submission(
                    str(tmp_path / name),
                    predictions,
                    options.pop('task', 'recognition'),
                    options,
                )
            assert list(tmp_path.iterdir()) in ([], [tmp_path / 'file'])

        expect('explicit scores of 99 actions for each segment and a submission needs '
               '100', EpicPredictions(NAMES, verb, noun, **explicit(99)))  # fmt: skip
        infinite = verb.copy()
        infinite[2, 5] = -np.inf
        expect('verb_logits -inf for segment', EpicPredictions(NAMES, infinite, noun))
        expect('.json or a .zip file, not .*out.txt', name='out.txt')
        expect("task must be one of .* got 'detection'", task='detection')
        expect('sls_pt 6, expected a number from 0 to 5', sls_pt=6)
        expect("sls_td 'all', expected a number from 0 to 5", sls_td='all')
        expect("field 'results' of a submission holds the scores", results={})
        with pytest.raises(TypeError, match='set is not JSON serializable'):
            header_of('recognition', dict(team={1, 2}))
        (tmp_path / 'file').touch()
        expect(
            'out.json cannot be written .*: choose another place', name='file/out.json'
        )


@pytest.fixture(scope='module')
def content(tmp_path_factory):
    """A valid submission with actions."""
    path = str(tmp_path_factory.mktemp('submission') / 'a.json')
    predictions = EpicPredictions(NAMES, *make_scores(ROWS), **explicit(100))
    write_submission(path, predictions, 'anticipation')
    return load_submission(path)


def put(key, value):
    return lambda content, segment: content.update({key: value})


def drop(key):
    return lambda content, segment: content.pop(key)


def put_score(part, key, value, drop=None):
    def edit(content, segment):
        block = segment[part]
        if drop is not None:
            del block[drop if part != 'action' else list(block)[drop]]
        block[key] = value

    return edit


FIRST, SECOND = NAMES[:2]
REFUSED = {
    'no version': (drop('version'), "has no 'version'"),
    'version 0.1': (put('version', '0.1'), "version is '0.1', expected '0.2'"),
    'version as a number': (put('version', 0.2), "version is 0.2, expected '0.2'"),
    'no challenge': (drop('challenge'), "has no 'challenge'"),
    'other challenge': (
        put('challenge', 'action_recognition'),
        "challenge is 'action_recognition', expected 'action_anticipation'",
    ),
    # The official check takes any part of the name.
    'part of a challenge': (put('challenge', 'anticipation'), "'anticipation', exp"),
    'no sls_tl': (drop('sls_tl'), "has no 'sls_tl'"),
    'sls_tl 6': (put('sls_tl', 6), 'sls_tl 6, expected a number from 0 to 5'),
    'sls_pt -1': (put('sls_pt', -1), 'sls_pt -1, expected'),
    'sls_td text': (put('sls_td', '3'), "sls_td '3', expected"),
    'no results': (drop('results'), "has no 'results'"),
    'results of a list': (put('results', []), 'results are no dict of segments'),
    'results empty': (put('results', {}), 'results are no dict of segments'),
    'segment missing': (
        lambda c, s: c['results'].pop(FIRST),
        rf'misses 1 segment \({FIRST}\) of 40',
    ),
    'segment unknown': (
        lambda c, s: c['results'].update(P99_01_0=s),
        r'has 1 segment \(P99_01_0\) not in the split',
    ),
    'segment a list': (
        lambda c, s: [c['results'].update({FIRST: []}), [
            blocks.pop('action', 0) for blocks in c['results'].values() if blocks
        ]],
        f"Segment '{FIRST}' has a list, not a dict",
    ),
    'no verbs': (lambda c, s: s.pop('verb'), f"'{SECOND}' has no verb scores by cla"),
    'verb missing': (lambda c, s: s['verb'].pop('96'), "lacks verb 96: expected"),
    'verb 97': (put_score('verb', '97', 0.0), "has the verb class '97': expected"),
    'name of a verb': (
        put_score('verb', 'open', 0.0, drop='3'),
        "has the verb class 'open' and lacks verb 3",
    ),
    'other spelling': (put_score('verb', '03', 0.0, drop='3'), "class '03' and lacks"),
    'noun missing': (lambda c, s: s['noun'].pop('0'), 'lacks noun 0'),
    'noun 300': (put_score('noun', '300', 0.0), "has the noun class '300'"),
    'score of text': (put_score('verb', '3', '1'), "score '1' for verb '3', expected"),
    'score null': (put_score('noun', '3', None), "score None for noun '3', expected"),
    # The official check takes nan, and the official ranking puts it first.
    'score nan': (put_score('noun', '3', float('nan')), f"logits nan .*'{SECOND}'"),
    'score -inf': (put_score('verb', '3', float('-inf')), 'score -inf for verb'),
    'score beyond floats': (put_score('verb', '3', 10**400), 'score 1000.* for verb'),
    '99 actions': (
        lambda c, s: s['action'].popitem(),
        'has 99 actions, expected exactly 100',
    ),
    '101 actions': (put_score('action', '96,299', 0.0), 'has 101 actions, expected'),
    'actions of a list': (lambda c, s: s.update(action=[]), 'has no actions, expected'),
    'action 3_4': (put_score('action', '3_4', 0.0, drop=5), "action '3_4'"),
    'action of names': (put_score('action', 'a,b', 0.0, drop=5), "the action 'a,b'"),
    'action verb 97': (
        put_score('action', '97,4', 0.0, drop=5),
        rf"has the action \[97, 4\] for segment '{SECOND}', expected verbs below 97",
    ),
    'action noun 300': (
        put_score('action', '4,300', 0.0, drop=5),
        rf"action \[4, 300\] for segment '{SECOND}', .* nouns below 300",
    ),
    'action negative': (put_score('action', '-1,4', 0.0, drop=5), "action '-1,4', exp"),
    'action text': (put_score('action', '96,9', '1', drop=5), "score '1' for action"),
    'action twice': (
        lambda c, s: [
            s['action'].pop(list(s['action'])[5]),
            s['action'].update({list(s['action'])[0].replace(',', ', '): 0.0}),
        ],
        rf'action .* for segment .{SECOND}., twice',
    ),
    'actions missing once': (
        lambda c, s: s.pop('action'),
        rf'actions for 39 segments .* and none for 1 segment \({SECOND}\): give them',
    ),
    'actions once': (
        lambda c, s: [
            blocks.pop('action')
            for name, blocks in c['results'].items()
            if name != SECOND
        ],
        rf'actions for 1 segment \({SECOND}\) and none for 39 segments',
    ),
}  # fmt: skip
ACCEPTED = {
    'unchanged': lambda c, s: None,
    'sls 0': put('sls_pt', 0),
    'sls 5': put('sls_pt', 5),
    'sls 2.5': put('sls_pt', 2.5),
    'more at the top': put('team', 'x'),
    'more of a segment': lambda c, s: s.update(note='x'),
    'score int': put_score('verb', '3', 1),
    'score bool': put_score('noun', '3', True),
    'action with a blank': put_score('action', '96, 299', 0.0, drop=5),
    'no actions': lambda c, s: [b.pop('action') for b in c['results'].values()],
}


class TestValidate:
    @pytest.mark.parametrize('name', REFUSED)
    def test_refused(self, content, name):
        edit, sentence = REFUSED[name]
        edited = copy.deepcopy(content)
        edit(edited, edited['results'][SECOND])
        with pytest.raises(SubmissionError, match=sentence) as raised:
            validate_submission(edited, 'anticipation', NAMES)
        assert '\n' not in str(raised.value)

    @pytest.mark.parametrize('name', ACCEPTED)
    def test_accepted(self, content, name):
        edited = copy.deepcopy(content)
        ACCEPTED[name](edited, edited['results'][SECOND])
        assert len(validate_submission(edited, 'anticipation', NAMES)) == 40

    def test_order_plays_no_role(self, content):
        edited = dict(reversed(content.items()))
        edited['results'] = {
            name: {
                part: dict(reversed(block.items())) for part, block in blocks.items()
            }
            for name, blocks in reversed(content['results'].items())
        }
        found = validate_submission(edited, 'anticipation', NAMES)
        expected = validate_submission(content)
        assert found.narration_ids == expected.narration_ids[::-1]
        assert (found.verb[::-1] == expected.verb).all()

    def test_either_challenge(self, content):
        validate_submission(dict(content, challenge='action_recognition'))
        with pytest.raises(SubmissionError, match='the submission is a list|is a list'):
            validate_submission([])
        with pytest.raises(ValueError, match="got 'detection'"):
            validate_submission(content, 'detection')


class TestRead:
    def test_errors(self, tmp_path):
        def expect(sentence, name, text, error=ValueError):
            (tmp_path / name).write_text(text)
            with pytest.raises(error, match=sentence):
                read_submission(str(tmp_path / name))

        expect('a.json is not JSON .Expecting value', 'a.json', 'no json')
        expect('a.zip is not a zip file, or damaged', 'a.zip', 'no zip')
        expect(
            "a.json: The submission has 'P01_01_0' twice in one place",
            'a.json',
            '{"results": {"P01_01_0": {}, "P01_01_0": {}}}',
        )
        expect("a.json: The submission has no 'version'", 'a.json', '{}')
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
            archive.writestr('val.json', '{}')
        with pytest.raises(
            ValueError, match='a.zip has no test.json in it: a submission is'
        ):
            read_submission(str(tmp_path / 'a.zip'))
        with pytest.raises(FileNotFoundError, match='There is no file .*none.json'):
            read_submission(str(tmp_path / 'none.json'))


def test_header():
    header = header_of('recognition', {'version': '0.3', 'challenge': 'other'})
    assert (header['version'], header['challenge']) == ('0.3', 'other')
