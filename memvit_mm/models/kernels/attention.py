"""Attention without a tensor of scores, queries x keys, in memory."""

import logging
from functools import cache
from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .choice import is_compiling, is_for_cpu, is_transforming

# Without a fused kernel, about this many scores are computed at a time.
SCORES_AT_ONCE = 2**22


# Keys that torch's flash kernel for a CPU takes at once.
KEYS_AT_ONCE = 512


def padded(n: int) -> int:
    """The next multiple of 8: so many channels of a head do fused kernels take.

    Products on a CPU are faster, too, where each side is a multiple of 8.

    Examples:
        >>> padded(127), padded(96)
        (128, 96)
    """
    return n + -n % 8


def hidden_keys(q: Tensor, k: Tensor) -> int:
    """How many keys, hidden ones, make attention faster; 0 where none do.

    A CPU takes 6 % less time for 464 keys than for 459, and 3 % less for their
    gradients (25,089 queries, AMD EPYC, Zen 4, one thread); beyond what its kernel
    takes at once, it makes no difference.

    Args:
        q (Tensor): [B, heads, Q, C].
        k (Tensor): [B, heads, K, C].
    """
    keys = k.shape[2]
    if not is_for_cpu(q) or padded(keys) > KEYS_AT_ONCE:
        return 0
    return padded(keys) - keys


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale * q k^T) v.

    By torch's ``scaled_dot_product_attention``: its flash kernel on a CPU (float32,
    bfloat16, float16), flash, cuDNN's or the memory-efficient one on a GPU. Where
    torch would fall back on plain formulas, and so on a tensor of all scores, they are
    applied to some queries at a time, which is exact, too, and said once.

    Args:
        q (Tensor): [B, heads, Q, C].
        k (Tensor): [B, heads, K, C].
        v (Tensor): [B, heads, K, C].
        scale (float): Of the scores.
        dropout (float): Dropout on the attention weights.

    Returns:
        Tensor: [B, heads, Q, C].
    """
    # With dropout, torch's own: the few people of a clip, whose scores are few.
    if dropout == 0 and is_transforming():
        # Fused kernels have no forward-mode and no second derivatives.
        return in_parts(q, k, v, scale)
    if dropout == 0 and not is_fused(q, k, v, scale):
        said_once(q.device.type, str(q.dtype), q.shape[-1])
        return in_parts(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)


def is_fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether torch has a fused kernel for these; True where it does not tell."""
    choose = getattr(torch, '_fused_sdp_choice', None)
    if choose is None or is_compiling() or q.device.type not in ('cpu', 'cuda'):
        return True
    try:
        # 0 is the plain formula.
        return choose(q, k, v, None, 0.0, False, scale=scale) != 0
    except (RuntimeError, TypeError):
        return True


def in_parts(
    q: Tensor, k: Tensor, v: Tensor, scale: float, scores: Optional[int] = None
) -> Tensor:
    """The plain formula on some queries at a time; recomputed in the backward pass.

    Args:
        scores (int, optional): How many scores to hold at once, about; by default
            ``SCORES_AT_ONCE``.

    Returns:
        Tensor: [B, heads, Q, C].
    """
    scores = scores or SCORES_AT_ONCE
    rows = max(scores // max(k.shape[:3].numel(), 1), 1)
    if rows >= q.shape[2]:
        return _plain(q, k, v, scale)
    parts = []
    for part in q.split(rows, dim=2):
        if torch.is_grad_enabled() and not is_transforming():
            parts.append(checkpoint(_plain, part, k, v, scale, use_reentrant=False))
        else:
            parts.append(_plain(part, k, v, scale))
    return torch.cat(parts, dim=2)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1, dtype=_at_least_float32(q)).to(v.dtype) @ v


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@cache
def said_once(device: str, dtype: str, channels: int) -> None:
    """Log that there is no fused kernel, once for each kind of input."""
    print_log(
        f'Attention of {dtype} heads of {channels} channels has no fused kernel on '
        f'this {device}: it is computed for some queries at a time, exactly and more '
        'slowly.',
        logger='current',
        level=logging.WARNING,
    )
