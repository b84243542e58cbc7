"""No scores of queries x keys in any dtype, with or without a fused kernel."""

import logging
from contextlib import nullcontext

import pytest
import torch
from mmengine.logging import MMLogger
from small_models import ARCH, FRAMES, randomize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memvit_mm.models import MemoryViT, MeMViT
from memvit_mm.models.kernels import attention as fused_attention
from memvit_mm.models.kernels.attention import attend, padded
from memvit_mm.models.relative_position import folded_attention


class Sizes(TorchDispatchMode):
    """The numbers of elements of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


def plain(q, k, v, q_extra, k_extra):
    scores = q @ k.transpose(-2, -1) + q_extra @ k_extra.transpose(-2, -1)
    return (scores * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_folded_attention_is_the_plain_formula(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 12) for n in (70, 30, 30))
    q_extra, k_extra = torch.randn(2, 2, 70, 7), torch.randn(30, 7)
    tensors = [t.to(dtype).requires_grad_() for t in (q, k, v, q_extra, k_extra)]
    try:
        out = folded_attention(*tensors)
    except RuntimeError as error:
        pytest.skip(f'no {dtype} here: {error}')
    exact = [t.detach().float().requires_grad_() for t in tensors]
    expected = plain(*exact)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((out * weight).sum(), tensors)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    low = dtype != torch.float32
    for a, b in zip([out, *found], [expected, *wanted]):
        assert a.dtype == dtype
        error = (a.float() - b).norm() / b.norm()
        assert error < (3e-2 if low else 1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_hides_later_frames(dtype):
    # 16 channels of a head, by whose root terms are divided first.
    model = MeMViT(
        arch=dict(embed_dims=16, num_layers=2, num_heads=1, downscale_indices=[1]),
        spatial_size=32,
        temporal_size=FRAMES,
        causal=True,
        output_cls_token=False,
    )
    randomize(model).eval()
    x = torch.randn(1, 3, FRAMES, 32, 32)
    results = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast('cpu', dtype, enabled=enabled):
            features, _ = model(x, memory=model.empty_memory(x))
        results.append(features[0].float())
    error = (results[1] - results[0]).norm() / results[0].norm()
    assert error < 0.05


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('reading', [None, 'gated', 'joint'])
def test_no_tensor_of_queries_by_keys(training, reading):
    # 1024 queries of the first layer on as many keys and more of the memory.
    if reading:
        levels = [dict(type='keep', ages=(1, 2))]
        model = MemoryViT(
            64, 4, embed_dims=8, depth=1, num_heads=2, num_frames=FRAMES,
            reading=reading, memory_levels=levels,
        )  # fmt: skip
    else:
        model = MeMViT(
            arch=ARCH,
            spatial_size=64,
            temporal_size=FRAMES,
            adaptive_kv_stride=(1, 1, 1),
        )
    randomize(model).train(training)
    x = torch.randn(1, 3, FRAMES, 64, 64)
    queries = FRAMES // 2 * 16 * 16
    with torch.set_grad_enabled(training), Sizes() as sizes:
        features, _ = model(x, memory=model.empty_memory(x))
        if training:
            tree_leaves(features)[-1].sum().backward()
    # MLPs are 4 x 8 channels wide.
    assert queries * 32 < 2 * sizes.largest
    assert sizes.largest < queries * queries / 4


def without_fused_kernels():
    attention = pytest.importorskip('torch.nn.attention')
    return attention.sdpa_kernel(attention.SDPBackend.MATH)


class Messages(logging.Handler):
    """What mmengine's logger is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def messages():
    fused_attention.said_once.cache_clear()
    logger, handler = MMLogger.get_current_instance(), Messages()
    # Another test's runner may have left it at a higher one.
    level = logger.level
    logger.setLevel('INFO')
    logger.addHandler(handler)
    yield handler.said
    logger.removeHandler(handler)
    logger.setLevel(level)
    fused_attention.said_once.cache_clear()


def test_without_a_fused_kernel_in_parts_exactly_and_said_once(monkeypatch, messages):
    monkeypatch.setattr(fused_attention, 'SCORES_AT_ONCE', 2 * 3 * 40 * 10)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (300, 40, 40))
    results, sizes = [], Sizes()
    for context in (nullcontext, without_fused_kernels, without_fused_kernels):
        with context(), sizes if results else nullcontext():
            out = attend(q, k, v, 0.3)
            grads = torch.autograd.grad(out.square().sum(), (q, k, v))
        results.append((out.detach(), *grads))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-4)
    assert sizes.largest < 2 * 3 * 300 * 40 / 2
    (message,) = messages
    assert 'heads of 8 channels has no fused kernel on this cpu' in message


def test_heads_are_as_wide_as_fused_kernels_want():
    # MeMViT-16 at 224: 96 channels, 30 for positions, one for empty slots.
    assert padded(96 + 30 + 1) == 128
    assert padded(96) == 96
