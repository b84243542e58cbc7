"""Starts Python processes that have imported memvit_mm already, in milliseconds.

``import memvit_mm`` takes seconds, more than most of what the tests' processes do after
it. Here one process imports it, and forks for every process that a test starts. These
are processes of their own with their own arguments, environment, working directory and
files; their exit codes, output and signals are those of any process.

:func:`python` gives a program that is called as the interpreter is: ``python SCRIPT
ARGUMENTS``, ``python -c CODE``, ``python -m MODULE``, also by multiprocessing's 'spawn'
after ``multiprocessing.set_executable(python())``. Tests that are about starting a
process, or about what is imported when, start ``sys.executable`` instead.
"""

import os
import signal
import socket
import struct
import sys

# How much of a command line /proc shows of a process.
SHOWN = 8192
PRELOADED = (
    'memvit_mm',
    'memvit_mm.apis',
    'mmdet.apis',
    'mmaction.apis',
    'torch.distributed.run',
    'torch.distributed.elastic.multiprocessing.redirects',
)
_program = None


def make_runs_quick() -> None:
    """Let mmengine leave out what takes most of the time of the tests' short runs.

    It formats the config by yapf several times a run and once a checkpoint, starts a
    dozen programs at the beginning of each run to write their versions to the log, and
    sleeps for two seconds between the epochs of a loop over iterations. Datasets
    collect garbage when they are built: not among all modules.
    """
    import functools
    import gc
    import types

    import mmengine.config.config
    import mmengine.runner.loops
    import mmengine.runner.runner
    import torch._dynamo  # noqa: F401 (optimizers import it)

    runner = mmengine.runner.runner
    runner.collect_env = functools.lru_cache(runner.collect_env)
    mmengine.config.config.FormatCode = lambda text, **_: (text, False)
    mmengine.runner.loops.time = types.SimpleNamespace(sleep=lambda seconds: None)
    gc.collect()
    gc.freeze()


def python() -> str:
    """The path of a program that stands in for the interpreter.

    Where there is a GPU it is the interpreter: CUDA outlives no fork once a process has
    asked for its devices, which mmengine does when it is imported.
    """
    import torch

    global _program
    if _program is None and torch.cuda.is_available():
        _program = sys.executable
    if _program is None:
        _program = _start()
    return _program


