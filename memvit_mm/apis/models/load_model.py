"""A model from a config and a checkpoint, or a sentence that says why not."""

import copy
import os
import os.path as osp
from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch import nn

from memvit_mm.models.checkpoint import load_weights, read_checkpoint
from memvit_mm.paths import get_config_path

ConfigLike = Union[str, os.PathLike, Config]
PREFIX = 'memvit_mm::'


def load_config(config: ConfigLike) -> Config:
    """A config from its file, from any working directory.

    Args:
        config (str | Path | Config): A file; or the name of one of this package's
            configs, as ``'memvit_ava.py'``, ``'configs/memvit_ava.py'`` or
            ``'memvit_mm::memvit_ava.py'``; or a config, which is copied.

    Raises:
        FileNotFoundError, ValueError: If there is no such config, or it has no model.

    Examples:
        >>> load_config('configs/memvit_ava.py').model.type
        'MemoryFastRCNN'
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        if not isinstance(config, (str, os.PathLike)):
            raise ValueError(
                f'config is a {type(config).__name__}: it takes the path or the name '
                'of a config file, or a Config.'
            )
        name = os.fspath(config)
        cfg = Config.fromfile(name if osp.isfile(name) else _own_config(name))
    if 'model' not in cfg:
        raise ValueError(f'{_name(cfg)} is no config of a model: it has no model.')
    return cfg


def _own_config(name: str) -> str:
    """The path of one of this package's configs."""
    short = name[len(PREFIX) :] if name.startswith(PREFIX) else name
    parts = Path(short).parts
    if parts[:1] == ('configs',):
        # As one would type it in a checkout.
        short = str(Path(*parts[1:]))
    try:
        return get_config_path(short)
    except ValueError as error:
        raise FileNotFoundError(f'There is no config file {name}. {error}') from None


def build_model(
    cfg: Config,
    checkpoint: Optional[str] = None,
    device: Union[str, torch.device, None] = None,
) -> nn.Module:
    """Build a config's model, ready to predict.

    Args:
        cfg (Config): The config.
        checkpoint (str, optional): Path or address of the weights, of which every one
            must be there and fit. Without it they are random.
        device (str | torch.device, optional): By default a GPU if there is one.

    Returns:
        nn.Module: With ``cfg``, and ``dataset_meta`` where the checkpoint has it.

    Raises:
        ValueError, FileNotFoundError: If the checkpoint does not fit or is none.
    """
    weights, extras = (None, {}) if checkpoint is None else read_checkpoint(checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    model_cfg = copy.deepcopy(cfg.model)
    # The checkpoint replaces what training started from.
    for part in (model_cfg, model_cfg.get('backbone') or {}):
        part.pop('pretrained', None)
        if weights is not None and part.get('init_cfg'):
            _drop_pretrained(part)
    model = MODELS.build(model_cfg)
    if weights is not None:
        remedy = (
            'take the config that it was trained with, and bring published weights '
            'into our form with tools/deployment/convert_checkpoint.py'
        )
        load_weights(model, weights, checkpoint, _name(cfg), remedy)
    model.cfg = cfg
    model.dataset_meta = extras.get('dataset_meta')
    return to_device(model, device).eval()


def to_device(model: nn.Module, device: Union[str, torch.device, None]) -> nn.Module:
    """Move a model; by default to a GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    try:
        return model.to(device or get_device())
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip('.')
        raise ValueError(
            f"device={device!r} cannot be used ({reason}): 'cpu' always can."
        ) from error


def _drop_pretrained(part: dict) -> None:
    """Let a part read no weights to start from."""
    inits = part['init_cfg']
    several = isinstance(inits, (list, tuple))
    inits = [i for i in (inits if several else [inits]) if i]
    kept = [i for i in inits if i.get('type') != 'Pretrained']
    if len(kept) < len(inits):
        part['init_cfg'] = kept or None


def kind_of(cfg: Config) -> str:
    """'detector', 'recognizer', or the model's type if it is none of these."""
    model: Any = cfg.model
    if 'roi_head' in model:
        return 'detector'
    if 'cls_head' in model or 'Recognizer' in str(model.get('type')):
        return 'recognizer'
    return str(model.get('type'))


def _name(cfg: Config) -> str:
    return cfg.filename or 'The config'
