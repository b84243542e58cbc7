"""Training uses no operator that has no deterministic kernel on GPUs.

``torch.use_deterministic_algorithms`` lists them. On a CPU they all are deterministic,
so that it would say nothing here: what runs is looked at instead.
"""

import pytest
import torch
import torch.nn.functional as F
from small_models import (
    FRAMES,
    backbone_cfg,
    clip,
    detector,
    recognizer,
    sample,
    vit_cfg,
)
from torch.utils._python_dispatch import TorchDispatchMode

from memvit_mm.models.relative_position import _resize

WITHOUT = {
    'max_pool3d_with_indices_backward',
    'avg_pool3d_backward',
    '_adaptive_avg_pool2d_backward',
    '_adaptive_avg_pool3d_backward',
    'adaptive_max_pool2d_backward',
    'fractional_max_pool2d_backward',
    'fractional_max_pool3d_backward',
    'max_unpool2d',
    'max_unpool3d',
    'upsample_linear1d_backward',
    'upsample_bilinear2d_backward',
    'upsample_bicubic2d_backward',
    'upsample_trilinear3d_backward',
    'reflection_pad1d_backward',
    'reflection_pad2d_backward',
    'reflection_pad3d_backward',
    'replication_pad1d_backward',
    'replication_pad2d_backward',
    'replication_pad3d_backward',
    'grid_sampler_2d_backward',
    'grid_sampler_3d_backward',
    'nll_loss2d_forward',
    '_ctc_loss_backward',
    'put',
    'put_',
    'histc',
    'bincount',
    'kthvalue',
    'median',
    'scatter_reduce',
    'scatter_reduce_',
    'cumsum',
}


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('pool_first', [True, False])
@pytest.mark.parametrize('build', [recognizer, detector])
def test_no_operator_without_a_deterministic_kernel(build, pool_first):
    cfg = backbone_cfg(
        pool_first=pool_first, output_cls_token=build is recognizer, memory_gap=1
    )
    # Larger, so that positions are interpolated, and of another length.
    names = operators(build(cfg), FRAMES + 2, (48, 64))
    assert {'max_pool2d_with_indices_backward', 'convolution'} <= names
    assert not names & WITHOUT


@pytest.mark.parametrize('kind', ['kmeans', 'coreset', 'random', 'pool'])
def test_nor_any_of_a_vision_transformer(kind):
    levels = [dict(type=kind, ages=(1, 2), tokens=3)]
    names = operators(recognizer(vit_cfg(memory_levels=levels)), FRAMES, (48, 64))
    assert 'convolution' in names
    # MMAction2 interpolates the positions, which are trained only if one asks for it.
    assert not names & WITHOUT


def operators(model, frames: int, size: tuple) -> set:
    """The names of all operators of a training step that reads memory."""
    model.train()
    for t in range(3):
        inputs = torch.stack([clip(v, t, size) for v in 'ab'])
        inputs = torch.cat([inputs, inputs], dim=2)[:, :, :frames]
        inputs = inputs if hasattr(model, 'roi_head') else inputs[:, None]
        samples = [sample(v, t, size) for v in 'ab']
        with Operators() as ran:
            losses = model(inputs, samples, mode='loss')
            sum(v for k, v in losses.items() if 'loss' in k).backward()
    return ran.names


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('length', [1, 2, 5, 9, 10, 11, 31])
def test_positions_are_interpolated_as_by_torch(length, dtype):
    torch.manual_seed(0)
    table = torch.randn(10, 3, dtype=dtype, requires_grad=True)
    found = _resize(table, length)
    expected = F.interpolate(table.t()[None], size=length, mode='linear')[0].t()
    torch.testing.assert_close(found, expected)
    along = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, table, along),
        torch.autograd.grad(expected, table, along),
    )
