#!/usr/bin/env python
"""Tell what is wrong with a config's data, AVA's or EPIC's, before a run does.

python tools/data/check_dataset.py configs/memvit_ava.py
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import add_cfg_options, import_package, run


def parse_args():
    parser = argparse.ArgumentParser(description='Check the data that a config names')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], help='check only this one'
    )
    parser.add_argument(
        '--sample',
        type=int,
        default=20,
        metavar='N',
        help='open this many videos of each dataset (default: 20); that they exist is '
        'looked up for all',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    begin = time.time()
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'There is no config file {args.config}.')
    import_package()
    from mmengine.config import Config

    from memvit_mm.datasets.check import SPLITS, check_config

    cfg = Config.fromfile(args.config, import_custom_modules=False)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    splits = [args.split] if args.split else SPLITS
    report = check_config(cfg, splits, args.sample)
    for finding in report.findings:
        print(finding)
    print(f'{report.summary()} ({time.time() - begin:.0f} s)')
    sys.exit(1 if report.count('ERROR') else 0)


if __name__ == '__main__':
    run(main)
