#!/usr/bin/env python
"""How cost grows: with memories, frame size, streams in a batch, stream length.

python tests/reference/measure_growth.py configs/memvit_ava.py
python tests/reference/measure_growth.py configs/memvit_ava.py --tables streams
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
# The checkout's package, where none is installed.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from _common import add_cfg_options, read_config, run

from memvit_mm.benchmark.compare import BASELINE, OURS, THEIRS, backbones
from memvit_mm.benchmark.complexity import clip_shape
from memvit_mm.benchmark.measure import Case, Result, Table, measure, peak_bytes
from memvit_mm.benchmark.receptive_field import build_model, feed


def with_memories(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    counts: Sequence[int] = (0, 1, 2, 4, 8),
) -> Table:
    """A forward pass that attends to 0, 1, 2, … memories, all filled."""
    chosen = backbones(cfg)
    cases = {}
    for count in counts:
        backbone = chosen[BASELINE]
        if count:
            backbone = dict(chosen[OURS], memory_length=count)
        cases[f'{count} memories'] = replace(template, backbone=backbone)
    return _table('number of memories', cases, repeats)


def with_frame_size(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    sizes: Sequence[int] = (112, 160, 224, 288),
) -> Table:
    """A forward pass on larger frames: MMAction2's MViT and ours, memory full."""
    chosen = backbones(cfg)
    frames = clip_shape(chosen[OURS], template.size)[1]
    cases = {
        f'{size} x {size}, {name}': replace(
            template, backbone=chosen[name], size=(frames, size, size)
        )
        for size in sizes
        for name in (THEIRS, OURS)
    }
    return _table('frame size (pixels)', cases, repeats)


def with_streams(
    cfg: Mapping[str, Any],
    template: Case,
    repeats: int = 3,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
) -> Table:
    """A forward pass on a clip of each of 1, 2, … streams together, memory full."""
    backbone = backbones(cfg)[OURS]
    cases = {
        f'{count} streams': replace(template, backbone=backbone, batch=count)
        for count in counts
    }
    return _table('streams in a batch', cases, repeats)


def _table(title: str, cases: Mapping[str, Case], repeats: int) -> Table:
    named = [replace(case, name=f'{title}: {name}') for name, case in cases.items()]
    return Table(title, dict(zip(cases, measure(named, repeats))))


def with_length(
    cfg: Mapping[str, Any], template: Case, clips: int = 60, parts: int = 4
) -> Table:
    """Clip after clip of one stream through the whole model, without gradient.

    Args:
        cfg (Config): A config with ``model``.
        template (Case): Size, device, dtype and threads.
        clips (int): Clips to run.
        parts (int): How many parts of the stream are told apart.

    Raises:
        ValueError: If the model has no memory.
    """
    if template.threads is not None:
        torch.set_num_threads(template.threads)
    model = build_model(cfg).to(template.device)
    shape = clip_shape(cfg['model']['backbone'], template.size)
    clip = torch.randn(1, *shape, device=template.device)
    with template.autocast():
        feed(model, clip, 0)
    model.reset_memory()
    parts = min(parts, clips)
    ends = [clips * (part + 1) // parts for part in range(parts)]
    rows, result = {}, Result(template)
    for number in range(clips):
        wall, cpu = time.perf_counter(), time.process_time()
        with template.autocast():
            feed(model, clip, number)
        if clip.is_cuda:
            torch.cuda.synchronize(template.device)
        result.seconds.append(time.perf_counter() - wall)
        result.cpu_seconds.append(time.process_time() - cpu)
        if number + 1 in ends:
            result.peak_bytes = peak_bytes(template.device)
            rows[f'{number + 1 - len(result.seconds)} to {number}'] = result
            result = Result(template)
    return Table('clips of one stream', rows)


def parse_args():
    parser = argparse.ArgumentParser(description='Measure how the cost grows')
    parser.add_argument('config', help='config file of a MeMViT model')
    tables = ('memories', 'frames', 'streams', 'length')
    parser.add_argument('--tables', nargs='+', choices=tables, default=tables)
    parser.add_argument('--repeats', type=int, default=3, help='measured runs of each')
    parser.add_argument('--clips', type=int, default=60, help='length: of the stream')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 …')
    parser.add_argument('--threads', type=int, help="of torch (default: torch's)")
    add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = read_config(args)
    backbone = cfg.model.backbone
    case = Case('growth', backbone, device=args.device, threads=args.threads)
    grow = dict(memories=with_memories, frames=with_frame_size, streams=with_streams)
    for name in args.tables:
        if name == 'length':
            table = with_length(cfg, case, args.clips)
        else:
            table = grow[name](backbone, case, args.repeats)
        print(f'\n{table}', flush=True)


if __name__ == '__main__':
    run(main)
