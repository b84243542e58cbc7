"""tools/check_gpu.py, and the tests marked gpu, where there is no GPU."""

import os
import subprocess
import sys

import check_gpu
import pytest
import torch
from fork_server import python
from small_models import backbone_cfg
from small_runs import runner_of

from memvit_mm.benchmark.gpu import Row, goals_of, plan, profile_run, ratios_of
from memvit_mm.benchmark.measure import Case, measure_here, prepare
from memvit_mm.engine.launch import build_runner
from memvit_mm.paths import get_config_path

# Unlike -m pytest, this leaves the checkout out of sys.path (tools/run_tests.sh).
PYTEST = """
import sys

sys.path = [path for path in sys.path if path]
import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope='module')
def report(checkout, tmp_path_factory):
    """What the tests that take little time on a CPU give there."""
    path = tmp_path_factory.mktemp('gpu') / 'tests.xml'
    command = [python(), '-c', PYTEST, 'tests/gpu', '--device', 'cpu', '-q']
    command += [
        '-m',
        'gpu and not long',
        f'--junitxml={path}',
        '-p',
        'no:cacheprovider',
    ]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return check_gpu.read_report(path)


def test_tests_of_the_gpu_pass_on_a_cpu(report):
    assert report['passed'] > 20 and report['failed'] == []
    assert all('only CUDA' in s or 'RoIAlign' in s for s in report['skipped'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['check_gpu.py'])
    with pytest.raises(ValueError, match='finds no GPU here: use --device cpu'):
        check_gpu.main()
    monkeypatch.setattr(sys, 'argv', ['check_gpu.py', '--out', 'missing/a.json'])
    with pytest.raises(SystemExit):
        check_gpu.main()
    assert 'there is no folder' in capsys.readouterr().err


def test_what_is_compared_and_its_goals():
    for row in (*plan('cuda'), *plan('cpu')):
        assert os.path.isfile(get_config_path(row.config))
    names = [row.name for row in plan('cuda')]
    assert names[:2] == [f'memvit_ava, training, batch {batch}' for batch in (8, 16)]
    figures = dict(
        ours=dict(clips_per_second=3.0, seconds=1.1, peak_bytes=60),
        theirs=dict(clips_per_second=1.0, seconds=3.0, peak_bytes=100),
        **{'no memory': dict(clips_per_second=3.3, seconds=1.0, peak_bytes=50)},
    )
    row = dict(figures, ratios=ratios_of(figures))
    met = {goal['name']: goal['met'] for goal in goals_of({'a': row})}
    assert met == {
        'a: speed': True,
        'a: peak memory': False,
        'a: memory on / off': False,
    }


def test_cases_take_turns_in_one_process():
    cases = [
        Case(name, backbone_cfg(memory_layers=layers), training=True, dtype='bfloat16')
        for name, layers in (('with', (0,)), ('without', ()))
    ]
    results = measure_here(cases, repeats=2)
    assert [len(result.seconds) for result in results] == [2, 2]
    found = profile_run(prepare(cases[0]), 'cpu')
    assert len(found['kernels']) == 10 and found['launches'] > 100
    assert found['busy'] > 0 and found['kernels'][0]['calls'] > 0


def test_the_table(report):
    one = dict(clips_per_second=2.0, seconds=0.5, peak_bytes=2**20)
    row = dict(ours=dict(one, tflops=1.0, share=0.1), theirs=one)
    profile = dict(kernels=[dict(name='gemm', seconds=0.1, calls=3)], row='a')
    found = dict(
        environment=dict(device='H100', gpus=0),
        parts=['tests', 'bench', 'step'],
        tests=dict(report, took=1.0),
        bench=dict(
            card=dict(tflops=700.0, copy_gb_s=3000.0),
            rows={
                Row('a', 'training', 8).name: dict(row, ratios=ratios_of(row)),
                'b': dict(error='left out: 100 s are over'),
                'c': dict(row, theirs=dict(error='out of memory'), ratios={}),
            },
            profile=dict(ours=dict(profile, launches=3, busy=0.1, seconds=0.2)),
            took=2.0,
        ),
        step=dict(error='stopped after 65 s', took=65.0),
    )
    found['bench']['goals'] = goals_of(found['bench']['rows'])
    lines = check_gpu.table(found).splitlines()
    text = '\n'.join(lines)
    assert lines[1] == 'device H100'
    for words in (
        f'tests: {report["passed"]} passed, 0 failed',
        'card: 700 TFLOP/s in a bfloat16 product, 3000 GB/s in a copy',
        'b' + ' ' * 49 + 'left out: 100 s are over',
        'out of memory',
        '3 launches, 100.0 ms of kernels',
        '   1.00   >= 2.0  MISSED',
        'step: NOT COMPLETE, stopped after 65 s',
    ):
        assert words in text, text
    assert lines[-1] == 'took: tests 1 s, bench 2 s, step 65 s'


def test_deterministic_runs_may_use_cublas(monkeypatch, tmp_path):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    cfg = runner_of(tmp_path, dict(type='EpochBasedTrainLoop', max_epochs=1)).cfg
    cfg.merge_from_dict(dict(launcher='none', experiment_name='deterministic'))
    assert 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    cfg.randomness.deterministic = True
    try:
        build_runner(cfg)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
