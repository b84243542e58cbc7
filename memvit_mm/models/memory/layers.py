"""Containers that pass between the layers with memory and :class:`ClipMemory`."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from memvit_mm.models.relative_position import HIDDEN

from .schedule import Schedule, clips_text


class KeyValue(NamedTuple):
    """Keys and values of clips, each [B, tokens, C], class token first if any."""

    key: Tensor
    value: Tensor


class PastClips(NamedTuple):
    """What one layer may attend to of earlier clips at one level of its schedule.

    There is one slot for each age of the level; rows are those of the batch. Empty
    slots are hidden, so shapes never depend on how full the memory is.
    """

    recent: KeyValue
    """The newest clip of the level, as it was kept until now; the layer compresses it:
    [B, tokens, C]."""
    older: KeyValue
    """All older clips of the level, compressed, joined oldest first:
    [B, (slots - 1) * compressed tokens, C]."""
    valid: Tensor
    """Which slots hold a clip, oldest first, so that the last one is ``recent``: bool,
    [B, slots]."""


class LevelSpec(NamedTuple):
    """What one layer keeps of a clip at one level of its schedule.

    A clip is kept in *forms*: form 0 as it was written, form i as level i - 1 made it.
    """

    ages: tuple[int, ...]
    """The clips that are read, in clips before the present one, newest first."""
    source: int
    """The form that is compressed where the level first reads a clip."""
    form: int
    """The form of the clips after that; the source itself, if nothing is compressed."""
    tokens: int
    """Keys of one clip in that form, class token included."""


@dataclass(frozen=True)
class MemorySpec:
    """What one layer keeps of a clip, and which clips it reads (MeMViT, sec. 4)."""

    channels: int
    """Width of the keys and values."""
    tokens: int
    """Keys of one clip, class token included, as they are written."""
    levels: tuple[LevelSpec, ...]
    """See :mod:`.schedule`."""
    grid: tuple[int, ...] = ()
    """T, H, W of the keys as they are written; () where keys have no position."""

    @property
    def ages(self) -> tuple[int, ...]:
        """All clips that are read, newest first."""
        return tuple(sorted(age for level in self.levels for age in level.ages))

    @property
    def forms(self) -> set[int]:
        """The forms in which a clip is kept at some time."""
        return {0, *(level.form for level in self.levels)}

    @property
    def shapes(self) -> dict[int, tuple[int, int]]:
        """Shape of the keys of one clip, by form: [tokens, C]."""
        return {form: (self.tokens_of(form), self.channels) for form in self.forms}

    def tokens_of(self, form: int) -> int:
        """Keys of one clip in a form."""
        return next((n.tokens for n in self.levels if n.form == form), self.tokens)

    def last_age(self, form: int) -> int:
        """The age at which a form is read for the last time."""
        ages = [n.ages[0] for n in self.levels if n.source == form]
        return max([*ages, *(n.ages[-1] for n in self.levels if n.form == form)])

    @property
    def kept_tokens(self) -> int:
        """Keys that are kept of a stream between two clips, once every slot is full."""
        made = {0: 0}
        for level in self.levels:
            made.setdefault(level.form, level.ages[0])
        return sum(
            self.tokens_of(form) * (self.last_age(form) - age)
            for form, age in made.items()
        )


@dataclass
class Written:
    """What one layer hands over to be remembered. The memory detaches it."""

    current: KeyValue
    """This clip, not compressed: [B, tokens, C]."""
    compressed: tuple[Optional[KeyValue], ...] = ()
    """By level: its newest clip, compressed at this step, [B, tokens', C]; None where
    the level compresses nothing."""


LayerMemories = dict[str, tuple[PastClips, ...]]
"""By layer and level, finest first."""
LayerWrites = dict[str, Written]


def empty_memory(
    specs: dict[str, MemorySpec], batch: int, like: Tensor
) -> LayerMemories:
    """The memory of streams that have just begun: all slots empty.

    Args:
        specs (dict[str, MemorySpec]): By layer.
        batch (int): Rows.
        like (Tensor): Gives device and dtype.

    Returns:
        dict[str, tuple[PastClips, ...]]: Zeros, every slot marked as not valid.
    """

    def zeros(tokens: int, channels: int) -> KeyValue:
        # Two tensors, as when they are filled: torch.compile tells that apart.
        size = (batch, tokens, channels)
        return KeyValue(like.new_zeros(size), like.new_zeros(size))

    return {
        name: tuple(
            PastClips(
                zeros(spec.tokens_of(level.source), spec.channels),
                zeros((len(level.ages) - 1) * level.tokens, spec.channels),
                torch.zeros(
                    batch, len(level.ages), dtype=torch.bool, device=like.device
                ),
            )
            for level in spec.levels
        )
        for name, spec in specs.items()
    }


def describe_levels(levels: Schedule, specs: Collection[MemorySpec], what: str) -> str:
    """A line for each level, for ``print``.

    Args:
        levels (tuple[MemoryLevel]): The schedule.
        specs (collection[MemorySpec]): What the layers that have it keep.
        what (str): The layers, for the text.
    """
    lines = []
    for number, level in enumerate(levels):
        tokens = [spec.levels[number].tokens for spec in specs]
        keys = ' to '.join(map(str, sorted({min(tokens), max(tokens)})))
        lines.append(
            f'memory level {number}: {level.type}, clips {clips_text(level.ages)} '
            f'back, {keys} keys a clip in each of {len(specs)} {what}'
        )
    return '\n'.join(lines)


def hidden_slots(valid: Tensor, tokens: int) -> Tensor:
    """Scores that hide the keys of empty slots.

    Args:
        valid (Tensor): bool, [B, slots].
        tokens (int): Keys per slot.

    Returns:
        Tensor: [B, slots * tokens], 0 or ``HIDDEN``.
    """
    return (~valid).float().mul(HIDDEN).repeat_interleave(tokens, dim=1)
