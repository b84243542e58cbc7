"""Linear layers and MLPs whose products are as fast, and hold as little, as they can.

On a CPU torch multiplies float32 matrices by MKL, which uses half the width of
processors that are not Intel's. oneDNN, which torch carries along, uses all of it: its
linear layer is called here where torch has it: 2 times as fast on an AMD EPYC of Zen 5,
1.1 times on one of Zen 4, whose full width is two halves.
What it lacks (other dtypes, autocast, compilation, other devices) goes torch's usual
way.
"""

import logging
from functools import partial
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmaction.models.backbones.mvit import MLP
from mmengine.logging import print_log
from torch import Tensor

from .fused_attention import is_compiling, is_transforming

# Below so many numbers, what it costs to call it is all that counts.
SMALLEST = 2**15
# Numbers of a wide tensor of an MLP that are computed at once on a CPU.
WIDE = 2**21


def _find_onednn():
    """oneDNN's linear layer, if this torch has it and it does what it should."""
    try:
        if not torch.backends.mkldnn.is_available():
            return None
        product = torch.ops.mkldnn._linear_pointwise
        # Whatever the program has made the default.
        ones = partial(torch.ones, dtype=torch.float32, device='cpu')
        x, bias = ones(2, 3), ones(4)
        for weight in (ones(4, 3), ones(3, 4).t()):
            out = product(x, weight, bias, 'none', [], '')
            if not torch.equal(out, 4 * ones(2, 4)):
                return None
        return product
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        print_log(
            "oneDNN's linear layer is not to be had in this torch: MKL's is used.",
            logger='current',
            level=logging.DEBUG,
        )
        return None


_onednn = _find_onednn()
_num_modes = getattr(torch._C, '_len_torch_dispatch_stack', None)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """As ``torch.nn.functional.linear``: [..., in], [out, in], [out] -> [..., out]."""
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
    if is_plain(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a layer is nothing but torch's own, so that it need not be called.

    Not so if it has hooks, another class (adapters, parametrizations, quantized
    layers), a ``forward`` of its own or a weight that is more than a tensor.

    Args:
        layer (nn.Module): Any.
        kind (type): What it was built as.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    hooks = hooks or layer._backward_hooks or layer._backward_pre_hooks
    weight = getattr(layer, 'weight', None)
    tensor = type(weight) in (nn.Parameter, Tensor, type(None))
    return type(layer) is kind and tensor and not hooks and 'forward' not in vars(layer)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these."""
    return (
        _onednn is not None
        and not is_compiling()
        and not is_transforming()
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= SMALLEST
        and not torch.is_autocast_enabled('cpu')
        and getattr(torch.backends.mkldnn, 'enabled', True)
        # Counters of operations (torch's FlopCounterMode) know torch's own.
        and not (_num_modes is not None and _num_modes())
    )


def _product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """[..., in] x [out, in] -> [..., out]."""
    # With gradient only where somebody differentiates twice.
    if _takes(x, weight) and not torch.is_grad_enabled():
        return _onednn(x, weight, bias, 'none', [], '')
    return F.linear(x, weight, bias)


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """[..., out], [..., in] -> [out, in]."""
    # (..., C) -> (N, C)
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    if grad.shape[1] > x.shape[1]:
        # The wider one as the weight.
        return _product(x.t(), grad.t()).t().contiguous()
    return _product(grad.t(), x.t())


class _Linear(torch.autograd.Function):
    """oneDNN's linear layer, with gradients by the same."""

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
            _product(grad, weight.t()) if for_x else None,
            _weight_gradient(grad, x) if for_weight else None,
            grad.flatten(0, -2).sum(0) if for_bias else None,
        )


