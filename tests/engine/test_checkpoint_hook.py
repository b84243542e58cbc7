"""MemoryCheckpointHook in this process: loops, boundaries, files. See test_resume.py
for processes that are killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from fork_server import python
from mmengine.fileio import get_file_backend
from small_runs import runner_of
from test_balanced import watched

from memvit_mm.io.whole_file import AtomicLocalBackend, remove_partial

# 24 clips, two rows: 12 iterations are an epoch of the data.
ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=30, val_interval=7)
EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)


def run(folder, train_cfg, checkpoint=(), workers=0, **kwargs):
    kwargs.setdefault(
        'custom_hooks', [dict(type='MemoryResetHook'), dict(type='Watch')]
    )
    runner = runner_of(
        folder,
        train_cfg,
        default_hooks=dict(
            checkpoint=dict(
                dict(
                    type='MemoryCheckpointHook',
                    by_epoch=False,
                    interval=1,
                    save_memory=True,
                ),
                **dict(checkpoint),
            )
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20)
        ],
        **kwargs,
    )
    if workers:
        loader = runner._train_dataloader
        loader.update(num_workers=workers, persistent_workers=True)
    runner.train()
    return runner


def resumed(path, folder, train_cfg, checkpoint=dict(interval=100), **kwargs):
    options = dict(load_from=str(path), resume=True, **kwargs)
    return run(folder, train_cfg, checkpoint, **options)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Uninterrupted runs, with a checkpoint after every iteration and epoch."""
    folder = tmp_path_factory.mktemp('whole')
    runs = dict(
        iterations=run(folder / 'iterations', ITERATIONS),
        epochs=run(folder / 'epochs', EPOCHS),
        by_epoch=run(folder / 'by_epoch', EPOCHS, dict(by_epoch=True)),
    )
    return folder, {name: watched(runner) for name, runner in runs.items()}


@pytest.mark.parametrize('iteration, workers', [(5, 0), (12, 0), (12, 2), (26, 0)])
def test_a_loop_over_iterations_goes_on(whole, tmp_path, iteration, workers):
    folder, seen = whole
    path = folder / 'iterations' / f'iter_{iteration}.pth'
    runner = resumed(path, tmp_path, ITERATIONS, workers=workers)
    assert watched(runner) == seen['iterations'][iteration:]


@pytest.mark.parametrize('iteration', [11, 12, 13])
def test_a_loop_over_epochs_goes_on(whole, tmp_path, iteration):
    folder, seen = whole
    path = folder / 'epochs' / f'iter_{iteration}.pth'
    assert watched(resumed(path, tmp_path, EPOCHS)) == seen['epochs'][iteration:]


def test_a_checkpoint_between_epochs_goes_on(whole, tmp_path):
    folder, seen = whole
    assert seen['by_epoch'] == seen['epochs']  # saving changes nothing
    path = folder / 'by_epoch' / 'epoch_1.pth'
    runner = resumed(path, tmp_path, EPOCHS, checkpoint=dict(by_epoch=True))
    assert watched(runner) == seen['by_epoch'][12:]


def test_a_better_validation_saves_the_memory_of_training(tmp_path):
    """It saves once more while training's memory is set aside."""
    best = dict(save_best='first_class', rule='greater')
    seen = watched(run(tmp_path / 'whole', ITERATIONS, best))
    path = tmp_path / 'whole' / 'iter_7.pth'
    assert list((tmp_path / 'whole').glob('best_*'))
    runner = resumed(path, tmp_path / 'resumed', ITERATIONS, checkpoint=best)
    assert watched(runner) == seen[7:]


def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path):
    by_epoch = dict(by_epoch=True, save_best='first_class', rule='greater')
    whole = run(tmp_path / 'whole', EPOCHS, by_epoch)
    scores = whole.message_hub.get_scalar('val/first_class').data[0]
    # As it was before validation 2, wherever the run then died.
    path = tmp_path / 'whole' / 'epoch_2.pth'
    state = torch.load(path, map_location='cpu', weights_only=False)
    state['run_state']['validation_due'] = True
    torch.save(state, path)
    runner = resumed(path, tmp_path / 'resumed', EPOCHS, checkpoint=by_epoch)
    again = runner.message_hub.get_scalar('val/first_class').data[0]
    assert again[-2:].tolist() == scores[-2:].tolist()
    assert watched(runner) == watched(whole)[24:]


def test_checkpoints_are_read_without_unpickling(whole):
    path = whole[0] / 'epochs' / 'iter_13.pth'
    state = torch.load(path, map_location='cpu', weights_only=False)['run_state']
    again = path.with_suffix('.state')
    torch.save(state, again)
    assert torch.load(again, weights_only=True)['position'] == state['position']
    assert state['position'] == dict(seed=0, num_clips=24, epoch=1, played=[[2, 1]])


