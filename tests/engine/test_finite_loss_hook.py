"""A loss that is not finite stops a real run, before anything is saved."""

import re

import pytest
import torch
from mmaction.registry import DATASETS, HOOKS
from mmengine.hooks import Hook
from small_runs import RandomClips, runner_of

from memvit_mm.engine.finite_loss_hook import clips_of

EPOCH = dict(type='EpochBasedTrainLoop', max_epochs=1)
HOOK = [dict(type='MemoryResetHook'), dict(type='FiniteLossHook')]


@DATASETS.register_module()
class OneNan(RandomClips):
    """A clip of one video is not finite."""

    def prepare_data(self, index):
        packed = super().prepare_data(index)
        sample = packed['data_samples']
        if (sample.video_id, sample.timestamp) == ('v2', 3):
            packed['inputs'] *= float('nan')
        return packed


def train(tmp_path, train_cfg=EPOCH, dataset='OneNan', **kwargs):
    runner = runner_of(
        tmp_path,
        train_cfg,
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
        **{
            'custom_hooks': HOOK,
            'default_hooks': dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)
            ),
            **kwargs,
        },
    )
    runner._train_dataloader['dataset']['type'] = dataset
    runner.train()
    return runner


@pytest.mark.parametrize(
    'train_cfg',
    [EPOCH, dict(type='IterBasedTrainLoop', max_iters=20)],
    ids=['by epoch', 'by iteration'],
)
def test_the_clips_are_named_and_nothing_is_saved(tmp_path, train_cfg):
    with pytest.raises(
        ValueError, match=r'not finite at iteration \d+ \(loss_cls=nan'
    ) as e:
        train(tmp_path, train_cfg)
    text = str(e.value)
    assert "video 'v2' at 3" in text
    assert len(re.findall(r"video 'v\d' at \d", text)) == 2, 'a batch is two clips'
    iteration = int(re.search(r'iteration (\d+)', text)[1])
    saved = {int(path.stem[5:]) for path in tmp_path.glob('iter_*.pth')}
    assert saved == set(range(1, iteration))
    last = torch.load(tmp_path / f'iter_{iteration - 1}.pth', weights_only=False)
    assert all(value.isfinite().all() for value in last['state_dict'].values())


def test_accumulation_changes_nothing(tmp_path):
    wrapper = dict(optimizer=dict(type='SGD', lr=0.01), accumulative_counts=3)
    with pytest.raises(ValueError, match="video 'v2' at 3"):
        train(tmp_path, optim_wrapper=wrapper)


def test_gradients_are_the_scalers_business(tmp_path):
    """One that overflows is not applied; the loss was finite, so the run goes on."""
    runner = train(
        tmp_path,
        dataset='RandomClips',
        optim_wrapper=dict(
            type='CPUAmpOptimWrapper',
            dtype='float16',
            loss_scale=2.0**100,
            optimizer=dict(type='SGD', lr=0.01),
        ),
    )
    assert runner.iter == 12


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """As where the loss of another process was not finite."""

    @HOOKS.register_module(force=True)
    class Poison(Hook):
        priority = 'LOW'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 4:
                runner.model.cls_head.fc_cls.bias.data[1] = float('inf')

    hooks = [*HOOK, dict(type='Poison')]
    with pytest.raises(
        ValueError, match='cls_head.fc_cls.bias is not .* iteration 5, '
    ):
        train(tmp_path, dataset='RandomClips', custom_hooks=hooks)
    assert len(list(tmp_path.glob('iter_*.pth'))) == 4


def test_samples_without_names():
    assert clips_of(None) == clips_of([1, 2]) == 'clips that it does not name'
    from mmaction.structures import ActionDataSample

    samples = [ActionDataSample(), ActionDataSample(metainfo=dict(sample_idx=7))]
    skipped = ActionDataSample(metainfo=dict(skipped='It is damaged.', video_id='a'))
    batch = dict(data_samples=[*samples, skipped])
    assert clips_of(batch) == 'sample 0 of the batch, sample 7'
