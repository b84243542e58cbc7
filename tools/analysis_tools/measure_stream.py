"""Measure streams: memory over hours, and many streams against one by one.

python tools/analysis_tools/measure_stream.py memory --hours 3
python tools/analysis_tools/measure_stream.py speed --streams 8 --device cuda

Frames and model are made up: no data and no checkpoint are needed.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run


def parse_args():
    parser = argparse.ArgumentParser(description='Measure streams')
    parser.add_argument('what', choices=['memory', 'speed'])
    parser.add_argument(
        '--hours', type=float, default=3.0, help='memory: length of the stream'
    )
    parser.add_argument(
        '--fps', type=float, default=30.0, help='frames per second of the streams'
    )
    parser.add_argument(
        '--streams', type=int, default=8, help='speed: number of streams'
    )
    parser.add_argument(
        '--seconds', type=float, default=20.0, help='speed: length of each stream'
    )
    parser.add_argument(
        '--config',
        help='speed: another recognizer, without weights, than the small one',
    )
    parser.add_argument(
        '--repeat', type=int, default=3, help='speed: number of runs (default: 3)'
    )
    parser.add_argument('--device', default='cpu', help='speed: where the model runs')
    args = parser.parse_args()
    for name in ('hours', 'fps', 'seconds', 'streams', 'repeat'):
        if not getattr(args, name) > 0:
            parser.error(f'--{name} must be above 0, got {getattr(args, name)}')
    return args


def frames(count: int, size: tuple = (48, 64)) -> Iterator:
    """Frames [H, W, 3] in which something moves."""
    import numpy as np

    wide = np.random.RandomState(0).randint(0, 255, (size[0], 512, 3), dtype=np.uint8)
    for number in range(count):
        yield np.roll(wide, -number, axis=1)[:, : size[1]].copy()


def build(config=None, together: bool = False, max_streams: int = 64):
    """A config's model without weights; by default that of memvit_demo_epic_cls.py.

    With ``together``, rows of a batch run at once on a CPU, too.
    """
    from mmaction.apis import init_recognizer
    from mmengine.config import Config

    from memvit_mm.paths import get_config_path

    cfg = Config.fromfile(config or get_config_path('memvit_demo_epic_cls.py'))
    cfg.model.memory = dict(type='ClipMemory', max_streams=max_streams)
    cfg.model.test_cfg = dict(cfg.model.get('test_cfg') or {}, one_by_one=not together)
    return init_recognizer(cfg, device='cpu')


def resident() -> float:
    """Megabytes of memory that this process holds."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def measure_memory(args) -> None:
    from memvit_mm.apis import VideoStream

    stream = VideoStream(build(), fps=args.fps)
    count = int(args.hours * 3600 * args.fps)
    # The first minutes fill memory, pools and caches.
    start, begin, clips = None, time.monotonic(), 0
    for prediction in stream.run(frames(count)):
        clips += 1
        if start is None and prediction.time >= 120:
            start = resident()
            print(f'after {prediction.time / 60:5.1f} min: {start:.1f} MB', flush=True)
        elif start is not None and clips % 450 == 0:
            now = resident()
            print(
                f'after {prediction.time / 60:5.1f} min: {now:.1f} MB '
                f'({now - start:+.1f}), clip memory '
                f'{stream.predictor.memory.num_bytes / 2**20:.2f} MB, frames kept '
                f'{stream.frames_kept}',
                flush=True,
            )
    if start is None:
        raise ValueError(
            f'--hours {args.hours:g} is less than two minutes, so nothing was '
            'measured: give more.'
        )
    wall = time.monotonic() - begin
    print(
        f'{args.hours:g} hours, {count} frames, {clips} clips in {wall:.0f} s '
        f'({args.hours * 3600 / wall:.0f} x real time): memory grew by '
        f'{resident() - start:+.1f} MB'
    )


def measure_speed(args) -> None:
    from statistics import median

    made = list(frames(int(args.seconds * args.fps)))
    models = {}
    for way in (one_by_one, all_together):
        model = build(args.config, way is all_together, 2 * args.streams)
        models[way] = model.to(args.device)
    rates: dict = {way: [] for way in models}
    # In turns, so that what else the machine does meets both; the first warms up.
    for turn in range(args.repeat + 1):
        for way, model in models.items():
            begin = time.monotonic()
            clips = way(model, made, args)
            rate = clips / (time.monotonic() - begin)
            if turn:
                rates[way].append(rate)
                print(f'{way.__doc__}: {clips} clips, {rate:.1f} clips/s', flush=True)
    first, second = (median(rate) for rate in rates.values())
    print(
        f'{args.streams} streams on {args.device}: {first:.1f}, {second:.1f} clips/s '
        f'(medians of {args.repeat}), {second / first:.2f} x'
    )


def one_by_one(model, made: list, args) -> int:
    """one after the other"""
    from memvit_mm.apis import VideoStream

    return sum(
        1
        for number in range(args.streams)
        for _ in VideoStream(model, fps=args.fps).run(iter(made))
    )


def all_together(model, made: list, args) -> int:
    """all together"""
    from memvit_mm.apis import MultiStream

    sources = {number: iter(made) for number in range(args.streams)}
    # A clip waits a little for those of the others.
    return sum(1 for _ in MultiStream(model, sources, fps=args.fps, wait=0.02))


def main():
    args = parse_args()
    import_package()
    {'memory': measure_memory, 'speed': measure_speed}[args.what](args)


if __name__ == '__main__':
    run(main)
