"""Tables of weight names of other models, and the conversion to our names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

import torch
import torch.nn.functional as F
from mmaction.models.backbones.vit_mae import get_sinusoid_encoding
from torch import Tensor

from .memory_weights import (
    CHANGED,
    GATE,
    LEVELS,
    MEMORY,
    VIT,
    State,
    check_reading,
    is_memory,
    layers_of,
    part_of,
    parts_of,
    start_values,
    why_new,
)

BLOCK = (
    r'(?:norm[12]|proj|mlp\.(?:fc[12]|layers\.(?:0\.0|1))'
    r'|attn\.(?:q|k|v|qkv|proj|norm_[qkv]))'
    r'\.(?:weight|bias)|attn\.pool_[qkv]\.weight|attn\.rel_pos_[thw]'
    r'|attn\.[qv]_bias|gamma_[12]'
)
VIT_NORM = r'backbone\.(?:fc_)?norm\.\w+'
# Which checkpoints that its authors' were converted to may not have.
POSITIONS = 'backbone.pos_embed'
# Checkpoints of VideoMAE's authors, by names in them.
FOREIGN = {
    ('encoder.blocks.0.norm1.weight',): 'from pre-training, its encoder and decoder',
    ('blocks.0.attn.q_bias', 'patch_embed.proj.weight'): "in its authors' form",
}
# What is in the state of a backbone of MMAction2, or ours, by itself.
BACKBONE_ALONE = {'patch_embed.projection.weight', 'blocks.0.norm1.weight'}
# In the settings beside published weights, which are YAML.
DETECTION_ENABLED = r'DETECTION:\n(?:[ \t].*\n)*?[ \t]+ENABLE: true'
# What sigmoid and softmax turn to zero, in float16 too.
NEVER = -100.0


class Kind(Enum):
    """Where a checkpoint comes from."""

    DETECTION = 'published MeMViT for AVA'
    CLASSIFICATION = 'published classification model'
    MVIT = "MMAction2's MViT"
    VIDEOMAE = "MMAction2's VideoMAE (VisionTransformer)"
    OURS = 'memvit_mm'


# Published names (SlowFast's of MViTv2, with qkv, among them) and ours.
PUBLISHED = {
    r'patch_embed\.proj\.(weight|bias)': r'backbone.patch_embed.projection.\1',
    rf'cls_token|pos_embed|blocks\.\d+\.(?:{MEMORY}|{BLOCK})': r'backbone.\g<0>',
    r'norm\.(weight|bias)': r'backbone.norm{last}.\1',
    rf'box_blocks\.(\d+\.(?:{BLOCK}))': r'roi_head.shared_head.blocks.\1',
    r'head\.projection\.0\.(weight|bias)': r'cls_head.fc_verb.\1',
    r'head\.projection\.1\.(weight|bias)': r'cls_head.fc_noun.\1',
    r'head\.projection\.(weight|bias)': r'{head}.fc_cls.\1',
}
# Where the published classifier belongs: the first that the model has.
PUBLISHED_HEADS = {
    Kind.DETECTION: ('roi_head.bbox_head', 'cls_head'),
    Kind.CLASSIFICATION: ('cls_head', 'roi_head.bbox_head'),
}
CLASSIFIER = r'((?:cls_head|roi_head\.bbox_head)\.\w+)\..+'
# Weights, by our names, that may be in one of checkpoint and model only: why the
# checkpoint's are left out, and why the model's stay at their initial values. What has
# the same groups belongs together: half of it is an error.
OPTIONAL = {
    **LEVELS,
    r'roi_head\.shared_head\.(blocks\.\d+\.rel_pos_age\d+)': (
        'the ActorMemoryHead has no such level of memory',
        'the checkpoint has no such level of memory; training teaches it',
    ),
    r'backbone\.cls_token': (
        'the model has no class token',
        'the checkpoint has none',
    ),
    r'backbone\.norm(\d+)\.\w+': (
        'the model returns no features of this scale',
        'the checkpoint was trained without features of this scale',
    ),
    VIT_NORM: (
        'the model differs in use_mean_pooling: it normalizes the mean of all tokens, '
        'or each of them',
        'the checkpoint differs in use_mean_pooling: it normalizes the mean of all '
        'tokens, or each of them',
    ),
    r'roi_head\.shared_head\..+': (
        'the model has no ActorMemoryHead',
        'the checkpoint has no attention among people',
    ),
    CLASSIFIER: (
        'the model has no such classifier',
        'the checkpoint has no classifier of these classes',
    ),
}


@dataclass
class Report:
    """What became of each weight of a checkpoint and of the model."""

    kind: Kind
    used: dict[str, str] = field(default_factory=dict)
    """By our name: the checkpoint's."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By the checkpoint's name: why it is not used."""
    initial: dict[str, str] = field(default_factory=dict)
    """By our name: why it stays at its initial value."""
    changed: dict[str, str] = field(default_factory=dict)
    """By our name: how it differs from the checkpoint's."""
    checked: bool = False
    """Whether a model told which names and shapes there must be."""

    def __str__(self) -> str:
        lines = [f'Recognized: {self.kind.value}.', f'Used: {len(self.used)} weights.']
        for title, names in (
            ('Changed', self.changed),
            ('Left out of the checkpoint', self.left_out),
            ('Stays at its initial value in the model', self.initial),
        ):
            for reason in dict.fromkeys(names.values()):
                of_reason = [name for name in names if names[name] == reason]
                lines.append(f'{title}, {len(of_reason)}: {reason}')
                lines += [f'    {name}' for name in by_layer(of_reason)]
        if not self.checked:
            lines.append('Not checked against a model: no config was given.')
        return '\n'.join(lines)


