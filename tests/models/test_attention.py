"""Folded attention against the plain formula, gradients included."""

import pytest
import torch

from memvit_mm.models.relative_position import (
    HIDDEN,
    folded_attention,
    key_codes,
    query_channels,
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
def test_folded_positions_equal_the_plain_bias(with_memory):
    torch.manual_seed(0)
    size, k_size, m_size = (2, 3, 4), (2, 2, 3), (3, 1, 2)
    q = torch.randn(2, 2, 24, 5, requires_grad=True)
    tables = [torch.randn(n, k, 5, requires_grad=True) for n, k in zip(size, k_size)]
    m_tables = [torch.randn(n, k, 5, requires_grad=True) for n, k in zip(size, m_size)]
    codes = key_codes(k_size, 'cpu', torch.float32)
    bias = bias_of(q, size, tables)
    joined = tables
    if with_memory:
        memory = key_codes(m_size, 'cpu', torch.float32)
        codes = torch.block_diag(codes, memory)
        bias = torch.cat([bias, bias_of(q, size, m_tables)], dim=-1)
        joined = [torch.cat(pair, dim=1) for pair in zip(tables, m_tables)]
    k, v = torch.randn(2, 2, 2, len(codes), 5).unbind(0)
    out = folded_attention(
        q, k, v, query_channels(q, size, joined, k_size), codes[None, None]
    )
    expected = plain(q, k, v, bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)

    leaves = [q, *tables, *(m_tables if with_memory else ())]
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
    hidden = torch.zeros(1, 1, 6, 1, dtype=dtype)
    hidden[:, :, :2] = HIDDEN
    ones = torch.ones(1, 2, 6, 1, dtype=dtype)
    out = folded_attention(q, k, v, ones, hidden)
    loud = v.clone()
    loud[:, :, :2] = 1e4
    assert torch.equal(out, folded_attention(q, k, loud, ones, hidden))
