"""Pooling of tokens as they lie in memory: [B, T, H, W, heads * C], channels last."""

import operator
from collections.abc import Callable, Sequence
from typing import Optional

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _triple

from .channels_last import depthwise_convolution
from .choice import autocast_dtype, is_for_cpu, is_plain, is_transforming

Size = tuple[int, int, int]
"""T, H, W."""


def depthwise_pool(
    x: Tensor,
    size: Size,
    conv: nn.Module,
    heads: int,
    causal: bool = False,
    planes: Optional[Tensor] = None,
) -> tuple[Tensor, Size]:
    """Convolve patch tokens depthwise, with one kernel for all heads.

    Args:
        x (Tensor): [B, T*H*W, heads * C].
        size (tuple[int, int, int]): T, H, W.
        conv (nn.Conv3d): Over C channels, depthwise, without bias. With hooks or
            adapters, or another layer in its place, it is called as it is.
        heads (int): Heads that the channels are split into.
        causal (bool): Pad the past only, so that no output sees a later frame.
        planes (Tensor, optional): The same tokens, as :func:`planes_of` gives them.

    Returns:
        tuple: [B, T'*H'*W', heads * C] and (T', H', W').

    Raises:
        TypeError: If ``causal``, and what is in place of the convolution does not tell
            its padding.
    """
    # (B, T*H*W, heads*C) -> (B, T, H, W, heads*C)
    x = x.unflatten(1, size)
    if not _is_plain_conv(conv):
        out = _causally(x, heads, conv) if causal else _heads_apart(x, heads, conv)
        return out.flatten(1, 3), tuple(out.shape[1:4])
    padding = tuple(conv.padding)
    if causal:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 2 * padding[0], 0))
        padding = (0, *padding[1:])
    weight = conv.weight
    if is_for_cpu(x):
        # Autocast does not reach into a function of ours.
        dtype = autocast_dtype(x)
        out = depthwise_convolution(
            x.to(dtype), weight.to(dtype), heads, tuple(conv.stride), padding
        )
    else:
        planes = planes_of(x, heads) if causal or planes is None else planes
        out = plain_convolution(planes, weight, heads, conv.stride, padding)
    return out.flatten(1, 3), tuple(out.shape[1:4])


def _is_plain_conv(conv: nn.Module) -> bool:
    """Whether its weight, stride and padding are all that there is to a layer."""
    return (
        is_plain(conv, nn.Conv3d)
        and conv.bias is None
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.dilation == (1, 1, 1)
        and conv.padding_mode == 'zeros'
        and not isinstance(conv.padding, str)
    )


def _causally(x: Tensor, heads: int, conv: nn.Module) -> Tensor:
    """Call a layer that pads both ends of time on (B, T, H, W, heads*C).

    With as many zeros before the clip as it pads itself, its first T' outputs are those
    that see no later frame; those beyond see what it pads after the clip.
    """
    try:
        kernel, stride, padding = (
            operator.index(getattr(conv, name)[0])
            for name in ('kernel_size', 'stride', 'padding')
        )
    except (AttributeError, TypeError):
        raise TypeError(
            f'{type(conv).__name__}, in place of a pooling convolution of a causal '
            'model, does not tell how it pads time: give it the kernel_size, stride '
            'and padding (three numbers each) of the layer that it replaces.'
        ) from None
    steps = (x.shape[1] + 2 * padding - kernel) // stride + 1
    x = F.pad(x, (0, 0, 0, 0, 0, 0, padding, 0))
    return _heads_apart(x, heads, conv)[:, :steps]


def shared_planes(x: Tensor, size: Size, heads: int) -> Optional[Tensor]:
    """What several convolutions of the same tokens [B, T*H*W, heads * C] may share;
    None where they take the tokens as they lie."""
    return None if is_for_cpu(x) else planes_of(x.unflatten(1, size), heads)


def planes_of(x: Tensor, heads: int) -> Tensor:
    """(B, T, H, W, heads*C) -> (B*heads, C, T, H, W), in order.

    Of one head the channels would be a view, last in memory, for which torch takes
    cuDNN's depthwise kernels on a GPU; its own, for what lies in order, are several
    times as fast (https://github.com/pytorch/pytorch/issues/51027).
    """
    # (B, T, H, W, heads*C) -> (B, heads, C, T, H, W)
    x = x.unflatten(-1, (heads, -1)).permute(0, 4, 5, 1, 2, 3)
    return x.flatten(0, 1).contiguous()


def _heads_joined(x: Tensor, heads: int) -> Tensor:
    """(B*heads, C, T, H, W) -> (B, T, H, W, heads*C)."""
    return x.unflatten(0, (-1, heads)).permute(0, 3, 4, 5, 1, 2).flatten(4)


def plain_convolution(
    x: Tensor,
    weight: Tensor,
    heads: int,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The plain form: (B*heads, C, T, H, W) -> (B, T', H', W', heads*C)."""
    out = F.conv3d(x, weight, None, stride, padding, groups=len(weight))
    return _heads_joined(out, heads)


def _heads_apart(x: Tensor, heads: int, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """Call a layer of [B*heads, C, T, H, W] on (B, T, H, W, heads*C)."""
    return _heads_joined(conv(planes_of(x, heads)), heads)


def max_pool(x: Tensor, size: Size, pool: nn.MaxPool3d) -> Tensor:
    """The largest of each window of patch tokens: [B, T*H*W, C] -> [B, T'*H'*W', C].

    Windows of one frame, the model's own, are pooled in two dimensions: on a GPU the
    gradient of three has no deterministic kernel.

    Args:
        x (Tensor): [B, T*H*W, C].
        size (tuple[int, int, int]): T, H, W.
        pool (nn.MaxPool3d): The windows.
    """
    # (B, T*H*W, C) -> (B, T, H, W, C)
    x = x.unflatten(1, size)
    settings = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    settings = [_triple(setting) for setting in settings]
    in_time, in_space = zip(*((n[0], n[1:]) for n in settings))
    if in_time[:3] == (1, 1, 0) and is_plain(pool, nn.MaxPool3d):
        # (B, T, H, W, C) -> (B*T, C, H, W), a view: channels last
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        if is_transforming():
            # vmap does not have all gradients in channels-last order.
            frames = frames.contiguous()
        out = F.max_pool2d(frames, *in_space, pool.ceil_mode)
        # (B*T, C, H', W') -> (B, T*H'*W', C)
        return out.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]).flatten(1, 3)
    # (B, T, H, W, C) -> (B, C, T', H', W') -> (B, T'*H'*W', C)
    return pool(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(1, 3)
