"""What README.md and docs/*.md tell people to type can be typed.

Parsed, every command of every bash block, and those in the text that begin as in
:data:`INLINE`: the program is known, the file exists, its own argument parser takes
the options, the configs that it names load, and the keys behind ``--cfg-options`` are
in the config or are arguments of the component there. Of ``pip``, ``pytest`` and
``ruff`` the files that they name exist.

Run, on data that is drawn here, is what :data:`RUN` lists: drawing a data set, checking
it, training the demo for an epoch and testing it; testing on several processes and the
files for EPIC-KITCHENS; annotating videos, with people found by a detector, too. Where
a command needs data that nobody may hand on, it is run with the demo's config. All
other trainings, tests and measurements are only parsed, and so is what installs
something. (The export to ONNX runs in test_deploy.py, ``python -m memvit_mm`` in
test_cli.py, the scripts in bash in test_tools.py.)
"""

import argparse
import importlib
import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import test_drop_in
from doc_pages import CHECKOUT, PAGES, blocks, prose
from fork_server import python
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner
from test_docs import FILES, changed, load

from memvit_mm.paths import get_config_path

# Words in capitals, as in `python tools/train.py CONFIG`, stand for files.
INLINE = re.compile(r'`((?:python -m memvit_mm|bash tools/|python tools/)[^`]*)`')
COMPONENTS = {one.__name__: one for one in test_drop_in.CLASSES}


class Command(NamedTuple):
    """A line of a bash block, or code in the text."""

    place: str
    page: str
    words: tuple

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def commands() -> list:
    found = []
    for block in blocks('bash'):
        for line in block.text.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                del words[0]
            if words:
                found.append(Command(block.place, block.page, tuple(words)))
    for page in PAGES:
        for text in INLINE.findall(prose(page)):
            found.append(Command(page, page, tuple(shlex.split(text))))
    return found


COMMANDS = commands()

# ------------------------------------------------------------------------------- parsed


@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: f'{c.place} {c.words[0]}')
def test_can_be_typed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not {'&&', '||', '|', ';', '>', '&'} & set(command.words)
    program, *words = command.words
    if program == 'bash':
        program, *words = words
    if program.endswith('.sh'):
        script(program, words, command)
    else:
        assert program in PROGRAMS, f'{command.place}: what is {program}?'
        PROGRAMS[program](words, command)


def run_python(words, command):
    if words[0] == '-m':
        assert words[1] in PYTHON_MODULES, words
        PYTHON_MODULES[words[1]](words[2:], command)
    else:
        tool(words[0], words[1:], command)


def package(words, command):
    sys_argv(importlib.import_module('memvit_mm.__main__').parse_args, words)


def sphinx(words, command):
    from sphinx.cmd.build import get_parser

    get_parser().parse_args(words)
    assert (CHECKOUT / words[-2]).is_dir()


def pip(words, command):
    extras = re.search(r'extras_require=\{(.*?)\}', (CHECKOUT / 'setup.py').read_text())
    assert words[0] == 'install', words
    for word in words[1:]:
        if word.startswith('.') and word != '.':
            extra = re.fullmatch(r'\.\[(.*)\]', word)
            assert extra and f"'{extra[1]}'" in extras[1], word
        assert not word.endswith('.txt') or (CHECKOUT / word).is_file(), word


def files(words, command):
    """Words that look like files are files."""
    for word in words:
        if '/' in word or word.endswith('.py'):
            assert (CHECKOUT / word.partition('::')[0]).exists(), word


def activate(words, command):
    assert words == ['.venv/bin/activate'], words  # tools/setup_env.sh makes it


def nothing(words, command):
    """There is no more to look at."""


PYTHON_MODULES = {'memvit_mm': package, 'sphinx': sphinx, 'ruff': files, 'pip': pip}
PROGRAMS = {
    'python': run_python,
    'pip': pip,
    'pytest': files,
    'source': activate,
    'git': nothing,
    'cd': nothing,
    'lint-imports': nothing,
}


def script(path, words, command):
    """A shell script: one that starts a tool, or one that sets up."""
    assert (CHECKOUT / path).is_file(), path
    kind, _, name = Path(path).stem.partition('_')
    if kind == 'dist':
        places = 1 if name == 'train' else 2
        assert words[places].isdigit(), words
        started = [*words[:places], *words[places + 1 :]]
        tool(f'tools/{name}.py', [*started, '--launcher', 'pytorch'], command)
    elif kind == 'slurm':
        tool(f'tools/{name}.py', [*words[2:], '--launcher', 'slurm'], command)
    else:
        text = (CHECKOUT / 'tools/setup_env.sh').read_text().split('USAGE')[1]
        usage = text.replace(',', ' ').split()
        options = {word for word in usage if word.startswith('-')}
        # As in '--venv DIR'.
        valued = {one for one, value in zip(usage, usage[1:]) if value.isupper()}
        for before, word in zip(['', *words], words):
            known = word in options or before in options & valued
            assert known or 'run_tests' in path, word


def tool(path, words, command):
    """The tool's own parser takes it, and the config has what is set."""
    assert (CHECKOUT / path).is_file(), path
    module = importlib.import_module(Path(path).stem)
    assert Path(module.__file__) == CHECKOUT / path
    args = sys_argv(getattr(module, 'parse_args', None) or parser_of(module), words)
    options = dict(getattr(args, 'cfg_options', None) or {})
    for name in ('config', 'det_config'):
        value = getattr(args, name, None)
        if value is not None and not value.isupper():
            cfg = config(value, command)
            for key in options:
                assert is_there(cfg, key), f'{command.place}: {key} is not in {value}'


