"""Decomposed relative positions, folded into the product of queries and keys.

The bias of query (t, h, w) on key (t', h', w') is a sum of three terms, one per axis
(MViTv2, arXiv 2112.01526, eq. 4). Adding it to the scores needs a tensor of queries x
keys. Instead each query gets a few extra channels, its terms for every t', h' and w',
and each key the one-hot code of its own (t', h', w'): the scores are then one matrix
product, which fused attention kernels never write to memory.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import Size, attend, hidden_keys, padded
from .kernels.choice import is_eager, is_exporting
from .kernels.constants import constant

# The score, before it is divided by sqrt(C), of a key that must not be seen. Its weight
# is exactly zero after the softmax in every dtype; it fits into float16 and is exact in
# bfloat16, too.
HIDDEN = -7.0 * 2**12


def _resize(table: Tensor, length: int) -> Tensor:
    """Interpolate a table of relative positions linearly: (L, C) -> (length, C)."""
    if table.shape[0] == length:
        return table
    # As F.interpolate(mode='linear'), whose gradient on a GPU has no deterministic
    # kernel; that of indexing has.
    dtype = torch.promote_types(table.dtype, torch.float32)
    places = torch.arange(length, dtype=dtype, device=table.device) + 0.5
    places = (places * (table.shape[0] / length) - 0.5).clamp(0, table.shape[0] - 1)
    before, after = places.floor().long(), places.ceil().long()
    part = (places - before).to(table.dtype)[:, None]
    return torch.lerp(table[before], table[after], part)


def axis_table(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The position vectors of one axis for each query and key (MViTv2, eq. 4).

    As MMAction2's ``resize_decomposed_rel_pos``; its indices are made on the table's
    device, so that a GPU does not wait for them.

    Args:
        table (Tensor): [L, C], interpolated to 2 * max(q_size, k_size) - 1.
        q_size (int): Queries along the axis.
        k_size (int): Keys along the axis.

    Returns:
        Tensor: [q_size, k_size, C].
    """
    table = _resize(table, 2 * max(q_size, k_size) - 1)
    q_ratio, k_ratio = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    queries = torch.arange(q_size, device=table.device)[:, None] * q_ratio
    keys = torch.arange(k_size, device=table.device)[None, :] * k_ratio
    return table[(queries - keys + (k_size - 1) * k_ratio).long()]


def spatial_tables(
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
    shared_geometry: bool,
) -> tuple[Tensor, Tensor]:
    """The position vectors of each query row (column) for each key row (column).

    Args:
        rel_pos_h (Tensor): Table of the height axis, [2 * max(q, k) - 1, C] at the
            size the model was built for; interpolated for other sizes.
        rel_pos_w (Tensor): Table of the width axis.
        q_size (tuple[int, int]): Height and width of the queries.
        k_size (tuple[int, int]): Height and width of the keys.
        shared_geometry (bool): False is MViTv2: each axis for itself. True is what
            the published MeMViT computes on frames that are not square: the longer
            axis takes the interpolated length and the ratios of the shorter one, and
            its distances are clamped into the range of the shorter axis. (There the
            rule is written for wide frames and fails on high ones; here it holds
            for both.) The two agree on square frames.

    Returns:
        tuple[Tensor, Tensor]: [q_h, k_h, C] and [q_w, k_w, C].
    """
    (q_h, q_w), (k_h, k_w) = q_size, k_size
    if not shared_geometry or (q_h == q_w and k_h == k_w):
        return (
            axis_table(rel_pos_h, q_h, k_h),
            axis_table(rel_pos_w, q_w, k_w),
        )
    if q_w >= q_h:
        short = axis_table(rel_pos_h, q_h, k_h)
        return short, _long_axis(rel_pos_w, (q_h, k_h), (q_w, k_w))
    short = axis_table(rel_pos_w, q_w, k_w)
    return _long_axis(rel_pos_h, (q_w, k_w), (q_h, k_h)), short


def _long_axis(table: Tensor, short: tuple[int, int], long: tuple[int, int]) -> Tensor:
    """Position vectors of the longer axis, read with the shorter axis's geometry."""
    (q_short, k_short), (q_long, k_long) = short, long
    table = _resize(table, 2 * max(q_short, k_short) - 1)
    q_ratio = max(k_short / q_short, 1.0)
    k_ratio = max(q_short / k_short, 1.0)
    queries = torch.arange(q_long, device=table.device)[:, None] * q_ratio
    keys = torch.arange(k_long, device=table.device)[None, :] * k_ratio
    offset = (k_short - 1) * k_ratio
    last = (q_short - 1) * q_ratio + offset
    return table[(queries - keys + offset).clamp(0, last).long()]


