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


def to_ours(name: str, depth: int, down: int) -> str:
    """The name under which we keep a published parameter; '' if we do not.

    In the published model every layer carries memory parameters; only the even ones
    use them.
    """
    memory = ('compress', 'rel_pos_mem')
    in_memory = name.startswith('blocks.') and any(word in name for word in memory)
    if in_memory and int(name.split('.')[1]) % 2:
        return ''
    for old, new in [
        ('patch_embed.proj.', 'backbone.patch_embed.projection.'),
        ('cls_token', 'backbone.cls_token'),
        ('blocks.', 'backbone.blocks.'),
        ('norm.', f'backbone.norm{down}.'),
        ('box_blocks.', 'roi_head.shared_head.blocks.'),
        ('head.projection.', 'head.'),
    ]:
        if name.startswith(old):
            return new + name[len(old) :]
    raise KeyError(name)
