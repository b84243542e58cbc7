"""A training that is killed goes on as if it had not been: real processes, SIGKILL."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from fork_server import python

from memvit_mm.demo.ava import DemoSettings, make_demo_dataset

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
CONFIG = """
_base_ = {demo!r}
custom_imports = dict(imports=['memvit_mm', 'recorder'])
model = dict(backbone={backbone})
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader = dict(
    batch_size={batch_size}, num_workers={workers}, persistent_workers={workers} > 0,
    # 8 clips of each video: with 4 videos 16 steps of 2 are an epoch.
    dataset=dict(keyframe_range=(902, 909)))
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=2,
         convert_to_iter_based=True, eta_min=1e-5),
]
optim_wrapper = dict(accumulative_counts={accumulate})
default_hooks = dict(
    checkpoint=dict(
        _delete_=True, type='MemoryCheckpointHook', by_epoch=False, interval=5,
        max_keep_ckpts=1, save_memory={save_memory}),
    logger=dict(interval=1),
)
custom_hooks = [
    dict(type='MemoryResetHook'),
    dict(type='EMAHook', momentum=0.01),
    dict(type='Recorder'),
]
randomness = dict(seed=3)
"""
MEMVIT = dict(drop_path_rate=0.3, arch=dict(num_layers=2))
VIT = dict(
    _delete_=True,
    type='MemoryViT',
    img_size=48,
    patch_size=8,
    embed_dims=48,
    depth=3,
    num_heads=2,
    num_frames=8,
    use_mean_pooling=False,
    return_feat_map=True,
    drop_path_rate=0.3,
    memory_levels=[
        dict(type='kmeans', ages=(1, 2), tokens=16),
        dict(type='pool', ages=(3, 4), tokens=4),
    ],
)
RECORDER = """
import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook

from mmaction.registry import HOOKS


