"""What train.py and test.py share: options, one-sentence errors, gloo on CPU."""

import atexit
import importlib
import importlib.util
import os
import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

# In the message of an error from a worker of the DataLoader.
WORKER = 'in DataLoader worker process'
# What torch says when a worker is gone, or silent for the DataLoader's timeout.
DEAD_WORKER = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)')
SLOW_WORKER = 'DataLoader timed out after'
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
)


def run(main) -> None:
    """Call ``main``; end with one sentence and exit code 1 on a user's mistake.

    ``MEMVIT_DEBUG=1`` shows the traceback.
    """
    try:
        main()
        leave_process_group()
    except (*USER_ERRORS, TypeError, RuntimeError, ConnectionError, EOFError) as error:
        cause = _death_behind(error)
        if os.environ.get('MEMVIT_DEBUG', '0') != '0' or not is_a_users(cause):
            raise
        print(f'Error: {sentence(cause)}', file=sys.stderr)
        print('(MEMVIT_DEBUG=1 shows where it was raised.)', file=sys.stderr)
        sys.exit(1)


def _death_behind(error: BaseException) -> BaseException:
    """What torch says about a worker that died while it was sending, if one did.

    Its handler of SIGCHLD raises that in this thread, a moment after the connection
    broke.
    """
    if isinstance(error, (ConnectionError, EOFError)):
        try:
            time.sleep(1)
        except RuntimeError as death:
            return death
    return error


def leave_process_group() -> None:
    """Let the processes of a distributed run end together. Does not return under gloo.

    mmengine leaves the group open; a process that ends while gloo's threads still wait
    for the others is aborted now and then, and a finished run reported as failed.
    """
    distributed = sys.modules.get('torch.distributed')
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        over_gloo = 'gloo' in distributed.get_backend()
        distributed.destroy_process_group()
        if over_gloo:
            end_process()


def end_process() -> NoReturn:
    """End with exit code 0, without taking the interpreter down.

    gloo's threads outlive their group. One that is late to let go of its last tensor
    asks for the interpreter; if that is going down, the thread cannot be ended and
    aborts the process ("terminate called without an active exception", torch 2.13).
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def import_package() -> None:
    """Import memvit_mm first, before anything imports ``mmaction.models``.

    In a checkout whose environment has no memvit_mm installed, take the checkout's.
    """
    if importlib.util.find_spec('memvit_mm') is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module('memvit_mm')


def is_a_users(error: BaseException) -> bool:
    """Whether a mistake of the user may be behind an error.

    Of TypeErrors those are that somebody raised on purpose, and arguments in a config
    that a component does not take or that it lacks; of RuntimeErrors, other processes
    that died: workers of the DataLoader, partners in a distributed run.
    """
    if isinstance(error, RuntimeError):
        return _is_about_workers(error) or LEFT_ALONE.search(str(error)) is not None
    if not isinstance(error, TypeError):
        return isinstance(error, USER_ERRORS)
    last = _frames(error)[-1:]
    raised = any((frame.line or '').startswith('raise ') for frame in last)
    return raised or _refused_by(error) is not None


def _refused_by(error: BaseException):
    """The class that did not take its config's arguments, as mmengine built it."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None or step.tb_frame.f_code.co_name != 'build_from_cfg':
        return None
    return step.tb_frame.f_locals.get('obj_cls')


def _is_about_workers(error: RuntimeError) -> bool:
    return SLOW_WORKER in str(error) or DEAD_WORKER.search(str(error)) is not None


def _about_workers(error: RuntimeError) -> str:
    """What the workers were reading that died or that do not answer."""
    from memvit_mm.datasets.worker_notes import note_of, notes_being_read

    told = str(error).splitlines()[0].strip().rstrip('.')
    dead = DEAD_WORKER.search(told)
    if dead is None:
        clips = '; '.join(notes_being_read()) or 'nothing of which there is a note'
        return f'{told}: its workers are reading {clips}.'
    notes = [note_of(int(pid)) for pid in dead[1].split(',')]
    clips = [
        f'{"while it read" if note.reading else "after it had read"} {note.clip}'
        for note in notes
        if note is not None
    ]
    return (
        f'{told}{", " if clips else ""}{"; ".join(clips)}: if memory ran out, which is '
        'what "Killed" mostly means, lower num_workers or prefetch_factor of the '
        'dataloader, else look whether this file crashes its decoder.'
    )


def sentence(error: BaseException) -> str:
    """The message of an error, with its kind where the message alone says little."""
    if isinstance(error, RuntimeError) and _is_about_workers(error):
        return _about_workers(error)
    if isinstance(error, RuntimeError) and LEFT_ALONE.search(str(error)):
        first = str(error).splitlines()[0]
        return f'Another process of this run has ended, and says why itself ({first}).'
    if WORKER in str(error):
        # A worker of the DataLoader sends its whole traceback; the message is its end.
        kind, text = re.split(r'\n(\S*(?:Error|Exception)): ', str(error))[-2:]
        text = text.strip()
        return f'the key {text} is missing.' if kind == 'KeyError' else text
    refusing = _refused_by(error)
    if isinstance(error, TypeError) and refusing is not None:
        text = str(error).split('__init__() ')[-1]
        return f'{refusing.__name__} {text}: check it in the config.'
    if isinstance(error, KeyError):
        text = str(error.args[0]) if error.args else ''
        # A bare KeyError is a key; mmengine's registries raise whole sentences.
        return text if ' ' in text else f'the key {text!r} is missing{_where(error)}.'
    if isinstance(error, ModuleNotFoundError) and error.name in STACK:
        return (
            f'{error} in {sys.prefix}: run bash tools/setup_env.sh, and activate the '
            'environment that it names (. .venv/bin/activate).'
        )
    if isinstance(error, SyntaxError):
        return f'{error.filename}, line {error.lineno}: {error.msg}.'
    return str(error) or f'{type(error).__name__}{_where(error)}.'


def _where(error: BaseException) -> str:
    frames = _frames(error)
    return f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''


def _frames(error: BaseException) -> list:
    return traceback.extract_tb(error.__traceback__)


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


def add_common_arguments(parser) -> None:
    """Options that MMAction2's train.py and test.py have in common."""
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes of a distributed run',
    )
    # torch.distributed.launch of old passes this one.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args):
    """The config with ``--launcher``, ``--cfg-options`` and ``--work-dir`` merged in.

    The work directory is, in this order: the option, the config's, and
    ``work_dirs/CONFIG_NAME``.
    """
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'There is no config file {args.config}.')
    import_package()
    from mmengine.config import Config

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def require_checkpoint(path: str) -> None:
    """Refuse a local checkpoint that does not exist; addresses are left alone."""
    if '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        raise FileNotFoundError(f'There is no checkpoint file {path}.')


def build_runner(cfg):
    """The runner of a config, over gloo where there is no GPU."""
    from mmaction.registry import RUNNERS
    from mmengine.runner import Runner

    use_cpu(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def use_cpu(cfg) -> None:
    """Let a distributed run work without CUDA.

    mmengine assumes a GPU per process in two places: where it initializes the process
    group, and where it hands ``device_ids`` to DistributedDataParallel.
    """
    import torch

    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs GPUs, and there are none here; on CPUs '
            'use tools/dist_train.sh or tools/dist_test.sh.'
        )
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
