"""Recall by delay: what a model with memory still knows 1 to 32 clips later.

    python tools/analysis_tools/measure_recall.py --out recall.png --json recall.json

Trains small models with each schedule of memory on drawn streams, and asks them on
others. docs/reach.md says what the streams are. With --unlabelled-cues, only the later
clip of each pair is labelled in training: from a random start, and from weights
pretrained on single labelled clips.
"""

import argparse
import json
import signal
import sys
from itertools import product
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run

SCHEDULES = ('none', 'published', 'long')
KINDS = {'plain': 'plain', 'distractors': 'with distractors'}
PICTURES = ('.png', '.svg', '.pdf')
# Delays that the table shows; the picture and the JSON have all.
SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def parse_args():
    parser = argparse.ArgumentParser(description='Measure recall by delay')
    parser.add_argument(
        '--schedules',
        nargs='+',
        choices=SCHEDULES,
        help='no memory; the clips 2 and 4 back; every clip up to 32 back (default: '
        'all, with --unlabelled-cues: long)',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--steps', type=int, default=1200, help='steps of each training (default: 1200)'
    )
    parser.add_argument(
        '--unlabelled-cues',
        action='store_true',
        help='label only the clips in which a colour is asked for',
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=2,
        help='models that are trained at once, one thread each (default: 2)',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='draw the curves to this file'
    )
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='write all figures to this file'
    )
    args = parser.parse_args()
    for name in ('steps', 'processes'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds must be different numbers >= 0, got {args.seeds}')
    # Before the minutes that measuring takes.
    for name in ('out', 'json'):
        path = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(
                f'--{name} {path}: there is no folder {path.absolute().parent}'
            )
        if path is not None and path.is_dir():
            parser.error(f'--{name} {path} is a folder: name a file in it')
    if args.out is not None and args.out.suffix not in PICTURES:
        parser.error(f'--out {args.out}: use one of {", ".join(PICTURES)}')
    if args.schedules is None:
        args.schedules = ['long'] if args.unlabelled_cues else list(SCHEDULES)
    return args


def measure(job: dict) -> dict:
    """One model, in a process of its own."""
    import_package()
    import logging

    import torch

    from memvit_mm.benchmark.recall import measure_recall

    # mmengine lists how each weight was initialized.
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    return vars(measure_recall(**job))


def jobs_of(args) -> list:
    """What is trained, and the name of its curve."""
    starts = {'': dict()}
    if args.unlabelled_cues:
        starts = {
            ', random start': dict(labelled_cues=False),
            ', pretrained': dict(labelled_cues=False, pretrained=True),
        }
    return [
        (
            schedule + words,
            dict(schedule=schedule, seed=seed, steps=args.steps, **start),
        )
        for schedule, (words, start) in product(args.schedules, starts.items())
        for seed in args.seeds
    ]


def mean_by_delay(runs: list, kind: str) -> list:
    return [sum(values) / len(values) for values in zip(*(run[kind] for run in runs))]


def make_table(found: dict, kind: str) -> str:
    titles = {name: f'{words}, clips later' for name, words in KINDS.items()}
    width = max(map(len, [*titles.values(), *found]))
    head = ''.join(f'{delay:6}' for delay in SHOWN)
    lines = [f'{titles[kind]:{width}}{head}  lowest of all']
    for name, runs in found.items():
        recall = mean_by_delay(runs, kind)
        cells = ''.join(f'{recall[delay - 1]:6.2f}' for delay in SHOWN)
        lowest = min(recall)
        at = recall.index(lowest) + 1
        lines.append(f'{name:{width}}{cells}  {lowest:.2f} (at {at})')
    return '\n'.join(lines)


def draw(found: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 3.2), sharey=True)
    for axis, (kind, title) in zip(axes, KINDS.items()):
        for name, runs in found.items():
            delays = range(1, len(runs[0][kind]) + 1)
            (line,) = axis.plot(
                delays, mean_by_delay(runs, kind), marker='.', label=name
            )
            seeds = list(zip(*(run[kind] for run in runs)))
            lowest, highest = map(min, seeds), map(max, seeds)
            axis.fill_between(
                delays, [*lowest], [*highest], alpha=0.2, color=line.get_color()
            )
        axis.axhline(0.25, color='grey', linestyle=':', label='chance')
        axis.set(title=title, xlabel='delay in clips', ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('recall on new streams')
    axes[0].legend(fontsize='small')
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main():
    args = parse_args()
    if args.out:
        import matplotlib  # noqa: F401  Missing: said now, not after the training.
    jobs = jobs_of(args)
    found: dict = {name: [] for name, _ in jobs}
    # Longest first, so that no process is left with the last of them alone.
    jobs.sort(key=lambda job: -SCHEDULES.index(job[1]['schedule']))
    # An interrupt ends all of them at once.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with get_context('spawn').Pool(args.processes, signal.signal, ignore) as pool:
        results = pool.imap(measure, [job for _, job in jobs])
        for (name, job), measured in zip(jobs, results):
            result = dict(seed=job['seed'], **measured)
            found[name].append(result)
            lowest = {kind: min(result[kind]) for kind in KINDS}
            print(
                f'{name}, seed {job["seed"]}: lowest recall '
                + ', '.join(f'{lowest[kind]:.2f} {KINDS[kind]}' for kind in KINDS)
                + f', {result["seconds"]:.0f} s',
                flush=True,
            )
    for kind in KINDS:
        print(f'\n{make_table(found, kind)}')
    fewest = min(run['questions'] for runs in found.values() for run in runs)
    seconds = sum(run['seconds'] for runs in found.values() for run in runs)
    print(
        f'\nMeans over the seeds {args.seeds}, of at least {fewest} questions per '
        f'delay and seed; chance is 0.25. {seconds:.0f} s of processor time.'
    )
    if args.json:
        args.json.write_text(json.dumps(dict(steps=args.steps, runs=found), indent=1))
    if args.out:
        draw(found, args.out)
        print(f'Curves: {args.out.absolute()}')


if __name__ == '__main__':
    run(main)
