"""Pooling in channels-last order against torch's convolution, gradients included."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from small_models import ARCH, FRAMES, randomize
from torch import nn

from memvit_mm.models import MeMViT
from memvit_mm.models import linear as linear_module
from memvit_mm.models.linear import LeanMLP, is_plain, linear
from memvit_mm.models.pooling import _by_head, depthwise_pool, max_pool

MLP = LeanMLP.__mro__[1]
assert MODELS  # mmaction.models needs memvit_mm's repairs first
SIZE = (5, 6, 7)


@pytest.mark.parametrize('heads, batch', [(1, 1), (2, 2)])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('stride', [(1, 1, 1), (1, 2, 2), (4, 2, 2), (1, 8, 8)])
@pytest.mark.parametrize('kernel', [(3, 3, 3), (7, 3, 3), (2, 2, 2), (1, 1, 1)])
def test_pooling_is_the_convolution(kernel, stride, causal, heads, batch):
    torch.manual_seed(0)
    padding = [k // 2 for k in kernel]
    conv = nn.Conv3d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    x = torch.randn(batch, 5 * 6 * 7, heads * 4, dtype=torch.double)
    x.requires_grad_()
    out, size = depthwise_pool(x, SIZE, conv, heads, causal)

    grid = x.unflatten(1, SIZE)
    if causal:
        grid = F.pad(grid, (0, 0, 0, 0, 0, 0, 2 * padding[0], 0))
        padding = [0, *padding[1:]]
    expected = _by_head(grid, conv.weight, heads, stride, padding)
    assert size == tuple(expected.shape[1:4])
    expected = expected.flatten(1, 3)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    leaves = (x, conv.weight)
    found = torch.autograd.grad((out * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(
            depthwise_pool(x, SIZE, conv, heads, causal)[0], expected
        )


def test_channels_stay_where_they_are():
    conv = nn.Conv3d(4, 4, 3, 1, 1, groups=4, bias=False)
    x = torch.randn(1, 5 * 6 * 7, 8)
    out, _ = depthwise_pool(x, SIZE, conv, heads=2)
    assert out.is_contiguous()
    # Each head by the same kernel.
    alone, _ = depthwise_pool(x[..., 4:].contiguous(), SIZE, conv, heads=1)
    torch.testing.assert_close(out[..., 4:], alone)


@pytest.mark.parametrize('rows, wide', [(300, 512), (300, 200)])
def test_linear_layers_by_onednn(rows, wide, monkeypatch):
    monkeypatch.setattr(linear_module, 'SMALLEST', 1)
    torch.manual_seed(0)
    x = torch.randn(2, rows, 256, requires_grad=True)
    weight = torch.randn(wide, 256, requires_grad=True)
    bias = torch.randn(wide, requires_grad=True)
    out, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5)
    along = torch.randn_like(out)
    leaves = (x, weight, bias)
    found = torch.autograd.grad(out, leaves, along)
    wanted = torch.autograd.grad(expected, leaves, along)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('frozen', [False, True])
def test_the_lean_mlp_is_the_mlp(dtype, frozen, monkeypatch):
    monkeypatch.setattr(linear_module, 'WIDE', 2**12)
    torch.manual_seed(0)
    lean, full = LeanMLP(16, 64, 8).to(dtype), MLP(16, 64, 8).to(dtype)
    full.load_state_dict(lean.state_dict())
    x = torch.randn(2, 90, 16, dtype=dtype, requires_grad=True)
    results = []
    for mlp in (lean, full):
        mlp.fc1.requires_grad_(not frozen)
        mlp.zero_grad()
        out = mlp(x)
        (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
        out.square().sum().backward(
            inputs=[p for p in mlp.parameters() if p.requires_grad]
        )
        results.append((out, grad, [p.grad for p in mlp.parameters() if not frozen]))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(lean(x), full(x), atol=1e-5, rtol=1e-5)


def test_what_is_put_in_place_of_a_layer_is_called():
    lean = LeanMLP(16, 64, 8)
    calls = []
    lean.fc1.register_forward_hook(lambda *_: calls.append('fc1'))
    lean(torch.randn(2, 3, 16))
    assert calls == ['fc1']


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('pool_first', [False, True])
def test_hooks_of_every_layer_are_called(pool_first, training):
    model = MeMViT(
        arch=ARCH, spatial_size=32, temporal_size=FRAMES, pool_first=pool_first
    )
    randomize(model).train(training)
    x, calls = torch.randn(1, 3, FRAMES, 32, 32), set()

    def run():
        with torch.set_grad_enabled(training):
            (features, *_), _ = model(x, memory=model.empty_memory(x))
        return features

    expected = run()
    kinds = (nn.Linear, nn.Conv3d, nn.MaxPool3d, nn.GELU)
    names = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-4)
    assert calls == names


def test_what_is_more_than_a_layer_is_no_plain_layer():
    layer = nn.Linear(2, 2)
    assert is_plain(layer) and not is_plain(nn.Identity())
    assert not is_plain(type('Adapted', (nn.Linear,), {})(2, 2))
    layer.forward = lambda x: x  # as accelerate does
    assert not is_plain(layer)
    scaled = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert not is_plain(scaled)


def test_gradients_of_gradients(monkeypatch):
    monkeypatch.setattr(linear_module, 'SMALLEST', 1)
    monkeypatch.setattr(linear_module, 'WIDE', 2**8)
    torch.manual_seed(0)
    lean, layer = LeanMLP(8, 32, 8), nn.Linear(8, 8)
    conv = nn.Conv3d(4, 4, 3, 2, 1, groups=4, bias=False)
    pool = nn.MaxPool3d(3, 2, 1)
    leaves = [torch.randn(2, 5 * 6 * 7, 8, requires_grad=True)]
    leaves += [*lean.parameters(), *layer.parameters(), conv.weight]

    def ours(x: torch.Tensor) -> torch.Tensor:
        x = max_pool(lean(linear(x, layer.weight, layer.bias)), SIZE, pool)
        return depthwise_pool(x, (3, 3, 4), conv, 2)[0]

    def torchs(x: torch.Tensor) -> torch.Tensor:
        grid = MLP.forward(lean, layer(x)).unflatten(1, SIZE).permute(0, 4, 1, 2, 3)
        grid = pool(grid).permute(0, 2, 3, 4, 1)
        return _by_head(grid, conv.weight, 2, (2, 2, 2), (1, 1, 1)).flatten(1, 3)

    results = []
    for function in (ours, torchs):
        out = function(leaves[0]).square().sum()
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        length = sum(grad.square().sum() for grad in grads)
        results.append(torch.autograd.grad(length, leaves))
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_torchs_counter_counts_all_products(monkeypatch):
    counter = pytest.importorskip('torch.utils.flop_counter').FlopCounterMode
    monkeypatch.setattr(linear_module, 'SMALLEST', 1)
    lean, x = LeanMLP(8, 32, 8), torch.randn(2, 5, 8)
    for context in (torch.no_grad, torch.enable_grad):
        with counter(display=False) as count, context():
            lean(x)
        assert count.get_total_flops() == 2 * 2 * 10 * 8 * 32


def test_traced():
    model = MeMViT(arch=ARCH, spatial_size=32, temporal_size=FRAMES)
    randomize(model).eval().requires_grad_(False)
    x = torch.randn(1, 3, FRAMES, 32, 32)
    with warnings.catch_warnings():
        # Sizes become constants.
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(lambda x: model(x)[0][1], x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x)[0][1])


def test_no_clips_in_a_model():
    model = MeMViT(arch=ARCH, spatial_size=32, temporal_size=FRAMES)
    x = torch.randn(0, 3, FRAMES, 32, 32)
    (features, cls_token), *_ = model(x)
    assert len(features) == len(cls_token) == 0


def test_no_clips_at_all():
    x = torch.randn(0, 5 * 6 * 7, 8, requires_grad=True)
    conv = nn.Conv3d(4, 4, 3, 1, 1, groups=4, bias=False)
    out = LeanMLP(8, 32, 8)(depthwise_pool(x, SIZE, conv, 2)[0])
    out = max_pool(out, SIZE, nn.MaxPool3d(3, 1, 1))
    out.sum().backward()
    assert out.shape == x.grad.shape == x.shape


@pytest.mark.parametrize('batch', [1, 2])
def test_max_pooling_is_torchs(batch):
    torch.manual_seed(0)
    pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    # Beside a class token, as in the model.
    tokens = torch.randn(batch, 1 + 5 * 6 * 7, 8, requires_grad=True)
    out = max_pool(tokens[:, 1:], SIZE, pool)
    grid = tokens[:, 1:].unflatten(1, SIZE).permute(0, 4, 1, 2, 3).contiguous()
    expected = pool(grid).flatten(2).transpose(1, 2)
    assert torch.equal(out, expected)
    weight = torch.randn_like(out)
    (found,) = torch.autograd.grad((out * weight).sum(), tokens)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), tokens)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        assert torch.equal(max_pool(tokens[:, 1:], SIZE, pool), expected)
