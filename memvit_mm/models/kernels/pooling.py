"""Depthwise pooling convolutions on tokens as they lie: no change of layout.

Tokens are [B, T, H, W, heads * C]: channels last. That is the layout in which oneDNN
has its fast depthwise kernels, so that nothing is moved before or after. It has them
for the forward pass in three dimensions and for gradients in two only, hence the
backward pass here: the input's gradient is a forward convolution with the mirrored
kernel, the weight's a sum of two-dimensional ones. It takes a third of the time of the
same layer in [B, C, T, H, W], with gradients a fifth (``python
tests/reference/measure_parts.py CONFIG``).
"""

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _triple

from memvit_mm.models.relative_position import Size

from .fused_attention import is_transforming
from .linear import autocast_dtype, is_plain


def depthwise_pool(
    x: Tensor, size: Size, conv: nn.Module, heads: int, causal: bool = False
) -> tuple[Tensor, Size]:
    """Convolve patch tokens depthwise, with one kernel for all heads.

    Args:
        x (Tensor): [B, T*H*W, heads * C].
        size (tuple[int, int, int]): T, H, W.
        conv (nn.Conv3d): Over C channels, depthwise, without bias. With hooks or
            adapters, or another layer in its place, it is called as it is.
        heads (int): Heads that the channels are split into.
        causal (bool): Pad the past only, so that no output sees a later frame.

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
    if x.device.type != 'cpu' or is_transforming():
        out = _by_head(x, weight, heads, conv.stride, padding)
        return out.flatten(1, 3), tuple(out.shape[1:4])
    # Autocast does not reach into a function of ours.
    dtype = autocast_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled() and not torch.jit.is_tracing():
        out = _ChannelsLast.apply(x, weight, heads, tuple(conv.stride), padding)
    else:
        out = _convolve(x, _tiled(weight, heads), conv.stride, padding)
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


def _by_head(
    x: Tensor,
    weight: Tensor,
    heads: int,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Where depthwise kernels want [B, C, T, H, W]: on GPUs; and in torch.func, whose
    vmap knows no weights in channels-last order."""
    return _heads_apart(
        x,
        heads,
        lambda x: F.conv3d(x, weight, None, stride, padding, groups=len(weight)),
    )


def _heads_apart(x: Tensor, heads: int, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """Call a layer of [B*heads, C, T, H, W] on (B, T, H, W, heads*C)."""
    # (B, T, H, W, heads*C) -> (B, heads, C, T, H, W) -> (B*heads, C, T, H, W)
    batch = x.shape[0]
    x = x.unflatten(-1, (heads, -1)).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
    out = conv(x)
    # (B*heads, C, T', H', W') -> (B, T', H', W', heads*C)
    out = out.unflatten(0, (batch, heads)).permute(0, 3, 4, 5, 1, 2)
    return out.flatten(4)


def _tiled(weight: Tensor, heads: int) -> Tensor:
    """The kernel of all heads: (C, 1, *k) -> (heads*C, 1, *k), channels last."""
    weight = weight.repeat(heads, 1, 1, 1, 1)
    return weight.contiguous(memory_format=torch.channels_last_3d)


def _convolve(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """(B, T, H, W, C) -> (B, T', H', W', C)."""
    # (B, T, H, W, C) -> (B, C, T, H, W), a view
    x = x.permute(0, 4, 1, 2, 3)
    out = F.conv3d(x, weight, None, stride, padding, groups=len(weight))
    return out.permute(0, 2, 3, 4, 1).contiguous()


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


class _ChannelsLast(torch.autograd.Function):
    """Depthwise convolution of [B, T, H, W, heads*C] with gradients as fast.

    Of a MeMViT-16 training step on a CPU it saves 7 % against torch's own gradients in
    this layout, 14 % against the plain form (AMD EPYC, Zen 4, one thread).
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        heads: int,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        # Only what the gradients that are wanted need.
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.settings = x.shape[1:4], weight.shape[2:], heads, stride, padding
        return _convolve(x, _tiled(weight, heads), stride, padding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        size, kernel, heads, stride, padding = ctx.settings
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad, _tiled(weight, heads), size, stride, padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad, x, kernel, stride, padding)
            # (heads*C, 1, *k) -> (C, 1, *k)
            grad_weight = grad_weight.unflatten(0, (heads, -1)).sum(0)
        return grad_x, grad_weight, None, None, None


def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Of (B, T', H', W', C): (B, T, H, W, C), by a convolution forward.

    With outputs ``stride`` apart and zeros between them, and the kernel mirrored.
    """
    kernel = weight.shape[2:]
    if max(stride) > 1:
        spread = [n - k + 1 + 2 * p for n, k, p in zip(size, kernel, padding)]
        apart = grad.new_zeros(grad.shape[0], *spread, grad.shape[-1])
        apart[:, :: stride[0], :: stride[1], :: stride[2]][
            :, : grad.shape[1], : grad.shape[2], : grad.shape[3]
        ] = grad
        grad = apart
    mirrored = weight.flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    around = [k - 1 - p for k, p in zip(kernel, padding)]
    return _convolve(grad, mirrored, (1, 1, 1), around)


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """(C, 1, *kernel) of x (B, T, H, W, C): one frame of the kernel after the other."""
    channels, steps = x.shape[-1], grad.shape[1]
    like = x.new_empty(channels, 1, *kernel[1:])
    like = like.contiguous(memory_format=torch.channels_last)
    frames = []
    for k in range(kernel[0]):
        # Output t saw frame t * stride + shift, if there is one.
        shift = k - padding[0]
        first = max(0, -(shift // stride[0]))
        last = min(steps, (x.shape[1] - 1 - shift) // stride[0] + 1)
        if last <= first:
            frames.append(torch.zeros_like(like))
            continue
        begin = first * stride[0] + shift
        seen = x[:, begin : begin + (last - first - 1) * stride[0] + 1 : stride[0]]
        frames.append(
            torch.ops.aten.convolution_backward(
                _images(grad[:, first:last]),
                _images(seen),
                like,
                None,
                list(stride[1:]),
                list(padding[1:]),
                [1, 1],
                False,
                [0, 0],
                channels,
                [False, True, False],
            )[1]
        )
    return torch.stack(frames, dim=2)


def _images(x: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B*T, C, H, W), channels last."""
    return x.flatten(0, 1).contiguous().permute(0, 3, 1, 2)