class LeanMLP(MLP):
    """MMAction2's MLP, which keeps none of its wide tensors for the backward pass.

    They are computed again from its input: a seventh product beside the six of
    training, for a fifth of what a model keeps: 6 % of the time of a MeMViT-16 training
    step for 17 % of its peak memory (one clip, AMD EPYC, Zen 4). On a CPU that is done
    for some tokens at a time, so that what is wide stays in the cache.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, in] -> [B, tokens, out]."""
        plain = is_plain(self.fc1) and is_plain(self.fc2)
        plain = plain and is_plain(self.act, nn.GELU) and self.act.approximate == 'none'
        plain = plain and not any(b is None for b in (self.fc1.bias, self.fc2.bias))
        plain = plain and x.device.type in ('cpu', 'cuda') and x.dim() > 1
        if not plain or is_compiling() or is_transforming():
            return super().forward(x)
        dtype = autocast_dtype(x)
        parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        if torch.is_grad_enabled():
            return _TwoLayers.apply(x, *parameters, dtype)
        return _two_layers(x, *parameters, dtype)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of a linear layer's input."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def _two_layers(x, weight1, bias1, weight2, bias2, dtype) -> Tensor:
    """Linear, GELU, linear, without gradient."""
    parameters = [p.to(dtype) for p in (weight1, bias1, weight2, bias2)]
    with torch.autocast(x.device.type, enabled=False):
        # (B, tokens, C) -> (N, C)
        parts = _some_tokens(x.to(dtype).flatten(0, -2), len(weight1))
        outs = [_two_products(part, *parameters) for part in parts]
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.unflatten(0, x.shape[:-1])


def _two_products(x, weight1, bias1, weight2, bias2) -> Tensor:
    if _takes(x, weight1):
        wide = _onednn(x, weight1, bias1, 'gelu', [], 'none')
    else:
        wide = F.gelu(F.linear(x, weight1, bias1))
    return _product(wide, weight2, bias2)


def _some_tokens(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Parts of [N, C] that are small when they are ``width`` wide; whole on a GPU."""
    if x.device.type != 'cpu':
        return (x,)
    return x.chunk(max(-(-len(x) * width // WIDE), 1))


class _TwoLayers(torch.autograd.Function):
    """Linear, GELU, linear; only the input is kept."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, dtype):
        ctx.save_for_backward(x, weight1, bias1, weight2)
        ctx.dtype = dtype
        return _two_layers(x, weight1, bias1, weight2, bias2, dtype)

    @staticmethod
    def backward(ctx, grad):
        kept, weight1, bias1, weight2 = ctx.saved_tensors
        for_x, *wanted, _ = ctx.needs_input_grad
        x = kept.to(ctx.dtype).flatten(0, -2)
        bias1, down = bias1.to(ctx.dtype), weight2.to(ctx.dtype)
        up = weight1.to(ctx.dtype)
        grad = grad.flatten(0, -2).contiguous()
        # Parts are summed in float32 at least.
        exact = torch.promote_types(ctx.dtype, torch.float32)
        grads_x, grads = [], [None] * 4
        for part, grad_part in zip(
            _some_tokens(x, len(up)), _some_tokens(grad, len(up))
        ):
            wide = _product(part, up, bias1)
            inner = torch.ops.aten.gelu_backward(_product(grad_part, down.t()), wide)
            found = (
                _weight_gradient(inner, part) if wanted[0] else None,
                inner.sum(0) if wanted[1] else None,
                _weight_gradient(grad_part, F.gelu(wide)) if wanted[2] else None,
                grad_part.sum(0) if wanted[3] else None,
            )
            found = [g if g is None else g.to(exact) for g in found]
            grads = [g if old is None else old.add_(g) for g, old in zip(found, grads)]
            if for_x:
                grads_x.append(_product(inner, up.t()))
        grad_x = None
        if for_x:
            grad_x = grads_x[0] if len(grads_x) == 1 else torch.cat(grads_x)
            grad_x = grad_x.unflatten(0, kept.shape[:-1])
        grads = [g if g is None else g.to(weight1.dtype) for g in grads]
        return grad_x, *grads, None