def by_layer(names: Sequence[str]) -> list[str]:
    """Join names that differ in the number of their layer only.

    Examples:
        >>> by_layer(['blocks.1.a', 'blocks.1.b', 'blocks.3.a', 'head'])
        ['blocks.{1,3}.a', 'blocks.1.b', 'head']
    """
    layers: dict[tuple, list] = {}
    for name in names:
        begin, layer, end = re.fullmatch(r'(.*?blocks\.)?(\d+\b)?(.*)', name).groups()
        layers.setdefault((begin or '', end), []).append(layer or '')
    return [
        f'{begin}{{{",".join(numbers)}}}{end}'
        if len(numbers) > 1
        else f'{begin}{numbers[0]}{end}'
        for (begin, end), numbers in layers.items()
    ]


def recognize(state: Mapping[str, Tensor], notes: str = '') -> Kind:
    """Where a checkpoint comes from, by its names.

    Args:
        state (mapping[str, Tensor]): Its weights.
        notes (str): The settings beside them, as text.

    Raises:
        ValueError: If it is none of those in :class:`Kind`; the message names them.
    """
    for names, what in FOREIGN.items():
        if all(name in state for name in names):
            raise ValueError(
                f"it is a checkpoint of VideoMAE {what}: take one of MMAction2's model "
                'zoo, trained on Kinetics or AVA.'
            )
    if 'patch_embed.proj.weight' in state and 'blocks.0.norm1.weight' in state:
        detects = any(name.startswith('box_blocks.') for name in state)
        detects = detects or re.search(DETECTION_ENABLED, notes, re.I)
        return Kind.DETECTION if detects else Kind.CLASSIFICATION
    if 'backbone.blocks.0.norm1.weight' in state:
        plain = 'backbone.blocks.0.attn.qkv.weight' in state
        memory = any(re.search(rf'{MEMORY}|{GATE}', name) for name in state)
        if memory or not plain:
            return Kind.OURS
        return Kind.VIDEOMAE if VIT in state else Kind.MVIT
    kinds = ', '.join(f'"{kind.value}"' for kind in Kind)
    some = ', '.join(list(state)[:3])
    raise ValueError(
        f'its weights ({some}, …) belong to none of the models that can be converted: '
        f'{kinds}.'
    )


