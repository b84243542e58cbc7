"""What a process of a training run knows besides weights: random numbers, gradients."""

import random
from collections.abc import Iterable
from typing import Any, Optional

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import OptimWrapper
from torch import Tensor


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


def pending_gradients(
    optim_wrapper: Any, parameters: Iterable[Tensor]
) -> Optional[list[Optional[Tensor]]]:
    """Gradients that wait for the rest of an accumulation, else None."""
    if not isinstance(optim_wrapper, OptimWrapper) or optim_wrapper.should_update():
        return None
    return [p.grad.cpu() if p.grad is not None else None for p in parameters]


def set_gradients(
    gradients: list[Optional[Tensor]], parameters: Iterable[Tensor]
) -> None:
    """Put back what :func:`pending_gradients` gave."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)


def mean_gradients(
    ranks: list[list[Optional[Tensor]]],
) -> list[Optional[Tensor]]:
    """The mean over ranks, which is what one step of all of them would apply."""
    return [
        None if any(g is None for g in each) else torch.stack(list(each)).mean(0)
        for each in zip(*ranks)
    ]


def gather_on_first(state: Any) -> Optional[list[Any]]:
    """Every rank's object, in order, on rank 0; None on the others.

    All ranks must call it. It goes over gloo, through RAM, so that NCCL needs no
    copy of it on the GPUs.
    """
    if get_world_size() == 1:
        return [state]
    states = [None] * get_world_size() if get_rank() == 0 else None
    dist.gather_object(state, states, dst=0, group=_cpu_group())
    return states


def prepare_to_gather() -> None:
    """Connect the processes now rather than at the first checkpoint, hours later."""
    if get_world_size() > 1:
        _cpu_group()


def _cpu_group() -> Any:
    if dist.get_backend() == 'gloo':
        return None
    if _GROUPS.get('world') is not dist.group.WORLD:
        _GROUPS.update(world=dist.group.WORLD, gloo=dist.new_group(backend='gloo'))
    return _GROUPS['gloo']


_GROUPS: dict[str, Any] = {}
