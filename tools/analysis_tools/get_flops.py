#!/usr/bin/env python
"""Parameters and multiply-adds of a config's model, and what memory adds to them.

python tools/analysis_tools/get_flops.py configs/memvit_ava.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import add_cfg_options, read_config, run


def parse_args():
    parser = argparse.ArgumentParser(
        description='Count parameters and multiply-adds (linear layers, convolutions, '
        'matrix products, both products of attention) of one clip; nothing is '
        'computed'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=3,
        metavar=('T', 'H', 'W'),
        help='frames, height and width of the clip (default: what the backbone is '
        'made for)',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = read_config(args)
    from mmengine.registry import init_default_scope

    from memvit_mm.benchmark.complexity import model_costs

    init_default_scope(cfg.get('default_scope', 'mmaction'))
    if 'model' not in cfg:
        raise ValueError(f"{args.config} has no 'model': give the config of a model.")
    print(args.config)
    print(model_costs(cfg.model, args.shape))


if __name__ == '__main__':
    run(main)
