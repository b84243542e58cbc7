#!/usr/bin/env python
"""What memory costs: its upkeep in a training step, and whether it stays flat.

python tests/reference/measure_memory.py configs/memvit_ava.py
python tests/reference/measure_memory.py --flat

The first: the share of a training step (forward, backward, optimizer) that look-up,
write and reset of the memory take, with the memory full. Plain and instrumented steps
take turns; the figures are medians. The second: memory and RAM over many clips of many
streams, in training and at test, with a small model.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
from _common import add_cfg_options, import_package, run

# Upkeep's largest share of a training step; growth of RAM that is still flat, in MB.
SHARE_LIMIT, RAM_LIMIT = 0.02, 4
FLAT_CONFIG = 'memvit_demo.py'
# A model small enough for ten thousand clips.
FLAT_OPTIONS = {
    'model.backbone.arch.num_layers': 2,
    'model.backbone.arch.embed_dims': 8,
    'model.backbone.spatial_size': 16,
    'model.backbone.temporal_size': 4,
    'model.roi_head.shared_head.in_channels': 16,
    'model.roi_head.shared_head.max_actors': 100,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.test_cfg.one_by_one': False,
}


def parse_args():
    parser = argparse.ArgumentParser(description='Measure what memory costs')
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument(
        '--flat', action='store_true', help='watch memory and RAM over many clips'
    )
    parser.add_argument(
        '--batch-size', type=int, nargs='+', default=[1, 2], metavar='N'
    )
    parser.add_argument(
        '--steps', type=int, default=7, help='steps of each kind (default: 7)'
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, bfloat16')
    parser.add_argument('--clips', type=int, default=10000, help='for --flat')
    parser.add_argument('--streams', type=int, default=300, help='for --flat')
    parser.add_argument('--max-streams', type=int, default=32, help='for --flat')
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file')
    add_cfg_options(parser)
    return parser.parse_args()


def build(config: str, options: Optional[dict]):
    """The model of a config, on the GPU if there is one, and its config."""
    import torch
    from mmaction.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from memvit_mm.models import ClipMemory

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if not isinstance(getattr(model, 'memory', None), ClipMemory):
        raise ValueError(
            f'{config} is of a {type(model).__name__}, which has no memory to measure: '
            'name a config of MemoryFastRCNN or MemoryRecognizer3D.'
        )
    return model.to('cuda' if torch.cuda.is_available() else 'cpu'), cfg


class Clips:
    """Random clips and samples of the form that a model takes."""

    def __init__(self, model) -> None:
        import torch

        self.detects = hasattr(model, 'roi_head')
        head = model.roi_head.bbox_head if self.detects else model.cls_head
        self.classes = head.num_classes
        self.size = list(model.backbone.clip_size)
        self.pixels = torch.randint(0, 256, (3, *self.size), dtype=torch.uint8)

    def batch(self, streams: list[str], times: list[int]) -> dict:
        """What a dataloader gives: one clip of each stream."""
        import torch
        from mmaction.structures import ActionDataSample
        from mmengine.structures import InstanceData

        samples = []
        side = float(min(self.size[1:]))
        for stream, moment in zip(streams, times):
            boxes = side * torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.4, 0.2, 0.9, 0.8]])
            labels = torch.zeros(2, self.classes)
            labels[:, 1] = 1
            sample = ActionDataSample().set_gt_label(moment % self.classes)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
            sample.proposals = InstanceData(bboxes=boxes.clone())
            shape = tuple(self.size[1:])
            sample.set_metainfo(
                dict(video_id=stream, timestamp=moment, img_shape=shape)
            )
            samples.append(sample)
        clip = self.pixels if self.detects else self.pixels[None]
        return dict(inputs=[clip] * len(streams), data_samples=samples)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def stop_watch(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds that the memory's methods take."""
    from memvit_mm.models.memory.clip_memory import ClipMemory
    from memvit_mm.models.memory.step import MemoryStep

    methods = [
        (ClipMemory, 'step', 'look-up'),
        (MemoryStep, 'read', 'look-up'),
        (MemoryStep, 'write', 'write'),
        (MemoryStep, 'commit', 'write'),
        (ClipMemory, 'reset', 'reset'),
    ]

    def timed(method: Callable, part: str) -> Callable:
        def call(*args, **kwargs):
            synchronize()
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                synchronize()
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - begin

        return call

    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in methods]
    for owner, name, part in methods:
        setattr(owner, name, timed(getattr(owner, name), part))
    try:
        yield
    finally:
        for owner, name, method in plain:
            setattr(owner, name, method)


