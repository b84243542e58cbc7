"""Runners of configs, on CPUs as on GPUs, and the end of a distributed run."""

import atexit
import os
import sys
import threading
from typing import NoReturn

import torch
from mmaction.registry import RUNNERS
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from torch import distributed


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, made for the GPU or the CPUs that there are.

    With ``randomness=dict(deterministic=True)`` torch refuses cuBLAS's products on a
    GPU unless ``CUBLAS_WORKSPACE_CONFIG`` is set, which mmengine leaves to the user;
    it is set here if it is not.

    Args:
        cfg (Config): A whole config; ``launcher`` says who started the processes.
            It is changed as :func:`use_cpu` or :func:`use_gpu` does.

    Raises:
        ValueError: If the launcher works on GPUs alone and there are none.
    """
    use_cpu(cfg)
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if torch.cuda.is_available():
        use_gpu(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for part in runner.model.modules():
        if isinstance(part, BaseDataPreprocessor):
            # An argument of mmengine's that MMAction2's does not pass on. Of no
            # effect without a GPU.
            part._non_blocking = True
    if runner.rank != 0:
        # mmengine writes a test's metrics from every process into one file, at once.
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook):
                hook.after_test_epoch = lambda *args, **kwargs: None
    return runner


def use_gpu(cfg: Config) -> None:
    """Copy clips to a GPU while it computes, unless a config says otherwise."""
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if loader:
            loader.setdefault('pin_memory', True)


def use_cpu(cfg: Config) -> None:
    """Let a distributed run work without CUDA.

    mmengine assumes a GPU per process in two places: where it initializes the process
    group, and where it hands ``device_ids`` to DistributedDataParallel.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs GPUs, and there are none here; on CPUs '
            'use tools/dist_train.sh or tools/dist_test.sh.'
        )
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def leave_process_group() -> None:
    """Let the processes of a distributed run end together. Does not return under gloo.

    mmengine leaves the group open; a process that ends while gloo's threads still wait
    for the others is aborted now and then, and a finished run reported as failed.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        over_gloo = 'gloo' in distributed.get_backend()
        distributed.destroy_process_group()
        if over_gloo:
            _end_process()


def _end_process() -> NoReturn:
    """End with exit code 0, without taking the interpreter down.

    gloo's threads outlive their group. One that is late to release its last tensor
    asks for the interpreter; if the interpreter is shutting down, the thread cannot be
    ended and aborts the process ("terminate called without an active exception", torch
    2.13).
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
