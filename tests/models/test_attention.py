"""Folded attention against the plain formula, gradients included."""

import pytest
import torch

from memvit_mm.models.relative_position import (
    HIDDEN,
    Positions,
    axis_table,
    folded_attention,
    key_codes,
    memory_time_table,
    position_vectors,
    query_channels,
    spatial_tables,
)


def plain(q, k, v, bias):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) @ v


def bias_of(q, size, tables):
    """The bias tensor of queries x keys that folding avoids."""
    batch, heads, _, dims = q.shape
    grid = q.reshape(batch, heads, *size, dims)
    t, h, w = (
        torch.einsum(f'bnthwc,{axis}kc->bnthwk', grid, table)
        for axis, table in zip('thw', tables)
    )
    total = t[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]
    return total.flatten(5, 7).flatten(2, 4)


@pytest.mark.parametrize('with_memory', [False, True])
@pytest.mark.parametrize('built', ['for these sizes', 'for others'])
def test_folded_positions_equal_the_plain_bias(with_memory, built):
    torch.manual_seed(0)
    size, k_size, m_size = (2, 3, 4), (2, 2, 3), (3, 1, 2)
    at = Positions(size, k_size, m_size if with_memory else None, 1, 2, False)
    lengths = [3, 5, 7, 4, 5, 7] if built == 'for these sizes' else [5, 3, 9, 6, 3, 4]
    weights = [torch.randn(n, 5, requires_grad=True) for n in lengths]
    weights = weights if with_memory else weights[:3]
    q = torch.randn(2, 2, 24, 5, requires_grad=True)
    t, h, w = weights[:3]
    space = spatial_tables(h, w, size[1:], k_size[1:], False)
    bias = bias_of(q, size, (axis_table(t, size[0], k_size[0]), *space))
    if with_memory:
        t, h, w = weights[3:]
        space = spatial_tables(h, w, size[1:], m_size[1:], False)
        time = memory_time_table(t, size[0], m_size[0], 1, 2)
        bias = torch.cat([bias_of(q, size, (time, *space)), bias], dim=-1)
    codes = key_codes(at, 1, False, 0, device=q.device, dtype=q.dtype)
    k, v = torch.randn(2, 2, 2, len(codes), 5).unbind(0)
    vectors = position_vectors(weights, at, q.dtype)
    out = folded_attention(q, k, v, query_channels(q, vectors, at), codes)
    expected = plain(q, k, v, bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)

    leaves = [q, *weights]
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), leaves)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def dtypes() -> list:
    """Those that attention has on a CPU: float16 since torch 2.2."""
    found = [torch.float32, torch.bfloat16]
    half = torch.ones(1, 1, 1, dtype=torch.float16)
    try:
        torch.baddbmm(half, half, half)
        return [*found, torch.float16]
    except RuntimeError:
        return found


@pytest.mark.parametrize('dtype', dtypes())
def test_hidden_keys_have_no_weight_at_all(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8).to(dtype).unbind(0)
    hidden = torch.zeros(1, 6, dtype=dtype)
    hidden[:, :2] = HIDDEN
    out = folded_attention(q, k, v, hidden=hidden)
    loud = v.clone()
    loud[:, :, :2] = 1e4
    assert torch.equal(out, folded_attention(q, k, loud, hidden=hidden))
