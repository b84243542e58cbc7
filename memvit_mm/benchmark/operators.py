"""Where a run spends its time, by operator, from torch's profiler."""

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

# Matrix products and convolutions; the fused attention is both its products.
PRODUCTS = ('mm', 'addmm', 'bmm', 'baddbmm', 'linear', 'linear_pointwise')
ATTENTION = (
    'scaled_dot_product',
    # What these call on a GPU.
    'flash_attention',
    'efficient_attention',
    'cudnn_attention',
)
CONVOLUTIONS = ('convolution', 'conv_depthwise')


def profile_operators(run: Callable[[], None], device: str = 'cpu') -> dict[str, Any]:
    """Profile one run.

    Args:
        run (callable): What to run.
        device (str): Where it runs.

    Returns:
        dict: ``seconds`` of all operators; of them in ``products`` (matrix products,
        convolutions and the fused attention, forward and backward) and in
        ``attention`` (the fused one, part of them); ``ratio``, all by products;
        ``backends``, the attention kernels that ran, with how often; ``slowest``, a
        list of (operator, seconds, calls), slowest first.
    """
    # It says on the terminal that it starts and stops.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    activities = [ProfilerActivity.CPU]
    cuda = device.startswith('cuda')
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        run()
    times = []
    for event in profiler.key_averages():
        spent = _microseconds(event, cuda)
        if spent > 0 and event.key.startswith(('aten::', 'mkldnn', 'autograd::')):
            times.append((event.key, spent / 1e6, event.count))
    times.sort(key=lambda entry: -entry[1])
    total = sum(seconds for _, seconds, _ in times)
    attention = sum(s for name, s, _ in times if is_attention(name))
    products = sum(s for name, s, _ in times if is_product(name))
    return dict(
        seconds=total,
        products=products,
        attention=attention,
        ratio=total / products if products else float('inf'),
        backends={name: count for name, _, count in times if is_attention(name)},
        slowest=times,
    )


def is_product(name: str) -> bool:
    """Whether an operator is a matrix product, a convolution or fused attention.

    Examples:
        >>> [is_product(f'aten::{n}') for n in ('addmm', 'mkldnn_convolution', 'copy_')]
        [True, True, False]
    """
    name = name.split('::', 1)[-1].lstrip('_')
    named = name in PRODUCTS or any(part in name for part in CONVOLUTIONS)
    return named or is_attention(name)


def is_attention(name: str) -> bool:
    """Whether an operator is fused attention, forward or backward.

    Examples:
        >>> is_attention('aten::_flash_attention_backward')
        True
    """
    return any(part in name for part in ATTENTION)


def _microseconds(event: Any, cuda: bool) -> float:
    if not cuda:
        return event.self_cpu_time_total
    # Renamed in torch 2.4.
    if hasattr(event, 'self_device_time_total'):
        return event.self_device_time_total
    return event.self_cuda_time_total
