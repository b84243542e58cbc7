"""What backbones with memory have in common."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .kernels import Size
from .memory.layers import (
    LayerMemories,
    LayerWrites,
    MemorySpec,
    describe_levels,
    empty_memory,
)
from .memory.schedule import Schedule

Features = Union[Tensor, tuple[Union[Tensor, list[Tensor]], ...]]


class MemoryBackbone:
    """Mixin of backbones whose blocks attend to memory.

    Such a backbone is a function: it owns no state between calls. Given ``memory``, it
    returns what is to be remembered beside its features.

    A block is called with tokens, their grid and :class:`PastClips` by level or None,
    and returns tokens, their grid and a :class:`Written` or None.
    """

    blocks: nn.ModuleList
    clip_size: Size
    """T, H, W in frames and pixels that the model is made for."""
    memory_layers: tuple[int, ...]
    levels: Schedule
    with_cp: bool

    def choose_layers(
        self, layers: Optional[Sequence[int]], depth: int
    ) -> tuple[int, ...]:
        """The layers with memory: every even one, or those that are asked for.

        Raises:
            ValueError: If there is no such layer.
        """
        layers = range(0, depth, 2) if layers is None else layers
        several = isinstance(layers, Sequence) and not isinstance(layers, str)
        if not several or not all(type(layer) is int for layer in layers):
            raise ValueError(
                f'memory_layers={layers!r} must be a list of numbers of layers, such '
                'as (0, 2), or () for no memory.'
            )
        layers = tuple(layers)
        for layer in layers:
            if not 0 <= layer < depth:
                raise ValueError(
                    f'memory_layers has {layer}, but there are {depth} layers: use 0 '
                    f'to {depth - 1}.'
                )
        return layers

    def memory_specs(self, clip_size: Sequence[int]) -> dict[str, MemorySpec]:
        """What each memory layer keeps of a clip of T frames of H x W pixels.

        Args:
            clip_size (sequence[int]): T, H, W of the clip in frames and pixels.

        Returns:
            dict[str, MemorySpec]: By layer, 'layer0', 'layer2', …
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The schedule of the memory, for ``print``."""
        specs = self.memory_specs(self.clip_size).values()
        return describe_levels(self.levels, specs, 'layers')

    def empty_memory(self, x: Tensor) -> LayerMemories:
        """The memory of clips [B, C, T, H, W] that begin their streams."""
        return empty_memory(self.memory_specs(x.shape[-3:]), x.shape[0], x)

    def past_of(self, x: Tensor, memory: Optional[LayerMemories]) -> LayerMemories:
        """What the blocks may attend to; {} for nothing.

        In training without memory all slots are empty: the same numbers, and every
        parameter takes part, so that DistributedDataParallel finds none unused.
        """
        if memory is None and self.memory_layers and self.training:
            return self.empty_memory(x)
        return memory or {}

    def run_block(
        self, number: int, x: Tensor, size: Size, past: LayerMemories, to: LayerWrites
    ) -> tuple[Tensor, Size]:
        """Tokens [B, N, C] through one block; what it wrote is put into ``to``."""
        block, name = self.blocks[number], f'layer{number}'
        args = (x, size, past.get(name))
        if self.with_cp and self.training and torch.is_grad_enabled():
            x, size, new = checkpoint(block, *args, use_reentrant=False)
        else:
            x, size, new = block(*args)
        if new is not None:
            to[name] = new
        return x, size


def in_weights_type(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize features, in the type of the weights.

    Under autocast, as on GPUs, layer norms give float32: RoIAlign and heads take no
    mixture.
    """
    dtype = next((p.dtype for p in norm.parameters()), x.dtype)
    return norm(x.to(dtype)).to(dtype)
