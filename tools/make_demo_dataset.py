#!/usr/bin/env python
"""Draw a small data set on which a model needs memory, in AVA's format."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memvit_mm.datasets.demo import (
    DemoSettings,
    make_demo_dataset,
    write_error,
)
from memvit_mm.datasets.demo_preview import draw_preview


def parse_args():
    default = DemoSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder of the data set, such as data/demo')
    parser.add_argument('--format', choices=['ava'], default='ava')
    for name, what in (
        ('num-train', 'training videos'),
        ('num-val', 'validation videos'),
        ('seconds', 'length of each video'),
        ('fps', 'frames per second'),
        ('size', 'width and height of the videos, in pixels'),
        ('people', 'people in each video'),
        ('seed', 'everything follows from it'),
    ):
        value = getattr(default, name.replace('-', '_'))
        parser.add_argument(
            f'--{name}', type=int, default=value, help=f'{what} (default: {value})'
        )
    parser.add_argument(
        '--rawframes', action='store_true', help='write every frame as JPEG too'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the demo data that is there'
    )
    parser.add_argument('--workers', type=int, help='processes (default: all cores)')
    parser.add_argument('--preview', metavar='PNG', help='draw a contact sheet too')
    return parser.parse_args()


def main():
    args = parse_args()
    begin = time.time()
    try:
        settings = DemoSettings(
            num_train=args.num_train,
            num_val=args.num_val,
            seconds=args.seconds,
            fps=args.fps,
            size=args.size,
            people=args.people,
            seed=args.seed,
        )
        made = make_demo_dataset(
            args.out, settings, args.rawframes, args.overwrite, args.workers
        )
        if args.preview:
            draw_preview(args.out, args.preview)
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(write_error(error, args.out))
    if made:
        videos = settings.num_train + settings.num_val
        print(f'{args.out}: {videos} videos made in {time.time() - begin:.0f} s')
    else:
        print(f'{args.out}: kept, it is there already (--overwrite makes it again)')
    if args.preview:
        print(f'{args.preview}: contact sheet')


if __name__ == '__main__':
    main()
