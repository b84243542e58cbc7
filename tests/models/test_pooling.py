"""Pooling in channels-last order against torch's convolution, gradients included."""

import contextlib
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from small_models import ARCH, FRAMES, randomize
from torch import nn

from memvit_mm.models import MeMViT
from memvit_mm.models.kernels import mlp as mlp_module
from memvit_mm.models.kernels import onednn
from memvit_mm.models.kernels.choice import is_plain
from memvit_mm.models.kernels.mlp import FFN, LeanFFN, LeanMLP
from memvit_mm.models.kernels.onednn import linear
from memvit_mm.models.kernels.pooling import (
    depthwise_pool,
    max_pool,
    plain_convolution,
    planes_of,
)

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
    expected = plain_convolution(
        planes_of(grid, heads), conv.weight, heads, stride, padding
    )
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
    monkeypatch.setattr(onednn, 'SMALLEST', 1)
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


def lean_ffn(**kwargs) -> LeanFFN:
    return LeanFFN(16, 64, act_cfg=dict(type='GELU'), add_identity=False, **kwargs)


@pytest.mark.parametrize('build', [lambda: LeanMLP(16, 64, 8), lean_ffn])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('frozen', [False, True])
def test_the_lean_mlp_is_the_mlp(dtype, frozen, build, monkeypatch):
    monkeypatch.setattr(mlp_module, 'WIDE', 2**12)
    torch.manual_seed(0)
    lean, full = build().to(dtype), build().to(dtype)
    full.load_state_dict(lean.state_dict())
    plain = FFN if isinstance(full, FFN) else MLP
    full.forward = functools.partial(plain.forward, full)
    x = torch.randn(2, 90, 16, dtype=dtype, requires_grad=True)
    results = []
    for mlp in (lean, full):
        next(mlp.parameters()).requires_grad_(not frozen)
        mlp.zero_grad()
        out = mlp(x)
        (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
        out.square().sum().backward(
            inputs=[p for p in mlp.parameters() if p.requires_grad]
        )
        trained = [p.grad for p in mlp.parameters() if p.requires_grad]
        assert len(trained) == 4 - frozen
        results.append((out, grad, trained))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(lean(x), full(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('build', [lambda: LeanMLP(16, 64, 8), lean_ffn])
def test_second_derivatives_of_the_mlps(build):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(build().double(), (x,))


@pytest.mark.parametrize('name', ['', '0', '0.0', '0.1', '0.2', '1', '2'])
def test_hooks_inside_of_an_ffn_are_called(name):
    lean, x = lean_ffn(), torch.randn(2, 3, 16)
    part = lean.layers.get_submodule(name)
    part.register_forward_hook(lambda module, args, out: 2 * out)
    torch.testing.assert_close(lean(x), FFN.forward(lean, x))


def test_dropout_of_an_ffn():
    lean, x = lean_ffn(ffn_drop=0.5), torch.ones(1, 400, 16)
    assert (lean(x) == 0).any() and not (lean.eval()(x) == 0).any()


@pytest.mark.parametrize('forward_only', [True, False])
def test_the_backward_pass_repeats_the_forward_pass(forward_only, monkeypatch):
    """Whatever mode is on by then: here a counter of operations."""
    counter = pytest.importorskip('torch.utils.flop_counter').FlopCounterMode
    monkeypatch.setattr(onednn, 'SMALLEST', 1)
    lean, x = LeanMLP(8, 32, 8), torch.randn(2, 5, 8)
    with counter(display=False) if forward_only else contextlib.nullcontext():
        out = lean(x).sum()
    with contextlib.nullcontext() if forward_only else counter(display=False):
        out.backward()
    wanted = torch.autograd.grad(MLP.forward(lean, x).sum(), list(lean.parameters()))
    found = [p.grad for p in lean.parameters()]
    torch.testing.assert_close(found, list(wanted), atol=1e-5, rtol=1e-4)


def test_gradients_of_parts_are_not_summed_in_bfloat16(monkeypatch):
    monkeypatch.setattr(mlp_module, 'WIDE', 2**12)
    torch.manual_seed(0)
    lean, x = LeanMLP(16, 64, 16), torch.randn(1, 4096, 16)

    def gradients(mlp, dtype) -> list:
        lean.zero_grad()
        with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
            out = mlp(x).float()
        out.square().sum().backward()
        return [p.grad.clone() for p in lean.parameters()]

    exact = gradients(lean, torch.float32)
    ours = gradients(lean, torch.bfloat16)
    plain = gradients(lambda x: MLP.forward(lean, x), torch.bfloat16)
    for wanted, found, usual in zip(exact, ours, plain):
        assert (found - wanted).norm() <= 1.2 * (usual - wanted).norm()


def test_what_is_put_in_place_of_a_layer_is_called():
    lean = LeanMLP(16, 64, 8)
    calls = []
    lean.fc1.register_forward_hook(lambda *_: calls.append('fc1'))
    lean(torch.randn(2, 3, 16))
    assert calls == ['fc1']


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('pool_first', [False, True])
@pytest.mark.parametrize('causal', [False, True])
def test_hooks_of_every_layer_are_called(causal, pool_first, training):
    model = MeMViT(
        arch=ARCH,
        spatial_size=32,
        temporal_size=FRAMES,
        pool_first=pool_first,
        causal=causal,
        output_cls_token=False,
    )
    randomize(model).train(training)
    x, calls = torch.randn(1, 3, FRAMES, 32, 32), set()

    def run():
        with torch.set_grad_enabled(training):
            (features,), _ = model(x, memory=model.empty_memory(x))
        return features

    expected = run()
    kinds = (nn.Linear, nn.Conv3d, nn.MaxPool3d, nn.GELU)
    names = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-4)
    assert calls == names


class Adapted(nn.Module):
    """A convolution with a low-rank change, as adapters wrap one."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding = conv.padding
        self.down = nn.Conv3d(4, 2, conv.kernel_size, conv.stride, conv.padding)
        self.up = nn.Conv3d(2, 4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.up(self.down(x))

    def causally(self, x: torch.Tensor) -> torch.Tensor:
        """The same on [B, C, T, H, W], of the past alone, written out."""
        x = F.pad(x, (0, 0, 0, 0, 2 * self.padding[0], 0))
        around = (0, *self.padding[1:])
        out = F.conv3d(x, self.conv.weight, None, self.stride, around, groups=4)
        low = F.conv3d(x, self.down.weight, self.down.bias, self.stride, around)
        return out + self.up(low)


@pytest.mark.parametrize('stride', [(1, 1, 1), (1, 2, 2), (4, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize('kernel', [(3, 3, 3), (7, 3, 3), (2, 2, 2), (1, 1, 1)])
def test_an_adapter_in_a_causal_model(kernel, stride):
    torch.manual_seed(0)
    padding = [k // 2 for k in kernel]
    conv = nn.Conv3d(4, 4, kernel, stride, padding, groups=4, bias=False)
    x = torch.randn(2, 5 * 6 * 7, 4, requires_grad=True)
    plain, size = depthwise_pool(x, SIZE, conv, 1, causal=True)
    conv.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(
        depthwise_pool(x, SIZE, conv, 1, causal=True), (plain, size)
    )
    adapted = Adapted(conv)
    out, found = depthwise_pool(x, SIZE, adapted, 1, causal=True)
    grid = x.unflatten(1, SIZE).permute(0, 4, 1, 2, 3)
    expected = adapted.causally(grid).flatten(2).transpose(1, 2)
    assert found == size
    torch.testing.assert_close(out, expected)
    along = torch.randn_like(out)
    leaves = [x, *adapted.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(out, leaves, along),
        torch.autograd.grad(expected, leaves, along),
    )
    # No output sees a later frame.
    later = x.detach().unflatten(1, SIZE).clone()
    later[:, -1] += 1
    changed = depthwise_pool(later.flatten(1, 3), SIZE, adapted, 1, causal=True)[0]
    newest = [t * stride[0] - 2 * padding[0] + kernel[0] - 1 for t in range(size[0])]
    seen = [t for t in range(size[0]) if newest[t] >= SIZE[0] - 1]
    same = (changed == out).unflatten(1, size).all(-1).all(-1).all(-1).all(0)
    assert [t for t in range(size[0]) if not same[t]] == seen


@pytest.mark.parametrize('causal', [False, True])
def test_a_convolution_that_is_more_than_its_weight(causal):
    conv = nn.Conv3d(4, 4, 3, 1, 1, groups=4)
    x = torch.randn(1, 5 * 6 * 7, 4)
    out = depthwise_pool(x, SIZE, conv, 1, causal)[0]
    bias, conv.bias = conv.bias, None
    without = depthwise_pool(x, SIZE, conv, 1, causal)[0]
    torch.testing.assert_close(out, without + bias)


def test_a_layer_that_cannot_be_called_causally():
    x = torch.randn(1, 5 * 6 * 7, 4)
    torch.testing.assert_close(depthwise_pool(x, SIZE, nn.Identity(), 1)[0], x)
    with pytest.raises(TypeError, match='^Identity, in place of a pooling .* padding'):
        depthwise_pool(x, SIZE, nn.Identity(), 1, causal=True)


def test_what_is_more_than_a_layer_is_no_plain_layer():
    layer = nn.Linear(2, 2)
    assert is_plain(layer) and not is_plain(nn.Identity())
    assert not is_plain(type('Adapted', (nn.Linear,), {})(2, 2))
    layer.forward = lambda x: x  # as accelerate does
    assert not is_plain(layer)
    scaled = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert not is_plain(scaled)


def test_gradients_of_gradients(monkeypatch):
    monkeypatch.setattr(onednn, 'SMALLEST', 1)
    monkeypatch.setattr(mlp_module, 'WIDE', 2**8)
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
        return plain_convolution(
            planes_of(grid, 2), conv.weight, 2, (2, 2, 2), (1, 1, 1)
        ).flatten(1, 3)

    results = []
    for function in (ours, torchs):
        out = function(leaves[0]).square().sum()
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        length = sum(grad.square().sum() for grad in grads)
        results.append(torch.autograd.grad(length, leaves))
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_torchs_counter_counts_all_products(monkeypatch):
    counter = pytest.importorskip('torch.utils.flop_counter').FlopCounterMode
    monkeypatch.setattr(onednn, 'SMALLEST', 1)
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
@pytest.mark.parametrize(
    'window',
    [
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((1, 2, 3), (1, 1, 2), 0, (1, 2, 1), False, True),
        (3, 2, 1),
        ((1, 3, 3), (2, 2, 2), (0, 1, 1)),
    ],
    ids=['as in the model', 'dilated, rounded up', 'over time', 'every second frame'],
)
def test_max_pooling_is_torchs(batch, window):
    torch.manual_seed(0)
    pool = nn.MaxPool3d(*window)
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
