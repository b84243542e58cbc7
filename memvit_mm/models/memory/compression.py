"""The writer's half of memory: what a layer keeps of a clip, and its compression."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from memvit_mm.models.kernels import Size, depthwise_pool

from .layers import KeyValue, MemorySpec


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


def pool_tokens(
    x: Tensor,
    size: Size,
    conv: nn.Conv3d,
    norm: nn.Module,
    num_heads: int,
    with_cls_token: bool,
    causal: bool = False,
) -> tuple[Tensor, Size]:
    """Pool tokens by a depthwise convolution, then normalize them.

    The class token skips the convolution, not the normalization (MViTv2, sec. 3;
    MeMViT, sec. 4.1, where a past clip is compressed).

    Args:
        x (Tensor): [B, cls + T*H*W, num_heads * C].
        size (tuple[int, int, int]): T, H, W.
        conv (nn.Conv3d): Over C channels, shared by the heads.
        norm (nn.Module): Over C channels.
        num_heads (int): Heads that the channels are split into.
        with_cls_token (bool): Whether the first token is the class token.
        causal (bool): Pad the past only, so that no output sees a later frame.

    Returns:
        tuple: [B, cls + T'*H'*W', num_heads * C] and (T', H', W').
    """
    cls_token, patches = x[:, :with_cls_token], x[:, with_cls_token:]
    patches, out_size = depthwise_pool(patches, size, conv, num_heads, causal)
    if with_cls_token:
        patches = torch.cat([cls_token, patches], dim=1)
    # (B, tokens, heads*C) -> (B, tokens, heads, C) -> (B, tokens, heads*C)
    return norm(patches.unflatten(-1, (num_heads, -1))).flatten(2), out_size


class MemoryWriter:
    """Mixin of attention layers: what they keep of a clip, and its compression.

    A clip's keys and values are kept as they are when the clip is seen. They are
    compressed by a depthwise convolution and a norm when they are read for the first
    time: the gradient of that step trains the compression, and the memory keeps the
    result detached, so that no gradient reaches the past clip. (The published code
    compresses a clip one step after it was seen; with a gap of 2 or more its
    compression is then never trained.)

    Source: MeMViT (arXiv 2201.08383), sec. 4.1 and 4.2.
    """

    ages: tuple[int, ...] = ()
    memory_dims: int
    with_cls_token: bool

    def build_compression(
        self,
        ages: Sequence[int],
        dims: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        build_norm: Callable[[int], nn.Module],
    ) -> None:
        """Add the compression's layers, if the schedule reads any clip.

        Args:
            ages (sequence[int]): The clips that are read, newest first.
            dims (int): Channels of the keys and values that are kept.
            kernel (sequence[int]): Kernel of the compression.
            stride (sequence[int]): Its stride.
            build_norm (callable): Makes a norm for a number of channels.
        """
        self.ages = tuple(ages)
        self.memory_dims = dims
        if self.ages:
            for name in 'kv':
                conv = depthwise_conv(dims, kernel, stride)
                setattr(self, f'compress_{name}', conv)
                setattr(self, f'norm_compress_{name}', build_norm(dims))

    def compressed_size(self, size: Size) -> Size:
        """The grid of a compressed clip whose keys formed a grid T, H, W."""
        return pooled_size(size, self.compress_k)

    def spec_of(self, size: Size) -> MemorySpec:
        """What is kept of a clip whose keys form a grid T, H, W."""
        counts = [
            t * h * w + self.with_cls_token
            for t, h, w in (size, self.compressed_size(size))
        ]
        return MemorySpec(self.memory_dims, *counts, self.ages, tuple(size))

    def compress(self, clip: KeyValue, size: Size) -> KeyValue:
        """Compress a clip, [B, cls + T*H*W, C] -> [B, cls + T'*H'*W', C]."""
        return KeyValue(
            *(
                pool_tokens(
                    x,
                    size,
                    getattr(self, f'compress_{name}'),
                    getattr(self, f'norm_compress_{name}'),
                    1,
                    self.with_cls_token,
                )[0]
                for name, x in zip('kv', clip)
            )
        )
