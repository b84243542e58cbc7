"""The processes that tests fork are as those that the interpreter starts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from fork_server import python

SHOW = 'import os, sys; print(sys.argv[1:], os.getcwd(), os.environ["A"]); sys.exit(3)'


@pytest.mark.parametrize('way', ['code', 'script', 'module'])
def test_arguments_folder_environment_and_exit_code(tmp_path, way):
    (tmp_path / 'shown.py').write_text(SHOW)
    words = dict(code=['-c', SHOW], script=['shown.py'], module=['-m', 'shown'])[way]
    expected, found = (
        subprocess.run(
            [program, *words, 'x', 'y z'],
            cwd=tmp_path,
            env=dict(os.environ, A='b'),
            capture_output=True,
            text=True,
        )
        for program in (sys.executable, python())
    )
    assert found.returncode == expected.returncode == 3
    assert found.stdout == expected.stdout and found.stderr == expected.stderr == ''


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(number):
    """Also SIGKILL reaches what was forked, which no program can hand on."""
    code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
    process = subprocess.Popen(
        [python(), '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    forked = int(process.stdout.readline())
    assert forked != process.pid and os.path.exists(f'/proc/{forked}')
    process.send_signal(number)
    assert process.wait(timeout=30) == -number
    deadline = time.monotonic() + 30
    while os.path.exists(f'/proc/{forked}'):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_its_command_line_is_shown():
    code = 'print(open("/proc/self/cmdline").read())'
    done = subprocess.run(
        [python(), '-c', code, 'work_dir'], capture_output=True, text=True
    )
    assert done.stdout.rstrip('\n\0').split('\0')[1:] == ['-c', code, 'work_dir']


def test_multiprocessing_spawns_them():
    multiprocessing.set_executable(python())
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        shown = pool.apply(os.readlink, ['/proc/self/exe'])
        program, *_ = pool.apply(command_line)
    assert shown == os.path.realpath(sys.executable) and program == python()


def command_line() -> list:
    with open('/proc/self/cmdline') as file:
        return file.read().split('\0')
