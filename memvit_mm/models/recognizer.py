"""MemoryRecognizer3D: an MMAction2 recognizer that remembers."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from mmaction.models.recognizers import Recognizer3D
from mmaction.registry import MODELS
from mmaction.utils import (
    ConfigType,
    ForwardResults,
    OptConfigType,
    OptSampleList,
    SampleList,
)
from mmengine.model import merge_dict
from torch import Tensor
from torch.utils import _pytree as pytree

from .memory.remember import MemoryOwner
from .memory.rows import in_row_order, padded_shapes, take_rows, waves


@MODELS.register_module()
class MemoryRecognizer3D(MemoryOwner, Recognizer3D):
    """3D recognizer that reads videos clip by clip and remembers what came before.

    Owns one :class:`ClipMemory`. Each sample's stream and time are read from its
    metainfo (``video_id``, ``timestamp``); the backbone gets the matching rows. Any
    MMAction2 backbone works, one that takes no memory just gets none. Without data
    samples (``model(inputs)``) there is no memory. At test, frames of different size
    (``img_shape``) run apart, so that padding reaches no result.

    Args:
        backbone, cls_head, neck, train_cfg, data_preprocessor (dict): As MMAction2's
            ``Recognizer3D``.
        test_cfg (dict, optional): As there, and ``one_by_one`` (bool): run each sample
            of a test batch by itself, which is the default on a CPU;
            :class:`MemoryOwner` says why.
        memory (dict): Config of the :class:`ClipMemory`.

    Examples:
        >>> import torch
        >>> from mmaction.structures import ActionDataSample
        >>> model = MemoryRecognizer3D(
        ...     backbone=dict(type='MeMViT', arch='tiny', spatial_size=64),
        ...     cls_head=dict(type='MViTHead', num_classes=5, in_channels=768)).eval()
        >>> sample = ActionDataSample(metainfo=dict(video_id='a', timestamp=1.0))
        >>> clip = torch.rand(1, 1, 3, 16, 64, 64)  # [B, views, C, T, H, W]
        >>> tuple(model(clip, [sample], mode='tensor', stage='head')[0].shape)
        (5,)
        >>> model.memory.streams
        [Stream(video='a', view=0, run=0, epoch=0)]
        >>> model.reset_memory('a')
        >>> len(model.memory)
        0
    """

    def __init__(
        self,
        backbone: ConfigType,
        cls_head: OptConfigType = None,
        neck: OptConfigType = None,
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
        *,
        memory: dict = dict(type='ClipMemory'),
    ) -> None:
        super().__init__(
            backbone, cls_head, neck, train_cfg, test_cfg, data_preprocessor
        )
        self.memory = MODELS.build(memory)

    def forward(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        mode: str = 'tensor',
        **kwargs,
    ) -> ForwardResults:
        """As MMAction2's recognizers; 'tensor' mode uses and updates memory, too.

        Args:
            inputs (Tensor): [B, views, C, T, H, W].
            data_samples (list[ActionDataSample], optional): One per sample.
            mode (str): 'tensor', 'predict' or 'loss'.
        """
        if mode == 'tensor':
            kwargs.setdefault('stage', 'backbone')
            return self.extract_feat(inputs, data_samples=data_samples, **kwargs)[0]
        return super().forward(inputs, data_samples, mode, **kwargs)

    def loss(self, inputs: Tensor, data_samples: SampleList, **kwargs) -> dict:
        """Losses, as MMAction2's; under autocast the head runs in its weights' type.

        MMAction2's heads turn scores into numpy arrays, which know no bfloat16.
        """
        feats, loss_kwargs = self.extract_feat(inputs, data_samples=data_samples)
        for weight in self.cls_head.parameters():
            feats = pytree.tree_map(functools.partial(_cast, dtype=weight.dtype), feats)
            break
        with torch.autocast(inputs.device.type, enabled=False):
            losses = self.cls_head.loss(feats, data_samples, **loss_kwargs)
        return merge_dict(losses, loss_kwargs.get('loss_aux', {}))

    def test_step(self, data: Any) -> SampleList:
        """As mmengine's. Inputs that have a method ``play`` play themselves.

        Whole videos do: MMAction2's ``inference_recognizer`` and inferencers come here
        with them, and get one result each.
        """
        inputs = data.get('inputs') if isinstance(data, dict) else None
        if isinstance(inputs, list) and hasattr(inputs[0], 'play'):
            return [video.play(self) for video in inputs]
        return super().test_step(data)

    def predict(self, inputs: Tensor, data_samples: SampleList, **kwargs) -> SampleList:
        """Predict, as MMAction2's, with memory."""
        rows = self.batch_rows(data_samples)
        if self.remembers:
            # Each view of a sample is a stream.
            views = self.batch_rows(data_samples, inputs.shape[1])
            self.memory.expect(views.streams)
        shapes = padded_shapes(data_samples)
        results: list[Any] = [None] * len(data_samples)
        for group in self.test_groups(rows, shapes, inputs.device):
            samples = [data_samples[i] for i in group]
            feats, predict_kwargs = self.extract_feat(
                take_rows(inputs, group, shapes[group[0]]),
                data_samples=samples,
                test_mode=True,
            )
            outputs = self.cls_head.predict(feats, samples, **predict_kwargs)
            for row, output in zip(group, outputs):
                results[row] = output
        return results

    def extract_feat(
        self,
        inputs: Tensor,
        stage: str = 'neck',
        data_samples: OptSampleList = None,
        test_mode: bool = False,
    ) -> tuple:
        """Extract features, and remember.

        Args:
            inputs (Tensor): [B, views, C, T, H, W].
            stage (str): 'backbone', 'neck' or 'head'.
            data_samples (list[ActionDataSample], optional): Without them there is no
                memory.
            test_mode (bool): Features for the head's ``predict``.

        Returns:
            tuple: Features, rows = samples x views, and keyword arguments for the head.
        """
        views = inputs.shape[1]
        # [B, views, C, T, H, W] -> [B*views, C, T, H, W]
        inputs = inputs.flatten(0, 1)
        kwargs = {}
        if self.with_cls_head and 'num_segs' in self._head_parameters:
            kwargs['num_segs'] = views
        if test_mode and self.test_cfg is not None:
            kwargs['fcn_test'] = self.test_cfg.get('fcn_test', False)
            limit = self.test_cfg.get('max_testing_views', None)
        else:
            limit = None
        rows = None
        groups = [list(range(len(inputs)))]
        if data_samples is not None and self.remembers:
            rows = self.batch_rows(data_samples, views)
            groups = waves(rows)
        if limit is not None:
            groups = [g[i : i + limit] for g in groups for i in range(0, len(g), limit)]
        parts = self.remember(
            inputs, rows, groups, lambda clips, past, _: self.run_backbone(clips, past)
        )
        x = in_row_order(parts, groups)
        if stage == 'backbone':
            return x, kwargs
        if self.with_neck:
            x, loss_aux = self.neck(x, data_samples=None if test_mode else data_samples)
            if not test_mode:
                kwargs['loss_aux'] = loss_aux
        if stage == 'head' and self.with_cls_head:
            x = self.cls_head(x, **kwargs)
        return x, kwargs

    @property
    def _head_parameters(self) -> Iterable[str]:
        """What the head's forward asks for: TSNHead and its kind want ``num_segs``."""
        return inspect.signature(self.cls_head.forward).parameters


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
