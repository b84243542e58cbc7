"""MeMViT: the backbone. Clips (and, if given, memory) in, features out."""

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import torch
import torch.nn as nn
from mmaction.models.backbones.mvit import MViT, resize_pos_embed
from mmaction.models.utils.embed import PatchEmbed3D
from mmaction.registry import MODELS
from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import ModuleList
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor

from .backbone import Features, MemoryBackbone, in_weights_type
from .blocks import MemoryBlock, plan_blocks
from .kernels import Size
from .memory.compression import pooled_size
from .memory.layers import LayerMemories, LayerWrites, MemorySpec
from .memory.schedule import Schedule, published_levels, read_levels


@MMDET_MODELS.register_module()
@MODELS.register_module()
class MeMViT(MemoryBackbone, MViT):
    """Memory-augmented multiscale vision transformer.

    `MeMViT: Memory-Augmented Multiscale Vision Transformer for Efficient Long-Term
    Video Recognition <https://arxiv.org/abs/2201.08383>`_

    The backbone is a function: it owns no state between calls. Given ``memory``, its
    memory layers attend to earlier clips too and it returns what is to be remembered
    of this one; :class:`MemoryRecognizer3D` and :class:`MemoryFastRCNN` do that
    bookkeeping. Without, it is a plain MViT that any MMAction2 recognizer can use.

    It takes the arguments of MMAction2's ``MViT``, in the same order and with the same
    defaults; ours follow as keywords. ``MeMViT(pool_first=False)`` stands in for
    ``MViT``, except that

    - ``arch`` defaults to 'small', not to 'base', and every even layer has memory
      unless ``memory_layers=()``;
    - a wrong argument raises ``ValueError``, not ``AssertionError``, and so does what
      ``MViT`` passes over in silence: a scale in ``out_scales`` that does not exist, an
      unknown key of ``arch``, and ``pretrained_type='imagenet'``, which loads nothing;
    - without a class token there is no parameter ``cls_token``; ``MViT`` keeps one
      that it does not use;
    - ``init_weights`` draws the class token, which ``MViT`` leaves at zero, and works
      with ``rel_pos_embed=False``, too.

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
            As in MMAction2, only modes that take align_corners work, such as
            'trilinear'.
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
        memory_levels (sequence[dict], optional): Another schedule than this published
            one, and in place of ``memory_length``, ``memory_gap``, ``compress_kernel``
            and ``compress_stride``: levels from fine to coarse, each a dict with the
            fields of :class:`.MemoryLevel`.
        memory_layers (sequence[int], optional): Layers with memory. None: every even
            layer; () for none.
        compress_kernel (tuple[int, int, int]): Kernel of the memory compression.
        compress_stride (tuple[int, int, int]): Its stride.
        keys_as_queries (bool): In the layers with memory, the keys' projection starts
            equal to the queries', so that from the first step on what is alike finds
            each other. For training from a random start; see docs/reach.md.
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
        memory_levels: Optional[Sequence[dict]] = None,
        memory_layers: Optional[Sequence[int]] = None,
        compress_kernel: Sequence[int] = (7, 3, 3),
        compress_stride: Sequence[int] = (4, 2, 2),
        keys_as_queries: bool = False,
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
        self.dim_mul_indices = list(
            self.arch_settings.get('dim_mul_indices', self.downscale_indices)
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
        self.clip_size = (temporal_size, spatial_size, spatial_size)
        self.memory_layers = self.choose_layers(memory_layers, self.num_layers)
        self.levels: Schedule = ()
        if self.memory_layers and memory_levels is not None:
            self.levels = read_levels(memory_levels)
        elif self.memory_layers:
            self.levels = published_levels(
                memory_length, memory_gap, compress_stride, compress_kernel
            )

        self.patch_embed = PatchEmbed3D(
            **{
                'in_channels': in_channels,
                'input_size': self.clip_size,
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

        self.blocks = ModuleList()
        for layer, plan in enumerate(
            plan_blocks(
                self.arch_settings,
                self.patch_embed.init_out_size,
                pool_kernel,
                dim_mul,
                head_mul,
                adaptive_kv_stride,
                dim_mul_in_attention,
                drop_path_rate,
                self.memory_layers,
                self.levels,
            )
        ):
            if pool_first:
                plan = plan._replace(table_size=None)
            try:
                block = MemoryBlock(
                    **plan._asdict(),
                    mlp_ratio=mlp_ratio,
                    norm_cfg=norm_cfg,
                    with_cls_token=with_cls_token,
                    dim_mul_in_attention=dim_mul_in_attention,
                    qkv_bias=qkv_bias,
                    pool_kernel=pool_kernel,
                    rel_pos_embed=rel_pos_embed,
                    rel_pos_zero_init=rel_pos_zero_init,
                    residual_pooling=residual_pooling,
                    pool_first=pool_first,
                    causal=causal,
                    keys_as_queries=keys_as_queries,
                )
            except ValueError as error:
                raise ValueError(f'Layer {layer}: {error}') from None
            self.blocks.append(block)
            stage = self.stage_indices.get(layer)
            if stage in self.out_scales:
                norm = build_norm_layer(norm_cfg, plan.out_dims)[1]
                self.add_module(f'norm{stage}', norm)

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

    def memory_specs(self, clip_size: Sequence[int]) -> dict[str, MemorySpec]:
        """As :meth:`MemoryBackbone.memory_specs`."""
        size = pooled_size(clip_size, self.patch_embed.projection)
        specs = {}
        for i, block in enumerate(self.blocks):
            if i in self.memory_layers:
                specs[f'layer{i}'] = block.attn.memory_spec(size)
            size = pooled_size(size, block.attn.pool_q)
        return specs

    def forward(
        self, x: Tensor, memory: Optional[LayerMemories] = None
    ) -> Union[Features, tuple[Features, LayerWrites]]:
        """Extract features.

        Args:
            x (Tensor): Clips, [B, C, T, H, W].
            memory (dict[str, tuple[PastClips, ...]], optional): What each memory layer
                may attend to; see :meth:`empty_memory`.

        Returns:
            Without memory, as MMAction2's ``MViT``: a tuple with, for each of
            ``out_scales``, [patch tokens [B, C, T', H', W'], class token [B, C]], or
            the patch tokens alone if ``output_cls_token=False``. With memory, a tuple
            of that and the ``dict[str, Written]`` to be remembered.
        """
        past = self.past_of(x, memory)
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
        outs: list[Union[Tensor, list[Tensor]]] = []
        written: LayerWrites = {}
        for i in range(self.num_layers):
            x, size = self.run_block(i, x, size, past, written)
            stage = self.stage_indices.get(i)
            if stage in self.out_scales:
                # As in MMAction2: the next stage goes on with the normed tokens.
                x = in_weights_type(getattr(self, f'norm{stage}'), x)
                outs.append(self._output(x, size))
        return tuple(outs) if memory is None else (tuple(outs), written)

    def _output(self, x: Tensor, size: Size) -> Union[Tensor, list[Tensor]]:
        """(B, cls + T*H*W, C) -> (B, C, T, H, W) and (B, C)."""
        tokens = x.transpose(1, 2)
        patches = tokens[:, :, int(self.with_cls_token) :].unflatten(2, size)
        return [patches, tokens[:, :, 0]] if self.output_cls_token else patches
