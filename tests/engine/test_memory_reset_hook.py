"""MemoryResetHook inside real runners: training memory survives validation."""

import copy
import json
import os
import socket
import warnings

import pytest
import torch
from mmaction.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from small_runs import MODEL, SECONDS, VIDEOS, RandomClips, runner_of

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
                (clip.time, clip.layers['layer0'].tensors[0].sum().item())
                for clip in clips
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


def test_copies_of_a_video_are_streams_of_their_own(tmp_path):
    """RepeatDataset: a copy that begins again is no clip out of order."""
    repeated = dict(type='RepeatDataset', times=3, dataset=dict(type='RandomClips'))

    def loader(shuffle):
        return dict(
            batch_size=2,
            num_workers=2,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle),
            dataset=repeated,
        )

    runner = runner_of(
        tmp_path,
        dict(type='EpochBasedTrainLoop', max_epochs=2, val_begin=9),
        train_dataloader=loader(True),
        test_dataloader=loader(False),
    )
    seen = []
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not later than the one before')
        runner.train()
        runner.test_loop.evaluator.metrics[0].compute_metrics = lambda results: (
            seen.extend(results) or {}
        )
        runner.test()
    scores = {}
    for video, score in seen:
        scores.setdefault(video, []).append(score)
    assert len(scores) == VIDEOS
    for of_video in scores.values():
        assert len(of_video) == 3 * SECONDS
        first, second, third = zip(*[iter(of_video)] * SECONDS)
        assert first == second == third and len(set(map(tuple, first))) == SECONDS


# --------------------------------------------- loaders that give memory the wrong clips


@DATA_SAMPLERS.register_module()
class OneByOne:
    """A batch sampler of one's own: every process plays the same video."""

    def __init__(self, sampler, batch_size):
        self.sampler = sampler

    def __iter__(self):
        return iter([[0], [1]])

    def __len__(self):
        return 2


def loader(batch_sampler=None, sampler=None) -> dict:
    sampler = sampler or dict(type='DefaultSampler', shuffle=False)
    dataset = dict(type='RandomClips', indices=8)
    cfg = dict(batch_size=1, sampler=sampler, dataset=dataset)
    return dict(cfg, batch_sampler=batch_sampler) if batch_sampler else cfg


def in_order(shuffle: bool) -> dict:
    return loader(dict(type='SequentialClipSampler', shuffle=shuffle))


FORGETFUL = copy.deepcopy(MODEL)
FORGETFUL['backbone']['memory_layers'] = ()
STEPS = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
INFINITE = dict(type='InfiniteSampler', shuffle=False)
# What is run, with what in place of loaders that are right; and what is said of it.
ON_TWO_PROCESSES = {
    'train, every second clip': (dict(train_dataloader=loader()), 'refused'),
    'train, infinite': (dict(train_dataloader=loader(sampler=INFINITE)), 'refused'),
    'train, every second clip of val': (dict(val_dataloader=loader()), 'refused'),
    'test, every second clip': (dict(test_dataloader=loader()), 'refused'),
    'test, of its own': (
        dict(test_dataloader=loader(dict(type='OneByOne'))),
        'warned of',
    ),
    'test, without memory': (
        dict(test_dataloader=loader(), model=FORGETFUL),
        'nothing',
    ),
    'train': (dict(), 'nothing'),
}


def run_in_process(rank, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank),
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo')
    said = {}
    for number, (name, (parts, _)) in enumerate(ON_TWO_PROCESSES.items()):
        parts = dict(
            dict(
                train_dataloader=in_order(True),
                val_dataloader=in_order(False),
                test_dataloader=in_order(False),
                launcher='pytorch',
                env_cfg=dict(dist_cfg=dict(backend='gloo')),
                # mmengine would name GPUs
                model_wrapper_cfg=dict(
                    type='MMDistributedDataParallel', device_ids=None
                ),
            ),
            **parts,
        )
        runner = runner_of(folder / f'{rank}_{number}', STEPS, **parts)
        warned = []
        runner.logger.warning = warned.append
        try:
            getattr(runner, name.split(',')[0])()
            said[name] = warned
        except ValueError as error:
            said[name] = [str(error), f'at iteration {runner.iter}']
    (folder / f'{rank}.json').write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def said(tmp_path_factory):
    """What the first of two processes said of each loader."""
    folder = tmp_path_factory.mktemp('two')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        run_in_process,
        args=(port, folder),
        nprocs=2,
        start_method='fork',  # spares the imports
    )
    return json.loads((folder / '0.json').read_text())


@pytest.mark.parametrize('name', list(ON_TWO_PROCESSES))
def test_loaders_on_two_processes(said, name):
    parts, expected = ON_TWO_PROCESSES[name]
    about = [text for text in said[name] if 'clip' in text]
    key = next(iter(parts), None)
    if expected == 'nothing':
        assert not about
    elif expected == 'warned of':
        (text,) = about
        assert text.startswith(f'{key}: whether OneByOne gives all clips of a video')
        assert f"set {key}.batch_sampler=dict(type='SequentialClipSampler'" in text
    else:
        (text,) = about
        kind = 'InfiniteSampler' if 'infinite' in name else 'DefaultSampler'
        assert text.startswith(f'{key}: {kind} spreads the clips of a video over the')
        shuffle = key == 'train_dataloader'
        remedy = f"dict(type='SequentialClipSampler', shuffle={shuffle})."
        assert text.endswith(f'set {key}.batch_sampler={remedy}')
        assert said[name][1] == 'at iteration 0'


def test_one_process_needs_no_batch_sampler(tmp_path, recwarn):
    """The videos one after the other; shuffled, the first clip out of order tells."""
    results = [
        runner_of(tmp_path / name, STEPS, test_dataloader=cfg).test()
        for name, cfg in dict(plain=loader(), sequential=in_order(False)).items()
    ]
    assert results[0]['first_class'] == pytest.approx(results[1]['first_class'])
    assert not [w for w in recwarn if 'SequentialClip' in str(w.message)]
    shuffled = loader(sampler=dict(type='DefaultSampler', shuffle=True))
    steps = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=99)
    runner = runner_of(tmp_path / 'shuffled', steps, train_dataloader=shuffled)
    with pytest.warns(UserWarning, match='not later .*SequentialClipSampler'):
        runner.train()


@pytest.mark.parametrize('kind', ['MixupBlending', 'CutmixBlending'])
def test_blending(tmp_path, kind):
    def runner(name, model):
        blending = dict(type=kind, num_classes=VIDEOS)
        cfg = dict(type='ActionDataPreprocessor', format_shape='NCTHW')
        model = dict(model, data_preprocessor=dict(cfg, blending=blending))
        return runner_of(tmp_path / name, STEPS, model=model)

    message = f'^{kind} blends .* of two videos: remove its blending from model'
    with pytest.raises(ValueError, match=message):
        runner('memory', MODEL).train()
    # In a test it does nothing, and without memory it does no harm.
    runner('test', MODEL).test()
    runner('forgetful', FORGETFUL).train()
