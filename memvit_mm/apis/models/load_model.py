"""Building a model from a config and a checkpoint that must fit."""

import copy
import os
import os.path as osp
from typing import Any, Optional, Union

import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch import nn

from memvit_mm.models.checkpoints.checkpoint import load_weights, read_checkpoint
from memvit_mm.paths import get_config_path

ConfigLike = Union[str, os.PathLike, Config]
# What to call for a model of each kind.
CALLS = {
    'recognizer': 'init_recognizer and inference_recognizer',
    'detector': 'init_detector_model and inference_stdet',
}


def init_model(
    kind: str,
    config: ConfigLike,
    checkpoint: Optional[str] = None,
    device: Union[str, torch.device, None] = None,
) -> nn.Module:
    """Build a config's model, which must be a 'recognizer' or a 'detector'.

    The other arguments and errors are those of :func:`load_config` and
    :func:`build_model`.
    """
    cfg = load_config(config)
    found = kind_of(cfg)
    if found != kind:
        use = f': use {CALLS[found]} of memvit_mm.apis' if found in CALLS else ''
        wanted = 'an action detector' if kind == 'detector' else 'a recognizer'
        raise ValueError(
            f'The model of {_name(cfg)} is a {cfg.model.get("type")}, not {wanted}'
            f'{use}.'
        )
    return build_model(cfg, checkpoint, device)


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
        if not osp.isfile(name):
            # One of ours; 'configs/' as one would type it in a checkout.
            short = name.removeprefix('memvit_mm::').removeprefix('configs/')
            try:
                name = get_config_path(short)
            except ValueError as error:
                told = f'There is no config file {name}. {error}'
                raise FileNotFoundError(told) from None
        cfg = Config.fromfile(name)
    if 'model' not in cfg:
        raise ValueError(f"{_name(cfg)} has no 'model': give the config of a model.")
    return cfg


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
            f"device={device!r} cannot be used ({reason}): give 'cpu'."
        ) from error


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