def convert_state(
    state: Mapping[str, Tensor],
    model: Optional[Mapping[str, Tensor]] = None,
    notes: str = '',
) -> tuple[State, Report]:
    """Weights under our names.

    Args:
        state (mapping[str, Tensor]): Weights of a published MeMViT, of MMAction2's
            MViT or VideoMAE, or of ours.
        model (mapping[str, Tensor], optional): State of the model that they are for,
            with its names and shapes. Without it, names are mapped as for a model
            with memory in every even layer, and no table is resized.
        notes (str): The settings that came with the weights, as text.

    Returns:
        tuple: The weights, and the :class:`Report` on each name.

    Raises:
        ValueError: If a name or a shape remains unexplained.
    """
    kind = recognize(state, notes)
    published = kind in PUBLISHED_HEADS
    report = Report(kind, checked=model is not None)
    if model is None:
        _check_complete(state)
    else:
        _check_build(state, model)
    check_reading(state, model or {})
    our_names = _our_names(state, kind, model)
    theirs, ours = parts_of(our_names.values()), parts_of(model or ())

    def has(name: str) -> bool:
        if model is not None:
            return name in model
        memory = re.fullmatch(rf'backbone\.blocks\.(\d+)\.{MEMORY}', name)
        return bool(name) and not (published and memory and int(memory[1]) % 2)

    converted: State = {}
    unexplained, shapes = [], []
    for name, value in state.items():
        target = our_names[name]
        if not has(target):
            match = _optional(target)
            if match is None:
                unexplained.append(name)
            else:
                level, part = part_of(target)
                reasons = CHANGED[part] if level in ours else OPTIONAL[match.re.pattern]
                report.left_out[name] = reasons[0]
            continue
        classifier = re.fullmatch(CLASSIFIER, target)
        wanted = value.shape if model is None else model[target].shape
        reserve = published and classifier and target.startswith('roi_head.')
        if reserve and (model is None or wanted[0] == len(value) + 1):
            value = with_reserved_class(value)
            report.changed[target] = (
                "a first row for MMAction2's reserved class 0, which always scores 0"
            )
        elif value.shape != wanted:
            if classifier and value.shape[1:] == wanted[1:]:
                report.left_out[name] = _other_classes(name, value, target, wanted[0])
                continue
            if 'rel_pos_' not in name or value.shape[1:] != wanted[1:]:
                shapes.append(f'{name} {list(value.shape)} for {list(wanted)}')
                continue
            value, how = _resized(
                target, value, wanted[0], state.get(_time(name)), model
            )
            report.changed[target] = how
        converted[target] = value
        report.used[target] = name

    for name, (value, how) in start_values(converted, model or {}).items():
        converted[name] = value
        report.changed[name] = how
    for name, value in (model or {}).items():
        if name not in converted:
            if is_memory(name):
                reason = why_new(name, theirs)
            else:
                reason = _initial(name, converted, report.left_out)
            if name == POSITIONS and _are_sines(value):
                reason = 'sines and cosines, computed from the config'
            if reason:
                report.initial[name] = reason
            else:
                unexplained.append(f'{name} (of the model)')
    if shapes:
        raise ValueError(
            f'{len(shapes)} weights have another shape than in the model: '
            f'{", ".join(shapes[:4])}{", …" if len(shapes) > 4 else ""}: the config '
            'must have the settings that the checkpoint was trained with.'
        )
    if unexplained:
        raise ValueError(
            f'{len(unexplained)} weights are only in the checkpoint or only in the '
            f'model, namely {", ".join(by_layer(unexplained))}: the checkpoint is of '
            'another model, or the config has other settings than it was trained with.'
        )
    return converted, report


