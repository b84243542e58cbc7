"""Every config is loaded and built; AVA and demo are trained and tested for a step."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from fork_server import python
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from memvit_mm.demo.ava import DemoSettings, make_demo_dataset
from memvit_mm.paths import get_config_path

CONFIGS = sorted(
    path.name for path in Path(get_config_path('memvit_ava.py')).parent.glob('*.py')
)


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    """A few short demo videos, as videos and as frames."""
    folder = tmp_path_factory.mktemp('demo') / 'set'
    settings = DemoSettings(num_train=4, num_val=3, seconds=18)
    make_demo_dataset(folder, settings, rawframes=True, workers=2)
    return folder


def test_the_list_of_configs():
    assert {
        'memvit_ava.py',
        'memvit_ava_published.py',
        'memvit_ava_videos.py',
        'memvit_demo.py',
        'memvit_demo_no_memory.py',
        'memvit_demo_vit.py',
        'memvit_demo_vit_pool.py',
        'videomae_memory_ava.py',
        'videomae_memory_ava_large.py',
        'videomae_memory_epic_cls.py',
    } <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_loads_and_builds(name):
    cfg = Config.fromfile(get_config_path(name))
    init_default_scope('mmaction')
    model = MODELS.build(cfg.model)
    # A clip of Kinetics has no past: its configs are for pretraining.
    kinetics = any(f'_k{classes}' in name for classes in (400, 600, 700))
    remembers = bool(model.backbone.memory_layers)
    assert remembers == ('no_memory' not in name and not kinetics)
    assert cfg.custom_imports.imports == ['memvit_mm']
    if kinetics:
        assert f'_k{model.cls_head.num_classes}' in name
        assert f'_{len(model.backbone.blocks)}_' in name
        return
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.batch_sampler.type == 'SequentialClipSampler'
    assert cfg.train_dataloader.batch_sampler.shuffle
    assert not cfg.test_dataloader.batch_sampler.shuffle


def test_the_published_ava_recipe():
    cfg = Config.fromfile(get_config_path('memvit_ava.py'))
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.075, momentum=0.9, nesterov=True, weight_decay=1e-8
    )
    assert (cfg.train_cfg.val_begin, cfg.train_cfg.val_interval) == (1, 2)
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.start_factor * 0.075 == pytest.approx(1e-6)
    assert cosine.eta_min_ratio * 0.075 == pytest.approx(1e-6)
    assert (warm_up.end, cosine.begin, cosine.end, cosine.T_max) == (5, 5, 30, 25)
    assert cfg.train_cfg.max_epochs == 30
    model = cfg.model
    assert model.backbone.drop_path_rate == 0.4
    actors = model.roi_head.shared_head
    assert (actors.num_layers, actors.drop_path_rate) == (1, 0.1)
    assert (actors.attn_drop_rate, actors.qkv_drop_rate, actors.drop_rate) == (
        (0.5, 0.3, 0.3)
    )
    assert model.roi_head.bbox_head.dropout_ratio == 0.5
    sampling, _, augmentation, *_ = cfg.train_dataloader.dataset.pipeline
    assert (sampling.clip_len, sampling.frame_interval) == (16, 4)
    assert sampling.get('jitter', True) and not sampling.get('test_mode', False)
    resize, crop, flip, colors = augmentation.transforms
    assert resize.short_side == (256, 320)
    assert crop['size'] == model.backbone.spatial_size == 224
    assert (flip.type, flip.flip_ratio) == ('Flip', 0.5)
    assert colors == dict(
        type='ClipColors', brightness=0.4, contrast=0.4, saturation=0.4, lighting=0.1
    )
    sampling, _, resize, *_ = cfg.test_dataloader.dataset.pipeline
    assert sampling.test_mode and resize.short_side == 224
    *same, crop, _, _ = cfg.val_dataloader.dataset.pipeline
    assert same == cfg.test_dataloader.dataset.pipeline[:3]
    assert crop == dict(type='CenterCrop', crop_size=224)
    assert cfg.test_dataloader.dataset.keyframes == 'detected'
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.person_det_score_thr == 0.9
    mean, std = (cfg.model.data_preprocessor[k] for k in ('mean', 'std'))
    assert [m / 255 for m in mean] == pytest.approx([0.45] * 3)
    assert [s / 255 for s in std] == pytest.approx([0.225] * 3)


def test_the_published_recipe_of_memvit_24():
    cfg = Config.fromfile(get_config_path('memvit_24_ava.py'))
    small = Config.fromfile(get_config_path('memvit_ava.py'))
    optimizer = cfg.optim_wrapper.optimizer
    # The same rate per clip; 128 GPUs x 2.
    assert optimizer.lr / 256 == small.optim_wrapper.optimizer.lr / 16
    assert dict(optimizer, lr=0) == dict(small.optim_wrapper.optimizer, lr=0)
    assert cfg.optim_wrapper.paramwise_cfg == small.optim_wrapper.paramwise_cfg
    assert cfg.optim_wrapper.clip_grad.max_norm == 5
    assert cfg.auto_scale_lr.base_batch_size == 128 * cfg.train_dataloader.batch_size
    warm_up, cosine = cfg.param_scheduler
    # 1e-6 for 16 clips, too.
    for factor in (warm_up.start_factor, cosine.eta_min_ratio):
        assert factor * optimizer.lr == pytest.approx(1e-6 * 256 / 16)
    assert (warm_up.end, cosine.begin, cosine.end, cosine.T_max) == (6, 6, 40, 34)
    assert cfg.train_cfg.max_epochs == 40
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        frames, *rest = loader.dataset.pipeline
        assert (frames.clip_len, frames.frame_interval) == (32, 3)
        assert frames.clip_len == cfg.model.backbone.temporal_size
        assert len(rest) > 2
    assert cfg.model.backbone.memory_gap == 3
    assert cfg.model.roi_head.shared_head.memory_gap == 3


@pytest.mark.parametrize('size', ['base', 'large'])
def test_the_recipe_of_mmaction2s_videomae(size):
    name = 'videomae_memory_ava' + ('_large' if size == 'large' else '')
    cfg = Config.fromfile(get_config_path(f'{name}.py'))
    theirs = get_config(
        f'mmaction::detection/videomae/vit-{size}-p16_videomae-k400-pre_8xb8-16x4x1-'
        '20e-adamw_ava-kinetics-rgb.py'
    )
    backbone = dict(cfg.model.backbone, type='mmaction.VisionTransformer')
    (level,) = backbone.pop('memory_levels')
    # A clip spans two seconds, a keyframe comes each second.
    assert (level.type, list(level.ages)) == ('kmeans', [2, 4, 6, 8, 10, 12, 14, 16])
    assert backbone == theirs.model.backbone
    roi_head = dict(cfg.model.roi_head, type='AVARoIHead')
    assert roi_head == theirs.model.roi_head
    assert cfg.model.train_cfg == theirs.model.train_cfg
    for key in ('mean', 'std', 'format_shape'):
        assert cfg.model.data_preprocessor[key] == theirs.model.data_preprocessor[key]
    paramwise = dict(cfg.optim_wrapper.paramwise_cfg)
    assert set(paramwise.pop('custom_keys')) == {'gate', 'rel_pos_age', 'compress'}
    assert paramwise == theirs.optim_wrapper.paramwise_cfg
    for key in ('optimizer', 'clip_grad'):
        assert cfg.optim_wrapper[key] == theirs.optim_wrapper[key]
    for key in ('param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert cfg[key] == theirs[key]
    assert cfg.train_dataloader.batch_size == theirs.train_dataloader.batch_size
    # Nothing is fetched.
    assert cfg.load_from is None and 'init_cfg' not in cfg.model
    for key in ('train', 'val', 'test'):
        found, wanted = (
            [
                (step.type, step.get('size', step.get('scale')))
                for step in c[f'{key}_dataloader'].dataset.pipeline[2:-2]
            ]
            for c in (cfg, theirs)
        )
        if key == 'train':
            (steps,) = cfg.train_dataloader.dataset.pipeline[2:-2]
            found = [(step.type, step.get('size')) for step in steps.transforms]
        assert found == wanted


def ava_layout(demo: Path, name: str) -> Config:
    """A config of real size on the files of the demo set, for a step."""
    cfg = Config.fromfile(get_config_path(name))
    notes = demo / 'annotations'
    videos = 'videos' in name
    for split, loaders in (
        ('train', [cfg.train_dataloader]),
        ('val', [cfg.val_dataloader, cfg.test_dataloader]),
    ):
        for loader in loaders:
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.update(
                ann_file=str(notes / f'{split}.csv'),
                proposal_file=str(notes / f'proposals_{split}.pkl'),
                label_file=str(notes / 'action_list.pbtxt'),
                exclude_file=None,
                data_prefix=dict(img=str(demo / ('videos' if videos else 'rawframes'))),
                indices=2,
            )
            if not videos:
                loader.dataset.fps = 12
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.update(
            ann_file=str(notes / 'val.csv'),
            label_file=str(notes / 'action_list.pbtxt'),
            exclude_file=None,
        )
    cfg.train_cfg.update(max_epochs=1, val_interval=10)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    return cfg


def small_frames(cfg: Config, splits: tuple = ('train', 'val', 'test')) -> None:
    """Frames of 64 pixels."""
    small = {
        'ResizeShortSide': dict(short_side=64),
        'RandomRescale': dict(scale_range=(64, 80)),
        'RandomCrop': dict(size=64),
        'Resize': dict(scale=(-1, 64)),
        'CenterCrop': dict(crop_size=64),
    }
    for split in splits:
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            for part in step.get('transforms', [step]):
                part.update(small.get(part.type, {}))


@pytest.mark.parametrize('name', ['memvit_ava.py', 'memvit_ava_long.py'])
def test_ava_trains_and_tests_a_step(name, demo, tmp_path):
    """Of real size, on small frames, which take a tenth; one test on real ones."""
    cfg = ava_layout(demo, name)
    cfg.work_dir = str(tmp_path)
    # With other weights some gradient may be too small to move a norm's weight of 1.
    cfg.randomness = dict(seed=0)
    cfg.auto_scale_lr.enable = True
    cfg.train_dataloader.batch_size = 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.indices = 1
    if name == 'memvit_ava_long.py':
        small_frames(cfg)
        cfg.model.backbone.spatial_size = 64
    else:
        small_frames(cfg, ('train', 'val'))
    # In one step it would leave out some layers altogether.
    cfg.model.backbone.drop_path_rate = 0.0
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 1
    groups = runner.optim_wrapper.optimizer.param_groups
    # One clip on one process instead of 16.
    assert {group['lr'] for group in groups} == {0.075 / 16}
    for group in groups:
        for parameter in group['params']:
            assert group['weight_decay'] == (1e-8 if parameter.ndim > 1 else 0.0)
    with torch.no_grad():
        same = [n for n, p in runner.model.named_parameters() if p.equal(before[n])]
    # Nothing is remembered yet.
    assert [n for n in same if not re.search('compress|rel_pos_(mem|age)', n)] == []
    assert 0 <= runner.test()['mAP/overall'] <= 1


@pytest.mark.parametrize('name', ['memvit_demo_vit.py', 'memvit_demo_vit_pool.py'])
def test_the_demo_of_vit_trains_and_tests(name, demo, tmp_path):
    cfg = Config.fromfile(get_config_path(name))
    options = dict(option.split('=', 1) for option in demo_options(demo)[1:])
    options = {k: int(v) if v.isdecimal() else v for k, v in options.items()}
    cfg.merge_from_dict(options)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 16
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    cfg.default_hooks.checkpoint = None
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    with torch.no_grad():
        same = [n for n, p in runner.model.named_parameters() if p.equal(before[n])]
    assert same == []
    # What is remembered is in the backbone alone.
    assert not runner.model.roi_head.with_shared_head
    assert 0 <= runner.test()['mAP/memory'] <= 1


def test_videomae_trains_and_tests_a_step(demo, tmp_path):
    """From a checkpoint of MMAction2's, with layers and frames smaller than real."""
    init_default_scope('mmaction')
    cfg = ava_layout(demo, 'videomae_memory_ava.py')
    cfg.train_dataloader.batch_size = 2
    cfg.model.backbone.update(embed_dims=96, num_heads=2, drop_path_rate=0.0)
    cfg.model.backbone.memory_levels[0].tokens = 16
    cfg.model.roi_head.bbox_head.in_channels = 96
    small_frames(cfg)
    theirs = copy.deepcopy(cfg.model)
    theirs.type, theirs.roi_head.type = 'FastRCNN', 'AVARoIHead'
    theirs.backbone.type = 'mmaction.VisionTransformer'
    del theirs['memory'], theirs.backbone['memory_levels']
    zoo = MODELS.build(theirs).state_dict()
    torch.save(dict(state_dict=zoo, meta=dict()), tmp_path / 'zoo.pth')
    cfg.update(work_dir=str(tmp_path), load_from=str(tmp_path / 'zoo.pth'))
    cfg.auto_scale_lr.enable = True
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1
    groups = runner.optim_wrapper.optimizer.param_groups
    rates = {group['group_name']: group['lr'] for group in groups}
    # Two clips on one process instead of 64.
    assert rates['layer_13_decay'] == pytest.approx(1.25e-4 * 2 / 64)
    state = runner.model.state_dict()
    # Adam moves a weight by its rate at most: it is near where it came from.
    close = [torch.allclose(state[name], zoo[name], atol=1e-4) for name in zoo]
    assert all(close) and len(close) == len(zoo)
    moved = [n for n, p in runner.model.named_parameters() if n in zoo]
    assert any(not state[name].equal(zoo[name]) for name in moved)
    assert 0 <= runner.test()['mAP/overall'] <= 1


