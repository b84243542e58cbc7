"""Several machines: two launches on this one give what one launch gives.

Slurm cannot be run here: what the scripts ask of `srun` is looked at, no more.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import tool_runs
import torch
from fork_server import python
from mmengine.config import Config

from memvit_mm.demo.ava import DemoSettings, make_demo_dataset
from memvit_mm.engine.launch import use_cpu
from memvit_mm.paths import get_config_path

TOOLS = Path(__file__).resolve().parents[1] / 'tools'

SETTINGS = DemoSettings(num_train=3, num_val=3, seconds=17, size=64, people=1)
OPTIONS = (
    *('--cfg-options', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1'),
    'train_dataloader.batch_size=2',
    # 8 clips of each video.
    *(
        f'{part}_dataloader.dataset.keyframe_range=(902,909)'
        for part in ('train', 'test')
    ),
    'test_dataloader.batch_size=1',
    *(f'{part}_dataloader.num_workers=0' for part in ('train', 'test')),
    *(f'{part}_dataloader.persistent_workers=False' for part in ('train', 'test')),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two machines' disks, with the demo's data, smaller."""
    if torch.cuda.is_available():
        pytest.skip('on GPUs two launches would share one')
    folder = tmp_path_factory.mktemp('nodes')
    make_demo_dataset(folder / 'data' / 'memvit_demo', SETTINGS, workers=1)
    for rank in range(2):
        disk(folder, rank).mkdir()
        (disk(folder, rank) / 'data').symlink_to(folder / 'data')
    return folder


def disk(folder: Path, rank: int = 0) -> Path:
    """Where a machine is, since it may share nothing with the others."""
    return folder / f'machine{rank}'


def launch(script: str, folder: Path, nodes: int, gpus: int, *arguments) -> None:
    """Run a script on every "node" at the same time, and wait for all."""
    port = str(tool_runs.free_port())
    place = 1 if script == 'dist_train.sh' else 2
    command = [*arguments[:place], gpus, *arguments[place:]]
    started = []
    for rank in range(nodes):
        output = folder / f'{script}-{nodes}-{rank}.txt'
        with open(output, 'w') as file:
            process = subprocess.Popen(
                list(map(str, ('bash', TOOLS / script, *command))),
                cwd=disk(folder, rank),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=tool_runs.environment(
                    PYTHON=python(),
                    NNODES=str(nodes),
                    NODE_RANK=str(rank),
                    MASTER_ADDR='127.0.0.1',
                    PORT=port,
                ),
            )
        started.append((process, output))
    for process, output in started:
        assert process.wait(timeout=300) == 0, output.read_text()[-3000:]


def train(folder: Path, work_dir: str, nodes: int, gpus: int) -> tuple[list, dict]:
    """The losses step by step, and the weights in the end."""
    config = get_config_path('memvit_demo.py')
    arguments = ('--no-validate', '--work-dir', work_dir, *OPTIONS)
    launch('dist_train.sh', folder, nodes, gpus, config, *arguments)
    (log,) = (disk(folder) / work_dir).glob('*/vis_data/scalars.json')
    lines = map(json.loads, log.read_text().splitlines())
    checkpoint = torch.load(disk(folder) / work_dir / 'epoch_1.pth', weights_only=False)
    return [line['loss'] for line in lines], checkpoint['state_dict']


def predict(folder: Path, work_dir: str, nodes: int) -> tool_runs.Result:
    """The predictions of the checkpoint that one node trained."""
    dump = folder / f'{work_dir}.pkl'
    arguments = (
        *(get_config_path('memvit_demo.py'), disk(folder) / 'one' / 'epoch_1.pth'),
        *('--work-dir', work_dir, '--dump', dump, *OPTIONS),
        'test_evaluator.collect_device=gpu',  # for machines without a shared folder
    )
    if nodes == 1:
        command = [python(), TOOLS / 'test.py', *arguments]
        subprocess.run(list(map(str, command)), cwd=disk(folder), check=True)
    else:
        launch('dist_test.sh', folder, nodes, 1, *arguments)
    (metrics,) = (disk(folder) / work_dir).glob('*/*.json')
    return tool_runs.read_result(dump, json.loads(metrics.read_text()))


def test_two_nodes_train_and_test_as_one(folder):
    losses, weights = train(folder, 'one', nodes=1, gpus=2)
    other_losses, other_weights = train(folder, 'two', nodes=2, gpus=1)
    assert len(losses) > 5 and losses == other_losses
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)

    one = predict(folder, 'one_tested', nodes=1)
    two = predict(folder, 'two_tested', nodes=2)
    row = tool_runs.compare(two, one, one, size=sum(one.samples.values()))
    assert row['ok'] and row['samples'] > 20, row


