"""What the documentation says runs: `Examples:` in docstrings, README's code."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

import memvit_mm
from memvit_mm.paths import get_config_path

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(memvit_mm.__path__, 'memvit_mm.')
    if '.mim' not in module.name
)


def blocks(text: str, language: str) -> list:
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


@pytest.fixture(scope='module')
def readme(checkout) -> str:
    return (checkout / 'README.md').read_text()


@pytest.mark.parametrize('name', MODULES)
def test_examples_in_docstrings_run(name):
    init_default_scope('mmaction')
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {
        test.name
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    for part in (
        'MeMViT',
        'ClipMemory',
        'MemoryRecognizer3D',
        'ActorMemoryHead',
        'SequentialClipSampler',
    ):
        assert any(name.endswith('.' + part) for name in found), part


def test_python_in_the_readme_runs(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(readme, 'python')
    assert len(code) >= 3
    for block in code:
        exec(compile(block, 'README.md', 'exec'), {'__name__': 'readme'})


def test_files_that_the_readme_names_exist(readme, checkout):
    config_dir = Path(get_config_path('memvit_ava.py')).parent
    named = set(re.findall(r'\b((?:configs|tools|tests)/[\w./]+\.(?:py|sh))', readme))
    assert {'tools/quickstart.sh', 'configs/memvit_ava.py'} <= named
    for name in sorted(named):
        assert (checkout / name).is_file(), name
        if name.startswith('configs/'):
            Config.fromfile(config_dir / name[len('configs/') :])
    for target in re.findall(r'\]\((?!http|#)([^)]+)\)', readme):
        assert (checkout / target).exists(), target
