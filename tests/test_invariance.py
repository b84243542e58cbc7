"""Testing gives the same on 1 and 2 processes, whatever the batch size and workers.

`tests/reference/check_invariance.py` runs the same on 4 processes and a larger set,
every run by the command lines; here most of them share their processes.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import check_invariance
import made_set
import numpy as np
import pytest
import tool_runs
import torch
from fork_server import python

TOOLS = Path(__file__).resolve().parents[1] / 'tools'

# More videos than the lanes of some runs, fewer than those of others.
LENGTHS = (1, 5, 2, 4, 1, 3, 2)
# Batch sizes and workers by model.
RUNS = {
    'detector': [(1, 0), (2, 2), (5, 0)],
    'recognizer': [(1, 0), (2, 0), (5, 2)],
    'vit': [(1, 0), (5, 0)],
}
MODELS = tuple(RUNS)

# Started once per process; runs many tests, as tools/test.py runs one.
MANY = """
import json
import sys
from pathlib import Path

sys.path.insert(0, {tools!r})
from _common import import_package

import_package()
from mmengine.config import Config
from mmengine.dist import get_world_size

from memvit_mm.engine.launch import build_runner, leave_process_group

folder, launcher = Path({folder!r}), sys.argv[1]
for name, batch, workers, cleared in json.loads(sys.argv[2]):
    cfg = Config.fromfile(folder / f'{{name}}.py')
    cfg.launcher, cfg.load_from = launcher, str(folder / f'{{name}}.pth')
    cfg.test_dataloader.update(batch_size=batch, num_workers=workers)
    cfg.custom_hooks[0].every_clip = cleared
    world = 2 if launcher == 'pytorch' else 1
    out = folder / f'{{name}}_{{world}}x{{batch}}w{{workers}}_{{cleared}}'
    cfg.work_dir = cfg.experiment_name = str(out)
    cfg.default_hooks.logger.log_metric_by_epoch = False
    dump = dict(type='DumpResults', out_file_path=str(out) + '.pkl')
    cfg.test_evaluator = [cfg.test_evaluator, dump]
    metrics = build_runner(cfg).test()
    assert get_world_size() == world
    Path(str(out) + '.json').write_text(json.dumps(metrics))
