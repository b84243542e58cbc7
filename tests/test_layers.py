"""Imports within the package point downwards: the contracts in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not (ROOT / 'pyproject.toml').is_file(), reason='needs the checkout'
)
def test_imports_point_downwards():
    run = subprocess.run(
        [Path(sys.executable).with_name('lint-imports')],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