def memory_time_table(
    table: Tensor, q_len: int, steps: int, stride: int, built_len: int
) -> Tensor:
    """The position vectors of each query time for each time step of the memories.

    The newest memory step is at distance ``i`` of query time ``i``, every older one
    ``stride`` further away, however many memories there are.

    Args:
        table (Tensor): [L, C]; entry d is for distance d.
        q_len (int): Time steps of the queries.
        steps (int): Time steps of all memories together, oldest first.
        stride (int): Query time steps that one memory step stands for.
        built_len (int): Query time steps the table was made for; for clips of another
            length it is interpolated in proportion.

    Returns:
        Tensor: [q_len, steps, C].
    """
    if q_len != built_len:
        table = _resize(table, (table.shape[0] + 1) * q_len // built_len - 1)
    queries = torch.arange(q_len, device=table.device)[:, None]
    back = torch.arange(steps - 1, -1, -1, device=table.device)[None, :]
    return table[(queries + stride * back).clamp(max=table.shape[0] - 1)]


class Positions(NamedTuple):
    """What relative positions depend on besides their weights."""

    q_size: Size
    """T, H, W of the queries."""
    k_size: Size
    """T, H, W of the clip's keys."""
    m_size: Optional[Size]
    """T, H, W of the keys of all memories together, oldest first; None without."""
    stride: int
    """See :func:`memory_time_table`."""
    built_len: int
    """See :func:`memory_time_table`."""
    shared_geometry: bool
    """See :func:`spatial_tables`."""
    multiple: int = 1
    """Products are padded to such sides: with 8 they are faster."""

    @property
    def groups(self) -> list[Size]:
        """The grids of the keys, in their order: the memory's, then the clip's."""
        return [self.k_size] if self.m_size is None else [self.m_size, self.k_size]

    @property
    def rows(self) -> tuple[int, int, int]:
        """Vectors per time step, row and column of the queries; see :func:`_fold`."""
        time, height, width = (sum(n) for n in zip(*self.groups))
        height += -(time + height) % self.multiple
        return time, height, width + -width % self.multiple


def position_vectors(
    weights: Sequence[Tensor], at: Positions, dtype: torch.dtype
) -> Tensor:
    """The vectors that :func:`query_channels` takes, from tables of relative positions.

    They are a linear map of the tables, whose matrix is made once for all clips of a
    size: one product, in place of some fifty small operators, and its gradient is one,
    too. Attention divides all scores by ``C ** 0.5``, but not those of positions
    (MViTv2, eq. 4), so the vectors are as much longer.

    Args:
        weights (sequence[Tensor]): [L, C] each: of time, height and width for the
            clip and, if ``at.m_size`` is given, for the memory.
        at (Positions): Where queries and keys are.
        dtype (torch.dtype): Of the result.

    Returns:
        Tensor: [rows, C].
    """
    scale = weights[0].shape[1] ** 0.5
    if not is_eager() and not is_exporting():
        return (_fold(weights, at) * scale).to(dtype)
    lengths = tuple(len(weight) for weight in weights)
    weights = (torch.cat(list(weights)) * scale).to(dtype)
    return _matrix(at, lengths, device=weights.device, dtype=dtype) @ weights


@constant
def _matrix(
    at: Positions, lengths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The map from tables to vectors: [rows, sum of lengths]."""
    exact = torch.promote_types(dtype, torch.float32)
    tables = torch.eye(sum(lengths), device=device, dtype=exact).split(lengths)
    return _fold(tables, at).to(dtype)


def _fold(weights: Sequence[Tensor], at: Positions) -> Tensor:
    """The vectors by time, then those by height, then by width: [rows, C].

    A term common to all keys of one group can move from axis to axis, so each group's
    first time step and first column are folded into its rows: two channels fewer. Of
    the vectors of time and width, those of the groups' firsts come first.
    """
    q_t, *q_space = at.q_size
    t, h, w = weights[:3]
    space = spatial_tables(h, w, q_space, at.k_size[1:], at.shared_geometry)
    groups = [(axis_table(t, q_t, at.k_size[0]), *space)]
    if at.m_size is not None:
        t, h, w = weights[3:]
        steps, *m_space = at.m_size
        space = spatial_tables(h, w, q_space, m_space, at.shared_geometry)
        t = memory_time_table(t, q_t, steps, at.stride, at.built_len)
        groups.insert(0, (t, *space))
    time, height, width = zip(*groups)
    height = torch.cat(height, dim=1)
    parts = [_differences(time), height, _differences(width)]
    # (q, k, C) -> (q, rows, C) -> (q * rows, C)
    parts = [
        F.pad(part, (0, 0, 0, rows - part.shape[1])).flatten(0, 1)
        for part, rows in zip(parts, at.rows)
    ]
    return torch.cat(parts)


def _differences(tables: Sequence[Tensor]) -> Tensor:
    """[q, k, C] each: the first ones, then what is left of the others without them."""
    firsts = [table[:, :1] for table in tables]
    others = [table[:, 1:] - table[:, :1] for table in tables]
    return torch.cat([*firsts, *others], dim=1)


def query_channels(
    q: Tensor, vectors: Tensor, at: Positions, causal_stride: Optional[int] = None
) -> Tensor:
    """The extra channels of the patch queries: their terms for every key t, h and w.

    Args:
        q (Tensor): Unscaled patch queries, [B, heads, T*H*W, C].
        vectors (Tensor): Of :func:`position_vectors`, [rows, C].
        at (Positions): Where queries and keys are.
        causal_stride (int, optional): In a causal model, the time steps of the queries
            that one of the clip's keys stands for; later keys are hidden.

    Returns:
        Tensor: [B, heads, T*H*W, E], in the order of :func:`key_codes`.
    """
    steps, height, width = at.q_size
    # Not len(q), a number that torch.export would take for that of any batch.
    batch, heads = q.shape[:2]
    counts = [n * rows for n, rows in zip(at.q_size, at.rows)]
    by_time, by_height, by_width = (
        # (q * rows, C) -> (q, rows, C)
        part.unflatten(0, (-1, rows))
        for part, rows in zip(vectors.split(counts), at.rows)
    )
    # (T, k, C) and (H, k', C) -> (T, H, k + k', C) -> (T*H, C, k + k')
    by_row = [
        by_time[:, None].expand(-1, height, -1, -1),
        by_height[None].expand(steps, -1, -1, -1),
    ]
    by_row = torch.cat(by_row, dim=2).flatten(0, 1).transpose(1, 2)
    # (B, heads, T*H*W, C) -> (B, T*H*W, heads, C): as tokens lie in memory.
    tokens = q.transpose(1, 2)
    # (B, T*H, W*heads, C) x (T*H, C, k) -> (B, T*H*W, heads, k)
    rows = torch.matmul(
        tokens.reshape(batch, steps * height, width * heads, q.shape[-1]), by_row
    )
    rows = rows.reshape(*tokens.shape[:3], by_row.shape[-1])
    # (W*heads, B*T*H, C) x (W*heads, C, k) -> (B, T*H*W, heads, k)
    by_column = by_width.transpose(1, 2).repeat_interleave(heads, dim=0)
    columns = tokens.reshape(batch * steps * height, width * heads, q.shape[-1])
    columns = torch.bmm(columns.transpose(0, 1), by_column).transpose(0, 1)
    columns = columns.reshape(*tokens.shape[:3], by_column.shape[-1])

    groups = len(at.groups)
    t, h, w = ([size[axis] for size in at.groups] for axis in range(3))
    # Without what multiples of 8 were filled up with.
    first_step, later, *by_height = _first_parts(rows, [groups, sum(t) - groups, *h])
    first_column, others = _first_parts(columns, [groups, sum(w) - groups])
    first = (first_step + first_column).split(1, dim=-1)
    by_height = [terms + common for terms, common in zip(by_height, first)]
    if causal_stride is not None:
        hidden = later_keys(at, causal_stride, device=q.device, dtype=q.dtype)
        later = later.unflatten(1, (steps, -1)) + hidden[:, None, None]
        later = later.flatten(1, 2)
    # (B, T*H*W, heads, E) -> (B, heads, T*H*W, E)
    return torch.cat([later, *by_height, others], dim=-1).transpose(1, 2)


def _first_parts(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Split the first channels."""
    return x.split([*sizes, x.shape[-1] - sum(sizes)], dim=-1)[: len(sizes)]


@constant
def later_keys(
    at: Positions, stride: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What hides the clip's keys whose time step lies after the query's.

    Args:
        at (Positions): Where queries and keys are.
        stride (int): Time steps of the queries that one of the clip's keys stands for.

    Returns:
        Tensor: [T, time steps of keys after the first], for all groups of keys.
    """
    queries = torch.arange(at.q_size[0], device=device)[:, None]
    keys = torch.arange(1, at.k_size[0], device=device)[None, :] * stride
    hidden = (keys > queries).to(dtype) * HIDDEN
    before = 0 if at.m_size is None else at.m_size[0] - 1
    return F.pad(hidden, (before, 0))


@constant
def key_codes(
    at: Positions,
    clips: int,
    with_cls_token: bool,
    before: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """One-hot codes of the keys' positions, matching :func:`query_channels`.

    Args:
        at (Positions): Where the keys are.
        clips (int): Of how many clips the memory's are.
        with_cls_token (bool): Whether a class token, which has no position, leads each
            clip.
        before (int): Keys without a position, before all others.

    Returns:
        Tensor: [keys, E], in the order [without, memory, clip].

    Examples:
        >>> at = Positions((1, 2, 2), (1, 2, 2), None, 1, 1, True)
        >>> key_codes(at, 0, False, 0, device='cpu', dtype=torch.float32)
        tensor([[1., 0., 0.],
                [1., 0., 1.],
                [0., 1., 0.],
                [0., 1., 1.]])
    """
    counts = [1] if at.m_size is None else [clips, 1]
    groups = []
    for size, count in zip(at.groups, counts):
        place = torch.meshgrid(*map(torch.arange, size), indexing='ij')
        codes = [F.one_hot(n.flatten(), length) for n, length in zip(place, size)]
        # The first time step and the first column have none, see _fold.
        codes = (codes[0][:, 1:], codes[1], codes[2][:, 1:])
        # (clips*T*H*W, E) -> (clips, T*H*W, E)
        codes = [part.float().unflatten(0, (count, -1)) for part in codes]
        # (clips, cls + T*H*W, E) -> (clips*(cls + T*H*W), E)
        codes = [F.pad(n, (0, 0, with_cls_token, 0)).flatten(0, 1) for n in codes]
        groups.append(codes)
    codes = torch.cat([torch.block_diag(*axis) for axis in zip(*groups)], dim=1)
    return F.pad(codes, (0, 0, before, 0)).to(device, dtype)


def folded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_extra: Optional[Tensor] = None,
    k_extra: Optional[Tensor] = None,
    hidden: Optional[Tensor] = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax((q k^T + q_extra k_extra^T) / sqrt(C)) v, without a tensor of scores.

    Args:
        q (Tensor): [B, heads, Q, C].
        k (Tensor): [B, heads, K, C].
        v (Tensor): [B, heads, K, C].
        q_extra (Tensor, optional): [B, heads, Q, E], or None for no bias.
        k_extra (Tensor, optional): [K, E].
        hidden (Tensor, optional): [B or 1, K], 0, or ``HIDDEN`` for keys that must not
            be seen.
        dropout (float): Dropout on the attention weights.

    Returns:
        Tensor: [B, heads, Q, C].
    """
    channels, scale = v.shape[-1], q.shape[-1] ** -0.5
    if q_extra is None and hidden is None:
        return attend(q, k, v, scale, dropout)
    extra = 0 if q_extra is None else q_extra.shape[-1]
    width = padded(channels + extra + int(hidden is not None))
    spare = width - channels - extra
    # Dropout draws as many numbers as there are keys.
    more = hidden_keys(q, k) if spare and not dropout else 0
    if more:
        k, v = (F.pad(x, (0, 0, 0, more)) for x in (k, v))
        hidden = k.new_zeros(1, k.shape[2] - more) if hidden is None else hidden
        hidden = F.pad(hidden, (0, more), value=HIDDEN)
        k_extra = None if k_extra is None else F.pad(k_extra, (0, 0, 0, more))
    # Spare channels of queries are 1, those of keys 0 but for one, which hides.
    q = _widened(q, q_extra, filled(1.0, device=q.device, dtype=q.dtype), spare)
    zero = filled(0.0, device=k.device, dtype=k.dtype)
    if k_extra is not None:
        k_extra = k_extra.to(k.dtype)
    if hidden is None:
        k = _widened(k, k_extra, zero, spare)
    else:
        # (B, K) -> (B, 1, K, 1)
        hidden = hidden.to(k.dtype)[:, None, :, None]
        k = _widened(k, k_extra, hidden, 1, zero, spare - 1)
    v = F.pad(v, (0, width - channels))
    return attend(q, k, v, scale, dropout)[..., :channels]


def _widened(x: Tensor, extra: Optional[Tensor], *fill: Union[Tensor, int]) -> Tensor:
    """Append channels, heads next to each other in memory.

    Args:
        x (Tensor): [B, heads, N, C].
        extra (Tensor, optional): [B, heads, N, E], or what expands to it.
        *fill: Tensors that expand to [B, heads, N, 1], each with how often it follows.
    """
    parts = [x] if extra is None else [x, extra]
    size = x.shape[:3]
    parts = [part.expand(*size, part.shape[-1]) for part in parts]
    for value, count in zip(fill[::2], fill[1::2]):
        parts.append(value.expand(*size, count))
    # (B, heads, N, C) -> (B, N, heads, C): as tokens lie in memory.
    return torch.cat([part.transpose(1, 2) for part in parts], dim=-1).transpose(1, 2)


@constant
def filled(value: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One number, [1]."""
    return torch.full((1,), value, device=device, dtype=dtype)
