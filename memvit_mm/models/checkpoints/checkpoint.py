"""Read, convert and load checkpoints: published ones, MMAction2's and our own."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from memvit_mm.io.whole_file import write_bytes
from memvit_mm.version import __version__

from .key_map import BACKBONE_ALONE, CLASSIFIER, POSITIONS, Report, convert_state
from .memory_weights import (
    VIT,
    State,
    check_reading,
    closed_memory,
    is_new_memory,
    layers_text,
    memory_layers,
)

PathLike = Union[str, os.PathLike]


def convert_checkpoint(
    src: PathLike,
    dst: PathLike,
    config: Optional[Union[PathLike, Config]] = None,
    overwrite: bool = False,
) -> Report:
    """Write an MMAction2 checkpoint of our model from another model's.

    The result works with ``load_from``, ``init_cfg=dict(type='Pretrained')``,
    ``init_recognizer`` and ``tools/test.py``.

    Args:
        src (path): A published MeMViT checkpoint (AVA or Kinetics), one of MMAction2's
            MViT or VideoMAE, or one of ours; it is recognized by its content. Only
            weights are read: a file that could run code is refused.
        dst (path): The file to write. It is there as a whole or not at all.
        config (path | Config, optional): Every name and shape is checked against the
            model that this config builds, and tables of relative positions are
            resized to fit it.
        overwrite (bool): Replace ``dst`` if it exists.

    Returns:
        Report: What became of each weight.

    Raises:
        ValueError: If ``src`` is damaged or of another kind, does not fit the config's
            model, or ``dst`` cannot be written.
        FileNotFoundError: If ``src``, ``config`` or the folder of ``dst`` is missing.
    """
    _check_destination(src, Path(dst), overwrite)
    state, extras = read_checkpoint(src)
    model = None if config is None else model_state(config)
    try:
        converted, report = convert_state(state, model, extras['notes'])
    except ValueError as error:
        raise ValueError(f'{src}: {error}') from None
    meta = dict(
        converted_from=os.path.basename(src),
        converted_kind=report.kind.value,
        memvit_mm=__version__,
    )
    if 'dataset_meta' in extras:
        meta['dataset_meta'] = extras['dataset_meta']
    # Clones: a view would be saved with all of the tensor that it is a view of.
    weights = {name: value.detach().clone() for name, value in converted.items()}
    content = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=weights), content)
    write_bytes(dst, content.getbuffer())
    return report


def read_checkpoint(path: PathLike) -> tuple[State, dict[str, Any]]:
    """The weights in a file, and what else is needed of it.

    Returns:
        tuple: Weights by name, without the prefix of DistributedDataParallel, those of
        a backbone alone as in a whole model ('backbone.'); and 'notes', the settings as
        text ('' if there are none), and 'dataset_meta' where the file has it.

    Raises:
        ValueError: If the file holds no weights or more than data.
        FileNotFoundError: If there is no such file.
    """
    name = os.fspath(path)
    if '://' not in name and not os.path.isfile(name):
        raise FileNotFoundError(f'There is no checkpoint file {name}.')
    content = CheckpointLoader.load_checkpoint(name, 'cpu', logger='silent')
    if not isinstance(content, dict):
        raise ValueError(
            f'{name} holds a {type(content).__name__}, no checkpoint: that is a dict '
            "with 'state_dict' or 'model_state'."
        )
    state = content
    # The last two are what VideoMAE's authors call it.
    for key in ('model_state', 'state_dict', 'model', 'module'):
        if isinstance(content.get(key), dict):
            state = content[key]
            break
    weights = {
        str(key): value for key, value in state.items() if isinstance(value, Tensor)
    }
    if not weights:
        raise ValueError(
            f'{name} holds no weights: its state is empty. A checkpoint has them in '
            "'state_dict' or 'model_state'."
        )
    if state is not content and len(weights) < len(state):
        wrong = next(key for key in state if key not in weights)
        raise ValueError(
            f'{name} is damaged: {wrong} is a {type(state[wrong]).__name__}, no tensor.'
        )
    if all(key.startswith('module.') for key in weights):
        weights = {key[len('module.') :]: value for key, value in weights.items()}
    if weights.keys() >= BACKBONE_ALONE:
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    extras = dict(notes=content['cfg'] if isinstance(content.get('cfg'), str) else '')
    meta = content.get('meta')
    if isinstance(meta, dict) and 'dataset_meta' in meta:
        extras['dataset_meta'] = meta['dataset_meta']
    return weights, extras


def load_weights(
    model: nn.Module,
    weights: State,
    checkpoint: PathLike,
    config: str,
    remedy: str = 'take the config that it was trained with',
) -> None:
    """Load weights of which none may be missing or of another shape.

    But a memory whose gate is still closed changes no prediction: all of it may be
    missing, as from MMAction2's VideoMAE. There is a warning then.

    Args:
        model (nn.Module): The model.
        weights (dict[str, Tensor]): As :func:`read_checkpoint` gives them.
        checkpoint, config (path, str): Where both are from, for messages.
        remedy (str): What to do if they do not fit, for the message.

    Raises:
        ValueError: If the checkpoint is of another model, or its memory was trained
            with another ``reading``.
    """
    own = model.state_dict()
    misfit = f'{checkpoint} does not fit the model of {config}'
    try:
        check_reading(weights, own)
    except ValueError as error:
        raise ValueError(f'{misfit}: {error}') from None
    # What counts batches, or is computed from the config, need not be there.
    computed = {name for name, _ in model.named_buffers() if name == POSITIONS}
    missing = [
        name
        for name, value in own.items()
        if value.is_floating_point() and name not in computed and name not in weights
    ]
    closed = closed_memory(missing, weights)
    missing = [name for name in missing if name not in closed]
    wrong = [
        f'{name} ({list(weights[name].shape)}, not {list(own[name].shape)})'
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    told = []
    if missing:
        told.append(
            f'{len(missing)} of its {len(own)} weights are missing, the first is '
            f'{missing[0]}'
        )
    if wrong:
        told.append(f'{len(wrong)} have another shape, the first is {wrong[0]}')
    elif missing:
        remedy = _remedy(missing, weights, own, checkpoint) or remedy
    if told:
        raise ValueError(f'{misfit}: {"; ".join(told)}; {remedy}.')
    unused = [name for name in weights if name not in own]
    if unused:
        warnings.warn(
            f'{checkpoint} has {len(unused)} weights that the model of {config} does '
            f'not use, the first is {unused[0]}.',
            stacklevel=2,
        )
    if closed:
        warnings.warn(_untrained(closed, weights, checkpoint, config), stacklevel=2)
    model.load_state_dict(weights, strict=False)


def _remedy(
    missing: list[str], weights: State, own: State, checkpoint: PathLike
) -> str:
    """What to do if nothing is missing but a memory, or a classifier; '' else."""
    if all(re.fullmatch(CLASSIFIER, name) for name in missing):
        return (
            'it has no classifier of these classes: train one first, with load_from='
            f'{checkpoint}'
        )
    if not all(is_new_memory(name, weights) for name in missing):
        return ''
    remedy = (
        'it was trained without this memory, whose weights change what is predicted: '
        'train it first (load_from)'
    )
    if VIT in own and not memory_layers(weights):
        remedy += ", or set model.backbone.reading='gated'"
    return remedy


def _untrained(
    closed: set[str], weights: State, checkpoint: PathLike, config: str
) -> str:
    """Say which memory is not read, since no gate to it is trained."""
    where, these = '', f'memory adds to the model of {config}'
    what = 'its predictions are those without memory'
    if memory_layers(weights):
        layers = memory_layers(closed)
        several = len(layers) > 1
        where = f' in {layers_text(layers)}'
        these = f'it adds to {"these" if several else "this"}'
        what = f'no memory is read in {"them" if several else "it"}'
    return (
        f'{checkpoint} has been trained without memory{where}: the {len(closed)} '
        f'weights that {these} are missing, and {what}. Train the model of {config} '
        f'with load_from={checkpoint} first.'
    )


def model_state(config: Union[PathLike, Config]) -> State:
    """Names and (initial) weights of the model that a config builds."""
    if not isinstance(config, Config):
        if not os.path.isfile(config):
            raise FileNotFoundError(f'There is no config file {config}.')
        config = Config.fromfile(config)
    if 'model' not in config:
        raise ValueError(
            f"{config.filename} has no 'model': give the config of a model."
        )
    init_default_scope(config.get('default_scope', 'mmaction'))
    return MODELS.build(config.model).state_dict()


def _check_destination(src: PathLike, dst: Path, overwrite: bool) -> None:
    """Refuse what cannot end well before anything is read."""
    if dst.is_dir():
        raise ValueError(f'{dst} is a folder: name a file in it.')
    if not dst.parent.is_dir():
        raise FileNotFoundError(f'There is no folder {dst.parent} for {dst.name}.')
    if dst.exists():
        if os.path.exists(src) and os.path.samefile(src, dst):
            raise ValueError(f'{dst} is the source itself: choose another destination.')
        if not overwrite:
            raise ValueError(
                f'{dst} exists and was kept: choose another name, or replace it with '
                'overwrite=True (--overwrite).'
            )
