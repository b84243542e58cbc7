"""What memory costs: little of a training step, and no more after many clips."""

import os
import subprocess
import sys
from pathlib import Path

import measure_memory
import pytest
import torch
from fork_server import python

from memvit_mm.models.memory.clip_memory import ClipMemory
from memvit_mm.models.memory.step import MemoryStep
from memvit_mm.paths import get_config_path

REFERENCE = Path(__file__).resolve().parent / 'reference'

# The model of configs/memvit_ava.py on clips 25 times smaller. Its steps are that much
# shorter, upkeep less so, being mostly calls: what holds here holds for whole clips.
SMALL = {'model.backbone.spatial_size': 64, 'model.backbone.temporal_size': 8}


def measure(monkeypatch, *options) -> int:
    monkeypatch.setattr(sys, 'argv', ['measure_memory.py', *map(str, options)])
    with pytest.raises(SystemExit) as exit:
        measure_memory.main()
    return exit.value.code


def test_upkeep_is_little_of_a_training_step(monkeypatch, capsys, tmp_path):
    plain = MemoryStep.read, ClipMemory.reset
    options = [f'{name}={value}' for name, value in SMALL.items()]
    code = measure(
        monkeypatch,
        *(get_config_path('memvit_ava.py'), '--batch-size', 1, 2, '--steps', 1),
        *('--json', tmp_path / 'cost.json', '--cfg-options', *options),
    )
    output = capsys.readouterr().out
    assert code == 0 and output.endswith('Upkeep is under 2% of a training step.\n')
    rows = [line.split() for line in output.splitlines()[2:4]]
    assert [row[0] for row in rows] == ['1', '2']
    for row in rows:
        assert all(float(value) > 0 for value in row[1:5])
    assert float(rows[1][5]) == pytest.approx(2 * float(rows[0][5]), abs=0.1)
    assert (tmp_path / 'cost.json').stat().st_size > 100
    assert plain == (MemoryStep.read, ClipMemory.reset)


def test_too_much_upkeep_is_a_failure(monkeypatch, capsys):
    options = [f'{n}={v}' for n, v in measure_memory.FLAT_OPTIONS.items()]
    monkeypatch.setattr(measure_memory, 'SHARE_LIMIT', 1e-6)
    config = get_config_path('memvit_demo.py')
    assert measure(monkeypatch, config, '--steps', 1, '--cfg-options', *options) == 1
    assert 'Upkeep is OVER' in capsys.readouterr().out


def fresh_process(*arguments) -> subprocess.CompletedProcess:
    """In this one, what other tests have freed would hide what grows."""
    return subprocess.run(
        [python(), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )


# Enough to notice a leak by, see test_a_leak_is_noticed. Without them it is 10,000
# clips of 300 streams, which took 38 s.
MANY = '--clips', '1200', '--streams', '60'


def test_flat_over_many_clips_and_streams():
    done = fresh_process(REFERENCE / 'measure_memory.py', '--flat', *MANY)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[-1].startswith('Flat')
    rows = [line.split() for line in lines[1:-1]]
    assert [int(row[0]) for row in rows] == list(range(120, 1201, 120))
    assert int(rows[-1][1]) == 60
    assert {int(row[2]) for row in rows[3:]} == {32}


VIT = """
model = dict(
    type='MemoryRecognizer3D',
    backbone=dict(
        type='MemoryViT', img_size=16, patch_size=8, embed_dims=16, depth=2,
        num_heads=2, num_frames=4,
        memory_levels=[
            dict(type='kmeans', ages=(1, 2), tokens=4),
            dict(type='coreset', ages=(3, 4), tokens=2)]),
    cls_head=dict(type='TimeSformerHead', num_classes=3, in_channels=16),
    data_preprocessor=dict(type='ActionDataPreprocessor', format_shape='NCTHW'),
    test_cfg=dict(one_by_one=False),
    memory=dict(type='ClipMemory'))
"""


def test_flat_with_a_vision_transformer(tmp_path):
    config = tmp_path / 'vit.py'
    config.write_text(VIT)
    options = ('--flat', '--clips', 1000, '--streams', 60, '--max-streams', 16)
    done = fresh_process(REFERENCE / 'measure_memory.py', config, *options)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith('Flat')


LEAK = f"""
import sys

sys.path.insert(0, {str(REFERENCE)!r})
import measure_memory
from memvit_mm.models.memory.step import MemoryStep

kept, commit = [], MemoryStep.commit


def keep_all(self):
    kept.append(self._pasts)
    commit(self)


MemoryStep.commit = keep_all
sys.argv[1:] = ['--flat', *{MANY}]
measure_memory.main()
"""


def test_a_leak_is_noticed():
    done = fresh_process('-c', LEAK)
    assert done.returncode == 1, done.stderr[-2000:]
    assert 'NOT flat' in done.stdout


def test_what_is_flat():
    flat = [dict(kept=kept, memory=9600, ram=500.0) for kept in (20, 32, 32, 32)]
    assert measure_memory.is_flat(flat, 32)
    for change in (dict(kept=33), dict(memory=12800), dict(ram=505.0)):
        assert not measure_memory.is_flat([*flat[:-1], {**flat[-1], **change}], 32)
    # The memory was never full: nothing is shown.
    assert not measure_memory.is_flat(flat, 40)


@pytest.mark.parametrize(
    'options, sentence',
    [
        ([], 'Name a config whose upkeep is to be measured, or --flat'),
        (['a.py'], 'There is no config file a.py'),
        (['--flat', '--streams', 9], '--streams 9 must be more than --max-streams 32'),
        (['--flat', '--max-streams', 8], 'and that at least 16'),
        (['--flat', '--clips', 50], '--clips 50 must be at least'),
        (
            [get_config_path('memvit_ava.py'), '--steps', 0],
            '--steps 0 must be at least 1',
        ),
    ],
)
def test_wrong_options(monkeypatch, options, sentence):
    monkeypatch.setattr(sys, 'argv', ['', *map(str, options)])
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        measure_memory.main()


def test_a_model_without_memory(tmp_path):
    config = tmp_path / 'a.py'
    config.write_text(
        "model = dict(type='Recognizer3D', backbone=dict(type='MeMViT', arch='tiny', "
        'spatial_size=64, memory_layers=()))\n'
    )
    with pytest.raises(ValueError, match='of a Recognizer3D, which has no memory to'):
        measure_memory.build(str(config), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_upkeep_on_a_gpu(monkeypatch):
    config = get_config_path('memvit_ava.py')
    assert measure(monkeypatch, config, '--batch-size', 1, 2, '--steps', 5) == 0
