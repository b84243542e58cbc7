"""MLPs that keep none of their wide tensors for the backward pass."""

import torch
import torch.nn.functional as F
from mmaction.models.backbones.mvit import MLP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .choice import autocast_dtype, is_eager, is_plain
from .onednn import choose_linear

# Numbers of a wide tensor that are computed at once on a CPU, so that they stay in the
# cache.
WIDE = 2**21


class LeanMLP(MLP):
    """MMAction2's MLP, its plain form, with activation checkpointing.

    What is wide is computed again from the input: a seventh product beside the six of
    training. It takes 8 % of the time of a MeMViT-16 training step for 17 % of its peak
    memory (one clip, AMD EPYC, Zen 4).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, in] -> [B, tokens, out]."""
        plain = (
            is_plain(self.fc1) and is_plain(self.fc2) and is_plain(self.act, nn.GELU)
        )
        plain = plain and self.act.approximate == 'none' and x.dim() > 1
        if not plain or not is_eager():
            return super().forward(x)
        layers = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        parts = [x]
        # Not in less than float32: the weights' gradients are summed over the parts.
        if x.device.type == 'cpu' and autocast_dtype(x) == torch.float32:
            wide = x.shape[:-1].numel() * self.fc1.out_features
            parts = x.chunk(max(-(-wide // WIDE), 1), dim=-2)
        outs = []
        for part in parts:
            # The backward pass repeats what is passed here: the weights may be borrowed
            # (torch.func.functional_call), and another mode may be on by then.
            args = part, *layers, choose_linear(part, self.fc1.weight)
            if torch.is_grad_enabled():
                outs.append(checkpoint(_two_layers, *args, **WITHOUT_DRAWS))
            else:
                outs.append(_two_layers(*args))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-2)


def _two_layers(x, weight1, bias1, weight2, bias2, linear) -> Tensor:
    """The plain form, with the function that computes its products."""
    return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)


# There is no dropout here whose random numbers would have to be drawn again.
WITHOUT_DRAWS = dict(use_reentrant=False, preserve_rng_state=False)
