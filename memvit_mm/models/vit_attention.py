"""Attention of a plain vision transformer over a clip and memories of earlier clips."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmaction.models.backbones.vit_mae import Attention
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .kernels import Size, linear, run_linear
from .kernels.choice import is_for_cpu, is_plain
from .memory.compression import MemoryKeys, MemoryWriter, add_ages
from .memory.layers import KeyValue, MemorySpec, PastClips, Written
from .memory.schedule import Schedule
from .relative_position import folded_attention

READINGS = ('gated', 'joint')


class ViTAttention(MemoryWriter, Attention):
    """MMAction2's attention of VideoMAE, which also reads memory.

    Memory keeps the normed inputs of a clip; the projections of *now* make keys and
    values of them, as of the clip itself (MC-ViT, arXiv 2402.05861, sec. 3).

    **Reading.** 'joint': one softmax over the clip and the memory, as MC-ViT has it.
    'gated': each by itself, and the memory's through a gate g per head that starts at
    0, so that weights trained without memory give the numbers that they gave::

        softmax(q k^T / sqrt(C)) v + tanh(g) softmax(q k_past^T / sqrt(C)) v_past

    It is the zero-initialized attention of LLaMA-Adapter (arXiv 2303.16199, sec. 3.2)
    with tanh as in Flamingo (arXiv 2204.14198, sec. 2.2). Where no earlier clip is
    remembered, the second term is 0.

    Args:
        embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate: As
            MMAction2's ``Attention``.
        norm_cfg (dict): Normalization after learned compression.
        levels (tuple[MemoryLevel]): The schedule of the memory; () for a layer without
            memory, which then has no memory parameters.
        reading (str): 'gated' or 'joint'.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        levels: Schedule = (),
        reading: str = 'gated',
    ) -> None:
        super().__init__(
            embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate
        )
        self.num_heads = num_heads
        self.reading = reading
        self.build_memory(
            levels, embed_dims, lambda dims: build_norm_layer(norm_cfg, dims)[1]
        )
        self.build_ages(range(len(levels)), embed_dims // num_heads)
        # What a level of pooling keeps are two tensors, its keys and its values.
        self.keeps_one = all(level.type != 'pool' for level in levels)
        if levels and reading == 'gated':
            self.gate = nn.Parameter(torch.zeros(num_heads))

    def memory_spec(self, size: Size) -> MemorySpec:
        """What this layer keeps of a clip whose tokens form a grid T, H, W."""
        tokens = size[0] * size[1] * size[2]
        levels = self.level_specs(size, tokens, shared=True)
        return MemorySpec(self.memory_dims, tokens, levels, size, shared=True)

    def forward(
        self, x: Tensor, size: Size, past: Optional[Sequence[PastClips]] = None
    ) -> tuple[Tensor, Optional[Written]]:
        """Attend to the clip and, if given, to earlier clips.

        Args:
            x (Tensor): Normed tokens, [B, T*H*W, C].
            size (tuple[int, int, int]): T, H, W.
            past (sequence[PastClips], optional): Memory of this layer, by level.

        Returns:
            tuple: Tokens [B, T*H*W, C], and what is to be remembered (None if ``past``
            is).
        """
        q, k, v = self._project(x)
        # The scale is left to the attention itself, which knows the usual one.
        if self.scale != (self.embed_dims // self.num_heads) ** -0.5:
            q = q * (self.scale * (self.embed_dims // self.num_heads) ** 0.5)
        q = self._split(q)
        written = None
        if past is None:
            out = self._attend(q, k, v)
        else:
            memory = self.read_memory(past, size)
            written = self.written(KeyValue(x, x), memory)
            out = self._read(q, k, v, memory, past)
        # (B, heads, N, C) -> (B, N, heads*C)
        out = run_linear(self.proj, out.transpose(1, 2).flatten(2))
        return self.proj_drop(out), written

    def _read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        memory: MemoryKeys,
        past: Sequence[PastClips],
    ) -> Tensor:
        """Attend to the clip and to memory: [B, heads, N, C]."""
        keys = torch.cat([clip.key.to(k) for clip in memory.clips], dim=1)
        if self.keeps_one:
            keys, values = self._project(keys, first=1)
        else:
            values = torch.cat([clip.value.to(v) for clip in memory.clips], dim=1)
            keys, (values,) = self._project(keys, 1)[0], self._project(values, 2)
        keys = add_ages(keys, memory.ages, self.num_heads)
        valid = torch.cat([kept.valid for kept in past], dim=1)
        hidden: Optional[Tensor] = memory.hidden
        # Where to look is cheap, a memory that is full needs no mask.
        if is_for_cpu(q) and bool(valid.all()):
            hidden = None
        if self.reading == 'joint':
            if hidden is not None:
                hidden = nn.functional.pad(hidden, (0, k.shape[1]))
            keys, values = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
            return self._attend(q, keys, values, hidden)
        # (B,), (heads,) -> (B, heads, 1, 1)
        gate = self.gate.tanh() * valid.any(dim=1)[:, None]
        read = self._attend(q, keys, values, hidden)
        gate = gate[..., None, None].to(read)
        return torch.addcmul(self._attend(q, k, v), gate, read)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, hidden: Optional[Tensor] = None
    ) -> Tensor:
        """q [B, heads, N, C]; k, v [B, K, heads*C]; hidden [B, K], added to scores."""
        q_extra = k_extra = None
        if hidden is not None:
            q_extra = q.new_ones(*q.shape[:3], 1)
            # (B, K) -> (B, 1, K, 1)
            k_extra = hidden[:, None, :, None]
        dropout = self.attn_drop.p if self.training else 0.0
        return folded_attention(
            q, self._split(k), self._split(v), q_extra, k_extra, dropout
        )

    def _project(self, x: Tensor, first: int = 0) -> list[Tensor]:
        """Queries, keys and values of tokens, from the ``first`` of these on.

        [B, N, C] -> [B, N, heads*C] each.
        """
        bias = None
        if hasattr(self, 'q_bias'):
            biases = (self.q_bias, torch.zeros_like(self.v_bias), self.v_bias)
            bias = torch.cat(biases[first:])
        if is_plain(self.qkv):
            weight = self.qkv.weight[first * self.embed_dims :]
            return list(linear(x, weight, bias).chunk(3 - first, dim=-1))
        x = self.qkv(x)[..., first * self.embed_dims :]
        return list((x if bias is None else x + bias).chunk(3 - first, dim=-1))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads*C) -> (B, heads, N, C)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
