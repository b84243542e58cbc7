#!/usr/bin/env python
"""What each of the parts that make the model fast gains, and where the time goes.

python tests/reference/measure_parts.py configs/memvit_ava.py --threads 1
python tests/reference/measure_parts.py configs/memvit_ava.py --threads 2 --profile

The first: every part against plain PyTorch, summed over the layers. The second: a
forward pass and a training step of MMAction2's MViT and of ours, by operator.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
# The checkout's package, where none is installed.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from _common import add_cfg_options, read_config, run

from memvit_mm.benchmark.compare import NAMES, OURS, THEIRS, backbones
from memvit_mm.benchmark.complexity import clip_shape
from memvit_mm.benchmark.measure import Case, build_backbone, prepare
from memvit_mm.models.attention import MemoryAttention, pooled_size
from memvit_mm.models.kernels import LeanMLP, linear
from memvit_mm.models.kernels.pooling import (
    depthwise_pool,
    max_pool,
    plain_convolution,
    planes_of,
)
from memvit_mm.models.relative_position import folded_attention

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


Run = Callable[[], Tensor]


@dataclass
class Part:
    """One part, summed over all layers of a model."""

    name: str
    seconds: dict[str, tuple[float, float]]
    """Of 'forward' and 'training' (forward and backward): the plain way's, ours."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as numbers, lists and dicts."""
        found = {
            kind: dict(plain=plain, ours=ours, ratio=ours / plain)
            for kind, (plain, ours) in self.seconds.items()
        }
        return dict(name=self.name, **found)


@dataclass
class Parts:
    """All parts."""

    parts: list[Part]

    def to_dict(self) -> dict[str, Any]:
        """The figures as numbers, lists and dicts."""
        return dict(parts=[part.to_dict() for part in self.parts])

    def __str__(self) -> str:
        lines = [f'{"seconds: plain, ours, ratio":40}{"forward":>24}{"training":>26}']
        for part in self.parts:
            line = f'  {part.name:38}'
            for plain, ours in part.seconds.values():
                line += f'{plain:9.3f}{ours:9.3f}{ours / plain:6.2f}  '
            lines.append(line)
        return '\n'.join(lines)


def measure_parts(cfg: Mapping[str, Any], template: Case, repeats: int = 3) -> Parts:
    """Time the parts of a backbone's layers against the plain way, in turn.

    Args:
        cfg (dict): Config of a :class:`MeMViT`.
        template (Case): Size, batch, device and threads.
        repeats (int): Measured runs of each; medians count.
    """
    if template.threads is not None:
        torch.set_num_threads(template.threads)
    torch.manual_seed(0)
    backbone = build_backbone(backbones(cfg)[OURS]).to(template.device).train()
    sums: dict[str, dict[str, list[float]]] = {}
    size = pooled_size(
        clip_shape(cfg, template.size)[1:], backbone.patch_embed.projection
    )
    for block in backbone.blocks:
        x = torch.randn(
            template.batch,
            size[0] * size[1] * size[2],
            block.attn.q.in_features if block.attn.pool_first else block.attn.out_dims,
            device=template.device,
        )
        for name, plain, ours, leaves in _pairs(block, x, size):
            found = _times(plain, ours, leaves, repeats)
            kinds = sums.setdefault(name, {})
            for kind, pair in found.items():
                total = kinds.setdefault(kind, [0.0, 0.0])
                kinds[kind] = [a + b for a, b in zip(total, pair)]
        size = pooled_size(size, block.attn.pool_q)
    return Parts(
        [
            Part(name, {k: tuple(v) for k, v in kinds.items()})
            for name, kinds in sums.items()
        ]
    )


def _pairs(block: nn.Module, x: Tensor, size: tuple):
    """(name, the plain way, ours, leaves) of the parts of one block."""
    x.requires_grad_()
    attn, heads = block.attn, block.attn.num_heads
    convs = (attn.pool_q, attn.pool_k, attn.pool_v)

    def pool_plain() -> Tensor:
        grid = x.unflatten(1, size)
        return sum(
            plain_convolution(
                planes_of(grid, heads), c.weight, heads, c.stride, c.padding
            ).sum()
            for c in convs
        )

    def pool_ours() -> Tensor:
        return sum(depthwise_pool(x, size, c, heads)[0].sum() for c in convs)

    yield (
        'pooling, channels last',
        pool_plain,
        pool_ours,
        [x, *(c.weight for c in convs)],
    )

    tensors = _attention_inputs(attn, x, size)
    yield (
        'attention without scores',
        lambda: _plain_attention(*tensors),
        lambda: folded_attention(*tensors),
        list(tensors),
    )
    if block.pool_skip is not None:
        yield (
            'max-pooling, channels last',
            lambda: block.pool_skip(x.transpose(1, 2).unflatten(2, size)),
            lambda: max_pool(x, size, block.pool_skip),
            [x],
        )
    mlp: LeanMLP = block.mlp
    tokens = torch.randn(
        x.shape[0],
        _count(pooled_size(size, attn.pool_q)),
        mlp.fc1.in_features,
        device=x.device,
        requires_grad=True,
    )
    weight, bias = attn.proj.weight, attn.proj.bias
    inputs = tokens[..., : weight.shape[1]]
    if inputs.shape[-1] == weight.shape[1]:
        yield (
            'linear layers',
            lambda: F.linear(inputs, weight, bias),
            lambda: linear(inputs, weight, bias),
            [tokens, weight, bias],
        )
    yield (
        'MLPs, which keep their input alone',
        lambda: super(LeanMLP, mlp).forward(tokens),
        lambda: mlp(tokens),
        [tokens, *mlp.parameters()],
    )