@HOOKS.register_module()
class Recorder(Hook):
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint):
        # The worst moment: all is written, nothing is in its place yet.
        if runner.iter + 1 == int(os.environ.get('KILL_IN_SAVING_AT', 0)):
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)

    def before_train(self, runner):
        self.file = open(f'{runner.work_dir}/losses_{get_rank()}.txt', 'a')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        clips = [f'{s.video_id}@{s.timestamp}' for s in data_batch['data_samples']]
        lr = runner.optim_wrapper.get_lr()['lr'][0]
        line = f'{batch_idx} {float(outputs["loss"]).hex()} {lr.hex()}'
        self.file.write(f'{runner.iter + 1} {line} {" ".join(clips)}\\n')
        self.file.flush()
        os.fsync(self.file.fileno())
        if runner.iter + 1 == int(os.environ.get('KILL_AFTER', 0)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('resume')
    settings = DemoSettings(num_train=4, num_val=1, seconds=17, size=64, people=1)
    make_demo_dataset(folder / 'data' / 'memvit_demo', settings, workers=1)
    return folder


@pytest.fixture
def training(tmp_path, data, checkout):
    """Start a training of the demo; returns its process and work directory."""

    def start(
        name,
        *options,
        processes=1,
        batch_size=2,
        workers=0,
        accumulate=1,
        save_memory=True,
        kill_after=0,
        kill_in_saving_at=0,
        backbone=MEMVIT,
    ):
        (tmp_path / 'recorder.py').write_text(RECORDER)
        config = tmp_path / f'{name}.py'
        text = CONFIG.format(
            demo=str(checkout / 'configs' / 'memvit_demo.py'),
            workers=workers,
            batch_size=batch_size,
            accumulate=accumulate,
            save_memory=save_memory,
            backbone=backbone,
        )
        config.write_text(text)
        work_dir = tmp_path / name
        command = [python()]
        if processes > 1:
            command += ['-m', 'torch.distributed.run', '--master-port', free_port()]
            command += ['--nproc-per-node', str(processes)]
        command += [str(TOOLS / 'train.py'), str(config), '--work-dir', str(work_dir)]
        command += ['--launcher', 'pytorch'] if processes > 1 else []
        log = open(  # noqa: SIM115 (the process writes into it)
            tmp_path / f'{name}.log', 'a'
        )
        process = subprocess.Popen(
            [*command, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=data,
            env={
                **os.environ,
                'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}',
                'OMP_NUM_THREADS': '1',
                'KILL_AFTER': str(kill_after),
                'KILL_IN_SAVING_AT': str(kill_in_saving_at),
            },
        )
        return process, work_dir

    return start


def free_port() -> str:
    import socket

    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return str(sock.getsockname()[1])


def finish(started) -> Path:
    process, work_dir = started
    assert process.wait(timeout=300) == 0, log_of(work_dir)[-3000:]
    return work_dir


def log_of(work_dir: Path) -> str:
    return work_dir.with_suffix('.log').read_text()


def killed(started) -> Path:
    """Every process of a training has got SIGKILL; torchrun ends by itself then."""
    process, work_dir = started
    assert process.wait(timeout=300) in (-signal.SIGKILL, 1)
    log = log_of(work_dir)
    # Those of torchrun, one of which is that a process is gone already.
    for own in ('ChildFailedError', 'ProcessLookupError'):
        log = log.replace(own, '')
    assert 'Error' not in log
    return work_dir


def losses(work_dir: Path, rank: int = 0) -> dict[int, str]:
    """What happened at each iteration, by its number; the last time it happened."""
    path = work_dir / f'losses_{rank}.txt'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    pairs = (line.rstrip().split(' ', 1) for line in lines if line.endswith('\n'))
    return {int(iteration): what for iteration, what in pairs}


def weights(work_dir: Path) -> dict:
    path = (work_dir / 'last_checkpoint').read_text()
    checkpoint = torch.load(path, map_location='cpu', weights_only=False)
    return {**checkpoint['state_dict'], **checkpoint['ema_state_dict']}


@pytest.mark.parametrize(
    'options, amp',
    [
        (dict(workers=2, accumulate=3), ['--amp']),
        # Of half as many steps, for the state of its scaler.
        (
            dict(),
            [
                *('--amp', '--cfg-options', 'optim_wrapper.dtype=float16'),
                'train_dataloader.dataset.keyframe_range=(902,905)',
            ],
        ),
        # DistributedDataParallel stops where a parameter gets no gradient.
        (dict(processes=2, backbone=VIT), []),
    ],
    ids=['bfloat16, accumulated, 2 workers', 'float16', 'float32, 2 processes, ViT'],
)
def test_a_killed_run_goes_on_bit_for_bit(training, options, amp):
    whole = finish(training('whole', *amp, **options))
    steps = len(losses(whole)) // 2  # two epochs
    broken = killed(training('broken', *amp, kill_after=7, **options))
    first = checkpointed(broken)
    assert 5 <= first < steps
    if 'workers' in options:  # once more, in the second epoch
        again = dict(options, kill_after=steps + 7)
        killed(training('broken', '--resume', *amp, **again))
        second = checkpointed(broken)
        assert second > first
    finish(training('broken', '--resume', *amp, **options))
    for rank in range(options.get('processes', 1)):
        assert losses(broken, rank) == losses(whole, rank)
        assert list(losses(whole, rank)) == list(range(1, 2 * steps + 1))
    expected = weights(whole)
    for name, tensor in weights(broken).items():
        assert torch.equal(tensor, expected[name]), name
    assert re.search(r'The memory of \d+ streams is in the checkpoint', log_of(broken))
    assert f'resumed epoch: 0, iter: {first}' in log_of(broken)
    if 'workers' in options:
        assert f'resumed epoch: 1, iter: {second}' in log_of(broken)


def test_killed_in_saving_the_checkpoint_before_is_whole(training):
    process, work_dir = training('broken', save_memory=False, kill_in_saving_at=10)
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert checkpointed(work_dir) == 5
    assert list(work_dir.glob('.iter_10.pth.*.partial'))
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['iter_5.pth']
    finish(training('broken', '--resume', save_memory=False))
    assert 'resumed epoch: 0, iter: 5' in log_of(work_dir)
    # and only now it went
    assert not (work_dir / 'iter_5.pth').exists()
    assert not list(work_dir.glob('.*.partial'))
    # Without memory in the checkpoint, streams started empty, and nothing else changed.
    assert 'The checkpoint has no memory (save_memory=False)' in log_of(work_dir)
    clips = [what.split(' ')[3:] for what in losses(work_dir).values()]
    half = len(clips) // 2
    for epoch in (clips[:half], clips[half:]):
        played = [clip for batch in epoch for clip in batch]
        assert len(set(played)) == len(played)  # each once


def checkpointed(work_dir: Path) -> int:
    """The iteration of the last checkpoint."""
    return int(re.search(r'iter_(\d+)', (work_dir / 'last_checkpoint').read_text())[1])


def test_on_another_number_of_processes_the_rest_is_dealt_anew(training):
    two = killed(training('broken', kill_after=7, processes=2))
    before = [losses(two, rank) for rank in range(2)]
    done = checkpointed(two)
    played = [
        clip
        for rank in before
        for iteration in range(1, done + 1)
        for clip in rank[iteration].split(' ')[3:]
    ]
    for rank in range(2):
        (two / f'losses_{rank}.txt').unlink()
    finish(training('broken', '--resume', processes=1))
    assert 'The checkpoint was written with 4 lanes (2 processes), this run has 2' in (
        log_of(two)
    )
    after = losses(two)
    batch_idx = [int(what.split(' ')[0]) for what in after.values()]
    steps = max(batch_idx) + 1
    # Two steps of one process are as far as one step of two.
    assert list(after)[-1] == 2 * steps
    rest = batch_idx.index(steps - 1) + 1
    assert batch_idx == [*range(steps - rest, steps), *range(steps)]
    left = [c for what in list(after.values())[:rest] for c in what.split(' ')[3:]]
    assert len(set(played + left)) == len(played + left)
    assert len(played + left) >= 2 * steps - 1  # one may not fill a step of two lanes
    # The schedule reaches its end with the last step, as in a run of one process.
    lr = [float.fromhex(what.split(' ')[2]) for what in after.values()]
    assert lr[-1] == pytest.approx(1e-5, rel=0.6) and min(lr) == lr[-1]


def test_as_many_lanes_on_other_processes_go_on_where_they_were(training):
    """Two processes of one row each are one process of two rows."""
    two = killed(training('broken', kill_after=7, processes=2, batch_size=1))
    before = [losses(two, rank) for rank in range(2)]
    killed(training('broken', '--resume', kill_after=9, batch_size=2))
    assert 'start with an empty' not in log_of(two)
    for iteration in range(checkpointed(two) + 1, 8):
        clips = [rank[iteration].split(' ')[3] for rank in before if iteration in rank]
        assert losses(two)[iteration].split(' ')[3:][: len(clips)] == clips
