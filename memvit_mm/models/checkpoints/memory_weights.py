"""The weights that memory adds to a backbone, and the rules for what may lack them."""

import re
from collections.abc import Iterable, Mapping
from typing import Optional

import torch
from torch import Tensor

State = dict[str, Tensor]

MEMORY = (
    r'attn\.(?:compress_(?:query|[kv]\.weight)|norm_compress_[kv]\.(?:weight|bias)'
    r'|rel_pos_(?:mem_[thw]|age0))'
)
GATE = r'backbone\.blocks\.\d+\.attn\.gate'
# Of the levels of a memory's schedule after the first: the layer, and which level.
FURTHER = (
    r'(backbone\.blocks\.\d+\.attn\.)(?:norm_compress|compress|rel_pos_age)([1-9]\d*)'
    r'(?:_query|_[kv]\.(?:weight|bias))?'
)
# What the layers of a VisionTransformer have, and those of an MViT have not.
VIT = 'backbone.blocks.0.mlp.layers.0.0.weight'
# Why a checkpoint's are left out that the model has not, and why the model's that a
# checkpoint has not stay at their initial values.
LEVELS = {
    FURTHER: (
        'the model has no such level of memory',
        'the checkpoint has no such level of memory; training teaches it',
    ),
    GATE: (
        'the model has no memory in this layer, and no gate to it',
        'starts at 0: memory changes no prediction before training opens it',
    ),
    rf'backbone\.blocks\.(\d+)\.{MEMORY}': (
        'the model has no memory in this layer (the published model carries memory '
        'parameters in every layer and uses them in even ones only)',
        'the checkpoint has no memory in this layer; training teaches it',
    ),
}
# The same of a level of memory that both have, by what of it (see part_of).
CHANGED = {
    'compression': (
        "the model's level of memory keeps clips without parameters",
        "the checkpoint's memory has no learned compression; training teaches it",
    ),
    'ages': (
        "the model's level of memory has relative positions on a grid",
        "the checkpoint's memory has relative positions on a grid, not by age; "
        'training teaches these',
    ),
    'grid': (
        "the model's level of memory has relative positions by age",
        "the checkpoint's memory has relative positions by age, not on a grid; "
        'training teaches these',
    ),
}


# A level of memory: its layer and its number.
Level = tuple[int, int]


