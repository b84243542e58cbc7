"""MemoryResetHook inside real runners: training memory survives validation."""

import pytest
import torch
from mmaction.registry import DATASETS, HOOKS, METRICS, MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

import memvit_mm  # noqa: F401
from memvit_mm.engine import MemoryResetHook

VIDEOS, SECONDS = 4, 6


@DATASETS.register_module()
class RandomClips(BaseDataset):
    """Videos of random clips, labelled by their video."""

    def load_data_list(self):
        return [
            dict(video_id=f'v{v}', timestamp=t, label=v)
            for v in range(VIDEOS)
            for t in range(SECONDS)
        ]

    def prepare_data(self, index):
        info = self.get_data_info(index)
        generator = torch.Generator().manual_seed(int(index))
        sample = ActionDataSample().set_gt_label(info['label'])
        sample.set_metainfo(
            {key: info[key] for key in ('video_id', 'timestamp', 'sample_idx')}
        )
        clip = torch.randn(1, 3, 4, 16, 16, generator=generator)
        return dict(inputs=clip, data_samples=sample)


@METRICS.register_module()
class Scores(BaseMetric):
    """Every score, to compare runs by."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            self.results.append((sample['video_id'], sample['pred_score'].tolist()))

    def compute_metrics(self, results):
        return dict(first_class=sum(score[0] for _, score in results))


@HOOKS.register_module()
class Spy(Hook):
    """Looks at the memory around validation, before and after our hook."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.before, self.inside, self.after = [], [], []
        self.at_epoch_start, self.at_test_start = [], []

    @staticmethod
    def look(runner):
        return {
            stream: [
                (clip.time, clip.layers['layer0'].key.sum().item()) for clip in clips
            ]
            for stream, clips in runner.model.memory._clips.items()
        }

    def before_val(self, runner):
        self.before.append(self.look(runner))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.inside.append(self.look(runner))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.at_epoch_start.append(self.look(runner))
        if len(self.before) > len(self.after):
            self.after.append(self.look(runner))

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.at_test_start.append(self.look(runner))


def runner_of(tmp_path, train_cfg: dict, **kwargs) -> Runner:
    def loader(shuffle):
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle),
            dataset=dict(type='RandomClips'),
        )

    cfg = dict(
        default_scope='mmaction',
        work_dir=str(tmp_path),
        experiment_name=tmp_path.name,
        model=dict(
            type='MemoryRecognizer3D',
            backbone=dict(
                type='MeMViT',
                arch=dict(
                    embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]
                ),
                spatial_size=16,
                temporal_size=4,
                adaptive_kv_stride=(1, 2, 2),
                memory_gap=1,
            ),
            cls_head=dict(
                type='MViTHead',
                num_classes=VIDEOS,
                in_channels=16,
                average_clips='prob',
            ),
        ),
        train_dataloader=loader(True),
        val_dataloader=loader(False),
        test_dataloader=loader(False),
        train_cfg=train_cfg,
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        val_evaluator=dict(type='Scores'),
        test_evaluator=dict(type='Scores'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='MemoryResetHook'), dict(type='Spy')],
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Runner.from_cfg(Config({**cfg, **kwargs}))


def spy_of(runner) -> Spy:
    return next(hook for hook in runner.hooks if isinstance(hook, Spy))


@pytest.mark.parametrize(
    'train_cfg',
    [
        dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        dict(type='IterBasedTrainLoop', max_iters=20, val_interval=5),
    ],
    ids=['by epoch', 'by iteration'],
)
def test_validation_in_training_leaves_training_memory_as_it_was(tmp_path, train_cfg):
    runner = runner_of(tmp_path, train_cfg)
    runner.train()
    spy = spy_of(runner)
    assert spy.before and all(spy.before), 'training remembers something'
    assert not any(spy.inside), 'validation begins with nothing'
    assert not any(spy.at_epoch_start), 'and so does an epoch'
    if train_cfg['type'] == 'IterBasedTrainLoop':
        # In mid-epoch, training goes on with what it had.
        assert len(spy.after) >= 3
        for before, after in zip(spy.before, spy.after):
            assert before == after


def test_validation_and_test_agree_and_repeat(tmp_path):
    runner = runner_of(
        tmp_path, dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    )
    runner.train()
    first = runner.val()
    assert runner.test() == runner.test() == first
    assert not any(spy_of(runner).at_test_start)
    assert len(runner.model.memory) == 0, 'the memory of a test is freed'


def test_forgetting_before_every_clip_is_having_no_memory(tmp_path):
    def scores(folder, hook, **backbone):
        runner = runner_of(
            tmp_path / folder,
            dict(type='EpochBasedTrainLoop', max_epochs=1),
            custom_hooks=[dict(type='MemoryResetHook', **hook)],
        )
        for key, value in backbone.items():
            setattr(runner.model.backbone, key, value)
        return [runner.test()['first_class'], runner.val()['first_class']]

    plain = scores('none', {}, memory_layers=())
    assert scores('forgets', dict(every_clip=True)) == pytest.approx(plain)
    assert scores('remembers', {}) != pytest.approx(plain)


def test_a_model_without_memory_is_named(tmp_path):
    @MODELS.register_module(force=True)
    class Forgetful(BaseModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return inputs

    runner = runner_of(
        tmp_path,
        dict(type='EpochBasedTrainLoop', max_epochs=1),
        model=dict(type='Forgetful'),
    )
    with pytest.raises(TypeError, match='no memory in Forgetful: use Memory'):
        MemoryResetHook().before_run(runner)