def _start() -> str:
    import atexit
    import shlex
    import subprocess
    import tempfile

    folder = tempfile.mkdtemp(prefix='fork_server')
    program, path = os.path.join(folder, 'python'), os.path.join(folder, 'socket')
    this = os.path.abspath(__file__)
    words = [sys.executable, '-IS', this, 'run', path]
    with open(program, 'w') as file:
        file.write(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    os.chmod(program, 0o755)
    env = dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        env.pop(name, None)
    server = subprocess.Popen(
        [sys.executable, this, 'serve', path, program, ' ' * SHOWN],
        # It ends when this process does, whose end of the pipe is then closed.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    if server.stdout.readline() != b'ready\n':
        raise RuntimeError('the server that forks processes does not start')
    atexit.register(_end, server, folder)
    return program


def _end(server, folder: str) -> None:
    import shutil

    server.stdin.close()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------- the program that is called


def run(path: str, arguments: list) -> None:
    """Let the server fork a process, hand signals on to it, and end as it does."""
    import json

    # With what it was started with, such as the pipes of multiprocessing.
    files = [file for file in map(int, os.listdir('/proc/self/fd')) if _is_open(file)]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = [files, arguments, os.getcwd(), dict(os.environ)]
        request = json.dumps(request).encode()
        socket.send_fds(server, [struct.pack('q', len(request))], files)
        server.sendall(request)
        (pid,) = struct.unpack('q', server.recv(8))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        answer = server.recv(8)
    # Without an answer the tests have ended, and what was forked with them.
    (code,) = struct.unpack('q', answer) if answer else (1,)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _is_open(file: int) -> bool:
    """And not the one by which /proc was read."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


# -------------------------------------------------------------------------- the server


def serve(path: str) -> list:
    """Fork a process for each request. Returns in these alone, with what to run."""
    import importlib
    import selectors

    for name in PRELOADED:
        importlib.import_module(name)
    make_runs_quick()
    assert len(os.listdir('/proc/self/task')) == 1, 'fork would lose a thread'
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ, 'request')
    waiting.register(sys.stdin, selectors.EVENT_READ, 'end of the tests')
    children: dict = {}  # process id -> (pidfd, connection to the client)
    print('ready', flush=True)
    while True:
        for key, _ in waiting.select():
            if key.data == 'end of the tests':
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.data == 'request':
                client, _ = listener.accept()
                files, (numbers, *request) = _receive(client)
                pid = os.fork()
                if pid == 0:
                    waiting.close()
                    for file in (listener, client, *sum(children.values(), ())):
                        os.close(file if isinstance(file, int) else file.detach())
                    _renumber(files, numbers)
                    return request
                for file in files:
                    os.close(file)
                client.sendall(struct.pack('q', pid))
                pidfd = os.pidfd_open(pid)
                children[pid] = pidfd, client
                waiting.register(client, selectors.EVENT_READ, (pid, 'is alone'))
                waiting.register(pidfd, selectors.EVENT_READ, (pid, 'has ended'))
            else:
                pid, what = key.data
                if pid not in children:
                    continue
                pidfd, client = children[pid]
                if what == 'is alone':
                    # The client was killed, and so is the process that it stands for.
                    waiting.unregister(client)
                    os.kill(pid, signal.SIGKILL)
                    continue
                _, status = os.waitpid(pid, 0)
                del children[pid]
                waiting.unregister(pidfd)
                os.close(pidfd)
                if client in waiting.get_map():
                    waiting.unregister(client)
                    client.sendall(struct.pack('q', os.waitstatus_to_exitcode(status)))
                client.close()


def _receive(client: socket.socket) -> tuple:
    """Standard input, output and error of a process, and what it is to run."""
    import json

    size, files, _, _ = socket.recv_fds(client, 8, 64)
    data = b''
    while len(data) < struct.unpack('q', size)[0]:
        data += client.recv(2**16)
    return files, json.loads(data)


def _renumber(files: list, numbers: list) -> None:
    """Give open files the numbers that they had elsewhere."""
    import fcntl

    above = max(*files, *numbers) + 1
    for file, number in zip(
        [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files], numbers
    ):
        os.dup2(file, number)
        os.close(file)
    for file in set(files) - set(numbers):
        os.close(file)


def become(program: str, arguments: list, folder: str, environment: dict) -> None:
    """In a process that was forked: run what the interpreter would run."""
    import builtins
    import multiprocessing
    import random
    import runpy
    import types

    import numpy as np

    _show([program, *arguments])
    random.seed()
    np.random.seed()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Processes that it starts are forked, too.
    sys.executable = program
    multiprocessing.set_executable(program)
    paths = environment.get('PYTHONPATH', '').split(os.pathsep)
    sys.path[:] = [*filter(None, paths), *BASE_PATH]
    if arguments[0] == '-u':
        sys.stdout.reconfigure(line_buffering=True, write_through=True)
    if arguments[0] in ('-u', '-B'):  # -B: as multiprocessing calls it
        arguments = arguments[1:]
    first, *rest = arguments
    if first == '-m':
        sys.path.insert(0, folder)
        sys.argv = rest
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
        return
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    main.__builtins__ = builtins
    if first == '-c':
        sys.path.insert(0, '')
        sys.argv = ['-c', *rest[1:]]
        code, name = rest[0], '<string>'
    else:
        main.__file__ = name = first
        sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
        sys.argv = arguments
        with open(first, encoding='utf-8') as file:
            code = file.read()
    exec(compile(code, name, 'exec', dont_inherit=True), main.__dict__)


def _show(words: list) -> None:
    """Write a command line over this process's own, where /proc and ps find it."""
    import ctypes

    with open('/proc/self/stat') as file:
        start, end = map(int, file.read().rsplit(')', 1)[1].split()[45:47])
    text = b'\0'.join(word.encode() for word in words)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b'\0'), end - start)


if __name__ == '__main__':
    if sys.argv[1] == 'run':
        run(sys.argv[2], sys.argv[3:])
    _, _, path, program, *_ = sys.argv
    # Without the folder of this script, and what PYTHONPATH names.
    named = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    BASE_PATH = [path for path in sys.path[1:] if path not in named]
    request = serve(path)
    try:
        become(program, *request)
    except KeyboardInterrupt:
        # The interpreter ends so, but not if torch._dynamo is imported where what
        # docs/requirements.txt lists is installed.
        import atexit
        import traceback

        traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
