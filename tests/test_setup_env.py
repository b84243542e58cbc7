"""tools/setup_env.sh, where it stops. That it works, run_tests.sh and CI show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / 'tools' / 'setup_env.sh'


def run(*options, **environment):
    """In an environment whose pip has no settings but those given."""
    kept = {key: value for key, value in os.environ.items() if key[:4] != 'PIP_'}
    return subprocess.run(
        ['bash', SETUP, *map(str, options)],
        capture_output=True,
        text=True,
        env={**kept, 'PIP_CONFIG_FILE': os.devnull, **environment},
    )


def test_help():
    done = run('--help')
    assert done.returncode == 0
    for option in ('--no-venv', '--venv', '--python', '--compile-ops', 'MEMVIT_TORCH'):
        assert option in done.stdout


@pytest.mark.parametrize(
    'options, sentence',
    [
        (('--python', '/no/python'), '/no/python cannot make a virtual environment in'),
        (('--venv',), '--venv needs a folder'),
        (('--bogus',), 'There is no option --bogus'),
    ],
)
def test_wrong_options(options, sentence, tmp_path):
    if '--venv' not in options:
        options = (*options, '--venv', tmp_path / 'env')
    done = run(*options)
    assert done.returncode != 0 and sentence in done.stderr


def test_pip_that_reaches_no_index(tmp_path):
    """A real interpreter and pip; pip's own words, then one sentence."""
    done = run('--venv', tmp_path / 'env', '--python', sys.executable, PIP_NO_INDEX='1')
    assert done.returncode == 1
    assert 'Error: pip cannot install memvit_mm' in done.stderr.splitlines()[-1]
    assert 'Set up' not in done.stdout
