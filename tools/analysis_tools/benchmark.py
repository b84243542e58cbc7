#!/usr/bin/env python
"""What a config's backbone costs against MMAction2's, and how far back it sees.

python tools/analysis_tools/benchmark.py configs/memvit_ava.py --threads 2
python tools/analysis_tools/benchmark.py CONFIG --tables all --json benchmark.json
python tools/analysis_tools/benchmark.py CONFIG --tables field
python tools/analysis_tools/benchmark.py CONFIG --device cuda --dtype bfloat16 \
    --training-batch 8 16 --forward-batch 1 32

Weights and clips are made up: no data and no checkpoint are needed.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import add_cfg_options, read_config, run

TABLES = ('compare', 'field')


def parse_args():
    parser = argparse.ArgumentParser(description='Measure what a config costs')
    parser.add_argument('config', help='config file of a MeMViT or MemoryViT model')
    parser.add_argument(
        '--tables',
        nargs='+',
        choices=[*TABLES, 'all'],
        default=['compare'],
        help="compare: against MMAction2's MViT (MemoryViT: VisionTransformer), the "
        'baseline without memory and, if a MeMViT has memory_levels, the published '
        'schedule of two clips, each in its own process, in turn; field: which earlier '
        'clips move the features (default: compare)',
    )
    parser.add_argument('--repeats', type=int, default=5, help='measured runs of each')
    parser.add_argument(
        '--forward-batch',
        type=int,
        nargs='*',
        default=[1],
        metavar='N',
        help='batch sizes of the forward pass; none to leave it out (default: 1)',
    )
    parser.add_argument(
        '--training-batch',
        type=int,
        nargs='*',
        default=[1],
        metavar='N',
        help='batch sizes of training; none to leave it out (default: 1)',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        choices=['MMAction2', 'memory', 'no-memory', 'with-cp', 'published'],
        help='compare: measure these alone',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=3,
        metavar=('T', 'H', 'W'),
        help='frames, height and width of the clips (default: what the backbone is '
        'made for)',
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 …')
    parser.add_argument(
        '--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32'
    )
    parser.add_argument(
        '--threads', type=int, help="torch's threads (default: its own)"
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile our backbones with torch.compile',
    )
    parser.add_argument('--json', metavar='FILE', help='write all figures to this file')
    add_cfg_options(parser)
    args = parser.parse_args()
    for name in ('repeats', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name} must be at least 1, got {value}')
    batches = [*args.forward_batch, *args.training_batch]
    if min(batches, default=1) < 1:
        parser.error(
            '--forward-batch and --training-batch must be at least 1, got '
            f'{min(batches)}'
        )
    if 'all' in args.tables:
        args.tables = list(TABLES)
    if 'compare' in args.tables and not batches:
        parser.error(
            '--tables compare has nothing to measure: give --forward-batch or '
            '--training-batch a size'
        )
    # Before the minutes that measuring takes.
    folder = os.path.dirname(os.path.abspath(args.json)) if args.json else '.'
    if not os.path.isdir(folder):
        parser.error(f'--json {args.json}: there is no folder {folder}')
    return args


def environment(args) -> dict:
    """What the figures depend on."""
    import torch

    cuda = args.device.startswith('cuda')
    if cuda and not torch.cuda.is_available():
        raise ValueError(
            f'--device {args.device}, but torch {torch.__version__} finds no GPU here: '
            'use --device cpu.'
        )
    name = torch.cuda.get_device_name(args.device) if cuda else platform.machine()
    return dict(
        torch=torch.__version__,
        device=f'{args.device} ({name})',
        threads=args.threads or torch.get_num_threads(),
        cores=os.cpu_count(),
        dtype=args.dtype,
        compiled=args.compile,
    )


def comparisons(backbone, template, args) -> dict:
    """Print the tables against MMAction2's backbone; return them by batch size."""
    from memvit_mm.benchmark import compare

    sizes = dict(forward=args.forward_batch, training=args.training_batch)
    found = {}
    for batch in dict.fromkeys([*args.forward_batch, *args.training_batch]):
        what = [kind for kind, chosen in sizes.items() if batch in chosen]
        case = replace(template, batch=batch)
        table = compare(backbone, case, args.repeats, what, args.only)
        print(f'\nbatch {batch}, medians of {args.repeats} runs\n{table}', flush=True)
        found[f'batch {batch}'] = table.to_dict()
    return found


def main():
    args = parse_args()
    cfg = read_config(args)
    from memvit_mm import benchmark

    if 'model' not in cfg or 'backbone' not in cfg.model:
        raise ValueError(f'{args.config} has no model.backbone to measure.')
    about = environment(args)
    backbone = cfg.model.backbone
    template = benchmark.Case(
        'template',
        backbone,
        tuple(args.shape) if args.shape else None,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        compiled=args.compile,
    )
    print(args.config)
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    found = dict(config=args.config, environment=about)
    if 'compare' in args.tables:
        found['compare'] = comparisons(backbone, template, args)
    if 'field' in args.tables:
        field = benchmark.receptive_field(cfg)
        print(f'\n{field}', flush=True)
        found['field'] = field.to_dict()
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(found, file, indent=2, default=str)


if __name__ == '__main__':
    run(main)