def sys_argv(parse, words):
    before, sys.argv = sys.argv, ['tool', *words]
    try:
        return parse()
    except SystemExit as end:
        raise AssertionError(f'{shlex.join(words)} is refused') from end
    finally:
        sys.argv = before


def parser_of(module):
    """Parses for a module whose main() does, and ends there."""

    class Parsed(Exception):
        pass

    def parse():
        real = argparse.ArgumentParser.parse_args

        def stop(self, *args):
            raise Parsed(real(self, *args))

        argparse.ArgumentParser.parse_args = stop
        try:
            module.main()
        except Parsed as parsed:
            return parsed.args[0]
        finally:
            argparse.ArgumentParser.parse_args = real

    return parse


def config(name, command):
    """The config that a command names."""
    if '::' in name:
        return get_config(name)
    if (CHECKOUT / name).is_file():
        return Config.fromfile(CHECKOUT / name)
    if name == 'my_config.py':
        # The page says what is in it.
        (block,) = (b for b in blocks(None, command.page) if '_base_ =' in b.text)
        diff = block.language == 'diff'
        return load(Path(name), changed(block.text) if diff else block.text)
    # One of ours by its name, or the copy that a training leaves in its folder.
    assert '/' not in name or name.startswith('work_dirs/'), name
    return Config.fromfile(get_config_path(Path(name).name))


def is_there(cfg, key):
    """Whether a key is in a config, or an argument of the component that it is in."""
    if '.custom_keys.' in key:
        return True  # parts of names of parameters
    *path, last = key.split('.')
    node = cfg
    for part in path:
        try:
            node = node[int(part) if isinstance(node, (list, tuple)) else part]
        except (KeyError, IndexError):
            return False
    if isinstance(node, (list, tuple)):
        return int(last) < len(node)
    if node is cfg:
        return last in node or last in inspect.signature(Runner).parameters
    component = COMPONENTS.get(str(node.get('type', '')).rpartition('.')[2])
    mro = inspect.getmro(component) if component else ()
    taken = {name for base in mro for name in inspect.signature(base).parameters}
    return last in node or last in taken


def test_commands_in_the_text_are_found():
    found = {command.text for command in COMMANDS if command.place == command.page}
    assert {'bash tools/run_tests.sh', 'python -m memvit_mm info'} <= found


def test_mistakes_are_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = 'python tools/train.py configs/memvit_ava.py'
    for line in (
        'python tools/trian.py configs/memvit_ava.py',
        'python tools/train.py configs/memvit_eva.py',
        f'{train} --resum-from x',
        f'{train} --cfg-options model.backbon.arch=1',
        f'{train} --cfg-options model.backbone.ark=1',
        f'{train} --cfg-options lod_from=a.pth',
        'tools/dist_train.sh configs/memvit_ava.py --amp 8',
        'bash tools/setup_env.sh --no-env',
        'bash tools/setup_env.sh --compile',
        'bash tools/setup_env.sh --copy venv',
        'pip install .[tets]',
        'pip install .tests',
        'python -m memvit_mm dmo',
        'sudo reboot',
    ):
        with pytest.raises(AssertionError):
            test_can_be_typed(
                Command('here', 'README.md', tuple(shlex.split(line))),
                tmp_path,
                monkeypatch,
            )


# ---------------------------------------------------------------------------------- run

# Commands of the pages by their beginnings, what is put in the place of some of their
# words, and what is added to make them quick.
SMALL = '--num-train 1 --num-val 1 --seconds 32'
RUN = [
    ('python tools/data/make_demo_dataset.py data/memvit_demo', {}, SMALL),
    (
        'python tools/data/check_dataset.py configs/memvit_ava.py',
        {'configs/memvit_ava.py': 'configs/memvit_demo.py'},
        '',
    ),
    (
        'python tools/train.py configs/memvit_demo.py',
        {},
        '--cfg-options train_cfg.max_epochs=1',
    ),
    (
        'python tools/test.py configs/memvit_demo.py work_dirs/memvit_demo/epoch_6.pth',
        {'work_dirs/memvit_demo/epoch_6.pth': 'work_dirs/memvit_demo/epoch_1.pth'},
        '',
    ),
    (
        'python tools/data/make_demo_dataset.py data/memvit_demo_epic --format epic',
        {},
        SMALL,
    ),
    (
        'tools/dist_test.sh configs/memvit_epic_cls.py',
        {
            'configs/memvit_epic_cls.py': 'configs/memvit_demo_epic_cls.py',
            'work_dirs/memvit_epic_cls/epoch_30.pth': 'epic.pth',
            '8': '2',
        },
        '',
    ),
    ('python tools/analysis_tools/eval_epic.py --task recognition', {}, ''),
    ('python tools/deployment/stream_video.py kitchen.mp4', {}, ''),
    (
        'python tools/deployment/stream_video.py street.mp4 --config memvit_demo.py',
        {},
        '',
    ),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkout with files that commands read."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(CHECKOUT / name)
    for name in ('kitchen.mp4', 'street.mp4', 'epic.pth', 'ava.pth', 'yolox_tiny.pth'):
        FILES[name](folder / name)
    (folder / 'data').mkdir()
    (folder / 'data/epic').symlink_to('memvit_demo_epic')
    return folder


@pytest.mark.parametrize('begin, swaps, more', RUN, ids=[run[0] for run in RUN])
def test_runs(begin, swaps, more, folder):
    found = [c for c in COMMANDS if f'{c.text} '.startswith(f'{begin} ')]
    assert found, f'No page has {begin}'
    program, *words = (swaps.get(word, word) for word in found[0].words)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [python() if program == 'python' else program, *words, *shlex.split(more)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHON=python(), PORT=str(port)),
    )
    assert done.returncode == 0, done.stderr