def measure_upkeep(model, cfg, batch_size: int, steps: int, amp: bool) -> dict:
    """Median seconds of a training step and of what memory's upkeep takes of it.

    Args:
        model (MemoryFastRCNN | MemoryRecognizer3D): In training.
        cfg (Config): With ``optim_wrapper``.
        batch_size (int): Streams, one clip of each a step.
        steps (int): Steps that are timed, of each kind.
        amp (bool): Mixed precision.
    """
    import torch
    from mmengine.optim import build_optim_wrapper

    wrapper = dict(cfg.get('optim_wrapper') or dict(optimizer=dict(type='SGD', lr=0)))
    # Of what is measured, nothing depends on the weights: they stay as they are.
    wrapper['optimizer'] = dict(wrapper['optimizer'], lr=0.0)
    if amp:
        wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    wrapper = build_optim_wrapper(model, wrapper)
    clips, memory = Clips(model), model.train().memory
    streams = [f'video{row}' for row in range(batch_size)]
    memory.reset()
    moment = 0

    def step() -> float:
        nonlocal moment
        data = clips.batch(streams, [moment] * batch_size)
        moment += 1
        synchronize()
        begin = time.perf_counter()
        model.train_step(data, wrapper)
        synchronize()
        return time.perf_counter() - begin

    # Full is what no more clip makes larger.
    size = -1
    while memory.num_bytes > size:
        size = memory.num_bytes
        with torch.no_grad():
            data = model.data_preprocessor(
                clips.batch(streams, [moment] * batch_size), training=True
            )
            model(**data, mode='loss')
        moment += 1
    step()
    totals, parts = [], []
    for _ in range(steps):
        totals.append(step())
        spent: dict[str, float] = {}
        with stop_watch(spent):
            step()
            kept = memory.state_dict()
            memory.reset()
        memory.load_state_dict(kept)
        parts.append(spent)
    result = dict(
        batch_size=batch_size,
        step=statistics.median(totals),
        memory_bytes=size,
        **{
            part: statistics.median(spent[part] for spent in parts)
            for part in ('look-up', 'write', 'reset')
        },
    )
    upkeep = sum(result[part] for part in ('look-up', 'write', 'reset'))
    return dict(result, share=upkeep / result['step'])


