"""MLPs that keep one or none of their wide tensors for the backward pass."""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from mmaction.models.backbones.mvit import MLP
from mmcv.cnn import Linear
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import Sequential
from torch import Tensor, nn

from .choice import autocast_dtype, is_eager, is_for_cpu, is_plain
from .onednn import linear_gelu, product, weight_gradient

# Numbers of a wide tensor that are computed at once on a CPU, so that they stay in the
# cache.
WIDE = 2**21


class LeanMLP(MLP):
    """MMAction2's MLP, its plain form, which keeps none or one of its wide tensors.

    On a CPU none: they are computed again from its input, a seventh product beside the
    six of training, for 17 % of the peak memory of a MeMViT-16 training step. That is
    done for some tokens at a time, so that what is wide stays in the cache. torch's own
    ``checkpoint`` in the place of the autograd function made a training step 7 % longer
    on one thread, 17 % on two (one clip, AMD EPYC, Zen 4). Elsewhere the input of the
    activation is kept, as in :class:`LeanFFN`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, in] -> [B, tokens, out]."""
        if not _is_lean(x, self.fc1, self.act, self.fc2):
            return super().forward(x)
        return lean_mlp(x, self.fc1, self.fc2, keep_wide=not is_for_cpu(x))


class LeanFFN(FFN):
    """mmcv's FFN of two layers, which keeps one of its two wide tensors.

    As :class:`LeanMLP`, but for the input of the activation, which is kept: in a plain
    vision transformer, whose MLPs are most of its work, computing it again made a
    training step 6 % longer, for 11 % less memory (ViT-B, one clip, AMD EPYC, Zen 4).
    """

    def forward(self, x: Tensor, identity: Optional[Tensor] = None) -> Tensor:
        """[B, tokens, C] -> [B, tokens, C]."""
        if self.add_identity or not self._is_plain() or not _is_lean(x, *self._parts()):
            return super().forward(x, identity)
        up, _, down = self._parts()
        return self.dropout_layer(self.gamma2(lean_mlp(x, up, down, True)))

    def _parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Linear, activation, linear."""
        return self.layers[0][0], self.layers[0][1], self.layers[1]

    def _is_plain(self) -> bool:
        """Whether it is as it was built, with no dropout at work."""
        inner, last = self.layers[0], self.layers[-1]
        containers = (self.layers, inner)
        if any(type(part) is not Sequential for part in containers):
            return False
        drops = (inner[-1], last)
        if (len(inner), len(self.layers)) != (3, 3) or not all(
            type(drop) is nn.Dropout and not (drop.training and drop.p)
            for drop in drops
        ):
            return False
        return all(is_plain(part, type(part)) for part in (*containers, *drops))


def _is_lean(x: Tensor, up: nn.Module, act: nn.Module, down: nn.Module) -> bool:
    """Whether the layers are torch's own, GELU between them, and run as called."""
    linears = (up, down)
    # mmcv's linear layers differ from torch's on tensors without elements only.
    plain = all(
        is_plain(n, type(n)) and type(n) in (nn.Linear, Linear) for n in linears
    )
    plain = plain and is_plain(act, nn.GELU) and act.approximate == 'none'
    plain = plain and not any(layer.bias is None for layer in linears)
    known = x.device.type in ('cpu', 'cuda')
    return plain and known and x.dim() > 1 and is_eager()


def lean_mlp(
    x: Tensor, up: nn.Module, down: nn.Module, keep_wide: bool = False
) -> Tensor:
    """Linear, GELU, linear: [..., in] -> [..., out].

    Only ``x`` is kept for the backward pass and, with ``keep_wide``, GELU's input.
    """
    dtype = autocast_dtype(x)
    parameters = (up.weight, up.bias, down.weight, down.bias)
    if torch.is_grad_enabled():
        # What is kept is as wide as the products take it.
        return _TwoLayers.apply(x.to(dtype), *parameters, dtype, keep_wide)
    return _two_layers(x, *parameters, dtype)


def _two_layers(x, weight1, bias1, weight2, bias2, dtype) -> Tensor:
    """Linear, GELU, linear, without gradient."""
    weight1, bias1, weight2, bias2 = (
        p.to(dtype) for p in (weight1, bias1, weight2, bias2)
    )
    with torch.autocast(x.device.type, enabled=False):
        # (B, tokens, C) -> (N, C)
        parts = _some_tokens(x.to(dtype).flatten(0, -2), len(weight1))
        parts = (linear_gelu(part, weight1, bias1) for part in parts)
        out = _joined([product(part, weight2, bias2) for part in parts])
    return out.unflatten(0, x.shape[:-1])


def _wide_and_out(x, weight1, bias1, weight2, bias2, dtype) -> tuple[Tensor, Tensor]:
    """GELU's input [N, wide] and the output, without gradient."""
    weight1, bias1, weight2, bias2 = (
        p.to(dtype) for p in (weight1, bias1, weight2, bias2)
    )
    with torch.autocast(x.device.type, enabled=False):
        wide = product(x.to(dtype).flatten(0, -2), weight1, bias1)
        parts = _some_tokens(wide, len(weight1))
        out = _joined([product(F.gelu(part), weight2, bias2) for part in parts])
    return wide, out.unflatten(0, x.shape[:-1])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _some_tokens(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Parts of [N, C] that are small when they are ``width`` wide; whole on a GPU."""
    if not is_for_cpu(x):
        return (x,)
    return x.chunk(max(-(-len(x) * width // WIDE), 1))


class _TwoLayers(torch.autograd.Function):
    """Linear, GELU, linear; the input is kept and, if asked for, GELU's input."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, dtype, keep_wide):
        args, wide = (x, weight1, bias1, weight2, bias2, dtype), None
        if keep_wide:
            wide, out = _wide_and_out(*args)
        else:
            out = _two_layers(*args)
        ctx.save_for_backward(x, weight1, bias1, weight2, wide)
        ctx.dtype = dtype
        return out

    @staticmethod
    def backward(ctx, grad):
        kept, weight1, bias1, weight2, wide = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Differentiated twice: as a function of what was given.
            wide = None
        for_x, *wanted = ctx.needs_input_grad[:5]
        x = kept.to(ctx.dtype).flatten(0, -2)
        bias1, down = bias1.to(ctx.dtype), weight2.to(ctx.dtype)
        up = weight1.to(ctx.dtype)
        grad = grad.flatten(0, -2).contiguous()
        # Parts are summed in float32 at least.
        exact = torch.promote_types(ctx.dtype, torch.float32)
        grads_x, grads = [], [None] * 4
        if wide is None:
            parts = zip(*(_some_tokens(n, len(up)) for n in (x, grad)))
        else:
            parts = [(x, grad)]
        for part, grad_part in parts:
            wide_part = product(part, up, bias1) if wide is None else wide
            inner = torch.ops.aten.gelu_backward(
                product(grad_part, down.t()), wide_part
            )
            found = (
                weight_gradient(inner, part) if wanted[0] else None,
                inner.sum(0) if wanted[1] else None,
                weight_gradient(grad_part, F.gelu(wide_part)) if wanted[2] else None,
                grad_part.sum(0) if wanted[3] else None,
            )
            found = [g if g is None else g.to(exact) for g in found]
            grads = [g if old is None else old.add_(g) for g, old in zip(found, grads)]
            if for_x:
                grads_x.append(product(inner, up.t()))
        grad_x = _joined(grads_x).unflatten(0, kept.shape[:-1]) if for_x else None
        grads = [g if g is None else g.to(weight1.dtype) for g in grads]
        return grad_x, *grads, None, None