def _attention_inputs(attn: MemoryAttention, x: Tensor, size: tuple) -> tuple:
    """q, k, v and the extra channels of queries and keys, of the layer's sizes."""
    queries = _count(pooled_size(size, attn.pool_q))
    k_size = pooled_size(size, attn.pool_k)
    keys, extra = _count(k_size), sum(k_size) - 2
    if attn.ages:
        m_size = attn.level_grid(0, k_size)
        clips = len(attn.levels[0].ages)
        keys += clips * _count(m_size)
        extra += clips * m_size[0] + m_size[1] + m_size[2] - 1
    shape, channels = (x.shape[0], attn.num_heads), attn.out_dims // attn.num_heads

    def made(tokens: int, width: int) -> Tensor:
        made = torch.randn(*shape, tokens, width, device=x.device)
        return made.requires_grad_()

    return (
        *(made(n, channels) for n in (queries, keys, keys)),
        made(queries, extra),
        torch.randn(keys, extra, device=x.device),
    )


def _plain_attention(q, k, v, q_extra, k_extra) -> Tensor:
    """The formula, with its scores and bias of queries x keys."""
    scores = q @ k.transpose(-2, -1) + q_extra @ k_extra.transpose(-2, -1)
    return (scores * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def _count(size: tuple) -> int:
    return size[0] * size[1] * size[2]


def _times(plain: Run, ours: Run, leaves: list[Tensor], repeats: int) -> dict:
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    # On a CPU the time of all cores: barely moved by what else the machine does.
    clock = time.perf_counter if leaves[0].is_cuda else time.process_time
    times: dict[str, list[list[float]]] = dict(forward=[[], []], training=[[], []])
    for number in range(repeats + 1):
        for way, step in enumerate((plain, ours)):
            for kind in times:
                begin = clock()
                with torch.set_grad_enabled(kind == 'training'):
                    out = step()
                if kind == 'training':
                    torch.autograd.grad(out.sum(), leaves)
                if leaves[0].is_cuda:
                    torch.cuda.synchronize(leaves[0].device)
                if number > 0:
                    times[kind][way].append(clock() - begin)
    return {
        kind: [statistics.median(way) for way in ways] for kind, ways in times.items()
    }


def profile_operators(step: Callable[[], None], device: str = 'cpu') -> dict[str, Any]:
    """Profile one run.

    Args:
        step (callable): What to run.
        device (str): Where it runs.

    Returns:
        dict: ``seconds`` of all operators; of them in ``products`` (matrix products,
        convolutions and the fused attention, forward and backward) and in
        ``attention`` (the fused one, part of them); ``ratio``, all by products;
        ``backends``, the attention kernels that ran, with how often; ``slowest``, a
        list of (operator, seconds, calls), slowest first.
    """
    # Else it says on the terminal that it starts and stops.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    activities = [ProfilerActivity.CPU]
    cuda = device.startswith('cuda')
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
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
    return event.self_device_time_total if cuda else event.self_cpu_time_total


def parse_args():
    parser = argparse.ArgumentParser(description='Measure the parts of a backbone')
    parser.add_argument('config', help='config file of a MeMViT model')
    parser.add_argument(
        '--profile',
        type=int,
        nargs='?',
        const=12,
        metavar='N',
        help='the N slowest operators, and the share of matrix products (default: 12)',
    )
    parser.add_argument('--repeats', type=int, default=3, help='measured runs of each')
    parser.add_argument('--batch', type=int, default=1, help='clips at once')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 …')
    parser.add_argument('--threads', type=int, help="of torch (default: torch's)")
    add_cfg_options(parser)
    return parser.parse_args()


def profile_all(cfg: Mapping[str, Any], template: Case, count: int) -> None:
    """Print where the time of MMAction2's MViT and of ours goes."""
    for name, backbone in backbones(cfg).items():
        for training in (False, True) if name in (THEIRS, OURS) else ():
            step = prepare(replace(template, backbone=backbone, training=training))
            step()
            found = profile_operators(step, template.device)
            kind = 'forward + backward' if training else 'forward'
            ratio = f'whole / products {found["ratio"]:.2f}'
            print(
                f'\n{NAMES[name].format(backbone["type"])}, {kind}: {ratio}; '
                f'attention {found["backends"]}'
            )
            for operator, seconds, calls in found['slowest'][:count]:
                print(f'  {operator:56}{seconds * 1e3:9.1f} ms{calls:7d} calls')


def main():
    args = parse_args()
    backbone = read_config(args).model.backbone
    case = Case(
        'parts',
        backbone,
        batch=args.batch,
        device=args.device,
        threads=args.threads,
    )
    if args.profile:
        profile_all(backbone, case, args.profile)
    else:
        print(measure_parts(backbone, case, args.repeats))


if __name__ == '__main__':
    run(main)