def resident() -> float:
    """RAM of this process, in MB."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def watch(model, clips: int, streams: int, rows: int = 8, parts: int = 10) -> list:
    """Memory and RAM while many streams begin and end.

    Training steps and tests take turns. Twice as many streams as rows are going on at
    any time; those that have ended stay until others need their place.

    Args:
        model (MemoryFastRCNN | MemoryRecognizer3D): A small one.
        clips (int): How many, over all streams.
        streams (int): How many, over all clips.
        rows (int): Clips per step.
        parts (int): How often to report.

    Returns:
        list[dict]: ``clips``, ``streams`` (begun so far), ``kept`` (streams in the
        memory), ``memory`` (largest since the last report, bytes) and ``ram`` (MB).
    """
    import torch

    source = Clips(model)
    order = torch.Generator().manual_seed(0)
    active, begun, done, reports = {}, 0, 0, []
    length = clips / streams
    largest = 0
    while done < clips:
        while len(active) < 2 * rows and begun < streams:
            active[f'stream{begun}'] = 0
            begun += 1
        names = list(active)
        chosen = torch.randperm(len(names), generator=order)[: min(rows, clips - done)]
        names = [names[number] for number in chosen.tolist()]
        batch = source.batch(names, [active[name] for name in names])
        training = done // rows % 2 == 0
        model.train(training)
        data = model.data_preprocessor(batch, training=training)
        if training:
            losses = model(**data, mode='loss')
            sum(loss for name, loss in losses.items() if 'loss' in name).backward()
            model.zero_grad()
        else:
            with torch.no_grad():
                model(**data, mode='predict')
        for name in names:
            active[name] += 1
            if active[name] >= length and begun < streams:
                del active[name]
        done += len(names)
        largest = max(largest, model.memory.num_bytes)
        if done * parts // clips > len(reports):
            reports.append(
                dict(
                    clips=done,
                    streams=begun,
                    kept=len(model.memory),
                    memory=largest,
                    ram=resident(),
                )
            )
            largest = 0
    return reports


def is_flat(reports: list[dict], max_streams: int) -> bool:
    """Whether nothing grew once the memory was full."""
    full = [report for report in reports if report['kept'] >= max_streams]
    return (
        len(full) > 1
        and all(report['kept'] <= max_streams for report in full)
        and full[-1]['memory'] <= 1.01 * full[0]['memory']
        and full[-1]['ram'] - full[0]['ram'] <= RAM_LIMIT
    )


def report_upkeep(args) -> tuple[list[dict], bool]:
    """Measure and print the share of a training step, per batch size."""
    import torch

    model, cfg = build(args.config, args.cfg_options)
    device = next(model.parameters()).device
    place = f'{torch.get_num_threads()} CPU threads'
    if device.type == 'cuda':
        place = torch.cuda.get_device_name()
    kind = 'bfloat16' if args.amp else 'float32'
    print(f'{args.config}, {kind}, {place}, torch {torch.__version__}')
    line = '{:>5} {:>10} {:>12} {:>11} {:>9} {:>9} {:>7}'
    heads = 'batch', 'step, ms', 'look-up, ms', 'write, ms', 'reset, ms', 'memory', ''
    print(line.format(*heads))
    rows = []
    for batch_size in args.batch_size:
        row = measure_upkeep(model, cfg, batch_size, args.steps, args.amp)
        rows.append(row)
        times = [row[part] * 1000 for part in ('step', 'look-up', 'write', 'reset')]
        print(
            line.format(
                batch_size,
                f'{times[0]:.1f}',
                *(f'{value:.2f}' for value in times[1:]),
                f'{row["memory_bytes"] / 2**20:.1f} MB',
                f'{row["share"]:.2%}',
            ),
            flush=True,
        )
    good = all(row['share'] <= SHARE_LIMIT for row in rows)
    print(
        f'Upkeep is {"under" if good else "OVER"} {SHARE_LIMIT:.0%} of a training step.'
    )
    return rows, good


def report_flat(args) -> tuple[list[dict], bool]:
    """Watch and print memory and RAM over many clips."""
    from memvit_mm.paths import get_config_path

    config = args.config or get_config_path(FLAT_CONFIG)
    options = {} if args.config else dict(FLAT_OPTIONS)
    options['model.memory.max_streams'] = args.max_streams
    model, _ = build(config, {**options, **(args.cfg_options or {})})
    begin = time.time()
    rows = watch(model, args.clips, args.streams)
    line = '{:>7} {:>8} {:>6} {:>14} {:>9}'
    print(line.format('clips', 'streams', 'kept', 'memory, bytes', 'RAM, MB'))
    for row in rows:
        numbers = [row[name] for name in ('clips', 'streams', 'kept', 'memory')]
        print(line.format(*numbers, f'{row["ram"]:.1f}'))
    good = is_flat(rows, args.max_streams)
    print(f'{"Flat" if good else "NOT flat"} ({time.time() - begin:.0f} s).')
    return rows, good


def main():
    args = parse_args()
    if args.config is None and not args.flat:
        raise ValueError('Name a config whose upkeep is to be measured, or --flat.')
    if args.config is not None and not os.path.isfile(args.config):
        raise FileNotFoundError(f'There is no config file {args.config}.')
    if args.flat and not args.streams > args.max_streams >= 16:
        raise ValueError(
            f'--streams {args.streams} must be more than --max-streams '
            f'{args.max_streams}, and that at least 16, the streams that go on at once.'
        )
    for name, least in (('steps', 1), ('clips', 200), ('streams', 17)):
        if getattr(args, name) < least:
            raise ValueError(
                f'--{name} {getattr(args, name)} must be at least {least}.'
            )
    if min(args.batch_size) < 1:
        raise ValueError(f'--batch-size {min(args.batch_size)} must be at least 1.')
    import_package()
    from mmengine.logging import MMLogger

    MMLogger.get_instance('measure_memory').setLevel('ERROR')
    rows, good = (report_flat if args.flat else report_upkeep)(args)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(rows, file, indent=1)
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    run(main)
