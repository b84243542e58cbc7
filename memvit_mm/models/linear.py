"""Linear layers and MLPs whose products are as fast, and hold as little, as they can.

On a CPU torch multiplies float32 matrices by MKL, which uses half the width of
processors that are not Intel's. oneDNN, which torch carries along, uses all of it: its
linear layer is called here where torch has it, 2 times as fast on an AMD EPYC (Zen 5).
What it lacks (other dtypes, autocast, compilation, other devices) goes torch's usual
way.
"""

import logging
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmaction.models.backbones.mvit import MLP
from mmengine.logging import print_log
from torch import Tensor

from .fused_attention import is_compiling

# Below so many numbers, what it costs to call it is all that counts.
SMALLEST = 2**15


def _find_onednn():
    """oneDNN's linear layer, if this torch has it and it does what it should."""
    try:
        if not torch.backends.mkldnn.is_available():
            return None
        product = torch.ops.mkldnn._linear_pointwise
        x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
        for w in (weight, torch.ones(3, 4).t()):
            if not torch.equal(
                product(x, w, bias, 'none', [], ''), 4 * torch.ones(2, 4)
            ):
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


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is nothing but torch's linear layer."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    hooks = hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is nn.Linear and not hooks


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these."""
    return (
        _onednn is not None
        and not is_compiling()
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= SMALLEST
        and not _autocast_on_cpu()
    )


def _autocast_on_cpu() -> bool:
    if hasattr(torch, 'get_autocast_dtype'):  # since torch 2.4
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def _product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """[..., in] x [out, in] -> [..., out], without gradient."""
    if _takes(x, weight):
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
        ctx.save_for_backward(x, weight)
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
    """MMAction2's MLP, which keeps one of its two wide tensors for the backward pass.

    The activation's output is computed again from its input: a hundredth of the time of
    training for a tenth of its memory. Without gradient it is applied as the product is
    written, where oneDNN is at hand.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, in] -> [B, tokens, out]."""
        gelu = type(self.act) is nn.GELU and self.act.approximate == 'none'
        plain = gelu and is_plain(self.fc1) and is_plain(self.fc2)
        if not plain or is_compiling() or self.fc1.bias is None:
            return super().forward(x)
        parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        if torch.is_grad_enabled():
            return _TwoLayers.apply(x, *parameters, _autocast_dtype(x))
        if not _takes(x, self.fc1.weight):
            return super().forward(x)
        x = _onednn(x, self.fc1.weight, self.fc1.bias, 'gelu', [], 'none')
        return linear(x, self.fc2.weight, self.fc2.bias)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of a linear layer's input."""
    if x.dtype == torch.float64:
        return x.dtype
    if hasattr(torch, 'get_autocast_dtype'):  # since torch 2.4
        kind = x.device.type
        return (
            torch.get_autocast_dtype(kind)
            if torch.is_autocast_enabled(kind)
            else x.dtype
        )
    if x.device.type == 'cpu':
        return (
            torch.get_autocast_cpu_dtype()
            if torch.is_autocast_cpu_enabled()
            else x.dtype
        )
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype


class _TwoLayers(torch.autograd.Function):
    """Linear, GELU, linear; the wide output of the GELU is not kept."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, dtype):
        x = x.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            wide = _product(x, weight1.to(dtype), bias1.to(dtype))
            out = _product(F.gelu(wide), weight2.to(dtype), bias2.to(dtype))
        ctx.save_for_backward(x, wide, weight1, weight2)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, wide, weight1, weight2 = ctx.saved_tensors
        for_x, *for_rest, _ = ctx.needs_input_grad
        grads = [None] * 4
        grad = grad.contiguous()
        if for_rest[3]:
            grads[3] = grad.flatten(0, -2).sum(0)
        if for_rest[2]:
            grads[2] = _weight_gradient(grad, F.gelu(wide))
        grad = _product(grad, weight2.to(grad.dtype).t())
        grad = torch.ops.aten.gelu_backward(grad, wide)
        if for_rest[1]:
            grads[1] = grad.flatten(0, -2).sum(0)
        if for_rest[0]:
            grads[0] = _weight_gradient(grad, x)
        grad_x = _product(grad, weight1.to(grad.dtype).t()) if for_x else None
        grads = [g if g is None else g.to(weight1.dtype) for g in grads]
        return grad_x, *grads, None
