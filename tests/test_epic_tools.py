"""eval_epic.py and make_epic_submission.py, as their users call them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fork_server import python

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parent / 'tools'
sys.path.insert(0, str(HERE / 'evaluation'))

import _common  # noqa: E402
import eval_epic  # noqa: E402
import make_epic_submission  # noqa: E402
from epic_made import (  # noqa: E402
    make_rows,
    make_scores,
    second_opinion,
    write_annotations,
    write_npz,
)

ROWS = make_rows(30)
VERB, NOUN = make_scores(ROWS)

CONFIG = """
custom_imports = dict(imports=['memvit_mm', 'toy'], allow_failed_imports=False)
default_scope = 'mmaction'
model = dict(type='Toy')
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyData'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_cfg = dict()
test_evaluator = dict(
    type='EpicMetric', task='recognition', annotations='annotations'
)
log_level = 'WARNING'
"""
TOY = """
import numpy as np
import torch
from mmaction.registry import DATASETS, MODELS
from mmaction.structures import ActionDataSample
from mmengine.model import BaseModel


@MODELS.register_module()
class Toy(BaseModel):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        table = np.load('scores.npz')
        for number, sample in zip(inputs, data_samples):
            for field in ('verb_logits', 'noun_logits'):
                sample.set_field(torch.from_numpy(table[field])[number], field)
        return data_samples


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    def __len__(self):
        return len(np.load('scores.npz')['narration_id']) - 1  # the last is missing

    def __getitem__(self, index):
        name = str(np.load('scores.npz')['narration_id'][index])
        sample = ActionDataSample(metainfo=dict(narration_id=name))
        return dict(inputs=torch.tensor(index), data_samples=sample)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with annotations and scores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MEMVIT_DEBUG', raising=False)
    write_annotations(tmp_path / 'annotations', ROWS)
    write_npz(tmp_path / 'scores.npz', ROWS, VERB, NOUN)
    return tmp_path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Call a tool; returns what it prints, or its error."""

    def call(tool, *options, ok=True):
        options = (*options, '--annotations', 'annotations')
        monkeypatch.setattr(sys, 'argv', ['tool', *map(str, options)])
        if ok:
            tool.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit:
            _common.run(tool.main)
        assert exit.value.code == 1
        first = capsys.readouterr().err.splitlines()[0]
        assert first.startswith('Error: ')
        return first[len('Error: ') :]

    return call


class TestEvalEpic:
    @pytest.mark.parametrize('task', ['recognition', 'anticipation'])
    def test_numbers(self, call, task):
        out = call(
            eval_epic, '--task', task, '--scores', 'scores.npz', '--json', 'a/out.json'
        )
        found = json.loads(Path('a/out.json').read_text())
        expected = getattr(second_opinion(ROWS, VERB, NOUN), task)
        assert found == pytest.approx(expected, abs=1e-9)
        assert 'percent, 30 segments of annotations' in out.splitlines()[0]
        shown = f'{expected[list(expected)[0]]:.2f}'
        assert out.splitlines()[2].split()[2] == shown

    def test_empty_subset_is_null(self, call):
        few = [row for row in ROWS if row['participant_id'] != 'P03']
        write_annotations(Path('annotations'), few)
        write_npz(Path('scores.npz'), few, *make_scores(few))
        options = ('--scores', 'scores.npz', '--json', 'out.json')
        call(eval_epic, '--task', 'anticipation', *options)
        assert json.loads(Path('out.json').read_text())['unseen_verb_mt5r'] is None

    def test_some_segments(self, call):
        write_npz(Path('scores.npz'), ROWS[:20], VERB[:20], NOUN[:20])
        options = ('--task', 'recognition', '--scores', 'scores.npz')
        error = call(eval_epic, *options, ok=False)
        assert error.startswith('scores.npz has no prediction for 10 segments (')
        assert error.endswith('with allow_missing=True (--allow-missing).')
        out = call(eval_epic, *options, '--allow-missing')
        assert '10 segments have no prediction and do not count' in out

    def test_mistakes(self, call):
        task = ('--task', 'recognition')
        assert call(eval_epic, *task, '--scores', 'none.npz', ok=False) == (
            'There is no file none.npz.'
        )
        options = (*task, '--scores', 'scores.npz')
        assert call(eval_epic, *options, '--json', 'out.txt', ok=False) == (
            '--json writes .json, not out.txt.'
        )
        noun = NOUN.copy()
        noun[7, 3] = np.nan
        write_npz(Path('scores.npz'), ROWS, VERB, noun)
        assert f"the noun_logits nan for segment '{ROWS[7]['narration_id']}'" in (
            call(eval_epic, *options, ok=False)
        )
        write_npz(Path('scores.npz'), [*ROWS[:29], ROWS[0]], VERB, NOUN)
        assert call(eval_epic, *options, ok=False) == (
            'scores.npz predicts 1 segment (P01_01_0) more than once: every segment '
            'must come once.'
        )
        Path('annotations/EPIC_100_validation.csv').write_text(
            Path('annotations/EPIC_100_test_timestamps.csv').read_text()
        )
        assert 'validation.csv has no labels to compare with' in (
            call(eval_epic, *options, ok=False)
        )


class TestMakeSubmission:
    def test_made_and_checked_and_scored(self, call):
        task = ('--task', 'anticipation')
        out = call(
            make_epic_submission,
            *task,
            '--scores',
            'scores.npz',
            '--submission',
            'out/test.zip',
            '--sls-td',
            4,
            '--field',
            'team=us',
        )
        assert 'The submission is in out/test.zip.' in out
        assert '30 segments; {"version": "0.2", "challenge": "action_anticip' in out
        assert '"sls_td": 4, "team": "us"}' in out
        assert call(make_epic_submission, *task, '--check', 'out/test.zip') == (
            'out/test.zip is a valid submission of 30 segments for '
            'action_anticipation.\n'
        )
        options = ('--task', 'recognition', '--scores')
        call(eval_epic, *options, 'scores.npz', '--json', 'a.json')
        out = call(eval_epic, *options, 'out/test.zip', '--json', 'b.json')
        assert Path('a.json').read_text() == Path('b.json').read_text()
        assert 'out/test.zip is a submission to action_anticipation.' in out

    def test_json_says_that_it_goes_into_a_zip(self, call):
        options = ('--scores', 'scores.npz', '--submission', 'a.json')
        out = call(make_epic_submission, '--task', 'recognition', *options)
        assert 'The submission is in a.json; for the upload it goes into a zip' in out

    def test_mistakes(self, call):
        def error(*options):
            return call(
                make_epic_submission, '--task', 'recognition', *options, ok=False
            )

        scores = ('--scores', 'scores.npz')
        zipped = (*scores, '--submission', 'a.zip')
        for options in ((), scores, (*zipped, '--check', 'a.zip')):
            assert error(*options) == (
                'Give --scores FILE and --submission OUT, or --check FILE.'
            )
        assert error(*scores, '--submission', 'a.txt') == (
            '--submission writes .json or .zip, not a.txt.'
        )
        assert 'sls_pt 9, expected' in error(*zipped, '--sls-pt', 9)
        assert error(*zipped, '--field', 'team') == (
            "--field takes KEY=VALUE, got 'team'."
        )
        write_npz(Path('scores.npz'), ROWS[:29], VERB[:29], NOUN[:29])
        missing = f'no prediction for 1 segment ({ROWS[29]["narration_id"]})'
        assert missing in error(*zipped)
        assert not Path('a.zip').exists()
        Path('a.json').write_text('{"version": "0.2"}')
        assert error('--check', 'a.json') == (
            "a.json: The submission has no 'challenge'."
        )


def test_a_dump_outlives_a_metric_that_refuses_it(folder, call):
    """tools/test.py --dump, then eval_epic.py on what it wrote."""
    (folder / 'toy.py').write_text(TOY)
    (folder / 'config.py').write_text(CONFIG)
    import torch

    torch.save({}, folder / 'a.pth')
    done = subprocess.run(
        [python(), TOOLS / 'test.py', 'config.py', 'a.pth', '--dump', 'a.pkl'],
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            PYTHONPATH=f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
        ),
    )
    assert done.returncode == 1
    missing = f'no prediction for 1 segment ({ROWS[29]["narration_id"]}) of the 30'
    assert missing in done.stderr and 'Traceback' not in done.stderr
    options = ('--task', 'recognition', '--scores', 'a.pkl', '--json', 'out.json')
    assert missing in call(eval_epic, *options, ok=False)
    call(eval_epic, *options, '--allow-missing')
    expected = second_opinion(ROWS[:29], VERB[:29], NOUN[:29]).recognition
    found = json.loads(Path('out.json').read_text())
    assert found == pytest.approx(expected, abs=1e-9)
