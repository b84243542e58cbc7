"""A small demo set whose files are damaged on purpose, and the demo's config on it."""

import inspect
import shutil
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from memvit_mm.demo.ava import DemoSettings, make_demo_dataset
from memvit_mm.paths import get_config_path

SECONDS = 18  # 16 clips, at 901 to 916


def make(folder: Path, num_val: int = 3) -> Path:
    """Two videos to train on and some to test, as videos and as frames."""
    settings = DemoSettings(num_train=2, num_val=num_val, seconds=SECONDS, size=128)
    make_demo_dataset(folder, settings, rawframes=True, workers=2)
    return folder


def copy_of(demo: Path, folder: Path) -> Path:
    """A copy whose files may be damaged."""
    return Path(shutil.copytree(demo, folder))


def overwrite(path: Path, start: float, stop: float) -> None:
    """Zeros from one fraction of a file to another."""
    data = bytearray(path.read_bytes())
    begin, end = int(start * len(data)), int(stop * len(data))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def config(demo: Path, rawframes: bool = False, **dataset) -> Config:
    """The demo's config on a copy of the set, two clips a step, in this process."""
    cfg = Config.fromfile(get_config_path('memvit_demo.py'))
    notes = demo / 'annotations'
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        split = 'train' if name == 'train' else 'val'
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=f'{demo}/',
            label_file=str(notes / 'action_list.pbtxt'),
            proposal_file=str(notes / f'proposals_{split}.pkl'),
            **dataset,
        )
        files = dict(
            ann_file=str(notes / 'val.csv'),
            label_file=str(notes / 'action_list.pbtxt'),
            exclude_file=str(notes / 'excluded_val.csv'),
        )
        if split == 'val':
            loader.dataset.exclude_file = files['exclude_file']
            cfg[f'{name}_evaluator'].update(files)
        if rawframes:
            _, sampling, _, *rest = loader.dataset.pipeline
            loader.dataset.update(
                pipeline=[sampling, dict(type='RawFrameDecode'), *rest],
                use_frames=True,
                data_prefix=dict(img='rawframes'),
                fps=12,
            )
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'WARNING'
    return cfg


def runner(cfg: Config) -> Runner:
    """The runner of a config, without its text, which takes seconds to lay out."""
    arguments = set(inspect.signature(Runner).parameters) - {'cfg'}
    rest = Config(dict(model_wrapper_cfg=cfg.get('model_wrapper_cfg')))
    return Runner(cfg=rest, **{name: cfg[name] for name in arguments if name in cfg})
