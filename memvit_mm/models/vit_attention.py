"""Attention of a plain vision transformer over a clip and memories of earlier clips."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmaction.models.backbones.vit_mae import Attention
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .kernels import Size, linear, run_linear
from .kernels.choice import is_for_cpu, is_plain
from .memory.compression import MemoryKeys, MemoryWriter, add_ages, hidden_scores
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
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims={embed_dims} must be a multiple of num_heads={num_heads}.'
            )
        super().__init__(
            embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate
        )
        self.head_dims = embed_dims // num_heads
        self.reading = reading
        self.build_memory(
            levels, embed_dims, lambda dims: build_norm_layer(norm_cfg, dims)[1]
        )
        self.build_ages(range(len(levels)), self.head_dims)
        # What a level of pooling keeps are two tensors, its keys and its values.
        self.shared = all(level.type != 'pool' for level in levels)
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
        q, k, v = self._project(x, 0, 3)
        # The attention itself applies the usual scale.
        if self.scale != self.head_dims**-0.5:
            q = q * (self.scale * self.head_dims**0.5)
        q = self._split(q)
        written = None
        if past is None:
            out = self._attend(q, k, v)
        else:
            memory = self.read_memory(past, size)
            written = self.written(KeyValue(x, x), memory)
            out = self._read(q, k, v, memory)
        # (B, heads, N, C) -> (B, N, heads*C)
        out = run_linear(self.proj, out.transpose(1, 2).flatten(2))
        return self.proj_drop(out), written

    def _read(self, q: Tensor, k: Tensor, v: Tensor, memory: MemoryKeys) -> Tensor:
        """Attend to the clip and to memory: [B, heads, N, C]."""
        keys = torch.cat([clip.key.to(k) for clip in memory.clips], dim=1)
        if self.shared:
            keys, values = self._project(keys, 1, 3)
        else:
            values = torch.cat([clip.value.to(v) for clip in memory.clips], dim=1)
            (keys,), (values,) = self._project(keys, 1, 2), self._project(values, 2, 3)
        keys = add_ages(keys, memory, self.num_heads)
        joint, hidden = self.reading == 'joint', None
        # A memory that is full needs no mask; on a GPU, looking would be waiting.
        if not is_for_cpu(q) or not bool(memory.valid.all()):
            current = k.shape[1] if joint else 0
            hidden = hidden_scores(memory, current, hide_first=False, like=keys)
        if joint:
            keys, values = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
            return self._attend(q, keys, values, hidden)
        # (B,), (heads,) -> (B, heads, 1, 1)
        gate = self.gate.tanh() * memory.valid.any(dim=1)[:, None]
        read = self._attend(q, keys, values, hidden)
        gate = gate[..., None, None].to(read)
        return torch.addcmul(self._attend(q, k, v), gate, read)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, hidden: Optional[Tensor] = None
    ) -> Tensor:
        """q [B, heads, N, C]; k, v [B, K, heads*C]; hidden [B, K], added to scores."""
        dropout = self.attn_drop.p if self.training else 0.0
        return folded_attention(
            q, self._split(k), self._split(v), hidden=hidden, dropout=dropout
        )

    def _project(self, x: Tensor, first: int, end: int) -> Sequence[Tensor]:
        """Of queries, keys and values (0, 1, 2), those from ``first`` up to ``end``.

        [B, N, C] -> [B, N, heads*C] each.
        """
        part = slice(first * self.embed_dims, end * self.embed_dims)
        bias = None
        if hasattr(self, 'q_bias'):
            biases = (self.q_bias, torch.zeros_like(self.v_bias), self.v_bias)
            bias = torch.cat(biases[first:end])
        if is_plain(self.qkv):
            x = linear(x, self.qkv.weight[part], bias)
        else:
            x = self.qkv(x)[..., part]
            x = x if bias is None else x + bias
        return x.chunk(end - first, dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads*C) -> (B, heads, N, C)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
