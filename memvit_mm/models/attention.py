"""Pooling attention over a clip and the memories of earlier clips."""

import math
from collections.abc import Iterable, Sequence
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor

from .kernels import Size, linear, run_linear, shared_planes
from .kernels.choice import autocast_dtype, is_plain
from .kernels.constants import constant
from .memory.compression import (
    MemoryKeys,
    MemoryWriter,
    add_ages,
    depthwise_conv,
    hidden_scores,
    pool_tokens,
    pooled_size,
    split_cls,
)
from .memory.layers import KeyValue, MemorySpec, PastClips, Written
from .memory.schedule import Schedule
from .relative_position import (
    Positions,
    folded_attention,
    key_codes,
    position_vectors,
    query_channels,
)


class MemoryAttention(MemoryWriter, BaseModule):
    """Multi-head pooling attention that also reads compressed memories.

    Two forms of the same layer. ``pool_first=True`` is MeMViT's: the normed input is
    pooled, and only then projected; memory keeps the pooled, unprojected keys and
    values, and the projections of *now* are applied to all of them.
    ``pool_first=False`` is MViTv2's, as in MMAction2's ``MViT``: projected, then
    pooled; memory keeps keys and values as they are attended.

    Source: MeMViT (arXiv 2201.08383), sec. 4, eq. 3-6; MViTv2 (arXiv 2112.01526),
    eq. 2-5.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        num_heads (int): Attention heads.
        input_size (tuple[int, int, int]): T, H, W of the input tokens that the
            tables of relative positions are made for. H and W must be equal.
        qkv_bias (bool): Bias in the q, k and v projections.
        norm_cfg (dict): Normalization after pooling.
        pool_kernel (tuple[int, int, int]): Kernel of the pooling convolutions.
        stride_q (sequence[int]): Stride of the queries' pooling.
        stride_kv (sequence[int]): Stride of the keys' and values' pooling.
        rel_pos_embed (bool): Decomposed relative positions.
        rel_pos_zero_init (bool): Start them at zero.
        table_size (sequence[int], optional): The size instead of ``input_size`` that
            the tables of the clip itself are as long for as in MMAction2's ``MViT``.
        residual_pooling (bool): Add the pooled queries to the output.
        with_cls_token (bool): The first token is a class token.
        pool_first (bool): See above.
        causal (bool): No output depends on later frames of its clip.
        levels (tuple[MemoryLevel]): The schedule of the memory; () for a layer without
            memory, which then has no memory parameters.
        keys_as_queries (bool): With memory, the projection of keys starts equal to that
            of queries.
        init_cfg (dict, optional): As everywhere in mmengine.
    """

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        num_heads: int,
        input_size: Size,
        qkv_bias: bool = True,
        norm_cfg: dict = dict(type='LN'),
        pool_kernel: Sequence[int] = (3, 3, 3),
        stride_q: Sequence[int] = (1, 1, 1),
        stride_kv: Sequence[int] = (1, 1, 1),
        rel_pos_embed: bool = True,
        rel_pos_zero_init: bool = False,
        table_size: Optional[Sequence[int]] = None,
        residual_pooling: bool = True,
        with_cls_token: bool = True,
        pool_first: bool = True,
        causal: bool = False,
        levels: Schedule = (),
        keys_as_queries: bool = False,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_heads = num_heads
        self.in_dims = in_dims
        self.out_dims = out_dims
        self.residual_pooling = residual_pooling
        self.rel_pos_embed = rel_pos_embed
        self.rel_pos_zero_init = rel_pos_zero_init
        self.pool_first = pool_first
        self.causal = causal
        self.keys_as_queries = keys_as_queries

        if pool_first:
            self.q = nn.Linear(in_dims, out_dims, bias=qkv_bias)
            self.k = nn.Linear(in_dims, out_dims, bias=qkv_bias)
            self.v = nn.Linear(in_dims, out_dims, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(in_dims, out_dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(out_dims, out_dims)

        kept_dims = in_dims if pool_first else out_dims
        pool_dims = kept_dims // num_heads

        def norm(dims: int) -> nn.Module:
            return build_norm_layer(norm_cfg, dims)[1]

        for name, stride in dict(q=stride_q, k=stride_kv, v=stride_kv).items():
            conv = depthwise_conv(pool_dims, pool_kernel, stride)
            setattr(self, f'pool_{name}', conv)
            setattr(self, f'norm_{name}', norm(pool_dims))
        self.build_memory(levels, kept_dims, norm, with_cls_token)
        # Clips of the first level have relative positions, if it leaves them a grid.
        self.has_memory_grid = bool(levels) and levels[0].stride is not None

        self._check_size(input_size)
        self.check_levels(self.memory_spec(input_size))
        self.built_len = pooled_size(input_size, self.pool_q)[0]
        if rel_pos_embed:
            self._build_relative_positions(
                input_size, out_dims // num_heads, table_size
            )

    def _check_size(self, input_size: Size) -> None:
        """No layer may be left without a token."""
        sizes = dict(queries=pooled_size(input_size, self.pool_q))
        sizes['keys'] = pooled_size(input_size, self.pool_k)
        if self.has_memory_grid:
            sizes['memory'] = self.level_grid(0, sizes['keys'])
        for name, size in sizes.items():
            if min(size) < 1:
                raise ValueError(
                    f'tokens of T, H, W = {tuple(input_size)} leave {size} for the '
                    f'{name}: use a smaller stride or kernel in patch_cfg, '
                    'pool_kernel, adaptive_kv_stride, compress_kernel, '
                    'compress_stride or memory_levels, or larger clips.'
                )

    def _build_relative_positions(
        self, input_size: Size, head_dims: int, table_size: Optional[Sequence[int]]
    ) -> None:
        q_size = pooled_size(input_size, self.pool_q)
        k_size = pooled_size(input_size, self.pool_k)

        def table(length: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(length, head_dims))

        lengths = [max(n) for n in zip(q_size, k_size)]
        if table_size is not None:
            q_stride, k_stride = self.pool_q.stride, self.pool_k.stride
            lengths = [
                max(n // q, n // k, 1)
                for n, q, k in zip(table_size, q_stride, k_stride)
            ]
        # In this order, since init_weights draws them as they are registered.
        self.rel_pos_h = table(2 * lengths[1] - 1)
        self.rel_pos_w = table(2 * lengths[2] - 1)
        self.rel_pos_t = table(2 * lengths[0] - 1)
        self.build_ages(range(self.has_memory_grid, len(self.levels)), head_dims)
        if self.has_memory_grid:
            m_size = self.level_grid(0, k_size)
            self.rel_pos_mem_h = table(2 * max(q_size[1], m_size[1]) - 1)
            self.rel_pos_mem_w = table(2 * max(q_size[2], m_size[2]) - 1)
            # As long as published, or longer where the settings reach further.
            clips = len(self.levels[0].ages)
            steps = clips * m_size[0]
            self.rel_pos_mem_t = table(
                max(
                    (clips + 1) * q_size[0] - 1,
                    q_size[0] + self._memory_stride() * (steps - 1),
                )
            )

    def _memory_stride(self) -> int:
        """Query time steps that one time step of a memory stands for."""
        stride = self.compress_k.stride[0] * self.pool_k.stride[0]
        return max(stride // self.pool_q.stride[0], 1)

    def init_weights(self) -> None:
        """Initialize relative positions; the rest follows ``init_cfg``."""
        super().init_weights()
        if self.keys_as_queries and self.levels:
            if self.pool_first:
                self.k.load_state_dict(self.q.state_dict())
            else:
                for weight in self.qkv.state_dict().values():
                    queries, keys, _ = weight.chunk(3)
                    keys.copy_(queries)
        if self.rel_pos_embed and not self.rel_pos_zero_init:
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith('rel_pos'):
                    trunc_normal_(parameter, std=0.02)

    def memory_spec(self, in_size: Size) -> MemorySpec:
        """What this layer keeps of a clip whose tokens form a grid T, H, W."""
        size = pooled_size(in_size, self.pool_k)
        tokens = size[0] * size[1] * size[2] + self.with_cls_token
        levels = self.level_specs(size, tokens, shared=False)
        return MemorySpec(self.memory_dims, tokens, levels, size)

    def _pool(
        self, x: Sequence[Tensor], size: Size, name: str, planes: Optional[Tensor]
    ) -> tuple[Tensor, Size]:
        conv, norm = getattr(self, f'pool_{name}'), getattr(self, f'norm_{name}')
        return pool_tokens(x, size, conv, norm, self.num_heads, self.causal, planes)

    def forward(
        self, x: Tensor, in_size: Size, past: Optional[Sequence[PastClips]] = None
    ) -> tuple[Tensor, Size, Optional[Written]]:
        """Attend to the clip and, if given, to earlier clips.

        Args:
            x (Tensor): Normed tokens, [B, cls + T*H*W, in_dims].
            in_size (tuple[int, int, int]): T, H, W.
            past (sequence[PastClips], optional): Memory of this layer, by level.

        Returns:
            tuple: Tokens [B, cls + T'*H'*W', out_dims], (T', H', W'), and what is to
            be remembered (None if ``past`` is).
        """
        planes = None
        if self.pool_first:
            # Once, and not in each of the three convolutions.
            x = x.to(autocast_dtype(x))
            q = k = v = split_cls(x, self.with_cls_token)
            if not self.causal:
                planes = shared_planes(q[1], in_size, self.num_heads)
        else:
            # Not one product and three parts of it: each lies in one piece.
            q, k, v = (split_cls(n, self.with_cls_token) for n in self._project(x))
        q, q_size = self._pool(q, in_size, 'q', planes)
        k, k_size = self._pool(k, in_size, 'k', planes)
        v, _ = self._pool(v, in_size, 'v', planes)
        if self.pool_first:
            q = run_linear(self.q, q)
        q = self._split(q)

        memory, written = None, None
        keys, values = k, v
        if past is not None:
            memory = self.read_memory(past, k_size)
            written = self.written(KeyValue(k, v), memory)
            keys = torch.cat([*(clip.key.to(k) for clip in memory.clips), k], dim=1)
            values = torch.cat([*(clip.value.to(v) for clip in memory.clips), v], dim=1)
        if self.pool_first:
            keys, values = run_linear(self.k, keys), run_linear(self.v, values)
        hidden = None
        if memory is not None:
            keys = add_ages(keys, memory, self.num_heads)
        # Empty slots, and in a causal model the clip's class token, which has seen all
        # of the clip.
        hide_first = self.causal and self.with_cls_token
        if memory is not None or hide_first:
            hidden = hidden_scores(memory, k.shape[1], hide_first, like=keys)

        q_extra, k_extra = self._positions(q, q_size, k_size, memory)
        out = folded_attention(
            q, self._split(keys), self._split(values), q_extra, k_extra, hidden
        )
        if self.residual_pooling:
            out = self._add_queries(out, q)
        return run_linear(self.proj, self._merge(out)), q_size, written

    def _project(self, x: Tensor) -> Iterable[Tensor]:
        """Queries, keys and values before pooling: (B, tokens, heads*C) each."""
        if not is_plain(self.qkv):
            return self.qkv(x).chunk(3, dim=-1)
        weights = self.qkv.weight.chunk(3)
        biases = [None] * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        return (linear(x, w, b) for w, b in zip(weights, biases))

    def _add_queries(self, out: Tensor, q: Tensor) -> Tensor:
        """Residual pooling: q [B, heads, N, C] is added, but not the class token's."""
        if not self.with_cls_token:
            return out + q
        patches = all_but_first(q.shape[2], device=q.device, dtype=q.dtype)
        return torch.addcmul(out, q, patches)

    def _split(self, x: Tensor) -> Tensor:
        """(B, tokens, heads*C) -> (B, heads, tokens, C)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        """(B, heads, tokens, C) -> (B, tokens, heads*C)."""
        return x.transpose(1, 2).flatten(2)

    def _positions(
        self, q: Tensor, q_size: Size, k_size: Size, memory: Optional[MemoryKeys]
    ) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """Extra channels of queries and keys for their relative positions."""
        if not self.rel_pos_embed and not self.causal:
            return None, None
        cls, clips, stride, before = int(self.with_cls_token), 0, 1, 0
        m_size = None
        if memory is not None and self.has_memory_grid:
            clips = len(self.levels[0].ages)
            m_size = self.level_grid(0, k_size)
            m_size = (clips * m_size[0], *m_size[1:])
            stride = self._memory_stride()
        # On the 'meta' device multiply-adds are counted.
        multiple = 1 if q.is_meta else 8
        at = Positions(
            q_size, k_size, m_size, stride, self.built_len, self.pool_first, multiple
        )
        if self.rel_pos_embed:
            weights = [getattr(self, f'rel_pos_{axis}') for axis in 'thw']
            if m_size is not None:
                weights += [getattr(self, f'rel_pos_mem_{axis}') for axis in 'thw']
            vectors = position_vectors(weights, at, q.dtype)
        else:
            counts = (n * rows for n, rows in zip(q_size, at.rows))
            vectors = q.new_zeros(sum(counts), q.shape[-1])
        causal = None
        if self.causal:
            causal = max(self.pool_k.stride[0] // self.pool_q.stride[0], 1)
        channels = query_channels(q[:, :, cls:], vectors, at, causal)
        # The class token has no position: zeros, as a query and as a key.
        channels = F.pad(channels, (0, 0, cls, 0))
        if memory is not None:
            # The other levels' keys have no code, and come first.
            places = 0 if m_size is None else math.prod(m_size) + clips * cls
            before = sum(slots * tokens for slots, tokens in memory.spans) - places
        codes = key_codes(at, clips, cls, before, device=q.device, dtype=q.dtype)
        return channels, codes


@constant
def all_but_first(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A zero and ones, [count, 1]."""
    return F.pad(torch.ones(count - 1, 1, device=device, dtype=dtype), (0, 0, 1, 0))
