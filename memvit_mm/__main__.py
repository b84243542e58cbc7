"""The command line of the package: ``python -m memvit_mm demo`` and ``... info``."""

import argparse
import sys

from .cli import show_demo, show_info


def parse_args():
    parser = argparse.ArgumentParser(
        prog='python -m memvit_mm', description='MeMViT for MMAction2'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    told = 'show on a fresh drawn video what memory is good for'
    demo = commands.add_parser('demo', help=told, description=told.capitalize())
    demo.add_argument(
        '--out-dir', default='work_dirs', help='folder of the files (work_dirs)'
    )
    demo.add_argument(
        '--checkpoint',
        help='weights of a training of configs/memvit_demo.py (those of the package)',
    )
    demo.add_argument(
        '--seed', type=int, default=3, help='another number draws another video (3)'
    )
    told = 'say what a bug report should: versions, device, operators, fixes'
    commands.add_parser('info', help=told, description=told.capitalize())
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        if args.command == 'info':
            show_info()
        else:
            show_demo(args.out_dir, args.checkpoint, args.seed)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'Error: {error}')
    except KeyboardInterrupt:
        told = 'Interrupted: files that were made hold what was predicted until then.'
        print(told, file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
