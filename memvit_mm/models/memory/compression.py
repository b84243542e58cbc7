"""The writer's half of memory: what a layer keeps of a clip, and its compression."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from memvit_mm.models.kernels import Size, depthwise_pool
from memvit_mm.models.kernels.constants import constant
from memvit_mm.models.relative_position import HIDDEN

from .consolidation import consolidate
from .layers import KeyValue, LevelSpec, MemorySpec, PastClips, Written
from .schedule import CONSOLIDATED, Schedule, source_of


def depthwise_conv(
    dims: int, kernel: Sequence[int], stride: Sequence[int]
) -> nn.Conv3d:
    """A pooling convolution over ``dims`` channels, each by itself, without bias."""
    padding = [k // 2 for k in kernel]
    return nn.Conv3d(dims, dims, kernel, stride, padding, groups=dims, bias=False)


def pooled_size(size: Sequence[int], conv: nn.Conv3d) -> Size:
    """The grid that a pooling convolution makes of a grid T, H, W."""
    return tuple(
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(size, conv.padding, conv.kernel_size, conv.stride)
    )


def split_cls(x: Tensor, with_cls_token: bool) -> Sequence[Tensor]:
    """[B, cls + T*H*W, C] -> the class token [B, cls, C], the patches [B, T*H*W, C].

    Not two slices: the gradient of each is as large as all tokens.
    """
    return x.split([int(with_cls_token), x.shape[1] - int(with_cls_token)], dim=1)


def pool_tokens(
    x: Sequence[Tensor],
    size: Size,
    conv: nn.Conv3d,
    norm: nn.Module,
    num_heads: int,
    causal: bool = False,
    planes: Optional[Tensor] = None,
) -> tuple[Tensor, Size]:
    """Pool tokens by a depthwise convolution, then normalize them.

    The class token skips the convolution, not the normalization (MViTv2, sec. 3;
    MeMViT, sec. 4.1, where a past clip is compressed).

    Args:
        x (sequence[Tensor]): Class token, if there is one, and patches; see
            :func:`split_cls`: [B, cls, num_heads * C] and [B, T*H*W, num_heads * C].
        size (tuple[int, int, int]): T, H, W.
        conv (nn.Conv3d): Over C channels, shared by the heads.
        norm (nn.Module): Over C channels.
        num_heads (int): Heads that the channels are split into.
        causal (bool): Pad the past only, so that no output sees a later frame.
        planes (Tensor, optional): Of :func:`shared_planes`, of the patches.

    Returns:
        tuple: [B, cls + T'*H'*W', num_heads * C] and (T', H', W').
    """
    cls_token, patches = x
    patches, out_size = depthwise_pool(patches, size, conv, num_heads, causal, planes)
    if cls_token.shape[1]:
        patches = torch.cat([cls_token, patches], dim=1)
    # (B, tokens, heads*C) -> (B, tokens, heads, C) -> (B, tokens, heads*C)
    return norm(patches.unflatten(-1, (num_heads, -1))).flatten(2), out_size


def pooling_weights(keys: Tensor, query: Tensor, with_cls_token: bool) -> Tensor:
    """The weights with which a clip's tokens are reduced to a few.

    The tokens, which lie in the order of time, are divided into as many parts as there
    are queries; the class token belongs to each part. The weights of a part are the
    softmax of its keys' products with the query: a query of zeros gives the mean.

    Args:
        keys (Tensor): [B, cls + S, C].
        query (Tensor): [tokens, C].
        with_cls_token (bool): Whether the first key is a class token's.

    Returns:
        Tensor: [B, tokens, cls + S].
    """
    tokens, channels = query.shape
    count = keys.shape[1] - int(with_cls_token)
    outside = outside_parts(
        count, tokens, int(with_cls_token), device=keys.device, dtype=torch.bool
    )
    scores = query.to(keys) @ keys.transpose(1, 2) * channels**-0.5
    return scores.masked_fill(outside, HIDDEN).softmax(dim=-1)


@constant
def outside_parts(
    count: int, tokens: int, cls: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Which of a clip's keys do not belong to each of its parts: [tokens, cls + S]."""
    part = torch.arange(count, device=device) * tokens // count
    outside = part != torch.arange(tokens, device=device)[:, None]
    return F.pad(outside, (cls, 0)).to(dtype)