def _our_names(
    state: Mapping[str, Tensor], kind: Kind, model: Optional[Mapping[str, Tensor]]
) -> dict[str, str]:
    """Our name of each weight of a checkpoint; '' for an unknown published name."""
    if kind not in PUBLISHED_HEADS:
        return {name: name for name in state}
    heads = PUBLISHED_HEADS[kind]
    there = [head for head in heads if model and f'{head}.fc_cls.weight' in model]
    parts = dict(
        head=(there or heads)[0],
        last=sum(bool(re.fullmatch(r'blocks\.\d+\.proj\.weight', n)) for n in state),
    )
    names = dict.fromkeys(state, '')
    for name in names:
        for pattern, ours in PUBLISHED.items():
            match = re.fullmatch(pattern, name)
            if match:
                names[name] = match.expand(ours).format(**parts)
    return names


def _optional(name: str) -> Optional[re.Match]:
    """The match of the pattern in ``OPTIONAL`` that one of our names has, or None."""
    matches = (re.fullmatch(pattern, name) for pattern in OPTIONAL)
    return next(filter(None, matches), None)


def _are_sines(positions: Tensor) -> bool:
    """Whether positions [1, N, C] are those that VisionTransformer computes."""
    return positions.equal(get_sinusoid_encoding(*positions.shape[1:]))


def _other_classes(name: str, value: Tensor, target: str, wanted: int) -> str:
    """Why a classifier is left out; class 0 of AVA, reserved, is not counted."""
    theirs = len(value) - name.startswith('roi_head.')
    ours = wanted - target.startswith('roi_head.')
    return f'the checkpoint tells {theirs} classes apart, the model {ours}'


def _initial(
    name: str, converted: Mapping[str, Tensor], left_out: Mapping[str, str]
) -> str:
    """Why a weight of the model may stay as it is; '' if it may not."""
    match = _optional(name)
    if match is None:
        return ''
    if match.re.pattern == VIT_NORM:
        # One of its two norms every checkpoint has.
        other = any(re.fullmatch(VIT_NORM, left) for left in left_out)
        return OPTIONAL[VIT_NORM][1] if other else ''
    others = [other for other in map(_optional, converted) if other]
    same = [other.groups() for other in others if other.re == match.re]
    # Without any norm even the last scale's is missing.
    if match.groups() in same or (name.startswith('backbone.norm') and not same):
        return ''
    return OPTIONAL[match.re.pattern][1]


def with_reserved_class(rows: Tensor) -> Tensor:
    """Classifier rows 1 to N of N + 1: [N, C] or [N] -> [N + 1, C] or [N + 1].

    MMAction2 reserves class 0 of AVA: ``BBoxHeadAVA`` leaves it out of the loss, and
    the metric reads the scores from class 1 on. The new row scores 0 for every box,
    whether scores are sigmoids or a softmax, so that no other score changes.
    """
    first = torch.zeros_like(rows[:1])
    if rows.ndim == 1:
        first += NEVER
    return torch.cat([first, rows])


def _time(name: str) -> str:
    """The name of a layer's table of time distances."""
    return re.sub(r'rel_pos_\w+$', 'rel_pos_t', name)


