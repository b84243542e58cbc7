"""tools/setup_env.sh: every way in which it stops, with one sentence for each.

Nothing is installed here: a stand-in for Python answers what a machine would.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / 'tools' / 'setup_env.sh'
# What the script calls, apart from Python and the compiler.
COMMANDS = (
    'bash awk cat cut dirname df grep head kill mkdir mktemp nproc rm sed setsid sleep '
    'sort tail touch tr'
).split()

# Stands for an interpreter. Its answers are files in the folder of the script, so
# that a test can change them: version, torch, mmcv, ops, pip (the log of a failing
# pip), installed (what succeeds).
PYTHON = """#!/bin/bash
here={here}
case "$*" in
  --version) echo "Python $(cat $here/version)" ;;
  *version_info*) [ "$(cat $here/version)" != 3.8.18 ] ;;
  '-m pip --version') true ;;
  '-m pip install'*)
    echo "$*" >> $here/calls
    if [ -e $here/pip ]; then cat $here/pip; exit 1; fi
    case "$*" in
      *torch*) echo 2.13.0 > $here/torch ;;
      *mmcv*) echo 2.1.0 > $here/mmcv; [ -e $here/broken ] || touch $here/ops ;;
    esac ;;
  *mmcv.ops*) [ -e $here/ops ] || {{ echo 'No module named mmcv._ext' >&2; exit 1; }} ;;
  *purelib*|*sys.prefix*) echo $here ;;
  *'"include"'*) echo $here/include ;;
  *cuda.is_available*) [ -e $here/gpu ] ;;
  *torch.version.cuda*) echo 12.8 ;;
  '- /'*) exit 1 ;;
  '- '*)
    cat > /dev/null
    [ $# -gt 2 ] && exit 1
    cat "$here/$2" 2> /dev/null || true ;;
  *) true ;;
esac
"""


class Machine:
    """A folder with the only commands that there are, and the stand-in."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / 'bin'
        self.bin.mkdir(parents=True)
        # A copy, whose checkout has no .venv.
        self.script = folder / 'checkout' / 'tools' / SETUP.name
        self.script.parent.mkdir(parents=True)
        shutil.copy(SETUP, self.script)
        for command in COMMANDS:
            (self.bin / command).symlink_to(shutil.which(command))
        self.has('version', '3.11.7')
        self.has('include/Python.h')
        self.command('g++')
        self.command('python', PYTHON.format(here=folder))

    def has(self, name, content=''):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def command(self, name, script='#!/bin/bash\n'):
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def calls(self):
        path = self.folder / 'calls'
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *options, **environment):
        return subprocess.run(
            [shutil.which('bash'), self.script, *options],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=dict(PATH=str(self.bin), TMPDIR=str(self.folder), **environment),
        )

    def fails(self, *options, **environment):
        """The sentence of a run that must fail; there must be nothing else."""
        done = self.run(*options, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith('Error: '), done.stderr
        return lines[0]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / 'machine')


def test_everything_new(machine):
    done = machine.run('--no-venv')
    assert done.returncode == 0, done.stderr
    steps = [line[:5] for line in done.stdout.splitlines() if line.startswith('[')]
    assert steps == [f'[{index}/6]' for index in range(1, 7)]
    calls = ' '.join(machine.calls())
    assert 'torch==2.13.0' in calls and '--editable' in calls
    # One OpenCV: the stack's own wish for two others is not heard.
    assert calls.count('opencv') == 0 and '--no-deps mmengine' in calls


def test_everything_there(machine):
    for name, content in (('torch', '2.4.1'), ('mmcv', '2.1.0'), ('ops', '')):
        machine.has(name, content)
    done = machine.run('--no-venv', MEMVIT_MIN_FREE_GB='99999999')
    assert done.returncode == 0, done.stderr
    assert 'torch 2.4.1 is there' in done.stdout
    assert not [call for call in machine.calls() if 'torch' in call or 'mmcv' in call]


@pytest.mark.parametrize(
    'torch, numpy', [('2.1.2+cpu', 'numpy<2'), ('2.10.0', 'numpy'), ('2.3.0', 'numpy')]
)
def test_numpy_for_torch(machine, torch, numpy):
    machine.has('torch', torch)
    assert machine.run('--no-venv').returncode == 0
    assert any(numpy in call.split() for call in machine.calls())


def test_help(machine):
    done = machine.run('--help')
    assert done.returncode == 0
    for option in ('--no-venv', '--venv', '--python', 'MEMVIT_VENV', 'MEMVIT_TORCH'):
        assert option in done.stdout


