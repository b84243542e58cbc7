"""Reading the parity files: numbers of the published model for random weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import memvit_mm  # noqa: F401

DATA = Path(__file__).parents[1] / 'data'
FILES = sorted(path.stem for path in DATA.glob('*.npz'))


class Parity:
    """One parity file: settings, weights, inputs and the published outputs."""

    def __init__(self, name: str) -> None:
        self.numbers = np.load(DATA / f'{name}.npz')
        self.meta = json.loads(str(self.numbers['meta']))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.numbers[key]))

    def prefixed(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            key[len(prefix) :]: self[key]
            for key in self.numbers.files
            if key.startswith(prefix)
        }

    def clips(self) -> Iterator[torch.Tensor]:
        """The input clips, [B, 3, T, H, W], drawn one after the other."""
        meta = self.meta
        generator = np.random.default_rng(meta['seed'])
        shape = (len(meta['videos'][0]), 3, meta['frames'], *meta['input_hw'])
        for step in range(meta['steps']):
            clip = generator.standard_normal(shape, dtype=np.float32)
            if step == 0:
                np.testing.assert_allclose(
                    clip.flatten()[:16], self.numbers['clip_0_head'], atol=1e-6
                )
            yield torch.from_numpy(clip)

    def boxes(self, step: int) -> list[torch.Tensor]:
        """Boxes of each row of the batch, [people, 4] in pixels."""
        boxes = self[f'boxes_{step}']
        rows = len(self.meta['videos'][0])
        return [boxes[boxes[:, 0] == row, 1:] for row in range(rows)]

    def backbone_cfg(self) -> dict:
        meta = self.meta
        cls_token = meta.get('cls', True)
        return dict(
            type='MeMViT',
            arch=dict(
                embed_dims=meta['dim'],
                num_layers=meta['depth'],
                num_heads=1,
                downscale_indices=meta['down'],
            ),
            spatial_size=meta['crop'],
            temporal_size=meta['frames'],
            adaptive_kv_stride=meta['kv'],
            with_cls_token=cls_token,
            output_cls_token=cls_token and not meta.get('det', False),
            causal=meta.get('causal', False),
        )

    @property
    def dims(self) -> int:
        """Channels of the last layer."""
        return self.meta['dim'] * 2 ** len(self.meta['down'])

    def model_cfg(self) -> dict:
        """The registered model for this file, as in a config."""
        if self.meta.get('det'):
            return self._detector_cfg()
        classes = self.meta['classes']
        if self.meta.get('frame_level'):
            verbs, nouns = classes
            head = dict(
                type='EpicHead', num_verbs=verbs, num_nouns=nouns, frame_level=True
            )
        else:
            head = dict(type='MViTHead', num_classes=classes)
        return dict(
            type='MemoryRecognizer3D',
            backbone=self.backbone_cfg(),
            cls_head=dict(head, in_channels=self.dims),
        )

    def _detector_cfg(self) -> dict:
        return dict(
            type='MemoryFastRCNN',
            _scope_='mmdet',
            backbone=self.backbone_cfg(),
            roi_head=dict(
                type='MemoryAVARoIHead',
                bbox_roi_extractor=dict(
                    type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
                ),
                shared_head=dict(
                    type='ActorMemoryHead',
                    in_channels=self.dims,
                    num_heads=2 ** len(self.meta['down']),
                ),
                bbox_head=dict(
                    type='BBoxHeadAVA',
                    background_class=True,
                    in_channels=self.dims,
                    num_classes=self.meta['classes'] + 1,
                ),
            ),
            data_preprocessor=dict(
                type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
            ),
            train_cfg=None,
            test_cfg=dict(rcnn=None),
        )

    def published(self) -> dict:
        """The checkpoint as its authors save it: weights and settings."""
        return dict(model_state=self.prefixed('state/'), cfg='MODEL:\n  ARCH: mvit\n')
