"""The blocks of MeMViT: one transformer block, and the plan of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
import torch.nn as nn
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor

from .attention import MemoryAttention
from .kernels import LeanMLP, Size, max_pool, run_drop_path, run_linear
from .memory.compression import split_cls
from .memory.layers import PastClips, Written
from .memory.schedule import Schedule, levels_of_layer


class BlockPlan(NamedTuple):
    """What differs from block to block; arguments of :class:`MemoryBlock`."""

    in_dims: int
    """Channels of the input."""
    out_dims: int
    """Channels of the output."""
    num_heads: int
    """Attention heads."""
    input_size: Size
    """T, H, W of the tokens that the block is made for."""
    stride_q: Size
    """Stride of the queries."""
    stride_kv: Size
    """Stride of the keys and values."""
    table_size: Size
    """``input_size`` as MMAction2's ``MViT`` counts it: rounded down, where its
    convolutions round up."""
    drop_path: float
    """Stochastic depth."""
    levels: Schedule
    """The schedule of the memory; () without memory."""


def plan_blocks(
    arch: Mapping[str, Any],
    input_size: Size,
    pool_kernel: Sequence[int] = (3, 3, 3),
    dim_mul: int = 2,
    head_mul: int = 2,
    adaptive_kv_stride: Sequence[int] = (1, 8, 8),
    dim_mul_in_attention: bool = True,
    drop_path_rate: float = 0.0,
    memory_layers: Sequence[int] = (),
    levels: Schedule = (),
) -> list[BlockPlan]:
    """Plan the blocks of a multiscale vision transformer (MViTv2, table 2).

    Args:
        arch (dict): As ``arch`` of :class:`MeMViT`, as a dict.
        input_size (tuple[int, int, int]): T, H, W of the patch embedding.
        memory_layers (sequence[int]): Layers with memory.
        levels (tuple[MemoryLevel]): The schedule of these layers.
        pool_kernel, dim_mul, head_mul, adaptive_kv_stride, dim_mul_in_attention,
        drop_path_rate: As :class:`MeMViT`.

    Returns:
        list[BlockPlan]: One per layer.

    Examples:
        >>> arch = dict(embed_dims=96, num_layers=3, num_heads=1, downscale_indices=[1])
        >>> for plan in plan_blocks(arch, (8, 16, 16)):
        ...     print(plan.in_dims, plan.out_dims, plan.input_size, plan.stride_q)
        96 96 (8, 16, 16) (1, 1, 1)
        96 192 (8, 16, 16) (1, 2, 2)
        192 192 (8, 8, 8) (1, 1, 1)
    """
    downscale = arch['downscale_indices']
    widen = arch.get('dim_mul_indices', downscale)
    depths = np.linspace(0, drop_path_rate, arch['num_layers']).tolist()
    size = table_size = tuple(input_size)
    stride_kv = tuple(adaptive_kv_stride)
    dims, heads = arch['embed_dims'], arch['num_heads']
    plans = []
    for layer, drop_path in enumerate(depths):
        stride_q = (1, 1, 1)
        if layer in downscale:
            stride_q = (1, 2, 2)
            stride_kv = tuple(max(s // 2, 1) for s in stride_kv)
        if layer in downscale or layer in widen:
            heads *= head_mul
        widens = (layer if dim_mul_in_attention else layer + 1) in widen
        out_dims = dims * dim_mul if widens else dims
        read = levels_of_layer(levels, layer) if layer in memory_layers else ()
        plans.append(
            BlockPlan(
                dims,
                out_dims,
                heads,
                size,
                stride_q,
                stride_kv,
                table_size,
                drop_path,
                read,
            )
        )
        dims = out_dims
        size = tuple(
            (n + 2 * (k // 2) - k) // s + 1
            for n, k, s in zip(size, pool_kernel, stride_q)
        )
        table_size = tuple(n // s for n, s in zip(table_size, stride_q))
    return plans


class MemoryBlock(BaseModule):
    """A multiscale transformer block whose attention may read memory.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        num_heads (int): Attention heads.
        input_size (tuple[int, int, int]): T, H, W the block is made for.
        stride_q (sequence[int]): Stride of the queries, and of the skip path.
        drop_path (float): Stochastic depth.
        mlp_ratio (float): Hidden channels of the MLP by its input channels.
        norm_cfg (dict): Normalization layers.
        dim_mul_in_attention (bool): Change the width in attention, not in the MLP.
        **attention: As :class:`MemoryAttention`.
    """

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        num_heads: int,
        input_size: Size,
        stride_q: Sequence[int],
        drop_path: float,
        mlp_ratio: float,
        norm_cfg: dict,
        with_cls_token: bool,
        dim_mul_in_attention: bool,
        **attention,
    ) -> None:
        super().__init__()
        self.in_dims = in_dims
        self.out_dims = out_dims
        self.with_cls_token = with_cls_token
        self.dim_mul_in_attention = dim_mul_in_attention
        attn_dims = out_dims if dim_mul_in_attention else in_dims
        self.norm1 = build_norm_layer(norm_cfg, in_dims)[1]
        self.attn = MemoryAttention(
            in_dims,
            attn_dims,
            num_heads,
            input_size,
            stride_q=stride_q,
            norm_cfg=norm_cfg,
            with_cls_token=with_cls_token,
            **attention,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm_layer(norm_cfg, attn_dims)[1]
        self.mlp = LeanMLP(attn_dims, int(attn_dims * mlp_ratio), out_dims)
        self.proj = nn.Linear(in_dims, out_dims) if in_dims != out_dims else None

        self.pool_skip = None
        if np.prod(stride_q) > 1:
            kernel = [s + 1 if s > 1 else s for s in stride_q]
            self.pool_skip = nn.MaxPool3d(kernel, stride_q, [k // 2 for k in kernel])

    def forward(
        self, x: Tensor, in_size: Size, past: Optional[Sequence[PastClips]] = None
    ) -> tuple[Tensor, Size, Optional[Written]]:
        """Tokens [B, cls + T*H*W, in_dims] -> [B, cls + T'*H'*W', out_dims].

        Returns:
            tuple: Tokens, (T', H', W'), and what is to be remembered.
        """
        normed = self.norm1(x)
        attended, out_size, written = self.attn(normed, in_size, past)
        widen = self.proj is not None
        skip = (
            run_linear(self.proj, normed) if widen and self.dim_mul_in_attention else x
        )
        x = self._pool_skip(skip, in_size) + run_drop_path(self.drop_path, attended)
        normed = self.norm2(x)
        skip = (
            run_linear(self.proj, normed)
            if widen and not self.dim_mul_in_attention
            else x
        )
        x = skip + run_drop_path(self.drop_path, self.mlp(normed))
        return x, out_size, written

    def _pool_skip(self, x: Tensor, size: Size) -> Tensor:
        """Max-pool the patch tokens; the class token passes as it is."""
        if self.pool_skip is None:
            return x
        cls_token, patches = split_cls(x, self.with_cls_token)
        patches = max_pool(patches, size, self.pool_skip)
        return torch.cat([cls_token, patches], dim=1)
