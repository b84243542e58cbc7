"""Containers that pass between the layers with memory and :class:`ClipMemory`."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

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
    A level that consolidates a clip when it is seen has its own form as the source.
    """

    ages: tuple[int, ...]
    """The clips that are read, in clips before the present one, newest first."""
    source: int
    """The form that is compressed where the level first reads a clip."""
    form: int
    """The form of the clips after that; the source itself, if nothing is compressed
    then."""
    tokens: int
    """Keys of one clip in that form, class token included."""
    shared: bool = False
    """Whether keys and values are one tensor in that form."""


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
    shared: bool = False
    """Whether keys and values are one tensor as they are written."""

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
        ages += [n.ages[-1] for n in self.levels if n.form == form]
        return max(ages, default=0)

    @property
    def written_forms(self) -> set[int]:
        """The forms in which a clip is kept from the beginning."""
        return {level.source for level in self.levels} - {
            level.form for level in self.levels if level.source != level.form
        }

    def is_shared(self, form: int) -> bool:
        """Whether keys and values are one tensor in a form."""
        return next((n.shared for n in self.levels if n.form == form), self.shared)

    @property
    def made_at(self) -> dict[int, int]:
        """By each form in which a clip is kept, the age at which it takes it; 0 is when
        it is seen."""
        made = dict.fromkeys(sorted(self.written_forms), 0)
        for level in self.levels:
            made.setdefault(level.form, level.ages[0])
        return made

    @property
    def kept_numbers(self) -> int:
        """What is kept of a stream between two clips, once every slot is full: the
        numbers in keys and values."""
        return self.channels * sum(
            self.tokens_of(form)
            * (1 if self.is_shared(form) else 2)
            * (self.last_age(form) - age)
            for form, age in self.made_at.items()
        )


@dataclass
class Written:
    """What one layer hands over to be remembered. The memory detaches it."""

    current: KeyValue
    """This clip, not compressed: [B, tokens, C]."""
    compressed: tuple[Optional[KeyValue], ...] = ()
    """By level: its newest clip, compressed at this step, [B, tokens', C]; None where
    the level compresses nothing then."""
    consolidated: tuple[Optional[KeyValue], ...] = ()
    """By level: this clip, consolidated at once, [B, tokens', C]; None where the level
    does not do that."""


def horizon_of(specs: dict[str, MemorySpec]) -> int:
    """How many clips back is the oldest one that is read; 0 without memory."""
    return max((spec.ages[-1] for spec in specs.values()), default=0)


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

    def zeros(tokens: int, channels: int, shared: bool) -> KeyValue:
        return zero_clips(like, (batch, tokens, channels), shared)

    return {
        name: tuple(
            PastClips(
                zeros(
                    spec.tokens_of(level.source),
                    spec.channels,
                    spec.is_shared(level.source),
                ),
                zeros(
                    (len(level.ages) - 1) * level.tokens, spec.channels, level.shared
                ),
                torch.zeros(
                    batch, len(level.ages), dtype=torch.bool, device=like.device
                ),
            )
            for level in spec.levels
        )
        for name, spec in specs.items()
    }


def zero_clips(like: Tensor, size: tuple[int, int, int], shared: bool) -> KeyValue:
    """Keys and values [B, tokens, C] of empty slots.

    One tensor or two as when they are filled: torch.compile tells that apart.
    """
    key = like.new_zeros(size)
    return KeyValue(key, key if shared else like.new_zeros(size))


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
