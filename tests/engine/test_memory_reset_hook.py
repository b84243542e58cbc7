"""MemoryResetHook inside real runners: training memory survives validation."""

import warnings

import pytest
from mmaction.registry import DATASETS, HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from small_runs import MODEL, RandomClips, runner_of

from memvit_mm.engine import MemoryResetHook


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


@DATASETS.register_module()
class ClipsByTime(RandomClips):
    """All videos side by side, as a list that is sorted by second has them."""

    def load_data_list(self):
        return sorted(super().load_data_list(), key=lambda clip: clip['timestamp'])


SPYING = [dict(type='MemoryResetHook'), dict(type='Spy')]


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
    runner = runner_of(tmp_path, train_cfg, custom_hooks=SPYING)
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
        tmp_path,
        dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1),
        custom_hooks=SPYING,
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


@pytest.mark.parametrize(
    ('order', 'room', 'told'),
    [('by time', 2, 1), ('by time', 4, 0), ('by video', 2, 0)],
)
def test_a_test_in_which_videos_are_forgotten_too_early_says_so(
    tmp_path, order, room, told
):
    """Once, however many clips start without their past."""
    cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    more = {}
    if order == 'by time':
        loader = dict(batch_size=2, num_workers=0, dataset=dict(type='ClipsByTime'))
        loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
        more['test_dataloader'] = loader
    model = dict(MODEL, memory=dict(type='ClipMemory', max_streams=room))
    runner = runner_of(tmp_path, cfg, model=model, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        first = runner.test()
        runner.test()
    said = [str(one.message) for one in caught if 'max_streams=' in str(one.message)]
    assert len(said) == told
    assert all('starts with an empty memory' in text for text in said)
    assert first['first_class'] > 0


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