def test_early_stopping_goes_on_counting(tmp_path):
    stop = dict(
        type='EarlyStoppingHook',
        monitor='first_class',
        rule='greater',
        min_delta=1e9,
        patience=3,
    )
    hooks = [dict(type='MemoryResetHook'), dict(type='Watch'), stop]
    train_cfg = dict(EPOCHS, max_epochs=9)
    by_epoch = dict(by_epoch=True)
    whole = run(tmp_path / 'whole', train_cfg, by_epoch, custom_hooks=hooks)
    runner = resumed(
        tmp_path / 'whole' / 'epoch_3.pth',
        tmp_path / 'resumed',
        train_cfg,
        checkpoint=by_epoch,
        custom_hooks=hooks,
    )
    # Epoch 3 was saved before it was validated, so that is done first.
    assert whole.epoch == runner.epoch == 4


def stock(folder, train_cfg):
    """A checkpoint of mmengine's own hook after five iterations."""
    runner = runner_of(
        folder,
        train_cfg,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
    )
    runner.train()
    return folder / 'iter_5.pth'


def test_other_checkpoints_begin_the_epoch_again(tmp_path):
    path = stock(tmp_path / 'stock', EPOCHS)
    at_the_end = dict(interval=36)
    runner = resumed(path, tmp_path / 'ours', EPOCHS, at_the_end, log_level='WARNING')
    assert 'The epoch begins again: the checkpoint does not say where' in log_of(runner)
    assert len(watched(runner)) == 36
    assert (tmp_path / 'ours' / 'iter_36.pth').exists()  # and they are counted right


def test_other_checkpoints_of_a_loop_over_iterations_go_on(tmp_path):
    path = stock(tmp_path / 'stock', ITERATIONS)
    first = resumed(path, tmp_path / 'first', ITERATIONS, dict(interval=13))
    assert len(watched(first)) == 25
    second = resumed(tmp_path / 'first' / 'iter_13.pth', tmp_path, ITERATIONS)
    assert watched(second) == watched(first)[8:]


def test_another_dataset_begins_the_epoch_again(whole, tmp_path):
    path = whole[0] / 'epochs' / 'iter_13.pth'
    state = torch.load(path, map_location='cpu', weights_only=False)
    state['run_state']['position']['num_clips'] = 25
    torch.save(state, tmp_path / 'other.pth')
    options = dict(checkpoint=dict(interval=36), log_level='WARNING')
    runner = resumed(tmp_path / 'other.pth', tmp_path, EPOCHS, **options)
    assert 'the dataset has 24 clips, and had 25' in log_of(runner)
    assert len(watched(runner)) == 24
    assert (tmp_path / 'iter_36.pth').exists()


def log_of(runner) -> str:
    return ''.join(path.read_text() for path in Path(runner.work_dir).rglob('*.log'))


def test_the_previous_best_goes_when_the_new_one_is_there(tmp_path):
    runner = run(
        tmp_path,
        EPOCHS,
        dict(by_epoch=True, max_keep_ckpts=2, save_best='first_class', rule='greater'),
    )
    hook = next(h for h in runner.hooks if hasattr(h, 'best_ckpt_path'))
    names = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert names == sorted(
        ['epoch_2.pth', 'epoch_3.pth', os.path.basename(hook.best_ckpt_path)]
    )
    assert isinstance(hook.file_backend, AtomicLocalBackend)


class TestAtomicFiles:
    def test_a_killed_writer_leaves_the_old_file(self, tmp_path):
        """Whenever it is killed, the file is wholly of one kind."""
        path = tmp_path / 'file'
        code = (
            'import sys\n'
            'from memvit_mm.io.whole_file import AtomicLocalBackend\n'
            'print("ready", flush=True)\n'
            'for number in range(10**6):\n'
            '    data = bytes([number % 256]) * 2**23\n'
            '    AtomicLocalBackend().put(data, sys.argv[1])\n'
        )
        process = subprocess.Popen(
            [python(), '-c', code, str(path)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        kinds = set()
        deadline = time.time() + 60
        while len(kinds) < 3 and time.time() < deadline:
            if path.exists():
                content = path.read_bytes()
                assert len(content) == 2**23 and len(set(content)) == 1
                kinds.add(content[0])
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(kinds) == 3
        assert len(content) == 2**23 and len(set(content)) == 1
        remove_partial(tmp_path)
        assert os.listdir(tmp_path) == ['file']

    def test_a_failing_disk_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / 'file'
        backend = get_file_backend(backend_args=dict(backend='atomic_local'))
        backend.put(b'old', path)

        def full(descriptor):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', full)
        with pytest.raises(ValueError, match='No space left'):
            backend.put_text('new', path)
        assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']