def check_reading(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Refuse a MemoryViT's memory that is read in another way than the model's.

    Args:
        state (mapping[str, Tensor]): Weights of a checkpoint.
        model (mapping[str, Tensor]): State of the model that they are for, or {}.

    Raises:
        ValueError: If the checkpoint was trained with another ``reading``, or is
            damaged: all of its layers with memory have a gate, or none has.
    """
    theirs = _reading(state)
    ours = _reading(model)
    if theirs and ours and theirs != ours:
        raise ValueError(
            f'its memory was trained with reading={theirs!r}, and the model reads with '
            f'{ours!r}: set model.backbone.reading={theirs!r}.'
        )


def _reading(state: Mapping[str, Tensor]) -> str:
    """'gated' or 'joint', by the memory of a MemoryViT; '' without any."""
    if VIT not in state:
        return ''
    gated, aged = (
        {layer for layer, names in layers_of(state).items() if name in names}
        for name in ('attn.gate', 'attn.rel_pos_age0')
    )
    if gated and gated != aged:
        what = 'gate' if aged - gated else 'rel_pos_age0'
        layers = aged - gated or gated - aged
        raise ValueError(
            f'it is damaged: memory without attn.{what} in {layers_text(layers)}, '
            'which others have; fetch or write it again.'
        )
    return 'gated' if gated else 'joint' if aged else ''


def closed_memory(missing: Iterable[str], there: Iterable[str]) -> set[str]:
    """Weights of memories that change no prediction, since no gate to them is trained.

    Those are the memories of which a checkpoint has nothing, where a model has a gate.

    Args:
        missing (iterable[str]): Weights of the model that the checkpoint has not.
        there (iterable[str]): Weights of the checkpoint.

    Examples:
        >>> attn = 'backbone.blocks.0.attn.'
        >>> sorted(closed_memory([f'{attn}gate', f'{attn}rel_pos_age0', 'bias'], []))
        ['backbone.blocks.0.attn.gate', 'backbone.blocks.0.attn.rel_pos_age0']
        >>> closed_memory([f'{attn}rel_pos_age0'], [])
        set()
        >>> closed_memory([f'{attn}gate'], [f'{attn}rel_pos_age0'])
        set()
    """
    missing = list(missing)
    gates = {_layer(name) for name in missing if re.fullmatch(GATE, name)}
    closed = gates - {_layer(name) for name in there if is_memory(name)}
    return {name for name in missing if is_memory(name) and _layer(name) in closed}


def is_memory(name: str) -> bool:
    """Whether it is a weight that memory adds to a backbone's layer."""
    layer = r'backbone\.blocks\.\d+\.'
    return bool(re.fullmatch(rf'{layer}{MEMORY}|{FURTHER}|{GATE}', name))


def is_new_memory(name: str, there: Iterable[str]) -> bool:
    """Whether a weight of a model's memory, which a checkpoint with the weights
    ``there`` has not, is new as a whole, and not the rest of something damaged."""
    return is_memory(name) and bool(why_new(name, parts_of(there)))


def memory_layers(names: Iterable[str]) -> set[int]:
    """The layers of a backbone that have memory, by names of weights."""
    return {_layer(name) for name in names if is_memory(name)}


def layers_text(layers: Iterable[int]) -> str:
    """Name layers.

    Examples:
        >>> layers_text({3, 1}), layers_text([2])
        ('layers 1, 3', 'layer 2')
    """
    numbers = sorted(layers)
    return f'layer{"s" * (len(numbers) > 1)} {", ".join(map(str, numbers))}'


def _layer(name: str) -> int:
    """The layer of a weight of a backbone's memory."""
    return int(name.split('.')[2])


def part_of(name: str) -> tuple[Optional[Level], str]:
    """The level of memory that a weight belongs to, if any, and what it is there."""
    if not is_memory(name) or re.fullmatch(GATE, name):
        return None, ''
    number = re.search(r'(?:compress|age)(\d+)', name)
    level = _layer(name), int(number[1]) if number else 0
    if 'compress' in name:
        return level, 'compression'
    return level, 'grid' if 'rel_pos_mem' in name else 'ages'


def parts_of(names: Iterable[str]) -> dict[Level, set[str]]:
    """What there is of each level of memory."""
    found: dict[Level, set[str]] = {}
    for level, part in filter(all, map(part_of, names)):
        found.setdefault(level, set()).add(part)
    return found


def why_new(name: str, there: Mapping[Level, set[str]]) -> str:
    """Why a weight of the model's memory may stay as it is; '' if it may not.

    Args:
        name (str): The weight.
        there (mapping): :func:`parts_of` of the checkpoint.
    """
    level, part = part_of(name)
    if level is None:
        # A gate: the others of its layer are new, too.
        known = any(layer == _layer(name) for layer, _ in there)
        return '' if known else LEVELS[GATE][1]
    known = there.get(level, set())
    if not known:
        # Levels are counted from the first: none is left out before another.
        if any(of[0] == level[0] and of > level for of in there if 'ages' in there[of]):
            return ''
        return next(new for at, (_, new) in LEVELS.items() if re.fullmatch(at, name))
    # Compression by a convolution has positions on a grid in a MeMViT.
    new = dict(
        compression=known == {'ages'},
        ages='grid' in known and 'ages' not in known,
        grid='ages' in known and 'grid' not in known,
    )
    return CHANGED[part][1] if new[part] else ''


def start_values(
    converted: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, str]]:
    """Start values for levels of memory that a checkpoint has not, from its first.

    They start as an average of a clip, with the first level's norm, at the farthest
    distance that the checkpoint knows.
    """
    matches = (re.fullmatch(FURTHER, name) for name in converted)
    known = {match.groups() for match in matches if match}
    values = {}
    for name, own in model.items():
        match = re.fullmatch(FURTHER, name)
        if not match or match.groups() in known:
            continue
        layer, level = match.groups()
        # Where the checkpoint has no first level like the model's, there is nothing to
        # start from.
        norm = f'{layer}norm_compress_k.weight'
        table = converted.get(f'{layer}rel_pos_mem_t')
        if norm in converted and name.endswith('_query'):
            values[name] = torch.zeros_like(own), 'starts at zero: the mean over a clip'
        elif norm in converted and 'norm' in name:
            first = converted[name.replace(f'compress{level}', 'compress')]
            values[name] = first, "starts as the first level's"
        elif table is not None and 'rel_pos_age' in name:
            far = table[-1:].expand_as(own)
            values[name] = far, 'starts at the farthest distance of the first level'
    return values


def layers_of(state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The weights of each layer, by their names in it."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        match = re.match(r'(?:backbone\.)?blocks\.(\d+)\.(.*)', name)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = value
    return layers
