"""Consolidation: some tokens in place of all of a clip's, without parameters.

Source: k-means, coreset and random choice of past activations, as MC-ViT (arXiv
2402.05861, sec. 3) describes them. What is kept depends on the clip, the seed and
nothing else: not on the batch, the video or how often it was called.
"""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from memvit_mm.models.kernels.choice import (
    is_compiling,
    is_exporting,
    kind_of_device,
)
from memvit_mm.models.kernels.constants import constant

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
    (key, value), dims = (x.detach() for x in clip), clip.key.shape[-1]
    shared = clip.value is clip.key
    points = key if shared else torch.cat([key, value.to(key)], dim=-1)
    # One operator while torch.compile traces, instead of the steps of all loops; but
    # what is exported has to go without it.
    run = _operator if is_compiling() and not is_exporting() else _consolidate
    kept = run(kind, points, dims, tokens, seed)
    key = kept[..., :dims]
    return KeyValue(key, key if shared else kept[..., dims:])


def _consolidate(
    kind: str, points: Tensor, dims: int, tokens: int, seed: int
) -> Tensor:
    """[B, N, C] -> [B, tokens, C]; the first ``dims`` channels tell the distance."""
    drawn = draw(points.shape[1], tokens, seed)
    with torch.no_grad(), without_autocast(points.device.type):
        if kind == 'kmeans':
            first = places(tuple(drawn), device=points.device, dtype=torch.long)
            return kmeans(points, first, dims).to(points)
        if kind == 'coreset':
            chosen = farthest_first(points[..., :dims], tokens, drawn[0]).sort(dim=1)[0]
            return points.gather(1, chosen[..., None].expand(-1, -1, points.shape[-1]))
        chosen = places(tuple(sorted(drawn)), device=points.device, dtype=torch.long)
        return points.index_select(1, chosen)


@constant
def places(
    numbers: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Places of tokens, on their device."""
    return torch.tensor(numbers, device=device, dtype=dtype)


@torch.library.custom_op('memvit_mm::consolidate', mutates_args=())
def _operator(kind: str, points: Tensor, dims: int, tokens: int, seed: int) -> Tensor:
    return _consolidate(kind, points, dims, tokens, seed)


@_operator.register_fake
def _(kind: str, points: Tensor, dims: int, tokens: int, seed: int) -> Tensor:
    return points.new_empty(points.shape[0], tokens, points.shape[2])


def without_autocast(device: str) -> AbstractContextManager:
    """Outside of autocast, which 'meta' does not know."""
    return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)


def draw(count: int, tokens: int, seed: int) -> list[int]:
    """Some of the numbers below ``count``, each at most once.

    Examples:
        >>> sorted(draw(4, 4, seed=0))
        [0, 1, 2, 3]
    """
    # Not torch's: vmap refuses to draw, and modes would see it. NumPy keeps these
    # numbers the same in all its versions.
    return np.random.RandomState(seed % 2**32).permutation(count)[:tokens].tolist()


def kmeans(points: Tensor, first: Tensor, dims: int) -> Tensor:
    """Centers of clusters (Lloyd's algorithm, five rounds).

    Args:
        points (Tensor): [B, N, C].
        first (Tensor): The K points that centers start from, int64.
        dims (int): The first so many channels tell the distance.

    Returns:
        Tensor: [B, K, C]. The center of a cluster that has lost its points stays.
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    centers = points.index_select(1, first)
    for _ in range(ROUNDS):
        near = centers[..., :dims]
        # The nearest center has the largest x c - c c / 2.
        scores = points[..., :dims] @ near.transpose(1, 2)
        scores -= near.square().sum(-1)[:, None] / 2
        sums, sizes = _sums(points, scores.argmax(dim=-1), len(first))
        means = sums / sizes.clamp(min=1)
        centers = torch.where(sizes > 0, means, centers)
    return centers


def _sums(points: Tensor, label: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Sums [B, K, C] and numbers [B, K, 1] of the points [B, N, C] of each label."""
    if kind_of_device(points) == 'cuda' or is_exporting():
        # Adding in place would take turns there, each time in another order.
        chosen = label[..., None] == torch.arange(number, device=label.device)
        chosen = chosen.to(points)
        return chosen.transpose(1, 2) @ points, chosen.sum(dim=1)[..., None]
    label = label + torch.arange(len(points), device=label.device)[:, None] * number
    sums = points.new_zeros(len(points) * number, points.shape[2])
    sizes = points.new_zeros(len(sums), 1)
    sums = sums.index_add(0, label.flatten(), points.flatten(0, 1))
    sizes = sizes.index_add(
        0, label.flatten(), torch.ones_like(points[..., :1]).flatten(0, 1)
    )
    return sums.unflatten(0, (-1, number)), sizes.unflatten(0, (-1, number))


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
    # Distances by products are exact near the origin.
    points = points - points.mean(dim=1, keepdim=True)
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
