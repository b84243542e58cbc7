"""Pooling attention over a clip and the memories of earlier clips."""

from collections.abc import Iterable, Sequence
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor

from .kernels import Size, linear, run_linear
from .kernels.choice import is_plain
from .memory.compression import (
    MemoryKeys,
    MemoryWriter,
    add_ages,
    depthwise_conv,
    pool_tokens,
    pooled_size,
)
from .memory.layers import KeyValue, MemorySpec, PastClips, Written
from .memory.schedule import Schedule
from .relative_position import (
    HIDDEN,
    axis_table,
    causal_time_terms,
    concat_tables,
    folded_attention,
    key_codes,
    memory_time_table,
    query_channels,
    spatial_tables,
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

    def _pool(self, x: Tensor, size: Size, name: str) -> tuple[Tensor, Size]:
        conv, norm = getattr(self, f'pool_{name}'), getattr(self, f'norm_{name}')
        return pool_tokens(
            x, size, conv, norm, self.num_heads, self.with_cls_token, self.causal
        )

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
        if self.pool_first:
            q, k, v = x, x, x
        else:
            # Not one product and three parts of it: each lies in one piece.
            q, k, v = self._project(x)
        q, q_size = self._pool(q, in_size, 'q')
        k, k_size = self._pool(k, in_size, 'k')
        v, _ = self._pool(v, in_size, 'v')
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
        if memory is not None:
            keys = add_ages(keys, memory.ages, self.num_heads)

        q_extra, k_extra = self._bias(q, q_size, k_size, memory)
        out = folded_attention(
            q, self._split(keys), self._split(values), q_extra, k_extra
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
        patches = q.new_ones(q.shape[2], 1)
        patches[:1] = 0
        return torch.addcmul(out, q, patches)

    def _split(self, x: Tensor) -> Tensor:
        """(B, tokens, heads*C) -> (B, heads, tokens, C)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        """(B, heads, tokens, C) -> (B, tokens, heads*C)."""
        return x.transpose(1, 2).flatten(2)

    def _bias(
        self,
        q: Tensor,
        q_size: Size,
        k_size: Size,
        memory: Optional[MemoryKeys],
    ) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """Extra channels of queries and keys: positions, empty slots, causality."""
        positions = self.rel_pos_embed or self.causal
        if not positions and memory is None:
            return None, None
        cls = int(self.with_cls_token)
        m_size = None
        if memory is not None and self.has_memory_grid:
            m_size = self.level_grid(0, k_size)
        q_columns, k_columns = [], []
        if positions:
            tables, num_current = self._tables(q, q_size, k_size, m_size)
            terms = None
            if self.causal:
                stride = self.pool_k.stride[0] // self.pool_q.stride[0]
                terms = causal_time_terms(q_size[0], k_size[0], max(stride, 1), q)
            channels = query_channels(q[:, :, cls:], q_size, tables, num_current, terms)
            # The class token has no position: zeros, as a query and as a key.
            q_columns.append(F.pad(channels, (0, 0, cls, 0)))
            codes = self._key_positions(k_size, m_size, q)
            if memory is not None:
                # The other levels' keys have no code, and come first.
                num_keys = memory.hidden.shape[1] + k_size[0] * k_size[1] * k_size[2]
                codes = F.pad(codes, (0, 0, num_keys + cls - codes.shape[2], 0))
            k_columns.append(codes)
        # One more channel hides whole keys: empty slots, and in a causal model the
        # current clip's class token, which has seen all of the clip.
        if memory is not None or (self.causal and cls):
            q_columns.append(q.new_ones(*q.shape[:3], 1))
            hidden = q.new_zeros(q.shape[0], k_size[0] * k_size[1] * k_size[2] + cls)
            if self.causal and cls:
                hidden[:, 0] = HIDDEN
            if memory is not None:
                hidden = torch.cat([memory.hidden.to(hidden), hidden], dim=1)
            # (B, K) -> (B, 1, K, 1)
            hidden = hidden[:, None, :, None]
            k_columns = [
                column.expand(hidden.shape[0], -1, -1, -1) for column in k_columns
            ]
            k_columns.append(hidden)
        return torch.cat(q_columns, dim=-1), torch.cat(k_columns, dim=-1)

    def _tables(self, q: Tensor, q_size: Size, k_size: Size, m_size: Optional[Size]):
        """Position vectors by axis, [q, k, C], and how many k are the current clip's.

        The order is current clip, then memory: the order of the extra channels.
        """
        if not self.rel_pos_embed:
            zeros = [q.new_zeros(n, k, q.shape[-1]) for n, k in zip(q_size, k_size)]
            if m_size is None:
                return zeros, k_size
            m_grid = (m_size[0] * len(self.levels[0].ages), *m_size[1:])
            memory = [q.new_zeros(n, k, q.shape[-1]) for n, k in zip(q_size, m_grid)]
            return concat_tables([zeros, memory]), k_size
        current = (
            axis_table(self.rel_pos_t, q_size[0], k_size[0]),
            *spatial_tables(
                self.rel_pos_h, self.rel_pos_w, q_size[1:], k_size[1:], self.pool_first
            ),
        )
        if m_size is None:
            return concat_tables([current]), k_size
        memory = (
            memory_time_table(
                self.rel_pos_mem_t,
                q_size[0],
                m_size[0] * len(self.levels[0].ages),
                self._memory_stride(),
                self.built_len,
            ),
            *spatial_tables(
                self.rel_pos_mem_h,
                self.rel_pos_mem_w,
                q_size[1:],
                m_size[1:],
                self.pool_first,
            ),
        )
        return concat_tables([current, memory]), k_size

    def _key_positions(self, k_size: Size, m_size: Optional[Size], q: Tensor) -> Tensor:
        """Codes of the keys with positions, [1, 1, K, E], in the order [oldest … newest
        of the first level, current]."""
        cls = int(self.with_cls_token)
        current = key_codes(k_size, q.device, q.dtype)
        current = F.pad(current, (0, 0, cls, 0))
        if m_size is None:
            return current[None, None]
        steps, height, width = m_size
        clips = len(self.levels[0].ages)
        m_grid = (steps * clips, height, width)
        memory = key_codes(m_grid, q.device, q.dtype)
        # One class token in front of each clip:
        # (slots*T*H*W, E) -> (slots, cls + T*H*W, E) -> (slots*(cls + T*H*W), E)
        memory = memory.unflatten(0, (clips, -1))
        memory = F.pad(memory, (0, 0, cls, 0)).flatten(0, 1)
        # Channels are [current's, memory's].
        memory = F.pad(memory, (current.shape[-1], 0))
        current = F.pad(current, (0, memory.shape[-1] - current.shape[-1]))
        return torch.cat([memory, current], dim=0)[None, None]
