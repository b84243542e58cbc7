"""Linear layers by oneDNN, which torch carries along, where that is faster than MKL.

On a CPU torch multiplies float32 matrices by MKL, which uses half the width of
processors that are not Intel's. oneDNN uses all of it: its linear layer is 2 times as
fast on an AMD EPYC of Zen 5 and 1.1 times on one of Zen 4, whose full width is two
halves. What it lacks (other dtypes, autocast) goes torch's usual way.
"""

from functools import partial
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choice import is_for_cpu, is_plain

# With fewer numbers than this, the overhead of the call outweighs the faster product.
SMALLEST = 2**15


def _find_onednn():
    """oneDNN's linear layer, if this torch has it and it does what it should."""
    try:
        product = torch.ops.mkldnn._linear_pointwise
        # The program may have changed torch's defaults.
        ones = partial(torch.ones, dtype=torch.float32, device='cpu')
        x, bias = ones(2, 3), ones(4)
        for weight in (ones(4, 3), ones(3, 4).t()):
            out = product(x, weight, bias, 'none', [], '')
            if not torch.equal(out, 4 * ones(2, 4)):
                return None
        return product
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None


_onednn = _find_onednn() if torch.backends.mkldnn.is_available() else None


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """As ``torch.nn.functional.linear``, its plain form.

    Args:
        x (Tensor): [..., in].
        weight (Tensor): [out, in].
        bias (Tensor, optional): [out].

    Returns:
        Tensor: [..., out].
    """
    if not _takes(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias, 'none', [], '')


def run_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a linear layer; anything that has been put in its place is called as it is.

    Args:
        layer (nn.Linear): Or what somebody has made of it: quantized, with adapters,
            parametrized, with hooks.
        x (Tensor): [..., in].
    """
    return linear(x, layer.weight, layer.bias) if is_plain(layer) else layer(x)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these."""
    return (
        _onednn is not None
        and is_for_cpu(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= SMALLEST
        and not torch.is_autocast_enabled('cpu')
        and torch.backends.mkldnn.enabled
        # Counters of operations (torch's FlopCounterMode) know torch's own.
        and not torch._C._len_torch_dispatch_stack()
    )


def product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """As :func:`linear`, within functions that have gradients of their own."""
    # With gradient only where somebody differentiates twice.
    if _takes(x, weight) and not torch.is_grad_enabled():
        return _onednn(x, weight, bias, 'none', [], '')
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(:func:`linear`), without gradient."""
    if _takes(x, weight):
        return _onednn(x, weight, bias, 'gelu', [], 'none')
    return F.gelu(F.linear(x, weight, bias))


class _Linear(torch.autograd.Function):
    """oneDNN's linear layer, with gradients by the same.

    With it, the products of a MeMViT-16 training step take half the time on an AMD EPYC
    of Zen 5; on one of Zen 4 the step as a whole takes 1.5 % longer.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        # Only what the gradients that are wanted need.
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return _onednn(x, weight, bias, 'none', [], '')

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            weight_gradient(grad, x) if for_weight else None,
            grad.flatten(0, -2).sum(0) if for_bias else None,
        )


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """[..., out], [..., in] -> [out, in]."""
    # (..., C) -> (N, C)
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    if grad.shape[1] > x.shape[1]:
        # The wider one as the weight.
        return product(x.t(), grad.t()).t().contiguous()
    return product(grad.t(), x.t())
