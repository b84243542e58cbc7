"""MViTNeck: an MViT's features as the tensor that other heads take."""

from typing import Optional, Union

from mmaction.registry import MODELS
from mmaction.utils import OptSampleList
from mmengine.model import BaseModule
from torch import Tensor


@MODELS.register_module()
class MViTNeck(BaseModule):
    """Patch tokens of the last scale, as ResNet3d and its kind return them.

    MMAction2's ``MViT``, and ours, returns a tuple with an entry per scale, which
    ``MViTHead`` and ``SlowFastHead`` (two scales) take. ``I3DHead`` and others take
    one tensor, ``TSNHead`` one without time.

    Args:
        temporal_pool (bool): Average over time. Defaults to False.
        init_cfg (dict, optional): As everywhere in mmengine.

    Examples:
        >>> import torch
        >>> patches, cls_token = torch.rand(2, 8, 4, 7, 7), torch.rand(2, 8)
        >>> tuple(MViTNeck()(([patches, cls_token],))[0].shape)
        (2, 8, 4, 7, 7)
        >>> tuple(MViTNeck(temporal_pool=True)((patches,))[0].shape)
        (2, 8, 7, 7)
    """

    def __init__(
        self, temporal_pool: bool = False, init_cfg: Optional[dict] = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.temporal_pool = temporal_pool

    def forward(
        self,
        x: tuple[Union[Tensor, list[Tensor]], ...],
        data_samples: OptSampleList = None,
    ) -> tuple[Tensor, dict]:
        """Take the last scale's patch tokens.

        Args:
            x (tuple): As ``MViT`` returns.
            data_samples (list[ActionDataSample], optional): Unused.

        Returns:
            tuple: [B, C, T, H, W], or [B, C, H, W] with ``temporal_pool``, and no
            auxiliary losses.
        """
        last = x[-1]
        patches = last[0] if isinstance(last, (list, tuple)) else last
        return (patches.mean(dim=2) if self.temporal_pool else patches), {}