leave_process_group()
"""


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """The results of all runs, by model, world size, batch size, workers, cleared."""
    if torch.cuda.is_available():
        pytest.skip('the same bits in any batch are the default on CPUs alone')
    folder = tmp_path_factory.mktemp('made')
    made_set.write_set(folder, LENGTHS)
    made_set.write_detector(folder)
    made_set.write_recognizer(folder)
    made_set.write_vit(folder)
    script = folder / 'many.py'
    script.write_text(MANY.format(tools=str(TOOLS), folder=str(folder)))
    runs = [(n, b, w, False) for n in MODELS for b, w in RUNS[n]]
    alone = [*runs, *((name, 2, 0, True) for name in MODELS)]
    torchrun = ('-m', 'torch.distributed.run', '--nproc-per-node=2')
    started = [
        subprocess.Popen(
            [python(), *command, str(script), launcher, json.dumps(wanted)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=tool_runs.environment(),
        )
        for command, launcher, wanted in (
            ((), 'none', alone),
            ((*torchrun, f'--master-port={tool_runs.free_port()}'), 'pytorch', runs),
        )
    ]
    for process in started:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]
    found = {}
    for world, wanted in ((1, alone), (2, runs)):
        for name, batch, workers, cleared in wanted:
            out = str(folder / f'{name}_{world}x{batch}w{workers}_{cleared}')
            metrics = json.loads(Path(out + '.json').read_text())
            result = tool_runs.read_result(Path(out + '.pkl'), metrics)
            found[name, world, batch, workers, cleared] = result
    return found


@pytest.mark.parametrize('world', [1, 2])
@pytest.mark.parametrize('name', MODELS)
def test_every_run_gives_the_same(results, name, world):
    expected = Counter(
        (number, float(second))
        for number, length in enumerate(LENGTHS)
        for second in range(length)
    )
    first = results[name, 1, 1, 0, False]
    for batch, workers in RUNS[name]:
        result = results[name, world, batch, workers, False]
        assert expected == Counter(
            {(int(video[-1]), t): n for (video, t), n in result.samples.items()}
        )
        # Not only for equal batch size: each sample ran by itself.
        row = tool_runs.compare(result, first, first, size=sum(LENGTHS))
        assert row['ok'] and row['score_diff'] == 0, (batch, workers, row)
    # Frames of all sizes, and with nobody and several people in them, came through.
    if name == 'detector':
        people = {len(p['pred_instances.bboxes']) for p in first.predictions.values()}
        assert people == {0, 1, 2, 3}


@pytest.mark.parametrize('name', MODELS)
def test_memory_counts_in_it(results, name):
    first, cleared = results[name, 1, 1, 0, False], results[name, 1, 2, 0, True]
    row = tool_runs.compare(cleared, first, first, size=sum(LENGTHS))
    assert not row['ok'] and row['score_diff'] > 1e-3


def check(monkeypatch, *options) -> int:
    monkeypatch.setenv('PYTHON', python())
    monkeypatch.setattr(sys, 'argv', ['check_invariance.py', *map(str, options)])
    with pytest.raises(SystemExit) as exit:
        check_invariance.main()
    return exit.value.code


class TestCommand:
    @pytest.mark.skipif(torch.cuda.is_available(), reason='as above')
    def test_a_table(self, tmp_path, monkeypatch, capsys):
        file = tmp_path / 'table.json'
        monkeypatch.chdir(tmp_path)
        options = ('--only', 'recognizer', '--lengths', 1, 3, 2, '--world-size', 1, 2)
        options += ('--batch-size', 2, '--workers', 0, '--json', file)
        assert check(monkeypatch, *options, '--out', tmp_path / 'kept') == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ['model', 'world', 'batch']
        assert lines[1].split()[:5] == ['recognizer', '1', '2', '0', '2']
        assert '6 clips, 3 videos of 1 to 3 clips' in lines[3]
        assert lines[-1].startswith('2 of 2 runs agree')
        assert [row['lanes'] for row in json.loads(file.read_text())] == [2, 4]
        assert len(list((tmp_path / 'kept' / 'recognizer').glob('*/output.txt'))) == 2

    @pytest.mark.parametrize(
        'options, sentence',
        [
            (['a.py'], 'Name a checkpoint after the config'),
            (
                ['a.py', 'a.pth', '--lengths', 3],
                '--lengths and --only are for the made',
            ),
            (['a.py', 'a.pth'], 'There is no config file a.py'),
            (['--batch-size', 0], '--batch-size 0 must be at least 1'),
            (['--workers', -1], '--workers -1 must be at least 0'),
        ],
    )
    def test_wrong_options(self, tmp_path, monkeypatch, options, sentence):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['', *map(str, options)])
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            check_invariance.main()

    def test_nothing_to_test(self, tmp_path):
        config = tmp_path / 'a.py'
        config.write_text('model = dict()\n')
        with pytest.raises(ValueError, match='has no test_dataloader'):
            check_invariance.prepare(config, None, tmp_path)

    def test_a_run_that_fails(self, tmp_path):
        sentence = 'world size 1, batch size 2 and 0 workers failed, see .*output.txt'
        with pytest.raises(ValueError, match=sentence + '. Error: There is no config'):
            tool_runs.test_run(tmp_path / 'a.py', tmp_path / 'a.pth', tmp_path, batch=2)


class TestCompare:
    def result(self, scores: dict, metric: float = 0.5, twice: tuple = ()):
        samples = [('a', float(t)) for t in (*scores, *twice)]
        predictions = {
            ('a', float(t)): {'score': np.float32(value)} for t, value in scores.items()
        }
        return tool_runs.Result(Counter(samples), predictions, dict(top1=metric))

    def row(self, *args, **kwargs):
        first = self.result({0: [0.1, 0.9], 1: [0.2, 0.8], 2: [0.5, 0.5]})
        return tool_runs.compare(self.result(*args, **kwargs), first, first, size=3)

    def test_the_same(self):
        row = self.row({0: [0.1, 0.9], 1: [0.2, 0.8], 2: [0.5, 0.5]})
        assert row['ok'] and row['same_bits'] and row['lost'] == row['twice'] == 0

    def test_lost_and_twice(self):
        row = self.row({0: [0.1, 0.9], 1: [0.2, 0.8]}, twice=(1,))
        assert (row['samples'], row['lost'], row['twice']) == (3, 1, 1)
        assert not row['ok'] and row['score_diff'] == 0

    @pytest.mark.parametrize(
        'last, score_diff', [([0.5, 0.5000001], 1e-7), ([0.5, float('nan')], 1)]
    )
    def test_other_bits(self, last, score_diff):
        row = self.row({0: [0.1, 0.9], 1: [0.2, 0.8], 2: last})
        assert not row['same_bits'] and not row['ok']
        assert row['score_diff'] > score_diff / 2

    def test_another_metric(self):
        scores = {0: [0.1, 0.9], 1: [0.2, 0.8], 2: [0.5, 0.5]}
        assert not self.row(scores, metric=0.5001)['ok']
        assert not self.row(scores, metric=float('nan'))['ok']

    def test_another_shape(self):
        row = self.row({0: [0.1, 0.9], 1: [0.2, 0.8], 2: [0.5]})
        assert row['score_diff'] == float('inf') and not row['ok']

    def test_a_dump_without_streams(self, tmp_path):
        import pickle

        dump = tmp_path / 'a.pkl'
        dump.write_bytes(pickle.dumps([dict(pred_score=torch.zeros(2))]))
        with pytest.raises(
            ValueError, match="no 'video_id' and 'timestamp'.*meta_keys"
        ):
            tool_runs.read_result(dump, {})


def test_threads_are_the_users(monkeypatch):
    monkeypatch.setitem(os.environ, 'OMP_NUM_THREADS', '3')
    assert tool_runs.environment(PORT='1')['OMP_NUM_THREADS'] == '3'
