"""MemoryViT: VideoMAE's vision transformer with memory."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
import torch.nn.functional as F
from mmaction.models.backbones.vit_mae import Block, VisionTransformer
from mmaction.registry import MODELS
from mmaction.utils import ConfigType
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import ModuleList
from torch import Tensor, nn

from .backbone import Features, MemoryBackbone, in_weights_type
from .kernels import LeanFFN, Size, run_drop_path
from .memory.compression import pooled_size
from .memory.layers import LayerMemories, LayerWrites, MemorySpec, PastClips, Written
from .memory.schedule import Schedule, levels_of_layer, read_levels
from .vit_attention import READINGS, ViTAttention

# Without a schedule of one's own: the last eight clips, 128 tokens of each.
DEFAULT_LEVELS = (dict(type='kmeans', ages=range(1, 9)),)


@MMDET_MODELS.register_module(name='MemoryViT')
@MODELS.register_module(name='MemoryViT')
class MemoryVisionTransformer(MemoryBackbone, VisionTransformer):
    """MMAction2's ``VisionTransformer`` (VideoMAE) with memory: ``MemoryViT``.

    Its class has this longer name because MMAction2's
    ``LearningRateDecayOptimizerConstructor`` goes by the name of the class.

    The arguments are MMAction2's, in the same order; ours are keywords. Its weights
    load as they are. Without ``memory``, or with a memory that has not been trained
    yet, the numbers are MMAction2's. Frames of any size run, as there.

    As :class:`MeMViT`, the backbone is a function of clips and, if given, memory.

    Source: VideoMAE (arXiv 2203.12602); memory as MC-ViT's (arXiv 2402.05861, sec. 3),
    or MeMViT's (arXiv 2201.08383, sec. 4.1) with levels of type 'pool'.

    Args:
        img_size (int): Height and width in pixels that the model is made for.
        patch_size (int): Height and width of a patch.
        in_channels (int): Channels of the input.
        embed_dims (int): Channels of a token. S 384, B 768, L 1024, H 1280.
        depth (int): Layers. S and B 12, L 24, H 32.
        num_heads (int): Attention heads. S 6, B 12, L 16, H 16.
        mlp_ratio (float): Hidden channels of the MLPs.
        qkv_bias (bool): Bias of queries and values; keys have none.
        qk_scale (float, optional): Scale of the scores instead of
            ``head channels ** -0.5``.
        drop_rate (float): Dropout of tokens.
        attn_drop_rate (float): Dropout of attention weights, which then are computed
            in full.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly.
        norm_cfg (dict): Normalization layers.
        init_values (float): Start of the learned factor of the residual branches; 0
            for none.
        use_learnable_pos_emb (bool): Learned positions instead of sines and cosines.
        num_frames (int): Frames of a clip.
        tubelet_size (int): Frames of a patch.
        use_mean_pooling (bool): The mean of the tokens is the feature.
        pretrained (str, optional): Checkpoint of the backbone alone to start from, a
            path. (MMAction2 1.2 takes it and leaves it unread.) Of a whole model:
            ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.
        return_feat_map (bool): Return all tokens, on their grid.
        init_cfg (dict | list[dict], optional): As everywhere in mmengine.
        memory_layers (sequence[int], optional): Layers with memory. None: every even
            layer; () for none.
        memory_levels (sequence[dict], optional): The schedule: levels from fine to
            coarse, each a dict with the fields of :class:`.MemoryLevel`. None: the last
            eight clips, 128 tokens of each by k-means.
        reading (str): 'gated' or 'joint', see :class:`.ViTAttention`.
        with_cp (bool): Activation checkpointing: recompute the blocks in the backward
            pass.

    Raises:
        ValueError: If an argument contradicts another; the message says which.

    Examples:
        >>> model = MemoryViT(img_size=32, embed_dims=48, depth=2, num_heads=2,
        ...                   return_feat_map=True).eval()
        >>> clip = torch.rand(1, 3, 16, 32, 32)  # [B, C, T, H, W]
        >>> tuple(model(clip).shape)
        (1, 48, 8, 2, 2)
        >>> features, written = model(clip, memory=model.empty_memory(clip))
        >>> tuple(written['layer0'].current.key.shape)  # [B, tokens, C]
        (1, 32, 48)
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dims: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: ConfigType = dict(type='LN', eps=1e-6),
        init_values: float = 0.0,
        use_learnable_pos_emb: bool = False,
        num_frames: int = 16,
        tubelet_size: int = 2,
        use_mean_pooling: bool = True,
        pretrained: Optional[str] = None,
        return_feat_map: bool = False,
        init_cfg: Optional[Union[dict, list[dict]]] = [
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
        *,
        memory_layers: Optional[Sequence[int]] = None,
        memory_levels: Optional[Sequence[dict]] = None,
        reading: str = 'gated',
        with_cp: bool = False,
    ) -> None:
        if pretrained:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        # No blocks yet: MMAction2's own would be built first.
        super().__init__(
            img_size,
            patch_size,
            in_channels,
            embed_dims,
            0,
            num_heads,
            drop_rate=drop_rate,
            norm_cfg=norm_cfg,
            use_learnable_pos_emb=use_learnable_pos_emb,
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            use_mean_pooling=use_mean_pooling,
            return_feat_map=return_feat_map,
            init_cfg=init_cfg,
        )
        if min(num_frames // tubelet_size, img_size // patch_size) < 1:
            raise ValueError(
                f'num_frames={num_frames} must be at least tubelet_size='
                f'{tubelet_size}, and img_size={img_size} at least patch_size='
                f'{patch_size}.'
            )
        if reading not in READINGS:
            raise ValueError(f'reading={reading!r} must be one of {READINGS}.')
        self.reading = reading
        self.with_cp = with_cp
        self.clip_size = (num_frames, img_size, img_size)
        self.memory_layers = self.choose_layers(memory_layers, depth)
        self.levels = ()
        if self.memory_layers:
            self.levels = read_levels(
                DEFAULT_LEVELS if memory_levels is None else memory_levels
            )
        self.blocks = ModuleList(
            MemoryViTBlock(
                embed_dims,
                num_heads,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                drop_rate,
                attn_drop_rate,
                drop_path,
                init_values,
                norm_cfg,
                levels_of_layer(self.levels, layer)
                if layer in self.memory_layers
                else (),
                reading,
            )
            for layer, drop_path in enumerate(
                torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
            )
        )
        specs = self.memory_specs(self.clip_size).values()
        for layer, spec in zip(self.memory_layers, specs):
            self.blocks[layer].attn.check_levels(spec)

    def extra_repr(self) -> str:
        """The schedule of the memory and how it is read, for ``print``."""
        if not self.memory_layers:
            return ''
        return f'{super().extra_repr()}\nreading: {self.reading}'

    def memory_specs(self, clip_size: Sequence[int]) -> dict[str, MemorySpec]:
        """As :meth:`MemoryBackbone.memory_specs`."""
        size = pooled_size(clip_size, self.patch_embed.projection)
        return {
            f'layer{i}': self.blocks[i].attn.memory_spec(size)
            for i in self.memory_layers
        }

    def forward(
        self, x: Tensor, memory: Optional[LayerMemories] = None
    ) -> Union[Features, tuple[Features, LayerWrites]]:
        """Extract features.

        Args:
            x (Tensor): Clips, [B, C, T, H, W].
            memory (dict[str, tuple[PastClips, ...]], optional): What each memory layer
                may attend to; see :meth:`empty_memory`.

        Returns:
            Without memory, as MMAction2's ``VisionTransformer``: [B, C, T', H', W'] if
            ``return_feat_map``, else [B, C]. With memory, a tuple of that and the
            ``dict[str, Written]`` to be remembered.
        """
        frames = x.shape[2]
        size = pooled_size(x.shape[-3:], self.patch_embed.projection)
        past, written = self.past_of(x, memory), {}
        x = self.patch_embed(x)[0]
        x = self.pos_drop(x + self._positions(size, frames).to(x))
        for i in range(len(self.blocks)):
            x, size = self.run_block(i, x, size, past, written)
        features = self._output(x, size)
        return features if memory is None else (features, written)

    def _positions(self, size: Size, frames: int) -> Tensor:
        """Positions of the grid T, H, W of a clip: [1, T*H*W, C]."""
        height, width = self.grid_size
        steps = self.pos_embed.shape[1] // (height * width)
        if size[0] != steps:
            raise ValueError(
                f'clips of {frames} frames for a MemoryViT with num_frames='
                f'{self.clip_size[0]}: set num_frames of the backbone, or clip_len of '
                'the data.'
            )
        if size[1:] == self.grid_size:
            return self.pos_embed
        # (1, T*H*W, C) -> (T, C, H, W) -> (T, C, H', W') -> (1, T*H'*W', C)
        positions = self.pos_embed.reshape(steps, height, width, -1)
        positions = F.interpolate(
            positions.permute(0, 3, 1, 2), size[1:], mode='bicubic', align_corners=False
        )
        return positions.permute(0, 2, 3, 1).flatten(0, 2)[None]

    def _output(self, x: Tensor, size: Size) -> Tensor:
        """(B, T*H*W, C) -> (B, C, T, H, W) or (B, C)."""
        x = in_weights_type(self.norm, x)
        if self.return_feat_map:
            return x.transpose(1, 2).unflatten(2, size)
        if self.fc_norm is not None:
            return in_weights_type(self.fc_norm, x.mean(dim=1))
        return x[:, 0]


MemoryViT = MemoryVisionTransformer


class MemoryViTBlock(Block):
    """MMAction2's block of VideoMAE, whose attention may read memory.

    Args:
        embed_dims, num_heads, mlp_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate,
        drop_path_rate, init_values, norm_cfg: As MMAction2's ``Block``.
        levels, reading: As :class:`.ViTAttention`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: Optional[float],
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        init_values: float,
        norm_cfg: dict,
        levels: Schedule,
        reading: str,
    ) -> None:
        # MMAction2's own would build its attention and its MLP first.
        super(Block, self).__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = ViTAttention(
            embed_dims,
            num_heads,
            qkv_bias,
            qk_scale,
            attn_drop_rate,
            drop_rate,
            norm_cfg,
            levels,
            reading,
        )
        self.drop_path = nn.Identity()
        if drop_path_rate > 0:
            self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.mlp = LeanFFN(
            embed_dims,
            int(embed_dims * mlp_ratio),
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            add_identity=False,
        )
        self._init_gammas(float(init_values), embed_dims)

    def forward(
        self, x: Tensor, size: Size, past: Optional[Sequence[PastClips]] = None
    ) -> tuple[Tensor, Size, Optional[Written]]:
        """Tokens [B, T*H*W, C] -> the same.

        Returns:
            tuple: Tokens, ``size`` as it was, and what is to be remembered.
        """
        attended, written = self.attn(self.norm1(x), size, past)
        x = x + run_drop_path(self.drop_path, self._scaled('gamma_1', attended))
        attended = self._scaled('gamma_2', self.mlp(self.norm2(x)))
        x = x + run_drop_path(self.drop_path, attended)
        return x, size, written

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, name) * x if hasattr(self, name) else x
