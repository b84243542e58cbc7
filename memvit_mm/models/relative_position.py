"""Decomposed relative positions, folded into the product of queries and keys.

The bias of query (t, h, w) on key (t', h', w') is a sum of three terms, one per axis
(MViTv2, arXiv 2112.01526, eq. 4). Adding it to the scores needs a tensor of queries x
keys. Instead each query gets a few extra channels, its terms for every t', h' and w',
and each key the one-hot code of its own (t', h', w'): the scores are then one matrix
product, which fused attention kernels never write to memory.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import Size, attend, hidden_keys, padded
from .kernels.choice import is_for_cpu

# The score of a key that must not be seen. Its weight is exactly zero after the
# softmax in every dtype, and it fits into float16.
HIDDEN = -3e4


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


def query_channels(
    q: Tensor,
    q_size: Size,
    tables: Sequence[Tensor],
    num_current: Sequence[int],
    time_terms: Optional[Tensor] = None,
) -> Tensor:
    """The extra channels of the patch queries: their terms for every key t, h and w.

    A term common to all keys of one group can move from axis to axis, so each group's
    first time step and first column are folded into its rows: two channels fewer.

    Args:
        q (Tensor): Unscaled patch queries, [B, heads, T*H*W, C].
        q_size (tuple[int, int, int]): T, H, W of the queries.
        tables (sequence[Tensor]): Position vectors [T, k, C], [H, k, C], [W, k, C],
            where k counts the current clip's positions first, then the memory's.
        num_current (sequence[int]): How many of each k are the current clip's.
        time_terms (Tensor, optional): Added to the terms of the current clip's time
            steps, [T, k]; see :func:`causal_time_terms`.

    Returns:
        Tensor: [B, heads, T*H*W, E], in the order that :func:`key_codes` expects.
    """
    steps, height, width = q_size
    # Not len(q), a number that torch.export would take for that of any batch.
    batch, heads = q.shape[:2]
    tables = [table.to(q.dtype) for table in tables]
    t, h, w = (
        [table[:, :n], table[:, n:]] if n < table.shape[1] else [table]
        for table, n in zip(tables, num_current)
    )
    # Differences are taken in the tables, which are small.
    # (T, k, C) and (H, k, C) -> (T, H, k, C)
    by_row = []
    for t_part, h_part in zip(t, h):
        later = t_part[:, 1:] - t_part[:, :1]
        by_row += [
            t_part[:, None, :1].expand(-1, height, -1, -1),
            later[:, None].expand(-1, height, -1, -1),
            h_part[None].expand(steps, -1, -1, -1),
        ]
    # (W, k, C)
    by_column = []
    for part in w:
        by_column += [part[:, :1], part[:, 1:] - part[:, :1]]
    # (B, heads, T*H*W, C) -> (B, T*H*W, heads, C): as tokens lie in memory.
    tokens = q.transpose(1, 2)
    if is_for_cpu(q):
        # It multiplies faster where k is a multiple of 8. What zeros give is not used.
        for parts in (by_row, by_column):
            k = sum(part.shape[-2] for part in parts)
            size = *parts[0].shape[:-2], padded(k) - k, q.shape[-1]
            parts.append(q.new_zeros(size))
    # (B, T*H, W*heads, C) x (T*H, C, k) -> (B, T*H*W, heads, k)
    table = torch.cat(by_row, dim=2).flatten(0, 1).transpose(1, 2)
    rows = torch.matmul(
        tokens.reshape(batch, steps * height, width * heads, q.shape[-1]), table
    )
    rows = rows.reshape(*tokens.shape[:3], table.shape[-1])
    # (W*heads, B*T*H, C) x (W*heads, C, k) -> (B, T*H*W, heads, k)
    table = torch.cat(by_column, dim=1).transpose(1, 2).repeat_interleave(heads, dim=0)
    columns = tokens.reshape(batch * steps * height, width * heads, q.shape[-1])
    columns = torch.bmm(columns.transpose(0, 1), table).transpose(0, 1)
    columns = columns.reshape(*tokens.shape[:3], table.shape[-1])

    rows = rows.split([part.shape[2] for part in by_row], dim=-1)
    columns = columns.split([part.shape[1] for part in by_column], dim=-1)
    groups = []
    for part in range(len(w)):
        first_step, later, by_height = rows[3 * part : 3 * part + 3]
        first_column, others = columns[2 * part : 2 * part + 2]
        first = first_step + first_column
        if part == 0 and time_terms is not None:
            # (T, k) -> (T, 1, k) -> (T*H*W, 1, k)
            terms = time_terms[:, None].expand(-1, height * width, -1)
            terms = terms.flatten(0, 1)[:, None]
            later = later + (terms[..., 1:] - terms[..., :1])
            first = first + terms[..., :1]
        groups += [later, by_height + first, others]
    # (B, T*H*W, heads, E) -> (B, heads, T*H*W, E)
    return torch.cat(groups, dim=-1).transpose(1, 2)


def key_codes(size: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One-hot codes of key positions, matching one group of :func:`query_channels`.

    Args:
        size (tuple[int, int, int]): T, H, W of the keys.

    Returns:
        Tensor: [T*H*W, (T - 1) + H + (W - 1)].

    Examples:
        >>> key_codes((1, 2, 2), 'cpu', torch.float32)
        tensor([[1., 0., 0.],
                [1., 0., 1.],
                [0., 1., 0.],
                [0., 1., 1.]])
    """
    steps, height, width = size
    eye = [torch.eye(n, device=device, dtype=dtype) for n in size]
    columns = [
        eye[0][:, None, None, 1:].expand(-1, height, width, -1),
        eye[1][None, :, None, :].expand(steps, -1, width, -1),
        eye[2][None, None, :, 1:].expand(steps, height, -1, -1),
    ]
    # (T, H, W, E) -> (T*H*W, E)
    return torch.cat(columns, dim=-1).flatten(0, 2)


