#!/usr/bin/env python
"""Make an MMAction2 checkpoint of a published one, and say what became of each weight.

python tools/deployment/convert_checkpoint.py SRC DST --config configs/memvit_ava.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run


def parse_args():
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint of published MeMViT, of MMAction2 (MViT, '
        'VideoMAE) or of memvit_mm; which one it is, its content tells'
    )
    parser.add_argument('src', help='checkpoint to read; nothing in it is executed')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--config',
        help='check every name and shape against the model of this config, and resize '
        'tables of relative positions to fit it',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace DST if it exists'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    import_package()
    from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint

    report = convert_checkpoint(args.src, args.dst, args.config, args.overwrite)
    print(report)
    print(f'Written: {args.dst}')


if __name__ == '__main__':
    run(main)
