"""MeMViT: the backbone. Clips (and, if given, memory) in, features out."""

from collections.abc import Sequence
from functools import partial
from typing import Optional, Union

import numpy as np
import torch
import torch.nn as nn
from mmaction.models.backbones.mvit import MViT, resize_pos_embed
from mmaction.models.utils.embed import PatchEmbed3D
from mmaction.registry import MODELS
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import MemoryAttention, pooled_size
from .kernels.linear import LeanMLP, run_linear
from .kernels.pooling import max_pool
from .layer_memory import (
    LayerMemories,
    LayerWrites,
    MemorySpec,
    PastClips,
    Written,
    empty_memory,
)
from .relative_position import Size

Features = tuple[Union[Tensor, list[Tensor]], ...]


class MemoryBlock(BaseModule):
    """A multiscale transformer block whose attention may read memory.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        num_heads (int): Attention heads.
        input_size (tuple[int, int, int]): T, H, W the block is made for.
        stride_q (sequence[int]): Stride of the queries, and of the skip path.
        mlp_ratio (float): Hidden channels of the MLP by its input channels.
        drop_path (float): Stochastic depth.
        norm_cfg (dict): Normalization layers.
        dim_mul_in_attention (bool): Change the width in attention, not in the MLP.
        **attention: As :class:`MemoryAttention`.
    """

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        num_heads: int,
        input_size: Size,
        stride_q: Sequence[int],
        mlp_ratio: float,
        drop_path: float,
        norm_cfg: dict,
        with_cls_token: bool,
        dim_mul_in_attention: bool,
        **attention,
    ) -> None:
        super().__init__()
        self.in_dims = in_dims
        self.out_dims = out_dims
        self.with_cls_token = with_cls_token
        self.dim_mul_in_attention = dim_mul_in_attention
        attn_dims = out_dims if dim_mul_in_attention else in_dims
        self.norm1 = build_norm_layer(norm_cfg, in_dims)[1]
        self.attn = MemoryAttention(
            in_dims,
            attn_dims,
            num_heads,
            input_size,
            stride_q=stride_q,
            norm_cfg=norm_cfg,
            with_cls_token=with_cls_token,
            **attention,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm_layer(norm_cfg, attn_dims)[1]
        self.mlp = LeanMLP(attn_dims, int(attn_dims * mlp_ratio), out_dims)
        self.proj = nn.Linear(in_dims, out_dims) if in_dims != out_dims else None

        self.pool_skip = None
        if np.prod(stride_q) > 1:
            kernel = [s + 1 if s > 1 else s for s in stride_q]
            self.pool_skip = nn.MaxPool3d(kernel, stride_q, [k // 2 for k in kernel])
        self.init_out_size = pooled_size(input_size, self.attn.pool_q)

    def forward(
        self, x: Tensor, in_size: Size, past: Optional[PastClips] = None
    ) -> tuple[Tensor, Size, Optional[Written]]:
        """Tokens [B, cls + T*H*W, in_dims] -> [B, cls + T'*H'*W', out_dims].

        Returns:
            tuple: Tokens, (T', H', W'), and what is to be remembered.
        """
        normed = self.norm1(x)
        attended, out_size, written = self.attn(normed, in_size, past)
        widen = self.proj is not None
        skip = (
            run_linear(self.proj, normed) if widen and self.dim_mul_in_attention else x
        )
        x = self._pool_skip(skip, in_size) + self.drop_path(attended)
        normed = self.norm2(x)
        skip = (
            run_linear(self.proj, normed)
            if widen and not self.dim_mul_in_attention
            else x
        )
        return skip + self.drop_path(self.mlp(normed)), out_size, written

    def _pool_skip(self, x: Tensor, size: Size) -> Tensor:
        """Max-pool the patch tokens; the class token passes as it is."""
        if self.pool_skip is None:
            return x
        cls_token, patches = x[:, : self.with_cls_token], x[:, self.with_cls_token :]
        patches = max_pool(patches, size, self.pool_skip)
        return torch.cat([cls_token, patches], dim=1)


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MeMViT(MViT):
    """Memory-augmented multiscale vision transformer.

    `MeMViT: Memory-Augmented Multiscale Vision Transformer for Efficient Long-Term
    Video Recognition <https://arxiv.org/abs/2201.08383>`_

    The backbone is a function: it owns no state between calls. Given ``memory``, its
    memory layers attend to earlier clips too and it returns what is to be remembered
    of this one; :class:`MemoryRecognizer3D` and :class:`MemoryFastRCNN` do that
    bookkeeping. Without, it is a plain MViT that any MMAction2 recognizer can use, with
    the arguments of MMAction2's in the same order; ours are keywords.

    MeMViT-16 is ``arch='small'``, MeMViT-24 is ``arch='base'`` with
    ``temporal_size=32`` and ``memory_gap=3``.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', 'large', or a dict with the keys
            embed_dims, num_layers, num_heads, downscale_indices and, if they differ
            from these, dim_mul_indices. Defaults to 'small'.
        spatial_size (int): Height and width in pixels that the model is made for.
            Other and non-square sizes run, relative positions are interpolated.
        temporal_size (int): Frames of a clip that the model is made for.
        in_channels (int): Channels of the input.
        pretrained (str, optional): Checkpoint to start from, a path.
        pretrained_type (str, optional): 'maskfeat' for one of MaskFeat, whose relative
            positions are interpolated. None for one of the same architecture.
        out_scales (int | sequence[int]): Scales to return. Defaults to -1, the last.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly.
        use_abs_pos_embed (bool): Add a learned position to each token of the patch
            embedding.
        interpolate_mode (str): How these are interpolated for clips of another size.
        pool_kernel (tuple[int, int, int]): Kernel of the pooling convolutions.
        dim_mul (int): Factor of the width in ``dim_mul_indices``.
        head_mul (int): Factor of the heads there.
        adaptive_kv_stride (tuple[int, int, int]): Stride of keys and values in the
            first layer, halved in space at each downscaling layer.
        rel_pos_embed (bool): Decomposed relative positions.
        residual_pooling (bool): Add the pooled queries to the attention's output.
        dim_mul_in_attention (bool): Change the width in attention, not in the MLP.
        with_cls_token (bool): Use a class token.
        output_cls_token (bool): Return it. Needs ``with_cls_token``.
        rel_pos_zero_init (bool): Start relative positions at zero.
        mlp_ratio (float): Hidden channels of the MLPs.
        qkv_bias (bool): Bias of the q, k and v projections.
        norm_cfg (dict): Normalization layers.
        patch_cfg (dict): Patch embedding: kernel_size, stride, padding.
        init_cfg (dict | list[dict], optional): As everywhere in mmengine.
        pool_first (bool): True: MeMViT's attention. False: exactly the attention of
            MMAction2's ``MViT``, so that its zoo weights load and, with no memory,
            give its numbers.
        memory_length (int): Earlier clips that a memory layer attends.
        memory_gap (int): Steps between them: the clips ``memory_gap``,
            2 * ``memory_gap``, … steps back.
        memory_layers (sequence[int], optional): Layers with memory. None: every even
            layer; () for none.
        compress_kernel (tuple[int, int, int]): Kernel of the memory compression.
        compress_stride (tuple[int, int, int]): Its stride.
        causal (bool): No feature depends on a later frame of its clip. Needs
            ``output_cls_token=False``, since a class token sees the whole clip.
        with_cp (bool): Activation checkpointing: recompute the blocks in the backward
            pass.

    Raises:
        ValueError: If an argument contradicts another; the message says which.

    Examples:
        >>> import torch
        >>> from memvit_mm.models import MeMViT
        >>> model = MeMViT(arch='tiny', spatial_size=64, out_scales=[0, 3])
        >>> clip = torch.rand(1, 3, 16, 64, 64)  # [B, C, T, H, W]
        >>> for patches, cls_token in model(clip):
        ...     print(tuple(patches.shape), tuple(cls_token.shape))
        (1, 96, 8, 16, 16) (1, 96)
        (1, 768, 8, 2, 2) (1, 768)
        >>> features, written = model(clip, memory=model.empty_memory(clip))
        >>> sorted(written)
        ['layer0', 'layer2', 'layer4', 'layer6', 'layer8']
        >>> tuple(written['layer0'].current.key.shape)  # [B, tokens, C]
        (1, 33, 96)
    """

    _arch_keys = ('embed_dims', 'num_layers', 'num_heads', 'downscale_indices')

    def __init__(
        self,
        arch: Union[str, dict] = 'small',
        spatial_size: int = 224,
        temporal_size: int = 16,
        in_channels: int = 3,
        pretrained: Optional[str] = None,
        pretrained_type: Optional[str] = None,
        out_scales: Union[int, Sequence[int]] = -1,
        drop_path_rate: float = 0.0,
        use_abs_pos_embed: bool = False,
        interpolate_mode: str = 'trilinear',
        pool_kernel: Sequence[int] = (3, 3, 3),
        dim_mul: int = 2,
        head_mul: int = 2,
        adaptive_kv_stride: Sequence[int] = (1, 8, 8),
        rel_pos_embed: bool = True,
        residual_pooling: bool = True,
        dim_mul_in_attention: bool = True,
        with_cls_token: bool = True,
        output_cls_token: bool = True,
        rel_pos_zero_init: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_cfg: dict = dict(type='LN', eps=1e-6),
        patch_cfg: dict = dict(
            kernel_size=(3, 7, 7), stride=(2, 4, 4), padding=(1, 3, 3)
        ),
        init_cfg: Optional[Union[dict, list[dict]]] = [
            dict(type='TruncNormal', layer=['Conv2d', 'Conv3d'], std=0.02),
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.02),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.02),
        ],
        *,
        pool_first: bool = True,
        memory_length: int = 2,
        memory_gap: int = 2,
        memory_layers: Optional[Sequence[int]] = None,
        compress_kernel: Sequence[int] = (7, 3, 3),
        compress_stride: Sequence[int] = (4, 2, 2),
        causal: bool = False,
        with_cp: bool = False,
    ) -> None:
        if pretrained:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        if pretrained_type not in (None, 'maskfeat'):
            raise ValueError(
                f'pretrained_type={pretrained_type!r} loads nothing: use None for a '
                "checkpoint of the same architecture, or 'maskfeat'."
            )
        # MViT's own would build the blocks of MViT first.
        super(MViT, self).__init__(init_cfg=init_cfg)
        self.pretrained_type = pretrained_type
        self.arch_settings = self._check_arch(arch)
        self.embed_dims = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        self.num_heads = self.arch_settings['num_heads']
        self.downscale_indices = list(self.arch_settings['downscale_indices'])
        dim_mul_indices = self.arch_settings.get(
            'dim_mul_indices', self.downscale_indices
        )
        self.num_scales = len(self.downscale_indices) + 1
        self.stage_indices = {
            index - 1: stage for stage, index in enumerate(self.downscale_indices)
        }
        self.stage_indices[self.num_layers - 1] = self.num_scales - 1
        self.out_scales = self._check_out_scales(out_scales)
        if output_cls_token and not with_cls_token:
            raise ValueError(
                'output_cls_token=True needs with_cls_token=True: with_cls_token must '
                'be True, or there is no class token to return; set '
                'output_cls_token=False.'
            )
        if causal and output_cls_token:
            raise ValueError(
                'causal=True needs output_cls_token=False: the class token sees the '
                'whole clip, later frames included.'
            )
        self.with_cls_token = with_cls_token
        self.output_cls_token = output_cls_token
        self.with_cp = with_cp
        self.causal = causal
        self.memory_layers = self._check_memory(
            memory_length, memory_gap, memory_layers, compress_kernel, compress_stride
        )

        self.patch_embed = PatchEmbed3D(
            **{
                'in_channels': in_channels,
                'input_size': (temporal_size, spatial_size, spatial_size),
                'embed_dims': self.embed_dims,
                'conv_type': 'Conv3d',
                **patch_cfg,
            }
        )
        if with_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.patch_resolution = self.patch_embed.init_out_size
        self.use_abs_pos_embed = use_abs_pos_embed
        self.interpolate_mode = interpolate_mode
        if use_abs_pos_embed:
            # With a place for the class token, used or not, as in MMAction2's weights.
            count = self.num_extra_tokens + int(np.prod(self.patch_resolution))
            self.pos_embed = nn.Parameter(torch.zeros(1, count, self.embed_dims))

        drop_path = np.linspace(0, drop_path_rate, self.num_layers)
        size, dims, heads = (
            self.patch_embed.init_out_size,
            self.embed_dims,
            self.num_heads,
        )
        # As MViT counts: it rounds sizes down, where its convolutions round up.
        table_size = size
        stride_kv = list(adaptive_kv_stride)
        self.blocks = ModuleList()
        for i in range(self.num_layers):
            stride_q = [1, 1, 1]
            if i in self.downscale_indices:
                stride_q = [1, 2, 2]
                stride_kv = [max(s // 2, 1) for s in stride_kv]
            if i in self.downscale_indices or i in dim_mul_indices:
                heads *= head_mul
            widens = i if dim_mul_in_attention else i + 1
            out_dims = dims * dim_mul if widens in dim_mul_indices else dims
            build_block = partial(
                MemoryBlock,
                dims,
                out_dims,
                heads,
                tuple(size),
                stride_q=stride_q,
                mlp_ratio=mlp_ratio,
                drop_path=float(drop_path[i]),
                norm_cfg=norm_cfg,
                with_cls_token=with_cls_token,
                dim_mul_in_attention=dim_mul_in_attention,
                qkv_bias=qkv_bias,
                pool_kernel=pool_kernel,
                stride_kv=stride_kv,
                rel_pos_embed=rel_pos_embed,
                rel_pos_zero_init=rel_pos_zero_init,
                table_size=None if pool_first else table_size,
                residual_pooling=residual_pooling,
                pool_first=pool_first,
                causal=causal,
                memory_length=memory_length if i in self.memory_layers else 0,
                memory_gap=memory_gap,
                compress_kernel=compress_kernel,
                compress_stride=compress_stride,
            )
            try:
                block = build_block()
            except ValueError as error:
                raise ValueError(f'Layer {i}: {error}') from None
            self.blocks.append(block)
            size, dims = block.init_out_size, out_dims
            table_size = [n // s for n, s in zip(table_size, stride_q)]
            stage = self.stage_indices.get(i)
            if stage in self.out_scales:
                self.add_module(f'norm{stage}', build_norm_layer(norm_cfg, dims)[1])

    # ------------------------------------------------------------------ settings

    def _check_arch(self, arch: Union[str, dict]) -> dict:
        if isinstance(arch, str):
            if arch.lower() not in self.arch_zoo:
                raise ValueError(
                    f'arch={arch!r} is not known: use one of {sorted(self.arch_zoo)} '
                    f'or a dict with the keys {list(self._arch_keys)} (Arch {arch} is '
                    'not in default archs).'
                )
            return self.arch_zoo[arch.lower()]
        if not isinstance(arch, dict):
            raise ValueError(
                f'Custom arch needs a dict with the keys {list(self._arch_keys)}, get '
                f'{type(arch)}.'
            )
        missing = [key for key in self._arch_keys if key not in arch]
        unknown = set(arch) - {*self._arch_keys, 'dim_mul_indices'}
        if missing or unknown:
            raise ValueError(
                f'arch as a dict lacks {missing} or has unknown {sorted(unknown)}. '
                f'Custom arch needs the keys {list(self._arch_keys)} and, if it '
                'differs, dim_mul_indices.'
            )
        return arch

    def _check_out_scales(self, out_scales: Union[int, Sequence[int]]) -> list[int]:
        if not isinstance(out_scales, (int, Sequence)):
            raise ValueError(
                f'out_scales must be a sequence or int, get {type(out_scales)}.'
            )
        scales = [out_scales] if isinstance(out_scales, int) else list(out_scales)
        result = [s + self.num_scales if s < 0 else s for s in scales]
        for given, scale in zip(scales, result):
            if not 0 <= scale < self.num_scales:
                raise ValueError(
                    f'Invalid out_scales {given}: out_scales has {given}, but there '
                    f'are {self.num_scales} scales: use 0 to {self.num_scales - 1}, or '
                    '-1 for the last.'
                )
        return sorted(result)

    def _check_memory(
        self,
        length: int,
        gap: int,
        layers: Optional[Sequence[int]],
        kernel: Sequence[int],
        stride: Sequence[int],
    ) -> tuple[int, ...]:
        if layers is None:
            layers = range(0, self.num_layers, 2)
        layers = tuple(layers)
        for layer in layers:
            if not 0 <= layer < self.num_layers:
                raise ValueError(
                    f'memory_layers has {layer}, but there are {self.num_layers} '
                    f'layers: use 0 to {self.num_layers - 1}.'
                )
        if layers and length < 1:
            raise ValueError(
                f'memory_length={length} must be at least 1; for a model without '
                'memory set memory_layers=().'
            )
        if layers and gap < 1:
            raise ValueError(
                f'memory_gap={gap} must be at least 1: the clip that many steps back '
                'is the newest one attended.'
            )
        if min(*kernel, *stride) < 1 or any(k % 2 == 0 for k in kernel):
            raise ValueError(
                f'compress_kernel={tuple(kernel)} must be odd and compress_stride='
                f'{tuple(stride)} at least 1 on each axis.'
            )
        return layers

    def init_weights(self, pretrained: Optional[str] = None) -> None:
        """Initialize as ``MViT`` does; the class token as in the paper's code."""
        loaded = isinstance(self.init_cfg, dict) and 'Pretrained' in str(
            self.init_cfg['type']
        )
        if self.pretrained_type and not loaded:
            raise ValueError(
                f'pretrained_type={self.pretrained_type!r} needs pretrained: name the '
                'checkpoint, or leave both out.'
            )
        super().init_weights(pretrained)
        if self.with_cls_token and not loaded:
            trunc_normal_(self.cls_token, std=0.02)

    # ------------------------------------------------------------------- forward

    def memory_specs(self, clip_size: Sequence[int]) -> dict[str, MemorySpec]:
        """What each memory layer keeps of a clip of T frames of H x W pixels.

        Args:
            clip_size (sequence[int]): T, H, W of the clip in frames and pixels.

        Returns:
            dict[str, MemorySpec]: By layer, 'layer0', 'layer2', …
        """
        size = pooled_size(clip_size, self.patch_embed.projection)
        specs = {}
        for i, block in enumerate(self.blocks):
            if i in self.memory_layers:
                specs[f'layer{i}'] = block.attn.memory_spec(size)
            size = pooled_size(size, block.attn.pool_q)
        return specs

    def empty_memory(self, x: Tensor) -> LayerMemories:
        """The memory of clips [B, C, T, H, W] that begin their streams."""
        return empty_memory(self.memory_specs(x.shape[-3:]), x.shape[0], x)

    def forward(
        self, x: Tensor, memory: Optional[LayerMemories] = None
    ) -> Union[Features, tuple[Features, LayerWrites]]:
        """Extract features.

        Args:
            x (Tensor): Clips, [B, C, T, H, W].
            memory (dict[str, PastClips], optional): What each memory layer may attend
                to; see :meth:`empty_memory`.

        Returns:
            Without memory, as MMAction2's ``MViT``: a tuple with, for each of
            ``out_scales``, [patch tokens [B, C, T', H', W'], class token [B, C]], or
            the patch tokens alone if ``output_cls_token=False``. With memory, a tuple
            of that and the ``dict[str, Written]`` to be remembered.
        """
        remember = memory is not None
        if not remember and self.memory_layers and self.training:
            # All slots empty: the same numbers, and every parameter takes part, so
            # that DistributedDataParallel finds none unused.
            memory = self.empty_memory(x)
        x, size = self.patch_embed(x)
        if self.with_cls_token:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x), x], dim=1)
        if self.use_abs_pos_embed:
            positions = resize_pos_embed(
                self.pos_embed,
                self.patch_resolution,
                size,
                self.interpolate_mode,
                self.num_extra_tokens,
            )
            x = x + positions[:, -x.shape[1] :].to(x)
        outs, written = [], {}
        for i, block in enumerate(self.blocks):
            name = f'layer{i}'
            past = memory[name] if memory and i in self.memory_layers else None
            if self.with_cp and self.training and torch.is_grad_enabled():
                x, size, new = checkpoint(block, x, size, past, use_reentrant=False)
            else:
                x, size, new = block(x, size, past)
            if new is not None:
                written[name] = new
            stage = self.stage_indices.get(i)
            if stage in self.out_scales:
                # As in MMAction2: the next stage goes on with the normed tokens.
                norm = getattr(self, f'norm{stage}')
                # Under autocast, features have the weights' type, as on GPUs, where
                # layer norms give float32: RoIAlign and heads take no mixture.
                dtype = next((p.dtype for p in norm.parameters()), x.dtype)
                x = norm(x.to(dtype)).to(dtype)
                outs.append(self._output(x, size))
        return (tuple(outs), written) if remember else tuple(outs)

    def _output(self, x: Tensor, size: Size) -> Union[Tensor, list[Tensor]]:
        """(B, cls + T*H*W, C) -> (B, C, T, H, W) and (B, C)."""
        tokens = x.transpose(1, 2)
        patches = tokens[:, :, int(self.with_cls_token) :].unflatten(2, size)
        return [patches, tokens[:, :, 0]] if self.output_cls_token else patches
