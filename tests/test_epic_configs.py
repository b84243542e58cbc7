"""EPIC's configs: names agree with content, each is trained and tested for a step."""

import json
import re
from pathlib import Path

import pytest
from fork_server import python
from mmengine.config import Config
from mmengine.runner import Runner
from test_configs import run, small_frames

from memvit_mm.demo.epic import EpicDemoSettings, make_epic_demo
from memvit_mm.paths import get_config_path, get_tool_path

CONFIGS = sorted(
    path.name
    for path in Path(get_config_path('memvit_ava.py')).parent.glob('*_epic_*.py')
)


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    """A few short videos of kitchens."""
    folder = tmp_path_factory.mktemp('demo') / 'set'
    settings = EpicDemoSettings(num_train=4, num_val=2, seconds=20, size=64)
    make_epic_demo(folder, settings, workers=2)
    return folder


def test_the_list_of_configs():
    assert set(CONFIGS) == {'videomae_memory_epic_cls.py'} | {
        f'memvit_{name}.py'
        for name in (
            'epic_cls',
            'epic_cls_long',
            'epic_anticipation',
            '24_epic_cls',
            '24_epic_anticipation',
            'demo_epic_cls',
            'demo_epic_cls_no_memory',
            'demo_epic_anticipation',
            'demo_epic_anticipation_no_memory',
        )
    }


@pytest.mark.parametrize('name', CONFIGS)
def test_names_agree_with_content(name):
    cfg = Config.fromfile(get_config_path(name))
    task = 'anticipation' if 'anticipation' in name else 'recognition'
    backbone, head = cfg.model.backbone, cfg.model.cls_head
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset
        assert dataset.task == task and dataset.context_stride > 0
        steps = {step.type: step for step in dataset.pipeline}
        sampling = steps['SampleEpicFrames']
        frames = 'num_frames' if 'videomae' in name else 'temporal_size'
        assert sampling.clip_len == backbone[frames]
        if 'demo' not in name:
            expected = (32, 3) if '24' in name else (16, 4)
            assert (sampling.clip_len, sampling.frame_interval) == expected
        assert 'narration_id' in steps['PackActionInputs'].meta_keys
        labels = steps.get('EpicFrameLabels')
        if task == 'anticipation':
            assert dataset.tau_a == 1.0
            if loader is cfg.train_dataloader:
                # As many as the patch embedding, of stride 2, leaves.
                assert labels.num_positions == sampling.clip_len // 2
        else:
            assert labels is None
    assert not cfg.train_dataloader.dataset.get('test_mode', False)
    assert cfg.test_dataloader.dataset.test_mode
    causal = task == 'anticipation'
    assert (backbone.get('causal', False), head.get('frame_level', False)) == (
        (causal, causal)
    )
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert (evaluator.type, evaluator.task) == ('EpicMetric', task)
    if 'demo' in name:
        assert (head.num_verbs, head.num_nouns) == (4, 6)
        return
    assert (head.num_verbs, head.num_nouns) == (97, 300)
    if 'videomae' not in name:
        assert backbone.arch == ('base' if '24' in name else 'small')
        assert backbone.memory_gap == (3 if '24' in name else 2)
    best = 'overall_action_mt5r' if causal else 'all_action_accuracy_at_1'
    assert cfg.default_hooks.checkpoint.save_best == f'epic/{best}'
    assert cfg.auto_scale_lr.base_batch_size == 32


def small_layout(cfg: Config, demo: Path) -> Config:
    """A config of real size on the demo's kitchens, for a step on small frames."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=f'{demo}/', data_prefix=dict(video='videos'), indices=2
        )
    small_frames(cfg)
    if cfg.model.backbone.type == 'MeMViT':
        cfg.model.backbone.spatial_size = 64
    else:
        cfg.model.backbone.update(img_size=64, embed_dims=96, num_heads=2)
        cfg.model.cls_head.in_channels = 96
    cfg.model.cls_head.update(num_verbs=4, num_nouns=6)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.update(annotations=f'{demo}/annotations', allow_missing=True)
    cfg.train_cfg.update(max_epochs=1, val_interval=10)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    return cfg


# Both tasks, sizes and backbones; the tests above and test_configs.py see to the rest.
@pytest.mark.parametrize(
    'name',
    ['memvit_epic_cls', 'memvit_24_epic_anticipation', 'videomae_memory_epic_cls'],
)
def test_models_of_real_depth_train_and_test_a_step(name, demo, tmp_path):
    cfg = small_layout(Config.fromfile(get_config_path(f'{name}.py')), demo)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1
    metrics = runner.test()
    key = next(k for k in metrics if re.search('mt5r|accuracy_at_1', k))
    assert 0 <= metrics[key] <= 100


def options_for(demo: Path, epochs: int) -> list:
    """Point a demo config at a set, for a few epochs."""
    options = [f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=9']
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.batch_size=2',
            f'{loader}_dataloader.dataset.data_root={demo}/',
        ]
        if loader != 'train':
            options.append(f'{loader}_evaluator.annotations={demo}/annotations')
    return ['--cfg-options', *options]


def metrics_of(folder: Path) -> dict:
    """The metrics that tools/test.py wrote."""
    (path,) = folder.glob('*/*.json')
    return {k: v for k, v in json.loads(path.read_text()).items() if 'epic/' in k}


def test_one_process_or_two_and_a_break_in_between(demo, tmp_path):
    """Two processes train; two or one test; a broken off training goes on."""
    config = get_config_path('memvit_demo_epic_anticipation.py')
    tools = Path(get_tool_path('train.py')).parent
    work = tmp_path / 'work'
    train = ['bash', str(tools / 'dist_train.sh'), config, '2', '--work-dir', str(work)]
    log = run(*train, *options_for(demo, epochs=1), cwd=tmp_path, PORT='29621')
    # DistributedDataParallel stops a run in which a parameter gets no gradient, as in
    # a batch of nothing but clips in between.
    assert 'find_unused_parameters=False' in log
    assert 'epoch_1.pth' in (work / 'last_checkpoint').read_text()
    log = run(
        *(*train, '--resume', *options_for(demo, epochs=2)), cwd=tmp_path, PORT='29622'
    )
    assert re.search(r'resumed epoch: 1', log)
    checkpoint = (work / 'last_checkpoint').read_text()
    assert 'epoch_2.pth' in checkpoint
    for name, command in {
        'two': ['bash', str(tools / 'dist_test.sh'), config, checkpoint, '2'],
        'one': [python(), str(tools / 'test.py'), config, checkpoint],
    }.items():
        run(
            *(*command, '--work-dir', str(tmp_path / name)),
            *('--dump', str(tmp_path / f'{name}.pkl'), *options_for(demo, 1)),
            cwd=tmp_path,
            PORT='29623',
        )
    one, two = metrics_of(tmp_path / 'one'), metrics_of(tmp_path / 'two')
    assert one and one == pytest.approx(two, abs=1e-6)
    # What was dumped scores the same after the fact.
    again = tmp_path / 'again.json'
    run(
        *(python(), get_tool_path('eval_epic.py'), '--task', 'anticipation'),
        *('--annotations', f'{demo}/annotations', '--json', str(again)),
        *('--scores', str(tmp_path / 'two.pkl')),
        cwd=tmp_path,
    )
    again = {f'epic/{k}': v for k, v in json.loads(again.read_text()).items()}
    assert again.items() >= two.items()
