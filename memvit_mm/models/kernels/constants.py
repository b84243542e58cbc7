"""Tensors that depend on sizes alone: made once, and not in every layer and step.

A GPU waits for the launches of many small kernels longer than they take.
"""

from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .choice import is_eager, is_exporting

# The constants that are kept of one kind: a model has up to 11 for a size of frames.
KEPT = 128


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep what a function makes of sizes, a device and a dtype.

    Nothing is kept while torch traces or transforms: then the function is called.

    Args:
        make (callable): Takes hashable arguments, and ``device`` and ``dtype`` by name.
            Nobody may change what it returns.
    """

    @lru_cache(maxsize=KEPT)
    def kept(*args, **kwargs) -> Tensor:
        # Those made in inference mode could take no part in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            made = make(*args, **kwargs)
        # Products with it only move numbers; who counts the others can tell.
        made.is_constant = True
        return made

    @wraps(make)
    def get(*args, device: torch.device, dtype: torch.dtype) -> Tensor:
        if is_exporting():
            # The graph gets the numbers, not the steps that make them.
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                return kept(*args, device=device, dtype=dtype)
        run = kept if is_eager() and not _without_numbers() else make
        return run(*args, device=device, dtype=dtype)

    return get


def _without_numbers() -> bool:
    """Whether tensors are made that have no numbers, or not before a graph is run."""
    modes = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    traced = any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    return traced or capturing