def folded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_extra: Optional[Tensor],
    k_extra: Optional[Tensor],
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(C) + q_extra k_extra^T) v, without a tensor of scores.

    Args:
        q (Tensor): [B, heads, Q, C].
        k (Tensor): [B, heads, K, C].
        v (Tensor): [B, heads, K, C].
        q_extra (Tensor, optional): [B, heads, Q, E], or None for no bias.
        k_extra (Tensor, optional): [B or 1, 1, K, E].
        dropout (float): Dropout on the attention weights.

    Returns:
        Tensor: [B, heads, Q, C].
    """
    channels, scale = v.shape[-1], q.shape[-1] ** -0.5
    if q_extra is not None:
        width = padded(channels + q_extra.shape[-1])
        spare = width - channels - q_extra.shape[-1]
        k_extra = F.pad(k_extra.to(k.dtype), (0, spare))
        # Dropout draws as many numbers as there are keys.
        more = hidden_keys(q, k) if spare and not dropout else 0
        if more:
            k, v, k_extra = (F.pad(x, (0, 0, 0, more)) for x in (k, v, k_extra))
            k_extra[..., -more:, -spare:] = HIDDEN
        # Scaled with the rest of the scores. Spare channels are 1: they hide keys.
        q = widened(q, q_extra.to(q.dtype) / scale, width, 1.0)
        k = widened(k, k_extra.expand(*k.shape[:3], -1), width)
        v = F.pad(v, (0, width - channels))
    return attend(q, k, v, scale, dropout)[..., :channels]


def widened(x: Tensor, extra: Tensor, width: int, fill: float = 0.0) -> Tensor:
    """Append channels, and more up to a width, heads next to each other in memory.

    Args:
        x (Tensor): [B, heads, N, C].
        extra (Tensor): [B, heads, N, E].
        width (int): Channels of the result.
        fill (float): What is in the channels after the appended ones.

    Returns:
        Tensor: [B, heads, N, width].
    """
    extra = F.pad(extra, (0, width - x.shape[-1] - extra.shape[-1]), value=fill)
    # (B, heads, N, C) -> (B, N, heads, C): as tokens lie in memory.
    return torch.cat([x.transpose(1, 2), extra.transpose(1, 2)], dim=-1).transpose(1, 2)


def causal_time_terms(q_len: int, k_len: int, stride: int, like: Tensor) -> Tensor:
    """What hides keys whose time step lies after the query's: [q_len, k_len].

    Args:
        q_len (int): Time steps of the queries.
        k_len (int): Time steps of the keys.
        stride (int): Query time steps that one of the keys stands for.
        like (Tensor): The queries, [..., C]. As all terms, these are multiplied by
            ``C ** 0.5`` before the product, after which they still fit into float16.
    """
    queries = torch.arange(q_len, device=like.device)[:, None]
    keys = torch.arange(k_len, device=like.device)[None, :] * stride
    return (keys > queries).to(like.dtype) * (HIDDEN * like.shape[-1] ** -0.5)


def concat_tables(parts: list[Optional[Sequence[Tensor]]]) -> list[Tensor]:
    """Join the tables of the current clip and of the memory, axis by axis."""
    parts = [part for part in parts if part is not None]
    return [torch.cat(axis, dim=1) for axis in zip(*parts)]
