"""The tests by which the form of a kernel is chosen: by device and by mode.

Each function of this folder has a plain form, a few of torch's own operators, which
defines its result and which runs wherever nothing better is known:

- ``attend``: torch's flash kernel on a CPU; flash, cuDNN's or the memory-efficient one
  on a GPU; where torch has none, the plain form for some queries at a time.
- ``hidden_keys``: padded to a multiple of 8 on a CPU.
- ``constant``: what depends on sizes alone is kept, wherever operators run as they are
  called.
- ``linear``: oneDNN's product on a CPU in float32, else the plain form.
- ``LeanMLP``: on a CPU computed again in the backward pass, for some tokens at a time;
  elsewhere, and in ``LeanFFN``, what is wide is kept once, and not computed again.
- ``depthwise_pool``: channels last with gradients of its own on a CPU, else the plain
  form, channels first.
- ``max_pool``: in two dimensions, unless the windows reach over time.
- ``run_drop_path``: in one pass over the tokens, everywhere.

While ``torch.compile`` or ``torch.jit`` traces, and inside transforms of
``torch.func``, the plain forms run: those know torch's own operators only.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_compiling() -> bool:
    """Whether torch.compile or torch.jit is tracing."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_exporting() -> bool:
    """Whether torch.export is tracing, which needs each operator to be torch's own."""
    return getattr(torch.compiler, 'is_exporting', lambda: False)()


def is_transforming() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode
    differentiation is at work."""
    if is_compiling():
        return False
    active = getattr(torch._C, '_are_functorch_transforms_active', None)
    return getattr(forward_ad, '_current_level', -1) >= 0 or bool(active and active())


def is_eager() -> bool:
    """Whether operators run as they are called, with torch's usual gradients."""
    return not is_compiling() and not is_transforming()


def kind_of_device(x: Tensor) -> str:
    """'cpu', 'cuda', …, by which forms are chosen."""
    return x.device.type


def is_for_cpu(x: Tensor) -> bool:
    """Whether the forms that are made for a CPU take a tensor."""
    return kind_of_device(x) == 'cpu' and is_eager()


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a layer is torch's own and unchanged, so that its weights say it all.

    A layer is not plain if it has hooks, another class (adapters, parametrizations,
    quantized layers), a ``forward`` of its own or a weight that is more than a tensor.

    Args:
        layer (nn.Module): Any.
        kind (type): What it was built as.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    hooks = hooks or layer._backward_hooks or layer._backward_pre_hooks
    weight = getattr(layer, 'weight', None)
    tensor = type(weight) in (nn.Parameter, Tensor, type(None))
    return type(layer) is kind and tensor and not hooks and 'forward' not in vars(layer)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy what the host made to a device, without waiting for a GPU."""
    if device.type != 'cuda':
        return x.to(device)
    # What is not in order would be copied a second time, and waited for.
    return x.contiguous().pin_memory().to(device, non_blocking=True)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of a linear layer's input."""
    kind = x.device.type
    # Autocast does not know the 'meta' device.
    if x.dtype == torch.float64 or kind == 'meta':
        return x.dtype
    if not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)
