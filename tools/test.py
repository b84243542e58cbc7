"""Test a checkpoint: the options of MMAction2's tools/test.py.

python tools/test.py configs/memvit_ava.py CHECKPOINT --dump predictions.pkl
"""

import argparse

from _common import add_common_arguments, load_config, require_checkpoint, run


def parse_args():
    parser = argparse.ArgumentParser(description='Test (and evaluate) a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--work-dir', help='where the metrics go')
    parser.add_argument(
        '--dump', metavar='FILE', help='write the predictions to this .pkl file'
    )
    parser.add_argument('--show-dir', help='write pictures of predictions here')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window'
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='show every so many samples'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that each is shown'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def merge_args(cfg, args):
    """The config with the options of this tool merged in."""
    require_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir is not None:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise ValueError(
                '--show and --show-dir need '
                "default_hooks.visualization=dict(type='VisualizationHook') in "
                f'{args.config}.'
            )
        cfg.default_hooks.visualization.update(
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval,
        )
    if args.dump is not None:
        if not args.dump.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--dump writes a .pkl file, not {args.dump}.')
        evaluator = cfg.get('test_evaluator') or []
        if not isinstance(evaluator, (list, tuple)):
            evaluator = [evaluator]
        dump = dict(type='DumpResults', out_file_path=args.dump)
        # As the metric, that machines without a shared folder need no other setting.
        dump.update(
            (key, evaluator[0][key])
            for key in ('collect_device', 'collect_dir')
            if evaluator and key in evaluator[0]
        )
        # First: what a metric refuses to score is not lost.
        cfg.test_evaluator = [dump, *evaluator]
    return cfg


def main():
    args = parse_args()
    cfg = merge_args(load_config(args), args)
    from memvit_mm.engine.launch import build_runner

    build_runner(cfg).test()


if __name__ == '__main__':
    run(main)