def test_unknown_option(machine):
    machine.has('ops')
    assert 'There is no option --nonsense' in machine.fails('--no-venv', '--nonsense')


class TestPython:
    def test_old(self, machine):
        machine.has('version', '3.8.18')
        sentence = machine.fails('--no-venv')
        assert 'is Python 3.8.18, but 3.9 or newer is needed' in sentence

    def test_none(self, machine):
        (machine.bin / 'python').unlink()
        assert 'No Python 3.9 or newer was found: install' in machine.fails()

    def test_only_old(self, machine):
        machine.has('version', '3.8.18')
        assert 'No Python 3.9 or newer was found: install' in machine.fails()

    def test_wrong_name(self, machine):
        sentence = machine.fails('--python', '/no/python', '--venv', 'env')
        assert 'There is no Python at /no/python' in sentence

    def test_without_venv_module(self, machine):
        script = PYTHON.format(here=machine.folder).replace(
            'case "$*" in', 'case "$*" in\n  "-m venv"*) exit 1 ;;', 1
        )
        machine.command('python', script)
        sentence = machine.fails('--venv', str(machine.folder / 'env'))
        assert 'python3-venv' in sentence


def test_disk_space(machine):
    sentence = machine.fails('--no-venv', MEMVIT_MIN_FREE_GB='99999999')
    assert 'GB are free in' in sentence and 'free some space' in sentence


class TestCompiler:
    def test_none(self, machine):
        (machine.bin / 'g++').unlink()
        sentence = machine.fails('--no-venv')
        assert 'no C++ compiler' in sentence and 'install g++' in sentence

    def test_no_headers(self, machine):
        (machine.folder / 'include' / 'Python.h').unlink()
        assert 'python3-dev' in machine.fails('--no-venv')

    def test_gpu_without_nvcc(self, machine):
        machine.has('gpu')
        sentence = machine.fails('--no-venv', CUDA_HOME='/none')
        assert 'CUDA toolkit 12.8' in sentence and 'MEMVIT_CPU_OPS=1' in sentence
        assert machine.run('--no-venv', MEMVIT_CPU_OPS='1').returncode == 0

    def test_gpu_with_nvcc(self, machine):
        machine.has('gpu')
        machine.command('nvcc')
        assert machine.run('--no-venv').returncode == 0


class TestOps:
    def test_user_has_mmcv_without_ops(self, machine):
        machine.has('torch', '2.13.0')
        machine.has('mmcv', '2.1.0')
        sentence = machine.fails('--no-venv')
        assert 'has no compiled ops' in sentence and 'uninstall mmcv' in sentence

    def test_still_none_after_compiling_twice(self, machine):
        machine.has('broken')
        sentence = machine.fails('--no-venv')
        assert 'installed without working ops (No module named mmcv._ext)' in sentence
        assert '--no-cache-dir --force-reinstall' in machine.calls()[-1]


class TestIndex:
    @pytest.mark.parametrize(
        'log, sentence',
        [
            ('WARNING: Retrying (Retry(total=1)) after', 'index cannot be reached'),
            ('(from versions: none)', 'reached for torch==2.13.0, or has none for'),
            ('ERROR: [Errno 28] No space left on device', 'disk became full'),
            (
                'ERROR: hash mismatch',
                'could not install torch==2.13.0 (ERROR: hash',
            ),
        ],
    )
    def test_pip_fails(self, machine, log, sentence):
        machine.has('pip', log + '\n')
        assert sentence in machine.fails('--no-venv')

    def test_old_torch(self, machine):
        machine.has('torch', '1.13.1')
        assert 'torch 1.13.1 is too old: update it to 2.1' in machine.fails('--no-venv')


def test_real_pip_without_an_index(tmp_path):
    """A real interpreter and pip; no index, and one that does not answer."""
    environment = {k: v for k, v in os.environ.items() if k[:4] != 'PIP_'}
    environment.update(
        PIP_CONFIG_FILE=os.devnull,
        MEMVIT_TORCH='torch==2.99.0',
        MEMVIT_MIN_FREE_GB='0',
        TMPDIR=str(tmp_path),
    )
    refused = dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='0')
    for settings in (dict(PIP_NO_INDEX='1'), refused):
        done = subprocess.run(
            ['bash', SETUP, '--venv', tmp_path / 'env', '--python', sys.executable],
            capture_output=True,
            text=True,
            env={**environment, **settings},
        )
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith('Error: The package index cannot be reached')
        assert len(done.stderr.splitlines()) == 1
