"""Faults in data, in two processes: the command lines, gloo, real files."""

import json
import os
import re
import subprocess
from pathlib import Path

import damaged
import pytest
import tool_runs
import torch
from fork_server import python

TOOLS = Path(__file__).resolve().parents[1] / 'tools'

# A recognizer on random clips, which go wrong on the second process.
RANDOM_CLIPS = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank

from mmaction.registry import DATASETS
from mmaction.structures import ActionDataSample
from memvit_mm.datasets import BadClipMixin


@DATASETS.register_module()
class RandomClips(BadClipMixin, BaseDataset):
    def __init__(self, **kwargs):
        super().__init__(pipeline=[self.pack], **kwargs)

    def load_data_list(self):
        return [
            dict(video_id=f'v{v}', timestamp=t, label=v, filename=f'v{v}.mp4')
            for v in range(4) for t in range(6)]

    def pack(self, info):
        sample = ActionDataSample().set_gt_label(info['label'])
        keys = 'video_id', 'timestamp', 'sample_idx'
        sample.set_metainfo({key: info[key] for key in keys})
        clip = torch.randn(1, 3, 4, 16, 16)
        if get_rank() == 1 and info['timestamp'] == 3:
            clip *= float('nan')
        return dict(inputs=clip, data_samples=sample)
"""
CONFIG = """
custom_imports = dict(imports=['memvit_mm', 'random_clips'])
_base_ = {runtime!r}
model = dict(
    type='MemoryRecognizer3D',
    backbone=dict(
        type='MeMViT',
        arch=dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
        spatial_size=16, temporal_size=4, adaptive_kv_stride=(1, 2, 2)),
    cls_head=dict(type='MViTHead', num_classes=4, in_channels=16),
    data_preprocessor=dict(type='ActionDataPreprocessor', format_shape='NCTHW'))
train_dataloader = dict(
    batch_size=2, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
    dataset=dict(type='RandomClips'))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, save_best=None))
randomness = dict(seed=0)
"""
# Both in one: a training that leaves out clips, and then one whose loss is nan.
TWO_TRAININGS = """
import json
import sys
from pathlib import Path

sys.path.insert(0, {tools!r})
import _common


def main():
    _common.import_package()
    import damaged
    from mmengine.config import Config

    from memvit_mm.engine import launch

    folder = Path({folder!r})
    skip = damaged.config(Path({demo!r}), on_bad_clip='skip')
    skip.train_dataloader.batch_size = 1
    skip.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    for name, cfg in (('skip', skip), ('nan', Config.fromfile(folder / 'nan.py'))):
        cfg.launcher, cfg.experiment_name = 'pytorch', name
        cfg.work_dir = str(folder / name)
        launch.use_cpu(cfg)
        runner = damaged.runner(cfg)
        runner.train()
        metric = runner.message_hub.get_scalar('val/mAP/overall').current()
        (folder / 'metric.json').write_text(json.dumps(metric))


_common.run(main)
"""


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """One of two videos to train on, and one to validate on, cannot be opened: all
    that one of two processes has of them."""
    folder = damaged.make(tmp_path_factory.mktemp('demo') / 'set', num_val=2)
    for video in ('demo_tr_001', 'demo_va_001'):
        path = folder / 'videos' / f'{video}.mp4'
        path.write_bytes(path.read_bytes()[:5000])
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory, demo, checkout):
    """What two processes printed and left, and where."""
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip('two processes need two GPUs, or none')
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'random_clips.py').write_text(RANDOM_CLIPS)
    runtime = str(checkout / 'configs' / '_base_' / 'default_runtime.py')
    (folder / 'nan.py').write_text(CONFIG.format(runtime=runtime))
    script = folder / 'two_trainings.py'
    paths = dict(tools=str(TOOLS), folder=str(folder), demo=str(demo))
    script.write_text(TWO_TRAININGS.format(**paths))
    torchrun = [python(), '-m', 'torch.distributed.run', '--nproc-per-node=2']
    paths = [str(folder), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [*torchrun, f'--master-port={tool_runs.free_port()}', str(script)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=tool_runs.environment(PYTHONPATH=os.pathsep.join(paths)),
    )
    assert done.returncode == 1, done.stdout[-3000:]
    return folder, done.stdout


def errors_in(output: str) -> list[str]:
    return re.findall(r'^Error: .*$', output, re.MULTILINE)


def test_clips_that_are_left_out(runs, demo):
    """The process without a readable clip takes its steps; nothing is lost or counted
    twice in validation."""
    folder, output = runs[0], runs[1]
    told = re.search(r'(\d+) of 30 clips of training epoch 1 were left out', output)
    assert told and told[1] == '15', output[-3000:]
    assert f'{demo / "videos" / "demo_tr_001.mp4"}: 15 clips, at 902, 903, ' in output
    told = re.search(r'(\d+) of 29 clips of validation were left out', output)
    assert told and int(told[1]) in (14, 15)
    # The same on one process.
    cfg = damaged.config(demo, on_bad_clip='skip')
    cfg.load_from = str(folder / 'skip' / 'epoch_1.pth')
    cfg.work_dir = cfg.experiment_name = str(folder / 'alone')
    runner = damaged.runner(cfg)
    said = []
    runner.logger.warning = said.append
    alone = runner.val()['mAP/overall']
    assert any(text.startswith(told[0]) for text in said)
    together = json.loads((folder / 'metric.json').read_text())
    assert together == pytest.approx(alone, abs=1e-6)


def test_a_loss_that_is_not_finite(runs):
    folder, output = runs[0], runs[1]
    (text,) = (t for t in errors_in(output) if 'The loss' in t)
    found = re.search(r'finite at iteration (\d+) \(loss_cls=nan\)', text)
    assert found and re.search(r"video 'v\d' at 3", text)
    # The first process, whose own loss was finite, has not saved what came of it.
    saved = {int(path.stem[5:]) for path in (folder / 'nan').glob('iter_*.pth')}
    assert saved == set(range(1, int(found[1])))