LEAVE = """
import atexit, threading, time

from memvit_mm.engine.launch import leave_process_group
from torch import distributed

store = distributed.HashStore()
distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
atexit.register(print, 'at exit')
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
print('work')
leave_process_group()
print('never')
"""


def test_a_finished_run_ends_well():
    done = subprocess.run([python(), '-c', LEAVE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split('\n') == ['work', 'thread', 'at exit', '']


class TestArguments:
    def run(self, tmp_path, script, *arguments, **variables):
        """What the script ends in, one word a line."""
        for name in ('python', 'srun'):
            stand_in = tmp_path / name
            stand_in.write_text(
                '#!/bin/sh\nprintf "%s\\n" "$@" "MASTER_PORT=$MASTER_PORT"\n'
            )
            stand_in.chmod(0o755)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ('PYTHON', 'PORT', 'MASTER_PORT', 'MASTER_ADDR')
        }
        path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        return subprocess.run(
            list(map(str, ('bash', TOOLS / script, *arguments))),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, 'PATH': path, **variables},
        )

    def test_one_machine_by_default(self, tmp_path):
        done = self.run(tmp_path, 'dist_train.sh', 'a.py', 4, '--amp')
        words = done.stdout.splitlines()
        assert words[:2] == ['-m', 'torch.distributed.run']
        assert words[2:7] == [
            '--nnodes=1',
            '--node-rank=0',
            '--master-addr=127.0.0.1',
            '--master-port=29500',
            '--nproc-per-node=4',
        ]
        assert words[8:-1] == ['a.py', '--launcher', 'pytorch', '--amp']

    def test_words_stay_whole(self, tmp_path):
        words = ('--cfg-options', 'a="[(1, 2), 3]"', 'b=a b')
        for script, *target in (
            ('dist_train.sh', 'my config.py', 1),
            ('dist_test.sh', 'my config.py', 'best *.pth', 1),
        ):
            done = self.run(tmp_path, script, *target, *words)
            shown = done.stdout.splitlines()
            assert shown[-4:-1] == list(words) and target[-2] in shown

    def test_several_machines(self, tmp_path):
        done = self.run(
            *(tmp_path, 'dist_test.sh', 'a.py', 'a.pth', 8),
            **dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='first', PORT='29501'),
        )
        for word in ('nnodes=3', 'node-rank=2', 'master-addr=first', 'port=29501'):
            assert f'{word}\n' in done.stdout
        assert done.stderr == ''
        done = self.run(tmp_path, 'dist_test.sh', 'a.py', 'a.pth', 8, NNODES='3')
        assert 'NNODES=3 without MASTER_ADDR' in done.stderr

    @pytest.mark.parametrize('gpus', ['--amp', '0', 'a.pth', ''])
    def test_no_number_of_gpus(self, tmp_path, gpus):
        for script, *target in (
            ('dist_train.sh', 'a.py'),
            ('dist_test.sh', 'a.py', 'a.pth'),
        ):
            done = self.run(tmp_path, script, *target, gpus)
            assert done.returncode == 2 and done.stdout == ''
            assert done.stderr.startswith(f"Error: GPUS is '{gpus}', expected a number")
            assert ' 8.' in done.stderr

    @pytest.mark.parametrize('kind', ['train', 'test'])
    def test_slurm(self, tmp_path, kind):
        target = ['my config.py', 'a.pth'][: 2 if kind == 'test' else 1]
        options = ('--work-dir', 'b c')
        arguments = (tmp_path, f'slurm_{kind}.sh', 'part', 'job', *target, *options)
        done = self.run(*arguments)
        words = done.stdout.splitlines()
        assert words[:7] == [
            '--partition=part',
            '--job-name=job',
            '--gres=gpu:8',
            '--ntasks=8',
            '--ntasks-per-node=8',
            '--cpus-per-task=5',
            '--kill-on-bad-exit=1',
        ]
        assert words[7:9] == ['python', '-u']
        assert Path(words[9]) == TOOLS / f'{kind}.py'
        assert words[10:-1] == [*target, *options, '--launcher', 'slurm']
        assert 12000 <= int(words[-1].split('=')[1]) < 32000

        done = self.run(
            *arguments,
            **dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='12'),
            **dict(SRUN_ARGS='--time 1:00 --exclusive', MASTER_PORT='29999'),
        )
        words = done.stdout.splitlines()
        assert words[2:6] == [
            '--gres=gpu:4',
            '--ntasks=16',
            '--ntasks-per-node=4',
            '--cpus-per-task=12',
        ]
        assert words[7:10] == ['--time', '1:00', '--exclusive']
        assert words[-1] == 'MASTER_PORT=29999'

    @pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
    def test_slurm_needs_gpus(self):
        with pytest.raises(ValueError, match='--launcher slurm needs GPUs, and there'):
            use_cpu(Config(dict(launcher='slurm')))
