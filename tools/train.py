"""Train a config: the options of MMAction2's tools/train.py.

python tools/train.py configs/memvit_ava.py --amp --work-dir work_dirs/first
"""

import argparse

from _common import add_common_arguments, load_config, require_checkpoint, run


def parse_args():
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the last one in the work directory',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: bfloat16, or float16 with loss scaling on a '
        'GPU without it, and TF32 for what stays float32; --cfg-options '
        'optim_wrapper.dtype=... chooses',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not validate while training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over all GPUs, relative to the '
        "config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument('--seed', type=int, help="random seed; the config's if absent")
    parser.add_argument(
        '--diff-rank-seed', action='store_true', help='a seed of its own per rank'
    )
    parser.add_argument(
        '--deterministic', action='store_true', help='deterministic cuDNN'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def merge_args(cfg, args):
    """The config with the options of this tool merged in."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        use_amp(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None
        if args.resume != 'auto':
            require_checkpoint(args.resume)
            cfg.load_from = args.resume
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in '
                f'{args.config}.'
            )
        cfg.auto_scale_lr.enable = True
    # A given option wins over the config, which MMAction2's tool does not do.
    randomness = dict(cfg.get('randomness') or {})
    if args.seed is not None:
        randomness['seed'] = args.seed
    if args.diff_rank_seed:
        randomness['diff_rank_seed'] = True
    if args.deterministic:
        randomness['deterministic'] = True
    cfg.randomness = dict(dict(seed=None), **randomness)
    return cfg


def use_amp(cfg):
    import torch

    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise ValueError(
            f'--amp works with optim_wrapper.type OptimWrapper, not {kind}; leave out '
            '--amp or change the config.'
        )
    wrapper = cfg.optim_wrapper
    if not torch.cuda.is_available():
        wrapper.type = 'CPUAmpOptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'
        if torch.cuda.is_bf16_supported(including_emulation=False):
            wrapper.setdefault('dtype', 'bfloat16')
        if wrapper.get('dtype') in ('bfloat16', torch.bfloat16):
            # It has the range of float32; the scaler would wait for the GPU each step.
            wrapper.setdefault('loss_scale', dict(enabled=False))
        torch.set_float32_matmul_precision('high')
    wrapper.setdefault('loss_scale', 'dynamic')


def main():
    args = parse_args()
    cfg = merge_args(load_config(args), args)
    from memvit_mm.engine.launch import build_runner

    build_runner(cfg).train()


if __name__ == '__main__':
    run(main)
