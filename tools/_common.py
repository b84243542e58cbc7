"""What the tools share: options, configs, and one sentence for a user's mistake."""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Optional

# In the message of an error from a worker of the DataLoader.
WORKER = 'in DataLoader worker process'
# What gloo and NCCL say in a process whose partner is gone.
LEFT_ALONE = re.compile(
    'Connection closed by peer|Connection reset by peer|remote process exited'
)
# What has to be installed, see setup_env.sh.
STACK = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmaction')
# What users can cause by their configs, options and files.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    PermissionError,
    KeyError,
    ImportError,
    SyntaxError,
    TypeError,
)


def run(main) -> None:
    """Call ``main``; end with one sentence and exit code 1 on a user's mistake.

    At Ctrl-C, end with one word and exit code 130. ``MEMVIT_DEBUG=1`` shows the
    traceback.
    """
    debug = os.environ.get('MEMVIT_DEBUG', '0') != '0'
    try:
        main()
        if 'memvit_mm' in sys.modules:
            from memvit_mm.engine.launch import leave_process_group

            leave_process_group()
    except KeyboardInterrupt:
        if debug:
            raise
        print('Interrupted.', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = sentence(error)
        if text is None or debug:
            raise
        print(f'Error: {text}', file=sys.stderr)
        print('(MEMVIT_DEBUG=1 shows where it was raised.)', file=sys.stderr)
        sys.exit(1)


def sentence(error: BaseException) -> Optional[str]:
    """What a mistake of the user was; None for errors that no user can cause.

    Of TypeErrors users cause those that somebody raised on purpose, and arguments in a
    config that a component does not take or that it lacks.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and LEFT_ALONE.search(text):
        first = text.splitlines()[0]
        return f'Another process of this run has ended, and says why itself ({first}).'
    if not isinstance(error, USER_ERRORS):
        return None
    if WORKER in text:
        # A worker of the DataLoader sends its whole traceback; the message is its end.
        kind, text = re.split(r'\n(\S*(?:Error|Exception)): ', text)[-2:]
        text = text.strip()
        return f'the key {text} is missing.' if kind == 'KeyError' else text
    frames = traceback.extract_tb(error.__traceback__)
    where = f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''
    if isinstance(error, TypeError):
        refusing = _refused_by(error)
        if refusing is not None:
            text = text.split('__init__() ')[-1]
            return f'{refusing.__name__} {text}: check it in the config.'
        if not frames or not (frames[-1].line or '').startswith('raise '):
            return None
    if isinstance(error, KeyError):
        text = str(error.args[0]) if error.args else ''
        # A bare KeyError is a key; mmengine's registries raise whole sentences.
        return text if ' ' in text else f'the key {text!r} is missing{where}.'
    if isinstance(error, ModuleNotFoundError) and error.name in STACK:
        return (
            f'{error} in {sys.prefix}: run bash tools/setup_env.sh, and activate the '
            'environment that it names (. .venv/bin/activate).'
        )
    if isinstance(error, SyntaxError):
        return f'{error.filename}, line {error.lineno}: {error.msg}.'
    return text or f'{type(error).__name__}{where}.'


def _refused_by(error: TypeError):
    """The class that did not take its config's arguments, as mmengine built it."""
    steps = list(traceback.walk_tb(error.__traceback__))
    if not steps or steps[-1][0].f_code.co_name != 'build_from_cfg':
        return None
    return steps[-1][0].f_locals.get('obj_cls')


def import_package() -> None:
    """Import memvit_mm first, before anything imports ``mmaction.models``.

    In a checkout whose environment has no memvit_mm installed, take the checkout's.
    """
    if importlib.util.find_spec('memvit_mm') is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module('memvit_mm')


def add_cfg_options(parser) -> None:
    """The option that overrides settings of the config."""
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config; nested keys are joined by dots, lists '
        'are written key="[a,b]" or key=a,b, without blanks',
    )


def read_config(args, **kwargs):
    """The config of a tool's arguments, with ``--cfg-options`` merged in."""
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'There is no config file {args.config}.')
    import_package()
    from mmengine.config import Config

    cfg = Config.fromfile(args.config, **kwargs)
    cfg.merge_from_dict(args.cfg_options or {})
    return cfg


def add_common_arguments(parser) -> None:
    """Options that MMAction2's train.py and test.py have in common."""
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes of a distributed run',
    )
    parser.add_argument(
        '--compile',
        nargs='?',
        const='default',
        choices=('default', 'reduce-overhead', 'max-autotune'),
        help='compile the backbone with torch.compile, in one of its modes (without '
        'one, default); reduce-overhead replays CUDA graphs',
    )
    # torch.distributed.launch of old passes this one.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args):
    """The config of train.py and test.py, with launcher and work directory.

    The work directory is, in this order: the option, the config's, and
    ``work_dirs/CONFIG_NAME``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    if args.compile is not None:
        hook = dict(type='CompileHook', mode=args.compile)
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def require_checkpoint(path: str) -> None:
    """Refuse a local checkpoint that does not exist; addresses are left alone."""
    if '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        raise FileNotFoundError(f'There is no checkpoint file {path}.')
