"""Detectors of mmdet from a config and a checkpoint, without any download."""

import copy
import importlib
import importlib.util
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Union

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from memvit_mm.apis.models.load_model import to_device
from memvit_mm.models.checkpoints.checkpoint import load_weights, read_checkpoint

# Steps of a test pipeline that read the labels of a data set.
LABEL_STEPS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadTrackAnnotations')
FILE_STEPS = ('LoadImageFromFile', 'LoadImageFromNDArray')


def build_detector(
    config: Union[str, os.PathLike, Config],
    checkpoint: Union[str, os.PathLike, None] = None,
    device: Union[str, torch.device, None] = None,
) -> nn.Module:
    """As ``mmdet.apis.init_detector``, but weights must fit and nothing is downloaded.

    Args:
        config, checkpoint, device: As for :class:`PersonDetector`.

    Returns:
        nn.Module: With ``cfg``, and ``dataset_meta`` where it is known.

    Raises:
        ValueError, FileNotFoundError: As :class:`PersonDetector`.
    """
    from mmdet.utils import register_all_modules

    cfg = load_detector_config(config)
    weights, extras = (None, {})
    if checkpoint is not None:
        weights, extras = read_checkpoint(os.path.expanduser(checkpoint))
    register_all_modules(init_default_scope=False)
    with scope_of(cfg):
        model = MODELS.build(ConfigDict(_without_pretrained(cfg.model)))
    model = revert_sync_batchnorm(model)
    if weights is not None:
        load_weights(model, weights, checkpoint, _name(cfg))
    model.cfg = cfg
    model.dataset_meta = extras.get('dataset_meta') or _dataset_meta(cfg)
    return to_device(check_model(model), device)


def find_person(model: nn.Module, person: Union[str, int] = 'person') -> int:
    """The number of the class that is a person.

    Args:
        model (nn.Module): A detector with ``dataset_meta``.
        person (str | int): Its name, in capitals or not, or the number itself.

    Raises:
        ValueError: If there is no such class.
    """
    if not isinstance(person, str):
        return int(person)
    meta = getattr(model, 'dataset_meta', None) or {}
    names = meta.get('classes') or meta.get('CLASSES') or ()
    names = [names] if isinstance(names, str) else list(names)
    lower = [str(name).lower() for name in names]
    if person.lower() in lower:
        return lower.index(person.lower())
    told = ', '.join(map(str, names[:10])) or 'not known'
    told += ', ...' if names[10:] else ''
    raise ValueError(
        f'{_name(model.cfg)} has no class {person!r}, its classes are {told}: give the '
        'name or the number of the one that is a person.'
    )


def frame_pipeline(cfg: Config) -> list[dict]:
    """The steps of a detector's test pipeline, for a frame instead of a file."""
    from mmdet.utils import get_test_pipeline_cfg

    try:
        steps = copy.deepcopy(get_test_pipeline_cfg(cfg))
    except (AttributeError, KeyError, RuntimeError):
        steps = copy.deepcopy(cfg.get('test_pipeline'))
    steps = [step for step in steps or [] if _kind(step) not in LABEL_STEPS]
    loads = [n for n, step in enumerate(steps) if _kind(step) in FILE_STEPS]
    if not loads:
        raise ValueError(
            f'{_name(cfg)} has no test_dataloader.dataset.pipeline with '
            f'{FILE_STEPS[0]}, so it is not known how it reads a frame: add one.'
        )
    steps[loads[0]] = dict(steps[loads[0]], type='mmdet.LoadImageFromNDArray')
    return steps


def load_detector_config(config: Union[str, os.PathLike, Config]) -> Config:
    """The config of a detector, see :class:`PersonDetector`.

    Raises:
        FileNotFoundError, ValueError: If there is no such config, or it has no model.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        path = os.path.expanduser(os.fspath(config))
        if '::' in path:
            # mmengine's own reader would install a package that is missing.
            package, _, name = path.partition('::')
            found = package.isidentifier() and importlib.util.find_spec(package)
            if not found:
                raise FileNotFoundError(
                    f'There is no config {path} of a person detector: the package '
                    f'{package!r} is not installed.'
                )
            folder = os.path.dirname(found.origin)
            path = os.path.join(folder, '.mim', 'configs', name)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f'There is no config file {path} of a person detector: give a file, '
                "or the name of one of mmdet's configs, such as 'mmdet::rtmdet/"
                "rtmdet_tiny_8xb32-300e_coco.py'."
            )
        cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise ValueError(f"{_name(cfg)} has no 'model': give the config of a model.")
    return cfg


def _without_pretrained(part: Any) -> Any:
    """A copy of a model's config without weights, or ways, to start training from."""
    if isinstance(part, Mapping):
        return {
            key: _without_pretrained(value)
            for key, value in part.items()
            if key not in ('init_cfg', 'pretrained')
        }
    if isinstance(part, (list, tuple)):
        return type(part)(map(_without_pretrained, part))
    return part


def _dataset_meta(cfg: Config) -> dict:
    """What the config's test dataset says about its classes."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    kind = dataset.get('type')
    if isinstance(kind, str):
        with scope_of(cfg), DATASETS.switch_scope_and_registry(None) as datasets:
            kind = datasets.get(kind)
    meta = dict(getattr(kind, 'METAINFO', None) or {})
    meta.update(dataset.get('metainfo') or {})
    return {str(key).lower(): value for key, value in meta.items()}


def check_model(model: nn.Module) -> nn.Module:
    """Refuse a model that is no detector of mmdet with its config."""
    if getattr(model, 'cfg', None) is None or not hasattr(model, 'test_step'):
        raise ValueError(
            f'det_model is a {type(model).__name__} without a config: make it with '
            'mmdet.apis.init_detector(config, checkpoint).'
        )
    return model


def _kind(step: Mapping) -> str:
    kind = step['type']
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]


def _name(cfg: Config) -> str:
    return cfg.filename or 'The config of the person detector'


def scope_of(cfg: Config) -> AbstractContextManager:
    """Where names of a config's types are looked up: mmdet, or its ``default_scope``.

    Raises:
        ValueError: If the package of that scope cannot be imported.
    """
    scope = cfg.get('default_scope') or 'mmdet'
    if scope not in MODELS.children:
        # mmengine would only log that, and look elsewhere.
        try:
            importlib.import_module(f'{scope}.registry')
        except ImportError as error:
            raise ValueError(
                f'{_name(cfg)} has default_scope={scope!r}, but {scope}.registry '
                f'cannot be imported ({error}): install the package {scope} that the '
                'detector is made with, or take a config of mmdet.'
            ) from error
    return DefaultScope.overwrite_default_scope(scope)