def _resized(
    name: str,
    table: Tensor,
    length: int,
    time: Optional[Tensor],
    model: Mapping[str, Tensor],
) -> tuple[Tensor, str]:
    """A table of relative positions for another size, and how it was made.

    As the model itself does at run time for clips of another size: linear
    interpolation. Memory's table of time distances begins at distance 0 and grows with
    the number of memories, too: it is scaled with the length of a clip, then cut, or
    continued with its last entry.
    """
    if 'rel_pos_age' in name:
        # By age, newest first.
        repeated = table[-1:].expand(max(length - len(table), 0), -1)
        change = 'the oldest left out' if length < len(table) else 'the oldest repeated'
        how = f'{len(table)} -> {length} ages, newest first, {change}'
        return torch.cat([table[:length], repeated]), how
    if not name.endswith('rel_pos_mem_t'):
        how = f'interpolated, {len(table)} -> {length} distances'
        return _interpolated(table, length), how
    # The tables of time distances have 2 * time steps - 1 entries.
    before, now = len(time) + 1, len(model[_time(name)]) + 1
    scaled = table
    if now != before:
        scaled = _interpolated(table, (len(table) + 1) * now // before - 1)
    how = f'{len(table)} -> {length} distances back'
    if len(scaled) != len(table):
        how = f'interpolated for longer or shorter clips, {how}'
    if len(scaled) > length:
        how += ', the farthest left out'
    elif len(scaled) < length:
        how += ', the farthest one repeated'
    repeated = scaled[-1:].expand(max(length - len(scaled), 0), -1)
    return torch.cat([scaled[:length], repeated]), how


def _interpolated(table: Tensor, length: int) -> Tensor:
    # (L, C) -> (1, C, L) -> (1, C, length) -> (length, C)
    resized = F.interpolate(table.float().t()[None], size=length, mode='linear')
    return resized[0].t().contiguous().to(table.dtype)


def _check_build(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Say what differs as a whole, instead of a hundred names and shapes."""
    if 'backbone.blocks.0.norm1.weight' not in model:
        raise ValueError(
            "the config's model has no MeMViT, MViT or MemoryViT backbone: these "
            'weights do not fit it.'
        )
    if (VIT in state) != (VIT in model):
        names = ('MeMViT or MViT', 'MemoryViT or VisionTransformer (VideoMAE)')
        fitting = ('memvit_ava.py', 'videomae_memory_ava.py')[VIT in state]
        raise ValueError(
            f'these are weights of {names[VIT in state]}, but the backbone of the '
            f"config's model is {names[VIT in model]}: take a config of the "
            f"checkpoint's backbone, such as {fitting}."
        )
    # Layers, width, and whether q, k and v have a projection each (pool first).
    (layers, width, pool_first), theirs = (
        (len(blocks), len(blocks[0]['norm1.weight']), 'attn.q.weight' in blocks[0])
        for blocks in map(layers_of, (state, model))
    )
    if (layers, width) != theirs[:2]:
        size = 'depth and embed_dims' if VIT in model else 'arch'
        raise ValueError(
            f'the checkpoint has {layers} layers that begin with {width} channels, the '
            f"config's model {theirs[0]} layers that begin with {theirs[1]}: use the "
            f"config of the checkpoint's size (model.backbone.{size})."
        )
    if pool_first != theirs[2]:
        order = ('projects, then pools (MViTv2)', 'pools, then projects (MeMViT)')
        raise ValueError(
            f"the checkpoint's attention {order[pool_first]}, that of the config's "
            f'model {order[theirs[2]]}: set model.backbone.pool_first={pool_first}.'
        )
    # A VisionTransformer computes its positions, so that they need not be there.
    has_positions = any(name in state for name in (POSITIONS, 'pos_embed'))
    if VIT not in model and has_positions != (POSITIONS in model):
        which = ('no absolute positions', 'absolute positions (pos_embed)')
        raise ValueError(
            f"the checkpoint has {which[has_positions]}, the config's model "
            f'{which[not has_positions]}: set '
            f'model.backbone.use_abs_pos_embed={has_positions}.'
        )


def _check_complete(state: Mapping[str, Tensor]) -> None:
    """Without a model: every layer must have what the others have."""
    blocks = layers_of(state)
    everything = {
        name
        for layer in blocks.values()
        for name in layer
        if re.fullmatch(BLOCK, name) and not name.startswith('proj.')
    }
    missing = [
        f'blocks.{number}.{name}'
        for number in range(max(blocks) + 1)
        for name in sorted(everything.difference(blocks.get(number, ())))
    ]
    if missing:
        raise ValueError(
            f'it is incomplete: {", ".join(by_layer(missing))} missing; fetch or write '
            'it again.'
        )
