"""What `pip install` puts where, and that it is found again."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import memvit_mm
from memvit_mm import paths
from memvit_mm.paths import get_config_path, get_tool_path

IGNORED = shutil.ignore_patterns(
    '.git',
    '.venv',
    'work_dirs',
    '*build',
    'jupyter_execute',
    '*.egg-info',
    '__pycache__',
    '.mim',
)
# Nothing from the index is needed: setuptools and wheel are installed already.
OFFLINE = dict(os.environ, PIP_NO_INDEX='1', PIP_DISABLE_PIP_VERSION_CHECK='1')


def pip(*arguments):
    command = [sys.executable, '-m', 'pip', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=OFFLINE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def source(checkout, tmp_path_factory):
    """A copy of the checkout, with a leftover of an earlier build."""
    copy = tmp_path_factory.mktemp('source') / 'memvit_mm'

    def ignored(folder, names):
        here = {'data'} if Path(folder) == checkout else set()
        return IGNORED(folder, names) | here

    shutil.copytree(checkout, copy, ignore=ignored)
    leftover = copy / 'build' / 'lib' / 'memvit_mm' / 'deleted_long_ago.py'
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    return copy


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', folder, source)
    return next(folder.glob('memvit_mm-*.whl'))


def test_wheel_has_configs_and_tools(wheel, checkout):
    names = zipfile.ZipFile(wheel).namelist()
    for folder, suffix in (('configs', '.py'), ('tools', '.py'), ('memvit_mm', '.py')):
        prefix = '' if folder == 'memvit_mm' else 'memvit_mm/.mim/'
        for path in (checkout / folder).rglob(f'*{suffix}'):
            parts = path.relative_to(checkout).parts
            if not {'__pycache__', '.mim', 'quickstart.py'} & set(parts):
                assert prefix + '/'.join(parts) in names
    assert 'memvit_mm/.mim/tools/dist_train.sh' in names
    page = {
        path.name for path in (checkout / 'memvit_mm/apis/report/report_page').iterdir()
    }
    assert len(page) >= 7
    assert {f'memvit_mm/apis/report/report_page/{name}' for name in page} <= set(names)
    assert 'memvit_mm/demo/memvit_demo.pth' in names
    # What works in a checkout only, what was deleted, and what nobody installs.
    for unwanted in (
        'setup_env.sh',
        'quickstart',
        'deleted_long_ago.py',
        'tests/',
        '__pycache__',
    ):
        assert not [name for name in names if unwanted in name]


def test_sdist_has_what_its_tests_need(source, tmp_path):
    code = (
        'import sys; from setuptools import build_meta as backend;'
        'print(backend.build_sdist(sys.argv[1]))'
    )
    output = subprocess.run(
        [sys.executable, '-c', code, tmp_path],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with tarfile.open(tmp_path / output.split()[-1]) as archive:
        members = [m.name.split('/', 1)[-1] for m in archive if m.isfile()]
    folders = ('tests', 'configs', 'tools', 'memvit_mm', 'docs')
    needed = {
        path.relative_to(source).as_posix()
        for folder in folders
        for path in (source / folder).rglob('*')
        if path.is_file() and not {'__pycache__', '.mim'} & set(path.parts)
    }
    assert 'tests/data/h264_open_gop.mp4' in needed
    top = {'LICENSE', 'README.md', 'pyproject.toml', 'setup.py', '.gitignore'}
    assert (needed | top) - set(members) == set()
    assert not [name for name in members if name.endswith('.pyc')]


def test_building_leaves_the_checkout_clean(wheel, source):
    assert not (source / 'memvit_mm' / '.mim').exists()


def test_installed_package_from_another_folder(wheel, tmp_path):
    pip('install', '--no-deps', '--target', tmp_path / 'site', wheel)
    # Only paths.py, which imports nothing: importing everything takes seconds.
    code = (
        'import importlib.util, sys\n'
        "spec = importlib.util.spec_from_file_location('paths', sys.argv[1])\n"
        'paths = importlib.util.module_from_spec(spec)\n'
        'spec.loader.exec_module(paths)\n'
        "print(paths.get_config_path('memvit_ava'))\n"
        "print(paths.get_tool_path('train.py'))\n"
    )
    package = tmp_path / 'site' / 'memvit_mm'
    output = subprocess.run(
        [sys.executable, '-c', code, package / 'paths.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    config, tool = map(Path, output.stdout.split())
    assert config == package / '.mim' / 'configs' / 'memvit_ava.py' and config.is_file()
    assert tool == package / '.mim' / 'tools' / 'train.py' and tool.is_file()
    # A tool in a folder finds what the tools share.
    tool = tool.parent / 'analysis_tools' / 'plot_demo.py'
    done = subprocess.run(
        [sys.executable, tool, 'nowhere'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith('Error: There is no training log nowhere'), (
        done.stderr
    )


# The command, and what `demo` begins with in the same process.
COMMAND = """
import runpy, sys

