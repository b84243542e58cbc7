"""Trainings by tools/train.py on the device: deterministic, killed, on two GPUs."""

import re
from pathlib import Path

import pytest
import torch
from test_configs import demo, demo_options, metrics_of, run  # noqa: F401 (a fixture)
from test_resume import (  # noqa: F401 (fixtures: data, training)
    VIT,
    checkpointed,
    data,
    finish,
    killed,
    log_of,
    losses,
    training,
    weights,
)

from memvit_mm.paths import get_config_path, get_tool_path

pytestmark = [pytest.mark.gpu, pytest.mark.long]
DETERMINISTIC = ('--deterministic', '--amp')


@pytest.fixture(autouse=True)
def where(device, monkeypatch):
    """The processes of a test see the device of the tests alone."""
    if device.type == 'cpu':
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')


def need_two(device) -> None:
    if device.type == 'cuda' and torch.cuda.device_count() < 2:
        pytest.skip('needs two GPUs')


def same(one: Path, other: Path, processes: int = 1) -> None:
    """Two trainings had the same losses and weights, bit for bit."""
    for rank in range(processes):
        assert losses(one, rank) == losses(other, rank)
        assert len(losses(one, rank)) > 10
    expected = weights(one)
    for name, tensor in weights(other).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize('options', [dict(), dict(backbone=VIT)], ids=['MeMViT', 'ViT'])
def test_deterministic_twice_and_killed(training, options):  # noqa: F811
    whole = finish(training('whole', *DETERMINISTIC, **options))
    if not options:
        same(whole, finish(training('again', *DETERMINISTIC, **options)))
    broken = killed(training('broken', *DETERMINISTIC, kill_after=7, **options))
    first = checkpointed(broken)
    finish(training('broken', '--resume', *DETERMINISTIC, **options))
    assert f'resumed epoch: 0, iter: {first}' in log_of(broken)
    assert re.search(r'The memory of \d+ streams is in the checkpoint', log_of(broken))
    same(whole, broken)


def test_two_processes_killed(training, device):  # noqa: F811
    need_two(device)
    options = dict(processes=2)
    whole = finish(training('whole', *DETERMINISTIC, **options))
    killed(training('broken', *DETERMINISTIC, kill_after=7, **options))
    broken = finish(training('broken', '--resume', *DETERMINISTIC, **options))
    same(whole, broken, processes=2)


def test_two_processes_train_and_test_as_one(demo, tmp_path, device):  # noqa: F811
    need_two(device)
    config = get_config_path('memvit_demo.py')
    tools = Path(get_tool_path('train.py')).parent
    # So that predictions do not depend on what else is in a batch.
    options = [*demo_options(demo), 'model.test_cfg.one_by_one=True']
    train = ('bash', str(tools / 'dist_train.sh'), config, '2')
    work = tmp_path / 'work'
    run(*train, '--work-dir', str(work), *options, cwd=tmp_path, PORT='29641')
    checkpoint = (work / 'last_checkpoint').read_text()
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        command = ('bash', str(tools / 'dist_test.sh'), config, checkpoint, str(number))
        folders = ('--work-dir', str(folder))
        run(*command, *folders, *options, cwd=tmp_path, PORT='29642')
        found.append(metrics_of(folder))
    assert found[0] and found[0] == pytest.approx(found[1], abs=1e-6)
