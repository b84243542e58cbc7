#!/usr/bin/env python
"""Test a model on several numbers of processes, batch sizes and workers, and compare.

python tests/reference/check_invariance.py
python tests/reference/check_invariance.py CONFIG CHECKPOINT --world-size 1 8 \\
    --batch-size 1 4

Every run is a real one: tools/test.py, or tools/dist_test.sh for several processes. All
must give every sample once, each sample the same prediction and the test the same
metrics. Without CONFIG and CHECKPOINT, a detector and a recognizer with random weights
are tested on a made set whose videos have 1 to 200 clips, in frames of three sizes.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
from _common import add_cfg_options, import_package, require_checkpoint, run
from tool_runs import METRIC_LIMIT, SCORE_LIMIT, PathLike, compare, test_run

TABLE = (
    '{model:<12} {world_size:>5} {batch_size:>5} {workers:>7} {lanes:>5} {samples:>7} '
    '{lost:>4} {twice:>5} {same_bits:>9} {score_diff:>10} {metric_diff:>11} '
    '{seconds:>7}'
)
HEADS = dict(
    model='model',
    world_size='world',
    batch_size='batch',
    workers='workers',
    lanes='lanes',
    samples='samples',
    lost='lost',
    twice='twice',
    same_bits='same bits',
    score_diff='score diff',
    metric_diff='metric diff',
    seconds='seconds',
)


def parse_args():
    parser = argparse.ArgumentParser(
        description='Test on several world sizes, batch sizes and numbers of workers, '
        'and compare predictions and metrics'
    )
    parser.add_argument('config', nargs='?', help='config file (default: made sets)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file')
    for name, default, what in (
        ('world-size', (1, 2, 4), 'processes'),
        ('batch-size', (1, 2, 5), 'clips per step of each process'),
        ('workers', (0, 2), 'loader processes of each process'),
    ):
        parser.add_argument(
            f'--{name}',
            type=int,
            nargs='+',
            default=default,
            metavar='N',
            help=f'{what} (default: {" ".join(map(str, default))})',
        )
    parser.add_argument(
        '--lengths', type=int, nargs='+', metavar='N', help='clips of the made videos'
    )
    parser.add_argument(
        '--only', choices=['detector', 'recognizer', 'vit'], help='only this made model'
    )
    parser.add_argument('--out', metavar='DIR', help='keep set, logs and dumps here')
    parser.add_argument('--json', metavar='FILE', help='write the table to this file')
    add_cfg_options(parser)
    return parser.parse_args()


def check_args(args) -> None:
    """Refuse what contradicts itself."""
    if args.config and not args.checkpoint:
        raise ValueError('Name a checkpoint after the config, or neither of them.')
    if args.config and (args.lengths or args.only):
        raise ValueError(
            '--lengths and --only are for the made sets: leave them out, or CONFIG.'
        )
    if args.config and not os.path.isfile(args.config):
        raise FileNotFoundError(f'There is no config file {args.config}.')
    if args.checkpoint:
        require_checkpoint(args.checkpoint)
    for name, least in (('world_size', 1), ('batch_size', 1), ('workers', 0)):
        if min(getattr(args, name)) < least:
            raise ValueError(
                f'--{name.replace("_", "-")} {min(getattr(args, name))} must be at '
                f'least {least}.'
            )


def models(args, out: Path) -> dict[str, tuple[PathLike, PathLike]]:
    """Config and checkpoint of each model to be tested, by its name in the table."""
    if args.config:
        return {Path(args.config).stem[:12]: (args.config, args.checkpoint)}
    import made_set

    made_set.write_set(out, args.lengths or made_set.LENGTHS)
    writers = dict(
        detector=made_set.write_detector,
        recognizer=made_set.write_recognizer,
        vit=made_set.write_vit,
    )
    return {
        name: write(out) for name, write in writers.items() if args.only in (None, name)
    }


def prepare(config: PathLike, options: Optional[dict], out: Path) -> tuple[Path, int]:
    """The config with the user's options merged in, and its number of samples."""
    from mmaction.registry import DATASETS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    cfg = Config.fromfile(config)
    if options:
        cfg.merge_from_dict(options)
    if cfg.get('test_dataloader') is None:
        raise ValueError(f'{config} has no test_dataloader: there is nothing to test.')
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    size = len(DATASETS.build(cfg.test_dataloader.dataset))
    cfg.dump(str(out / 'config.py'))
    return out / 'config.py', size


def check(name: str, config: PathLike, checkpoint: PathLike, args, out: Path) -> list:
    """All runs of one model, each printed as it ends."""
    out.mkdir(exist_ok=True)
    config, size = prepare(config, args.cfg_options, out)
    rows, first, of_batch = [], None, {}
    for world, batch, workers in itertools.product(
        args.world_size, args.batch_size, args.workers
    ):
        folder = Path(tempfile.mkdtemp(prefix=f'{world}x{batch}w{workers}_', dir=out))
        begin = time.time()
        result = test_run(config, checkpoint, folder, world, batch, workers)
        first = first or result
        row = dict(
            model=name,
            world_size=world,
            batch_size=batch,
            workers=workers,
            lanes=world * batch,
            seconds=round(time.time() - begin, 1),
            **compare(result, first, of_batch.setdefault(batch, result), size),
        )
        rows.append(row)
        show(row)
    videos = Counter(video for video, _ in first.samples).values()
    metrics = ', '.join(f'{key} {value:.4f}' for key, value in first.metrics.items())
    print(
        f'{name}: {size} clips, {len(videos)} videos of {min(videos)} to {max(videos)} '
        f'clips; {metrics}'
    )
    return rows


def show(row: dict) -> None:
    """Print one line of the table."""
    words = dict(
        same_bits='yes' if row['same_bits'] else 'NO',
        score_diff=f'{row["score_diff"]:.1e}',
        metric_diff=f'{row["metric_diff"]:.1e}',
    )
    print(TABLE.format(**{**row, **words}) + '  WRONG' * (not row['ok']), flush=True)


def main():
    args = parse_args()
    check_args(args)
    import_package()
    from mmengine.logging import MMLogger

    MMLogger.get_instance('check_invariance').setLevel('ERROR')
    print(TABLE.format(**HEADS))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.out or temporary).resolve()
        out.mkdir(parents=True, exist_ok=True)
        for name, (config, checkpoint) in models(args, out).items():
            rows += check(name, config, checkpoint, args, out / name)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + '\n')
    wrong = sum(not row['ok'] for row in rows)
    print(
        '(same bits: as the first run with this batch size; differences: from the '
        'first run)\n'
        f'{len(rows) - wrong} of {len(rows)} runs agree: every sample once, the same '
        f'bits for equal batch size, scores within {SCORE_LIMIT:g}, metrics within '
        f'{METRIC_LIMIT:g}.'
    )
    if not all(row['same_bits'] for row in rows):
        print(
            'On a GPU, --cfg-options model.test_cfg.one_by_one=True gives equal bits.'
        )
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    run(main)
