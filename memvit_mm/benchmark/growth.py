"""How the cost grows: with memories, frame size, streams in a batch, stream length."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

from memvit_mm.models.memory import ClipMemory
from memvit_mm.structures import Stream

from .case import Case, autocast, build_backbone, remembers
from .compare import MVIT, OURS, TWIN, backbones
from .complexity import clip_shape
from .processes import Result, measure, peak_bytes

MEMORIES = (0, 1, 2, 4, 8)
FRAME_SIZES = (112, 160, 224, 288)
STREAMS = (1, 2, 4, 8, 16, 32)


@dataclass
class Growth:
    """One column of cases, and what is varied."""

    axis: str
    results: dict[str, Result]
    unit: str = 'clip'

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: result.to_dict() for name, result in self.results.items()}
        return dict(axis=self.axis, results=found)

    def __str__(self) -> str:
        base = next(iter(self.results.values()))
        first = base.median / base.case.batch
        lines = [f'{self.axis:28}{"s / clip":>10}{"ratio":>7}{"clips/s":>9}{"MB":>8}']
        for name, result in self.results.items():
            each = result.median / result.case.batch
            lines.append(
                f'  {name:26}{each:10.3f}{each / first:7.2f}'
                f'{result.clips_per_second:9.2f}{result.peak_bytes / 2**20:8.0f}'
            )
        return '\n'.join(lines)


def _grow(axis: str, cases: Mapping[str, Case], repeats: int) -> Growth:
    named = [replace(case, name=f'{axis}: {name}') for name, case in cases.items()]
    return Growth(axis, dict(zip(cases, measure(named, repeats))))


def with_memories(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    counts: Sequence[int] = MEMORIES,
) -> Growth:
    """A forward pass that attends to 0, 1, 2, … memories, all filled."""
    chosen = backbones(cfg)
    cases = {}
    for count in counts:
        backbone = dict(chosen[OURS], memory_length=count) if count else chosen[TWIN]
        cases[f'{count} memories'] = replace(template, backbone=backbone)
    return _grow('number of memories', cases, repeats)


def with_frame_size(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    sizes: Sequence[int] = FRAME_SIZES,
) -> Growth:
    """A forward pass on larger frames: MMAction2's MViT and ours, memory full."""
    chosen = backbones(cfg)
    frames = clip_shape(cfg, template.size)[1]
    cases = {
        f'{size} x {size}, {name}': replace(
            template, backbone=chosen[name], size=(frames, size, size)
        )
        for size in sizes
        for name in (MVIT, OURS)
    }
    return _grow('frame size (pixels)', cases, repeats)


def with_streams(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    counts: Sequence[int] = STREAMS,
) -> Growth:
    """A forward pass on a clip of each of 1, 2, … streams together, memory full."""
    backbone = backbones(cfg)[OURS]
    cases = {
        f'{count} streams': replace(template, backbone=backbone, batch=count)
        for count in counts
    }
    return _grow('streams in a batch', cases, repeats)


@dataclass
class Length:
    """What clips cost along one stream."""

    parts: list[tuple[int, int, float, int]]
    """First clip, last clip, median seconds of a clip, resident bytes after it."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        keys = ('first', 'last', 'seconds', 'bytes')
        return dict(
            axis='stream length', results=[dict(zip(keys, p)) for p in self.parts]
        )

    def __str__(self) -> str:
        lines = [
            f'{"clips of one stream":28}{"s / clip":>10}{"ratio":>7}{"peak MB":>9}'
        ]
        base = self.parts[0][2]
        for first, last, seconds, size in self.parts:
            lines.append(
                f'  {f"{first} to {last}":26}{seconds:10.3f}{seconds / base:7.2f}'
                f'{size / 2**20:9.0f}'
            )
        return '\n'.join(lines)


def with_length(
    cfg: Mapping[str, Any], template: Case, clips: int = 60, parts: int = 4
) -> Length:
    """Clip after clip of one stream through a :class:`ClipMemory`, forward only.

    Args:
        cfg (dict): Config of a :class:`MeMViT`.
        template (Case): Size, device, dtype and threads.
        clips (int): Clips to run.
        parts (int): How many parts of the stream are told apart.
    """
    if template.threads is not None:
        torch.set_num_threads(template.threads)
    backbone = build_backbone(backbones(cfg)[OURS]).to(template.device).eval()
    x = torch.randn(1, *clip_shape(cfg, template.size), device=template.device)
    memory, seconds, found = ClipMemory(), [], []
    first = 0
    with autocast(template):
        run_clip(backbone, x, ClipMemory(), 0)
    parts = min(parts, clips)
    for number in range(clips):
        begin = time.perf_counter()
        with autocast(template):
            run_clip(backbone, x, memory, number)
        seconds.append(time.perf_counter() - begin)
        if number + 1 == clips * (len(found) + 1) // parts:
            median = statistics.median(seconds[first:])
            found.append((first, number, median, peak_bytes(template.device)))
            first = number + 1
    return Length(found)


def run_clip(
    backbone: torch.nn.Module,
    x: torch.Tensor,
    memory: ClipMemory,
    number: int,
    stream: Optional[Stream] = None,
) -> Any:
    """Features of one clip [1, C, T, H, W] of a stream, which is then remembered."""
    with torch.no_grad():
        if not remembers(backbone):
            return backbone(x)
        step = memory.step([stream or Stream('stream')], [number])
        features, written = backbone(
            x, memory=step.read(backbone.memory_specs(x.shape[-3:]), like=x)
        )
        step.write(written)
        step.commit()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return features
