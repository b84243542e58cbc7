"""The random state of a process: of ``random``, ``numpy.random`` and torch."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of ``random``, ``numpy.random`` and torch (with this process's GPU).

    Plain numbers, lists and tensors, so that it loads with ``weights_only=True``.
    """
    version, numbers, gauss = random.getstate()
    _, keys, *numpy = np.random.get_state()
    state = dict(
        python=[version, list(numbers), gauss],
        numpy=[torch.from_numpy(keys.astype(np.int64)), *numpy],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    keys, *numpy = state['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *numpy))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