sys.argv = ['memvit_mm', 'info']
runpy.run_module('memvit_mm', run_name='__main__')
from memvit_mm.apis import init_detector_model
from memvit_mm.cli.demo import CONFIG, WEIGHTS
from memvit_mm.paths import get_config_path

model = init_detector_model(CONFIG, str(WEIGHTS), device='cpu')
print(type(model).__name__, WEIGHTS, get_config_path(CONFIG), sep='\\n')
"""


def test_the_installed_package_has_what_its_demo_needs(wheel, tmp_path):
    pip('install', '--no-deps', '--target', tmp_path / 'site', wheel)
    # A process that has imported nothing, which finds no checkout.
    done = subprocess.run(
        [sys.executable, '-c', COMMAND],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(tmp_path / 'site')),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package = tmp_path / 'site' / 'memvit_mm'
    facts, *_, model, weights, config = done.stdout.splitlines()
    assert facts.endswith(f'{memvit_mm.__version__}, {package}')
    assert model == 'MemoryFastRCNN'
    assert weights == str(package / 'demo' / 'memvit_demo.pth')
    assert config == str(package / '.mim' / 'configs' / 'memvit_demo.py')


def test_editable_install_links(source, tmp_path):
    target = tmp_path / 'site'
    options = ('--no-deps', '--no-build-isolation', '--target', target)
    pip('install', *options, '--editable', source)
    mim = source / 'memvit_mm' / '.mim'
    for folder in ('configs', 'tools'):
        assert (mim / folder).is_symlink()
        assert (mim / folder).resolve() == (source / folder).resolve()
    ignored = (source / '.gitignore').read_text().split()
    assert 'memvit_mm/.mim' in ignored


def test_setup_imports_no_torch(source):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['mmcv'] = None;"
        "sys.argv = ['setup.py', '--version']; exec(open('setup.py').read())"
    )
    done = subprocess.run(
        [sys.executable, '-c', code.replace('exec(', "__file__ = 'setup.py'; exec(")],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().splitlines()[-1] == memvit_mm.__version__, done.stderr


class TestPaths:
    @pytest.mark.parametrize('name', ['memvit_ava.py', 'memvit_ava'])
    def test_config(self, name, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        path = Path(get_config_path(name))
        assert path.is_absolute() and path.is_file()
        assert path.stem == Path(name).stem

    def test_tool(self):
        assert Path(get_tool_path('dist_train.sh')).is_file()
        assert get_tool_path('train') == get_tool_path('train.py')
        path = get_tool_path('data/check_dataset.py')
        assert Path(path).is_file()
        assert path == get_tool_path('check_dataset') == get_tool_path(Path(path).name)

    @pytest.mark.parametrize('name', ['memvit_eva.py', '../setup.py', '', '_base_'])
    def test_wrong_config(self, name):
        with pytest.raises(ValueError, match=r'there are: .*memvit_ava\.py') as error:
            get_config_path(name)
        assert '_base_/' not in str(error.value)

    def test_wrong_tool(self):
        with pytest.raises(ValueError, match=r'no .trian.py. among.*train\.py'):
            get_tool_path('trian.py')

    def test_nothing_installed(self, monkeypatch, tmp_path):
        monkeypatch.setattr(paths, 'PACKAGE_DIR', tmp_path / 'memvit_mm')
        with pytest.raises(ValueError, match='there are: none'):
            get_config_path('memvit_ava.py')


def test_cross_package_config():
    from mmengine.hub import get_config

    assert 'model' in get_config('memvit_mm::memvit_ava.py')