class MemoryKeys(NamedTuple):
    """What a layer attends to besides the clip itself: earlier clips, oldest first
    within a level, coarser levels before finer ones."""

    clips: list[KeyValue]
    """[B, tokens, C] each; together K tokens."""
    spans: tuple[tuple[int, int], ...]
    """Slots and tokens in each slot, by level."""
    valid: Tensor
    """Which slots hold a clip: bool, [B, slots]."""
    ages: list[Tensor]
    """A vector for each slot of the first levels, [slots, channels of a head]."""
    compressed: tuple[Optional[KeyValue], ...]
    """See :class:`Written`."""


class MemoryWriter:
    """Mixin of layers that attend to memory: what they keep of a clip, and how.

    A clip's keys and values are kept as they are when the clip is seen. A level of the
    schedule compresses them when it reads the clip for the first time: the gradient of
    that step trains the compression, and the memory keeps the result detached, so that
    no gradient reaches the past clip. (The published code compresses a clip one step
    after it was seen; with a gap of 2 or more its compression is then never trained.)

    Source: MeMViT (arXiv 2201.08383), sec. 4.1 and 4.2, for 'pool' with a stride. The
    levels beyond it are ours.
    """

    def build_memory(
        self,
        levels: Schedule,
        dims: int,
        build_norm: Callable[[int], nn.Module],
        with_cls_token: bool = False,
    ) -> None:
        """Make what compresses: ``compress_k``, … of the first level, ``compress1_k``,
        … of the second, and so on.

        Args:
            levels (tuple[MemoryLevel]): The schedule; () without memory.
            dims (int): Channels of the keys and values that are kept.
            build_norm (callable): Makes a norm for a number of channels.
            with_cls_token (bool): Whether a clip's first token is a class token.
        """
        self.levels = levels
        self.ages = tuple(sorted(age for level in levels for age in level.ages))
        self.memory_dims = dims
        self.with_cls_token = with_cls_token
        for number, level in enumerate(levels):
            if level.type != 'pool':
                continue
            name = compression_name(number)
            if level.tokens:
                query = nn.Parameter(torch.zeros(level.tokens, dims))
                self.register_parameter(f'{name}_query', query)
            for part in 'kv':
                if level.stride:
                    conv = depthwise_conv(dims, level.kernel, level.stride)
                    setattr(self, f'{name}_{part}', conv)
                setattr(self, f'norm_{name}_{part}', build_norm(dims))

    def build_ages(self, numbers: Iterable[int], dims: int) -> None:
        """Make ``rel_pos_age0``, …: a vector per age of a level, added to its keys.

        It is a relative position in time (MViTv2, eq. 4), the same for all keys of a
        clip, and costs no extra channel.

        Args:
            numbers (iterable[int]): The levels that have one.
            dims (int): Channels of a head.
        """
        for number in numbers:
            table = nn.Parameter(torch.zeros(len(self.levels[number].ages), dims))
            self.register_parameter(f'rel_pos_age{number}', table)

    def level_grid(self, number: int, size: Optional[Size]) -> Optional[Size]:
        """The grid that a level makes of a clip whose keys formed a grid T, H, W; None
        where its tokens have no places."""
        level, before = self.levels[number], self._source_grid(number, size)
        if level.stride:
            return pooled_size(before, getattr(self, f'{compression_name(number)}_k'))
        return None if level.tokens else before

    def _source_grid(self, number: int, size: Optional[Size]) -> Optional[Size]:
        source = source_of(self.levels, number)
        return size if source is None else self.level_grid(source, size)

    def level_specs(
        self, size: Optional[Size], tokens: int, shared: bool
    ) -> tuple[LevelSpec, ...]:
        """What each level keeps of a clip.

        Args:
            size (tuple[int, int, int], optional): The grid T, H, W of the clip's keys,
                if they have places.
            tokens (int): The keys, class token included.
            shared (bool): Whether the clip's keys and values are one tensor.
        """
        specs: list[LevelSpec] = []
        for number, level in enumerate(self.levels):
            source = source_of(self.levels, number)
            before = 0 if source is None else specs[source].form
            count = tokens if source is None else specs[source].tokens
            one = shared if source is None else specs[source].shared
            form = number + 1
            if level.stride:
                steps, height, width = self.level_grid(number, size)
                count = steps * height * width + self.with_cls_token
            elif level.type == 'pool' or (level.tokens and level.tokens < count):
                count = level.tokens
            else:
                form = before
            if level.type in CONSOLIDATED and source is None and form != before:
                # Consolidated when it is seen, and not kept in any other form.
                before = form
            one = one and level.type != 'pool'
            specs.append(LevelSpec(level.ages, before, form, count, one))
        return tuple(specs)

    def check_levels(self, spec: MemorySpec) -> None:
        """Refuse what cannot be on clips of the size that the layer is made for.

        Raises:
            ValueError: If a clip has fewer keys than a level makes of them.
        """
        for number, level in enumerate(self.levels):
            source = source_of(self.levels, number)
            count = spec.tokens if source is None else spec.levels[source].tokens
            if level.type == 'pool' and level.tokens and level.tokens > count:
                raise ValueError(
                    f'memory_levels[{number}]: tokens={level.tokens} is more than the '
                    f'{count} keys that a clip has in this layer: use fewer.'
                )

    def _has_cls_token(self, number: Optional[int]) -> bool:
        """Whether a class token leads a clip that a level leaves, or as written."""
        if number is None or self.levels[number].stride:
            return self.with_cls_token
        if self.levels[number].type == 'keep':
            return self._has_cls_token(source_of(self.levels, number))
        return False

    def written(self, current: KeyValue, memory: 'MemoryKeys') -> Written:
        """What is to be remembered: this clip, and what was compressed of others.

        Args:
            current (KeyValue): [B, tokens, C] each.
            memory (MemoryKeys): What was read with it.
        """
        at_once: list[Optional[KeyValue]] = []
        for number, level in enumerate(self.levels):
            first = source_of(self.levels, number) is None
            made = current
            if first and level.type in CONSOLIDATED:
                made = self.compress(number, current, None)
            at_once.append(None if made is current else made)
        return Written(current, memory.compressed, tuple(at_once))

    def compress(self, number: int, clip: KeyValue, size: Optional[Size]) -> KeyValue:
        """Compress a clip as a level does.

        Args:
            number (int): The level.
            clip (KeyValue): [B, tokens, C] each, in the level's source form.
            size (tuple[int, int, int], optional): The grid of the clip as it was
                written.

        Returns:
            KeyValue: [B, tokens', C] each; ``clip`` itself if nothing is compressed.
        """
        level, name = self.levels[number], compression_name(number)
        if level.type != 'pool':
            if not level.tokens or level.tokens >= clip.key.shape[1]:
                return clip
            if level.type in CONSOLIDATED:
                return consolidate(level.type, clip, level.tokens, level.seed)
            key = clip.key[:, : level.tokens]
            shared = clip.value is clip.key
            return KeyValue(key, key if shared else clip.value[:, : level.tokens])
        norms = [getattr(self, f'norm_{name}_{part}') for part in 'kv']
        source = source_of(self.levels, number)
        if level.tokens:
            query = getattr(self, f'{name}_query')
            weights = pooling_weights(clip.key, query, self._has_cls_token(source))
            pooled = (norm(weights @ x.to(weights)) for norm, x in zip(norms, clip))
            return KeyValue(*pooled)
        size = self._source_grid(number, size)
        convs = [getattr(self, f'{name}_{part}') for part in 'kv']
        return KeyValue(
            *(
                pool_tokens(split_cls(x, self.with_cls_token), size, conv, norm, 1)[0]
                for x, conv, norm in zip(clip, convs, norms)
            )
        )

    def read_memory(
        self, past: Sequence[PastClips], size: Optional[Size] = None
    ) -> MemoryKeys:
        """Compress the newest clip of each level, and line up what may be attended to.

        Args:
            past (sequence[PastClips]): By level.
            size (tuple[int, int, int], optional): The grid of a clip as it is written.
        """
        clips, spans, valid, ages, compressed = [], [], [], [], []
        for number, kept in enumerate(past):
            newest = self.compress(number, kept.recent, size)
            compressed.append(None if newest is kept.recent else newest)
            clips = [kept.older, newest, *clips]
            spans.insert(0, (len(self.levels[number].ages), newest.key.shape[1]))
            valid.insert(0, kept.valid)
            table = getattr(self, f'rel_pos_age{number}', None)
            if table is not None:
                ages.insert(0, table.flip(0))
        return MemoryKeys(
            clips,
            tuple(spans),
            valid[0] if len(valid) == 1 else torch.cat(valid, dim=1),
            ages,
            tuple(compressed),
        )


