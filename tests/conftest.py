"""What every test relies on."""

import importlib.util
import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# Small models on few cores: more threads only get into each other's way.
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_sessionstart(session):
    """Under run_tests.sh, refuse to test the checkout instead of what is installed."""
    package = Path(importlib.util.find_spec('memvit_mm').origin).resolve().parent
    if os.environ.get('MEMVIT_TEST_INSTALLED') and package == CHECKOUT / 'memvit_mm':
        pytest.exit(f'memvit_mm comes from the checkout: {package}', returncode=3)


@pytest.fixture(scope='session')
def checkout() -> Path:
    """The folder with setup.py, configs/ and tools/."""
    return CHECKOUT
