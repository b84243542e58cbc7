"""What every test relies on."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from fork_server import make_runs_quick

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = CHECKOUT / 'tools'
# Tests import tools, what tools for maintainers share, and each other's helpers.
sys.path[:0] = [
    str(path)
    for path in (
        TOOLS,
        *(TOOLS / folder for folder in ('data', 'analysis_tools', 'deployment')),
        *(CHECKOUT / 'tests' / folder for folder in ('reference', 'models', 'engine')),
    )
]

# Small models on few cores: more threads only get into each other's way.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# Files that take longest begin first, lest one core waits for the other at the end.
SLOW = (
    'gpu/test_gpu_training.py',
    'gpu/test_gpu_compile.py',
    'engine/test_resume.py',
    'test_configs.py',
    'test_docs.py',
    'test_cli.py',
    'engine/test_checkpoint_hook.py',
    'test_memory_cost.py',
    'test_packaging.py',
    'test_tutorial.py',
    'test_docs_build.py',
    'test_docs_commands.py',
    'test_check_gpu.py',
    'test_invariance.py',
    'test_epic_configs.py',
    'engine/test_balanced.py',
    'test_faults.py',
    'test_nodes.py',
)


def pytest_addoption(parser):
    parser.addoption(
        '--device',
        default='cuda',
        help='where the tests marked gpu run: cuda, cuda:1 or cpu (default: cuda)',
    )


def pytest_collection_modifyitems(items):
    """Put the slow files first, in the order above."""

    def place(item):
        path = item.path.as_posix()
        ends = (n for n, slow in enumerate(SLOW) if path.endswith(f'/tests/{slow}'))
        return next(ends, len(SLOW))

    items.sort(key=place)


def pytest_sessionstart(session):
    """Under run_tests.sh, refuse to test the checkout instead of what is installed."""
    package = Path(importlib.util.find_spec('memvit_mm').origin).resolve().parent
    if os.environ.get('MEMVIT_TEST_INSTALLED') and package == CHECKOUT / 'memvit_mm':
        pytest.exit(f'memvit_mm comes from the checkout: {package}', returncode=3)


@pytest.fixture(scope='session', autouse=True)
def quick_runs() -> None:
    import memvit_mm  # noqa: F401 (mmengine may need what it mends)

    make_runs_quick()


@pytest.fixture(scope='session')
def checkout() -> Path:
    """The folder with setup.py, configs/ and tools/."""
    return CHECKOUT