def run(*command: str, cwd: Path, **env: str) -> str:
    """Run a tool as a user would, from a folder of their own."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, 'PYTHON': python(), **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def demo_options(demo: Path) -> list:
    """Point the demo config at a set, for a few steps."""
    notes = f'{demo}/annotations/'
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    for loader in ('train', 'val', 'test'):
        split = 'train' if loader == 'train' else 'val'
        prefix = f'{loader}_dataloader.'
        options += [
            f'{prefix}batch_size=2',
            f'{prefix}dataset.data_root={demo}/',
            f'{prefix}dataset.label_file={notes}action_list.pbtxt',
            f'{prefix}dataset.proposal_file={notes}proposals_{split}.pkl',
        ]
        if split == 'val':
            options += [
                f'{prefix}dataset.exclude_file={notes}excluded_val.csv',
                f'{loader}_evaluator.ann_file={notes}val.csv',
                f'{loader}_evaluator.label_file={notes}action_list.pbtxt',
                f'{loader}_evaluator.exclude_file={notes}excluded_val.csv',
            ]
    return ['--cfg-options', *options]


def metrics_of(folder: Path) -> dict:
    """The metrics that tools/test.py wrote."""
    (path,) = folder.glob('*/*.json')
    return {k: v for k, v in json.loads(path.read_text()).items() if 'mAP' in k}


def test_two_processes_train_and_test_as_one(demo, tmp_path):
    from memvit_mm.paths import get_tool_path

    config = get_config_path('memvit_demo.py')
    tools = Path(get_tool_path('train.py')).parent
    # 8 clips of each video.
    options = [
        *demo_options(demo),
        *(
            f'{loader}_dataloader.dataset.keyframe_range=(902,909)'
            for loader in ('train', 'val', 'test')
        ),
    ]
    work = tmp_path / 'work'
    log = run(
        *('bash', str(tools / 'dist_train.sh'), config, '2'),
        *('--work-dir', str(work), *options),
        cwd=tmp_path,
        PORT='29611',
    )
    # DistributedDataParallel stops a run in which a parameter gets no gradient.
    assert 'find_unused_parameters=False' in log
    # 4 videos of 8 keyframes over 2 processes x 2 rows: 8 steps.
    assert '[1][8/8]' in log
    checkpoint = (work / 'last_checkpoint').read_text()
    for name, command in {
        'two': ['bash', str(tools / 'dist_test.sh'), config, checkpoint, '2'],
        'one': [python(), str(tools / 'test.py'), config, checkpoint],
    }.items():
        run(
            *(*command, '--work-dir', str(tmp_path / name), *options),
            cwd=tmp_path,
            PORT='29612',
        )
    one, two = metrics_of(tmp_path / 'one'), metrics_of(tmp_path / 'two')
    assert one and one == pytest.approx(two, abs=1e-6)
