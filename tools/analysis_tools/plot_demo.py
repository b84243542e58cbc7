"""Compare runs: a table, and a picture of their validation curves.

    python tools/analysis_tools/plot_demo.py work_dirs/memvit_demo \\
        work_dirs/memvit_demo_no_memory --seconds 210 190 --out curves.png

Reads what mmengine wrote: WORK_DIR/*/vis_data/scalars.json of the training, and the
metrics that tools/test.py left below WORK_DIR/test.
"""

import argparse
import json
import math
import sys
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import run

# Ends of metric names -> headings, in the table's order.
METRICS = {
    'mAP/overall': 'all classes',
    'mAP/memory': 'need memory',
    'mAP/clip': 'seen in the clip',
}
CLEARED = 'the first, memory cleared before every clip'


def parse_args():
    parser = argparse.ArgumentParser(description='Compare the demo runs')
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR')
    parser.add_argument(
        '--names', nargs='+', help='names of the runs (default: from WORK_DIR)'
    )
    parser.add_argument(
        '--seconds', nargs='+', type=float, help='seconds that each training took'
    )
    parser.add_argument(
        '--cleared',
        type=Path,
        metavar='DIR',
        help='--work-dir of a test of the first run with its memory cleared before '
        'every clip (custom_hooks.0.every_clip=True): a row more in the table',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/memvit_demo.png'), help='picture'
    )
    args = parser.parse_args()
    for option in ('names', 'seconds'):
        given = getattr(args, option)
        if given is not None and len(given) != len(args.work_dirs):
            parser.error(
                f'--{option} has {len(given)} values for {len(args.work_dirs)} runs: '
                'give one for each WORK_DIR'
            )
    if args.names is None:
        args.names = [run_name(folder) for folder in args.work_dirs]
    return args


def run_name(folder: Path) -> str:
    name = folder.resolve().name
    if name == 'memvit_demo':
        return 'with memory'
    return 'without memory' if 'no_memory' in name else name


def read_records(path: Path) -> list:
    """Every line of a JSON-lines file; the file and line of what is none."""
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(
                f'{path}, line {number} is no JSON: the run was interrupted while '
                'writing, or the file was edited; train again.'
            ) from None
    return records


def pick(record: dict) -> dict:
    """The metrics that the table shows, by the ends of their names."""
    return {
        metric: value
        for metric in METRICS
        for name, value in record.items()
        if name.endswith(metric) and isinstance(value, (int, float))
    }


def read_curve(work_dir: Path) -> list:
    """(epoch, metrics) of every validation, a later run's instead of an earlier's."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'There is no training log {work_dir}/*/vis_data/scalars.json: train first '
            f'with --work-dir {work_dir}.'
        )
    curve = {}
    for log in logs:
        for record in read_records(log):
            metrics = pick(record)
            if metrics and 'step' in record:
                curve[record['step']] = metrics
    return sorted(curve.items())


def read_test(folder: Path) -> dict:
    """The metrics of the newest test that tools/test.py left in a work_dir."""
    for path in sorted(folder.glob('*/*.json'), reverse=True):
        for record in reversed(read_records(path)):
            metrics = pick(record)
            if metrics:
                return metrics
    raise FileNotFoundError(
        f'There is no test result with {" or ".join(METRICS)} in {folder}: run '
        f'tools/test.py with --work-dir {folder}.'
    )


def make_table(names, results, seconds, cleared=None) -> str:
    metrics = [name for name in METRICS if any(name in result for result in results)]
    lines = list(zip(names, results))
    if cleared is not None:
        lines.append((CLEARED, cleared))
    rows = [['mAP', *[METRICS[name] for name in metrics]]]
    for name, result in lines:
        rows.append([name, *[f'{result.get(m, math.nan):.3f}' for m in metrics]])
    if len(results) == 2:
        first, second = results
        gain = [first.get(m, math.nan) - second.get(m, math.nan) for m in metrics]
        rows.append(['difference', *[f'{value:+.3f}' for value in gain]])
    if seconds is not None:
        times = ['seconds of training', *[f'{value:.0f}' for value in seconds]]
        for row, value in zip_longest(rows, times, fillvalue=''):
            row.append(value)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def draw(names, curves, out: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    metrics = [name for name in METRICS if any(name in m for c in curves for _, m in c)]
    figure, axes = plt.subplots(
        1, max(1, len(metrics)), figsize=(4 * max(1, len(metrics)), 3.2), squeeze=False
    )
    for axis, metric in zip(axes[0], metrics):
        for name, curve in zip(names, curves):
            points = [(step, m[metric]) for step, m in curve if metric in m]
            axis.plot(*zip(*points) if points else ([], []), marker='.', label=name)
        axis.set(title=METRICS[metric], xlabel='epoch', ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel('mAP on held-out videos')
    axes[0][0].legend(fontsize='small')
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main():
    args = parse_args()
    curves = [read_curve(folder) for folder in args.work_dirs]
    results = [read_test(folder / 'test') for folder in args.work_dirs]
    cleared = read_test(args.cleared) if args.cleared is not None else None
    print(make_table(args.names, results, args.seconds, cleared))
    draw(args.names, curves, args.out)
    print(f'\nCurves: {args.out.resolve()}')


if __name__ == '__main__':
    run(main)
