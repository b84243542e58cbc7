"""ActorMemoryHead: attention among the people of a clip and of earlier clips."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
import torch.nn as nn
from mmaction.models.backbones.mvit import MLP
from mmaction.registry import MODELS
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from memvit_mm.models.memory.compression import (
    MemoryKeys,
    MemoryWriter,
    add_ages,
    hidden_scores,
)
from memvit_mm.models.memory.layers import (
    KeyValue,
    LayerMemories,
    LayerWrites,
    MemorySpec,
    PastClips,
    Written,
    describe_levels,
)
from memvit_mm.models.memory.schedule import (
    MemoryLevel,
    Schedule,
    published_levels,
    read_levels,
)
from memvit_mm.models.relative_position import folded_attention


class ActorMemoryBlock(MemoryWriter, BaseModule):
    """A transformer block over the people of a clip, with memory.

    As the backbone's blocks, without pooling, positions and class token; the residual
    of the queries is added on all positions.

    Args:
        dims (int): Channels.
        num_heads (int): Attention heads.
        mlp_ratio (float): Hidden channels of the MLP by ``dims``.
        drop_path (float): Stochastic depth.
        attn_drop (float): Dropout on attention weights.
        qkv_drop (float): Dropout on queries, keys and values.
        drop (float): Dropout after the output projection and in the MLP.
        norm_cfg (dict): Normalization layers.
        levels (tuple[MemoryLevel]): The schedule of the memory; () without memory.
        with_ages (bool): Add a learned vector for the age of a clip to its keys.
        keys_as_queries (bool): The projection of keys starts equal to that of queries.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        attn_drop: float,
        qkv_drop: float,
        drop: float,
        norm_cfg: dict,
        levels: Schedule,
        with_ages: bool,
        keys_as_queries: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.keys_as_queries = keys_as_queries
        self.norm1 = build_norm_layer(norm_cfg, dims)[1]
        self.attn = nn.ModuleDict(
            {name: nn.Linear(dims, dims) for name in ('q', 'k', 'v', 'proj')}
        )
        self.qkv_drop = nn.Dropout(qkv_drop)
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm_layer(norm_cfg, dims)[1]
        self.mlp = MLP(dims, int(dims * mlp_ratio), dims)

        def norm(channels: int) -> nn.Module:
            return build_norm_layer(norm_cfg, channels)[1]

        self.build_memory(levels, dims, norm)
        self.build_ages(range(len(levels) if with_ages else 0), dims // num_heads)

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` of the head says."""
        super().init_weights()
        if self.keys_as_queries and self.levels:
            self.attn['k'].load_state_dict(self.attn['q'].state_dict())

    def forward(
        self, x: Tensor, num_keys: int, past: Optional[Sequence[PastClips]]
    ) -> tuple[Tensor, Optional[Written]]:
        """Attend from all positions to the first ``num_keys`` and to memory.

        Args:
            x (Tensor): [B, L, C].
            num_keys (int): How many of the L positions others can see.
            past (sequence[PastClips], optional): Earlier clips, by level.

        Returns:
            tuple: [B, L, C], and what is to be remembered (None if ``past`` is).
        """
        normed = self.norm1(x)
        current = keys = normed[:, :num_keys]
        memory = hidden = written = None
        if past is not None:
            memory = self.read_memory(past)
            written = self.written(KeyValue(current, current), memory)
            keys = torch.cat([*(clip.key for clip in memory.clips), current], dim=1)
            hidden = hidden_scores(memory, num_keys, hide_first=False, like=keys)
        q = self._heads('q', normed)
        attended = folded_attention(
            q,
            self._heads('k', keys, memory),
            self._heads('v', keys),
            hidden=hidden,
            dropout=self.attn_drop if self.training else 0.0,
        )
        # (B, heads, L, C) -> (B, L, heads*C)
        attended = self.attn['proj']((attended + q).transpose(1, 2).flatten(2))
        x = x + self.drop_path(self.drop(attended))
        hidden = self.drop(self.mlp.act(self.mlp.fc1(self.norm2(x))))
        return x + self.drop_path(self.drop(self.mlp.fc2(hidden))), written

    def _heads(
        self, name: str, x: Tensor, memory: Optional[MemoryKeys] = None
    ) -> Tensor:
        """(B, L, C) -> (B, heads, L, C)."""
        x = self.attn[name](x)
        if memory is not None:
            x = add_ages(x, memory, self.num_heads)
        x = self.qkv_drop(x)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@MMDET_MODELS.register_module()
@MODELS.register_module()
class ActorMemoryHead(BaseModule):
    """Shared head that relates the people of a clip to each other and to the past.

    Takes RoI features as MMAction2's other shared heads (LFB, ACRN) and returns what
    ``BBoxHeadAVA`` takes. In :class:`MemoryAVARoIHead` inside
    :class:`MemoryFastRCNN` it attends to earlier clips; in a plain ``AVARoIHead`` it
    has no memory and relates the people of one clip.

    Source: MeMViT (arXiv 2201.08383), sec. 5.1, and appendix on AVA.

    The people of a clip are padded with zeros to ``max_actors`` positions, and, as
    published, the padding is attended to: trained weights count on it. Of more than
    ``max_actors`` people, all get a result, but only the first ``max_actors`` are seen
    by others and remembered.

    Args:
        in_channels (int): Channels of the RoI features.
        num_heads (int): Attention heads; must divide ``in_channels``.
        num_layers (int): Blocks. Defaults to 1.
        mlp_ratio (float): Hidden channels of the MLP. Defaults to 4.
        max_actors (int): Positions per clip. Defaults to 100.
        memory_length (int): Earlier clips attended; 0 for none. Defaults to 2.
        memory_gap (int): Steps between them. Defaults to 2.
        memory_levels (sequence[dict], optional): Another schedule, in place of these
            two: levels, each a dict with the fields of :class:`.MemoryLevel` and
            ``type='keep'``: of each clip, the first ``tokens`` people are attended to.
            Each level learns a vector per age, which is zero at the start.
            ``memory_length=0`` turns this off, too.
        keys_as_queries (bool): The projection of keys starts equal to that of queries,
            as in :class:`MeMViT`.
        drop_path_rate (float): Stochastic depth of the last block, growing linearly
            from 0 at the first: one block alone has none.
        attn_drop_rate (float): Dropout on attention weights.
        qkv_drop_rate (float): Dropout on queries, keys and values.
        drop_rate (float): Dropout after projections.
        norm_cfg (dict): Normalization layers.
        init_cfg (dict | list[dict], optional): As everywhere in mmengine.

    Raises:
        ValueError: If an argument is out of range; the message says which.

    Examples:
        >>> import torch
        >>> head = ActorMemoryHead(in_channels=8, num_heads=2)
        >>> rois = torch.tensor([[0, 1, 1, 9, 9], [0, 2, 2, 8, 8], [1, 0, 0, 5, 5.]])
        >>> roi_features = torch.rand(3, 8, 1, 7, 7)  # [people, C, T, H, W]
        >>> tuple(head(roi_features, rois=rois).shape)
        (3, 8, 1, 1, 1)
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        num_layers: int = 1,
        mlp_ratio: float = 4.0,
        max_actors: int = 100,
        memory_length: int = 2,
        memory_gap: int = 2,
        drop_path_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        qkv_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        init_cfg: Optional[dict] = [
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.02),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.02),
        ],
        memory_levels: Optional[Sequence[dict]] = None,
        keys_as_queries: bool = False,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels % num_heads:
            raise ValueError(
                f'num_heads={num_heads} must divide in_channels={in_channels}.'
            )
        if num_layers < 1 or max_actors < 1 or memory_length < 0 or memory_gap < 1:
            raise ValueError(
                f'num_layers={num_layers}, max_actors={max_actors} and memory_gap='
                f'{memory_gap} must be at least 1, memory_length={memory_length} at '
                'least 0 (0: no memory).'
            )
        self.max_actors = max_actors
        levels: Schedule = ()
        if memory_levels is not None and memory_length:
            levels = read_levels(memory_levels)
        elif memory_length:
            (published,) = published_levels(memory_length, memory_gap)
            levels = (MemoryLevel('keep', published.ages),)
        if any(level.type != 'keep' for level in levels):
            raise ValueError(
                'memory_levels of ActorMemoryHead: people are kept, not pooled: use '
                "dict(type='keep', ages=..., tokens=16) for 16 people of each clip."
            )
        self.levels = levels
        self.in_channels = in_channels
        rates = torch.linspace(0, drop_path_rate, num_layers).tolist()
        self.blocks = ModuleList(
            ActorMemoryBlock(
                in_channels,
                num_heads,
                mlp_ratio,
                rate,
                attn_drop_rate,
                qkv_drop_rate,
                drop_rate,
                norm_cfg,
                levels,
                with_ages=memory_levels is not None,
                keys_as_queries=keys_as_queries,
            )
            for rate in rates
        )

    def extra_repr(self) -> str:
        """The schedule of the memory, for ``print``."""
        specs = self.memory_specs().values()
        return describe_levels(self.levels, specs, 'blocks')

    def memory_specs(self) -> dict[str, MemorySpec]:
        """What each block keeps of a clip, by name: 'actors0', …"""
        return {
            f'actors{i}': MemorySpec(
                self.in_channels,
                self.max_actors,
                block.level_specs(None, self.max_actors, shared=True),
                shared=True,
            )
            for i, block in enumerate(self.blocks)
            if block.levels
        }

    def forward(
        self,
        x: Tensor,
        rois: Tensor,
        feat: Optional[Tensor] = None,
        img_metas: Optional[list[dict]] = None,
        memory: Optional[LayerMemories] = None,
        **kwargs,
    ) -> Union[Tensor, tuple[Tensor, LayerWrites]]:
        """Relate people.

        Args:
            x (Tensor): RoI features, [people, C, T, H, W]; averaged over time, then
                the maximum over the box.
            rois (Tensor): [people, 5], the first column is the row of the batch.
            feat (Tensor, optional): Unused; other shared heads get it.
            img_metas (list[dict], optional): One per row of the batch.
            memory (dict[str, tuple[PastClips, ...]], optional): What each block may
                attend to of earlier clips, one row per row of the batch.

        Returns:
            Without memory, [people, C, 1, 1, 1]; with memory, a tuple of that and the
            ``dict[str, Written]`` to be remembered, as the backbone's.
        """
        people = self.pooled(x)
        rows = rois[:, 0].long()
        batch = len(img_metas or ()) or (int(rows.max()) + 1 if len(rows) else 0)
        # Place of each person among those of its row.
        same = rows[:, None] == rows[None, :]
        place = same.tril(-1).sum(dim=1)
        length = self.max_actors
        if len(rois) > length:
            # Only now one looks, for which a GPU is waited for.
            length = max(length, int(place.max()) + 1)
        # (people, C) -> (B, L, C)
        sequence = x.new_zeros(batch, length, self.in_channels)
        sequence = sequence.index_put((rows, place), people)
        sequence, written = self.relate(sequence, memory)
        # (B, L, C) -> (people, C, 1, 1, 1)
        people = sequence[rows, place][:, :, None, None, None]
        return people if memory is None else (people, written)

    @staticmethod
    def pooled(x: Tensor) -> Tensor:
        """RoI features as one vector each: [people, C, T, H, W] -> [people, C]."""
        return x.mean(dim=2).amax(dim=(2, 3))

    def relate(
        self, sequence: Tensor, memory: Optional[LayerMemories] = None
    ) -> tuple[Tensor, LayerWrites]:
        """Relate people that are in their places.

        Args:
            sequence (Tensor): [B, L, C], zeros where there is nobody; L is at least
                ``max_actors``.
            memory (dict[str, tuple[PastClips, ...]], optional): As in :meth:`forward`.

        Returns:
            tuple: [B, L, C], and what is to be remembered.
        """
        written = {}
        for i, block in enumerate(self.blocks):
            name = f'actors{i}'
            past = memory.get(name) if memory else None
            sequence, new = block(sequence, self.max_actors, past)
            if new is not None:
                written[name] = new
        return sequence, written
