#!/usr/bin/env python
"""Draw a small data set on which a model needs memory.

python tools/data/make_demo_dataset.py data/demo --preview data/demo.png
python tools/data/make_demo_dataset.py data/memvit_demo_epic --format epic
python tools/data/make_demo_dataset.py data/memvit_demo_long --delay 30
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run

NUMBERS = (
    ('num-train', 'training videos'),
    ('num-val', 'validation videos'),
    ('seconds', 'length of each video'),
    ('fps', 'frames per second'),
    ('size', 'width and height of the videos, in pixels'),
    ('people', 'people in each video, ava only'),
    ('seed', 'everything follows from it'),
)


def parse_args():
    from memvit_mm.demo import DelayedDemoSettings, DemoSettings

    parser = argparse.ArgumentParser(
        description='Draw a small data set on which a model needs memory'
    )
    parser.add_argument('out', help='folder of the data set, such as data/demo')
    parser.add_argument(
        '--format',
        choices=['ava', 'epic'],
        default='ava',
        help='ava: who does what, with boxes; epic: verbs and nouns of segments of '
        'kitchen videos, as EPIC-KITCHENS-100 (default: ava)',
    )
    default, delayed = DemoSettings(), DelayedDemoSettings()
    for name, what in NUMBERS:
        value, late = (getattr(s, name.replace('-', '_')) for s in (default, delayed))
        value = f'{value}' if value == late else f'{value}, with --delay {late}'
        parser.add_argument(f'--{name}', type=int, help=f'{what} (default: {value})')
    parser.add_argument(
        '--delay',
        type=int,
        metavar='SECONDS',
        help='ava only: what was taken is asked for once, 2, 4, 8, ... or SECONDS (4 '
        'to 60) later; annotations/val_8s.csv has the validation videos of 8 s, and '
        'so on (default: twice, 2 and 4 s later)',
    )
    parser.add_argument(
        '--rawframes',
        action='store_true',
        help='write every frame as JPEG too, ava only',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the demo data that is there'
    )
    parser.add_argument('--workers', type=int, help='processes (default: all cores)')
    parser.add_argument('--preview', metavar='PNG', help='draw a contact sheet too')
    return parser.parse_args()


def main():
    import_package()
    from memvit_mm.demo import (
        DelayedDemoSettings,
        DemoSettings,
        EpicDemoSettings,
        draw_preview,
        make_demo_dataset,
        make_epic_demo,
        write_error,
    )

    args = parse_args()
    begin = time.time()
    names = [name.replace('-', '_') for name, _ in NUMBERS]
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    writing = dict(overwrite=args.overwrite, workers=args.workers)
    if args.format == 'ava':
        if args.delay is None:
            settings = DemoSettings(**given)
        else:
            settings = DelayedDemoSettings(**given, delay=args.delay)
        make, writing['rawframes'] = make_demo_dataset, args.rawframes
    else:
        for option in ('people', 'rawframes', 'delay'):
            value = getattr(args, option)
            if value is not None and value is not False:
                raise ValueError(f'--{option} is for --format ava: leave it out.')
        settings, make = EpicDemoSettings(**given), make_epic_demo
    try:
        made = make(args.out, settings, **writing)
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