def hidden_scores(
    memory: Optional[MemoryKeys], current: int, hide_first: bool, like: Tensor
) -> Tensor:
    """Scores that hide the keys of empty slots.

    Args:
        memory (MemoryKeys, optional): What is read, if anything.
        current (int): Keys of the clip itself, after the memory's.
        hide_first (bool): Hide the first of these, too.
        like (Tensor): Gives device and dtype.

    Returns:
        Tensor: [B or 1, K], 0 or ``HIDDEN``.
    """
    place = dict(device=like.device, dtype=like.dtype)
    spans = () if memory is None else memory.spans
    base = hidden_if_empty(spans, current, hide_first, **place)
    if memory is None:
        return base
    codes = keys_of_slots(spans, current, **place)
    return torch.addmm(base, memory.valid.to(like.dtype), codes, alpha=-HIDDEN)


@constant
def hidden_if_empty(
    spans: tuple[tuple[int, int], ...],
    current: int,
    hide_first: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`hidden_scores` where no slot holds a clip: [1, K]."""
    count = sum(slots * tokens for slots, tokens in spans)
    shown = torch.zeros(1, current, device=device, dtype=dtype)
    shown[:, : int(hide_first)] = HIDDEN
    return F.pad(shown, (count, 0), value=HIDDEN)


@constant
def keys_of_slots(
    spans: tuple[tuple[int, int], ...],
    others: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """One-hot codes of the slots that keys belong to: [slots, K].

    Args:
        spans (tuple): Slots and tokens in each slot, by level.
        others (int): Keys after them, which belong to none.
    """
    parts = [torch.ones(1, tokens) for slots, tokens in spans for _ in range(slots)]
    return F.pad(torch.block_diag(*parts), (0, others)).to(device, dtype)


def add_ages(keys: Tensor, memory: MemoryKeys, num_heads: int) -> Tensor:
    """Add age vectors to projected keys.

    As the bias of all relative positions, that of ages is not scaled with the product
    of queries and keys (MViTv2, eq. 4), so here it is scaled the other way.

    Args:
        keys (Tensor): [B, K, heads * C].
        memory (MemoryKeys): What is read; its keys are the first.
        num_heads (int): Heads, which share the vectors.

    Returns:
        Tensor: [B, K, heads * C].
    """
    if not memory.ages:
        return keys
    spans = memory.spans[: len(memory.ages)]
    others = keys.shape[1] - sum(slots * tokens for slots, tokens in spans)
    codes = keys_of_slots(spans, others, device=keys.device, dtype=keys.dtype)
    ages = torch.cat(memory.ages) * memory.ages[0].shape[1] ** 0.5
    # (C, slots) x (slots, K) -> (K, 1, C)
    terms = (ages.to(keys.dtype).t() @ codes).t()[:, None]
    return (keys.unflatten(-1, (num_heads, -1)) + terms).flatten(2)


def compression_name(number: int) -> str:
    """Prefix of the weights of a level's compression; the first's is the published one.

    Examples:
        >>> compression_name(0), compression_name(1)
        ('compress', 'compress1')
    """
    return f'compress{number or ""}'
