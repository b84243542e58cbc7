"""Stochastic depth in one pass over the tokens."""

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .choice import is_plain


def run_drop_path(layer: nn.Module, x: Tensor) -> Tensor:
    """Call mmcv's ``DropPath``, or whatever is in its place.

    It draws what mmcv's draws and divides that by the probability to stay, where mmcv's
    divides all tokens: one pass over them instead of two, and so in the backward pass.

    Args:
        layer (nn.Module): ``DropPath``, or ``nn.Identity`` for no stochastic depth.
        x (Tensor): [B, N, C].
    """
    if not is_plain(layer, DropPath):
        return layer(x)
    if not layer.training or layer.drop_prob == 0:
        return x
    keep = 1 - layer.drop_prob
    size = (len(x), *(1,) * (x.ndim - 1))
    drawn = torch.rand(size, dtype=x.dtype, device=x.device)
    return x * ((drawn + keep).floor() / keep)
