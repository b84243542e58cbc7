"""Consolidation: some tokens in place of all of a clip's, without parameters.

Source: k-means, coreset and random choice of past activations, as MC-ViT (arXiv
2402.05861, sec. 3) describes them. What is kept depends on the clip, the seed and
nothing else: not on the batch, the video or how often it was called.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from memvit_mm.models.kernels.choice import is_compiling

from .layers import KeyValue

# Rounds of k-means, as published.
ROUNDS = 5


def consolidate(kind: str, clip: KeyValue, tokens: int, seed: int) -> KeyValue:
    """Reduce a clip to some tokens; what is near or far is told by its keys.

    Args:
        kind (str): 'kmeans': the means of clusters. 'coreset': tokens far from each
            other. 'random': drawn ones, at the same places of every clip.
        clip (KeyValue): [B, N, C] each.
        tokens (int): How many are kept, fewer than N.
        seed (int): Of the drawn tokens: all of 'random', the first centers of 'kmeans'
            and the first token of 'coreset'.

    Returns:
        KeyValue: [B, tokens, C] each, without gradient; one tensor if ``clip`` is.
    """
    # While torch.jit traces, sizes are tensors.
    shared, count = clip.value is clip.key, int(clip.key.shape[1])
    drawn = draw(count, tokens, seed)
    key, value = (x.detach() for x in clip)
    with torch.no_grad(), _exactly(key.device.type):
        if kind == 'kmeans':
            points = key if shared else torch.cat([key, value.to(key)], dim=-1)
            means = kmeans(points, drawn, key.shape[-1]).to(key.dtype)
            key, value = means[..., : key.shape[-1]], means[..., -value.shape[-1] :]
        else:
            chosen = torch.tensor(sorted(drawn), device=key.device)
            chosen = chosen.expand(len(key), -1)
            if kind == 'coreset':
                chosen = farthest_first(key, tokens, drawn[0]).sort(dim=1)[0]
            key, value = (
                x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
                for x in (key, value)
            )
    return KeyValue(key, key if shared else value)


def _exactly(device: str) -> AbstractContextManager:
    """Outside of autocast, which 'meta' does not know."""
    return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)


@torch.compiler.assume_constant_result
def draw(count: int, tokens: int, seed: int) -> tuple[int, ...]:
    """Some of the numbers below ``count``, each at most once.

    Examples:
        >>> sorted(draw(4, 4, seed=0))
        [0, 1, 2, 3]
    """
    # Not torch's: vmap refuses to draw, and modes would see it. NumPy keeps these
    # numbers the same in all its versions.
    order = np.random.RandomState(seed % 2**32).permutation(count)
    return tuple(order[:tokens].tolist())


def kmeans(points: Tensor, first: Sequence[int], dims: int) -> Tensor:
    """Centers of clusters (Lloyd's algorithm, five rounds).

    Args:
        points (Tensor): [B, N, C].
        first (sequence[int]): The K points that centers start from.
        dims (int): The first so many channels tell the distance.

    Returns:
        Tensor: [B, K, C]. The center of a cluster that has lost its points stays.
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    centers = points[:, list(first)]
    count, number = points.shape[1], len(first)
    batch = torch.arange(len(points), device=points.device)[:, None] * number
    for _ in range(ROUNDS):
        near = centers[..., :dims]
        # The nearest center has the largest x c - c c / 2.
        scores = points[..., :dims] @ near.transpose(1, 2)
        scores -= near.square().sum(-1)[:, None] / 2
        label = (scores.argmax(dim=-1) + batch).flatten()
        sums = torch.zeros_like(centers).flatten(0, 1)
        sums = sums.index_add(0, label, points.flatten(0, 1))
        sizes = points.new_zeros(len(sums))
        sizes = sizes.index_add(0, label, points.new_ones(len(points) * count))
        sizes = sizes.unflatten(0, (-1, number))[..., None]
        means = sums.view_as(centers) / sizes.clamp(min=1)
        centers = torch.where(sizes > 0, means, centers)
    return centers


def farthest_first(points: Tensor, tokens: int, first: int) -> Tensor:
    """Points of which each is the farthest from all before it (greedy k-center).

    Args:
        points (Tensor): [B, N, C].
        tokens (int): How many.
        first (int): The point to begin with.

    Returns:
        Tensor: Their numbers, [B, tokens].
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    if is_compiling():
        # Its steps, one for each token, would all be traced.
        return _one_operator(points, tokens, first)
    return _farthest_first(points, tokens, first)


def _farthest_first(points: Tensor, tokens: int, first: int) -> Tensor:
    squares = points.square().sum(dim=-1)
    newest = torch.full_like(squares[:, 0], first, dtype=torch.long)
    chosen, distance = [newest], torch.full_like(squares, torch.inf)
    for _ in range(tokens - 1):
        place = newest[:, None]
        point = points.gather(1, place[..., None].expand(-1, -1, points.shape[-1]))
        # (x - p)^2 = x x + p p - 2 x p
        products = torch.bmm(points, point.transpose(1, 2)).squeeze(-1)
        apart = squares + squares.gather(1, place) - 2 * products
        distance = torch.minimum(distance, apart).scatter(1, place, -torch.inf)
        newest = distance.argmax(dim=1)
        chosen.append(newest)
    return torch.stack(chosen, dim=1)


@torch.library.custom_op('memvit_mm::farthest_first', mutates_args=())
def _one_operator(points: Tensor, tokens: int, first: int) -> Tensor:
    return _farthest_first(points, tokens, first)


@_one_operator.register_fake
def _(points: Tensor, tokens: int, first: int) -> Tensor:
    return points.new_empty(len(points), tokens, dtype=torch.long)
