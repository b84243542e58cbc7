"""Containers that pass between the layers with memory and :class:`ClipMemory`."""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from memvit_mm.models.relative_position import HIDDEN


class KeyValue(NamedTuple):
    """Keys and values of clips, each [B, tokens, C], class token first if any."""

    key: Tensor
    value: Tensor


class PastClips(NamedTuple):
    """What one layer may attend to of earlier clips, one row per row of the batch.

    There is one slot for each age of the layer's schedule. Empty slots are hidden, so
    shapes never depend on how full the memory is.
    """

    recent: KeyValue
    """The newest clip of the schedule, not yet compressed: [B, tokens, C]."""
    older: KeyValue
    """All older clips, compressed (where the layer compresses), joined oldest first:
    [B, (slots - 1) * compressed_tokens, C]."""
    valid: Tensor
    """Which slots hold a clip, oldest first, so that the last one is ``recent``: bool,
    [B, slots]."""


@dataclass(frozen=True)
class MemorySpec:
    """What one layer keeps of a clip, and which clips it reads (MeMViT, sec. 4)."""

    channels: int
    """Width of the keys and values."""
    tokens: int
    """Keys of one clip, class token included, as they are written."""
    compressed_tokens: int
    """Keys of one clip after compression; equal to ``tokens`` without it."""
    ages: tuple[int, ...]
    """The clips that are read, in clips before the present one, newest first; see
    :mod:`.schedule`."""
    grid: tuple[int, ...] = ()
    """T, H, W of the keys as they are written; () where keys have no position."""


@dataclass
class Written:
    """What one layer hands over to be remembered. The memory detaches it."""

    current: KeyValue
    """This clip, not compressed: [B, tokens, C]."""
    compressed: Optional[KeyValue] = None
    """The newest clip of the schedule, compressed at this step: [B, tokens', C]."""


LayerMemories = dict[str, PastClips]
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
        dict[str, PastClips]: Zeros, every slot marked as not valid.
    """

    def zeros(tokens: int, channels: int) -> KeyValue:
        # Two tensors, as when they are filled: torch.compile tells that apart.
        size = (batch, tokens, channels)
        return KeyValue(like.new_zeros(size), like.new_zeros(size))

    return {
        name: PastClips(
            zeros(spec.tokens, spec.channels),
            zeros((len(spec.ages) - 1) * spec.compressed_tokens, spec.channels),
            torch.zeros(batch, len(spec.ages), dtype=torch.bool, device=like.device),
        )
        for name, spec in specs.items()
    }


def hidden_slots(valid: Tensor, tokens: int) -> Tensor:
    """Scores that hide the keys of empty slots.

    Args:
        valid (Tensor): bool, [B, slots].
        tokens (int): Keys per slot.

    Returns:
        Tensor: [B, slots * tokens], 0 or ``HIDDEN``.
    """
    return (~valid).float().mul(HIDDEN).repeat_interleave(tokens, dim=1)
