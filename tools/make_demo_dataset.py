#!/usr/bin/env python
"""Draw a small data set on which a model needs memory, in AVA's format.

python tools/make_demo_dataset.py data/demo --preview data/demo.png
"""

import argparse
import time

from _common import import_package, run


def parse_args():
    from memvit_mm.datasets.demo import DemoSettings

    default = DemoSettings()
    parser = argparse.ArgumentParser(
        description='Draw a small data set on which a model needs memory'
    )
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
    import_package()
    from memvit_mm.datasets.demo import DemoSettings, make_demo_dataset
    from memvit_mm.datasets.demo_files import write_error
    from memvit_mm.datasets.demo_preview import draw_preview

    args = parse_args()
    begin = time.time()
    settings = DemoSettings(
        num_train=args.num_train,
        num_val=args.num_val,
        seconds=args.seconds,
        fps=args.fps,
        size=args.size,
        people=args.people,
        seed=args.seed,
    )
    try:
        made = make_demo_dataset(
            args.out, settings, args.rawframes, args.overwrite, args.workers
        )
        if args.preview:
            draw_preview(args.out, args.preview)
    except OSError as error:
        raise ValueError(write_error(error, args.out)) from error
    if made:
        videos = settings.num_train + settings.num_val
        print(f'{args.out}: {videos} videos made in {time.time() - begin:.0f} s')
    else:
        print(f'{args.out}: kept, it is there already (--overwrite makes it again)')
    if args.preview:
        print(f'{args.preview}: contact sheet')


if __name__ == '__main__':
    run(main)
