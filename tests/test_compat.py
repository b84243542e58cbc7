"""Every fix: needed here or not, applied where needed, absent where not."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config

import memvit_mm  # noqa: F401
from memvit_mm import compat


def hide(monkeypatch, *hidden):
    """Make ``importlib.util.find_spec`` blind to some modules."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, package=None: None if name in hidden else find_spec(name, package),
    )


class TestApply:
    def test_only_what_is_needed_and_once(self, monkeypatch):
        calls = []
        fixes = [
            compat.Fix('needed', lambda: True, lambda: calls.append('needed')),
            compat.Fix('not', lambda: False, lambda: calls.append('not')),
        ]
        monkeypatch.setattr(compat, 'FIXES', fixes)
        monkeypatch.setattr(compat, '_applied', [])
        compat.apply()
        compat.apply()
        assert calls == ['needed']
        assert compat.applied() == ('needed',)

    def test_each_repair_names_its_issue_or_says_there_is_none(self):
        for fix in compat.FIXES:
            text = fix.repair.__doc__.lower()
            assert 'open-mmlab/' in text or 'upstream' in text, fix.name

    def test_nothing_is_left_to_do_after_the_import(self):
        # drn and the numpy names stay "needed": they are lent, not installed.
        left = {fix.name for fix in compat.FIXES if fix.needed()}
        assert left <= set(compat.applied())

    @pytest.mark.parametrize('package', ['mmcv', 'mmdet', 'mmengine', 'mmaction'])
    def test_missing_package(self, monkeypatch, package):
        hide(monkeypatch, package)
        with pytest.raises(
            ImportError, match=rf'needs {package}\S*, which is not inst'
        ):
            compat.check_stack()

    def test_opencv_that_does_not_load(self):
        """As on a bare server, where libGL is missing."""
        code = """
import importlib.util, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'cv2':
            raise ImportError('libGL.so.1: cannot open shared object file')

sys.meta_path.insert(0, Finder())
import memvit_mm
"""
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True
        )
        last = done.stderr.splitlines()[-1]
        assert 'OpenCV cannot be loaded (libGL.so.1: cannot open' in last
        assert 'pip install --force-reinstall --no-deps opencv-python-headless' in last


class TestMissingModules:
    """In a process that has no pkg_resources."""

    CODE = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'pkg_resources':
            raise ModuleNotFoundError(name=name)

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name == 'pkg_resources' else find_spec(name, package)
)
sys.meta_path.insert(0, Hidden())
import memvit_mm
import mmaction.models
from mmengine.hub import get_config
name = 'mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e'
config = get_config(name + '_kinetics400-rgb.py')
print(json.dumps(dict(
    applied=memvit_mm.compat.applied(),
    backbone=config.model.backbone.type,
)))
"""

    def test_it_is_replaced(self):
        output = subprocess.run(
            [sys.executable, '-c', self.CODE], capture_output=True, text=True
        )
        assert output.returncode == 0, output.stderr
        result = json.loads(output.stdout.splitlines()[-1])
        assert 'pkg_resources' in result['applied']
        assert result['backbone'] == 'ResNet'

    def test_it_is_replaced_everywhere(self):
        assert 'pkg_resources' in compat.applied()

    def test_installed_path(self):
        # mmaction2 is the distribution, mmaction the module; json is no distribution.
        assert compat.is_installed('mmaction2') and compat.is_installed('json')
        assert not compat.is_installed('no_such_package')
        assert compat.get_installed_path('mmaction2').endswith('mmaction')
        assert compat.get_installed_path('json').endswith('json')
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            compat.get_installed_path('no_such_package')


class TestDRN:
    @pytest.mark.parametrize('there', [True, False])
    def test_guard(self, monkeypatch, tmp_path, there):
        localizers = tmp_path / 'models' / 'localizers'
        (localizers / 'drn' if there else localizers).mkdir(parents=True)
        spec = SimpleNamespace(origin=str(tmp_path / '__init__.py'))
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
        assert compat.needs_drn() is not there

    @pytest.mark.skipif('drn' not in compat.applied(), reason='MMAction2 has its DRN')
    def test_using_it_says_what_is_missing(self):
        from mmaction.models import DRN
        from mmaction.registry import MODELS

        for build in (DRN, lambda: MODELS.build(dict(type='DRN'))):
            with pytest.raises(ImportError, match='#2714'):
                build()


class TestNumpyNames:
    def test_guard(self, monkeypatch):
        for name, value in compat.NUMPY_NAMES.items():
            monkeypatch.setattr(np, name, value, raising=False)
        assert not compat.needs_numpy_names()
        monkeypatch.delattr(np, 'NAN')
        assert compat.needs_numpy_names()

    def test_a_class_without_boxes_has_no_precision(self):
        from mmaction.evaluation.functional.ava_evaluation import metrics

        assert np.isnan(metrics.compute_average_precision(None, None))
        whole = metrics.compute_average_precision(np.array([1.0]), np.array([1.0]))
        assert whole == 1.0

    def test_numpy_itself_is_left_alone(self):
        if 'numpy_names' in compat.applied():
            assert not all(name in vars(np) for name in compat.NUMPY_NAMES)

    def test_stand_in(self):
        stand_in = compat.numpy_with_old_names()
        assert np.isnan(stand_in.NAN) and stand_in.Inf == float('inf')
        assert stand_in.in1d([1, 2], [2]).tolist() == [False, True]
        assert stand_in.zeros is np.zeros
        with pytest.raises(AttributeError):
            _ = stand_in.no_such_name


class TestConfigScope:
    def test_names_by_keyword(self, tmp_path):
        import mmengine.hub
        from mmengine.config import Config

        path = tmp_path / 'own.py'
        path.write_text('number = 3\n')
        assert Config.fromfile(filename=path).number == 3
        ours = 'memvit_mm::memvit_demo.py'
        for cfg in (
            Config.fromfile(filename=ours),
            mmengine.hub.get_config(cfg_path=ours),
        ):
            assert cfg.model.type == 'MemoryFastRCNN'

    def test_guard(self, monkeypatch):
        from mmengine.config.utils import MODULE2PACKAGE

        assert compat.needs_config_scope()
        monkeypatch.setitem(MODULE2PACKAGE, 'memvit_mm', 'memvit_mm')
        assert not compat.needs_config_scope()

    @pytest.fixture
    def configs(self, monkeypatch, tmp_path):
        (tmp_path / 'setup.py').touch()
        (tmp_path / 'configs').mkdir()
        (tmp_path / 'configs' / 'one.py').write_text("model = dict(type='A', x=1)\n")
        monkeypatch.setattr('memvit_mm.paths.PACKAGE_DIR', tmp_path / 'memvit_mm')

    def test_base(self, configs, tmp_path):
        leaf = tmp_path / 'leaf.py'
        leaf.write_text("_base_ = 'memvit_mm::one.py'\nmodel = dict(x=2)\n")
        # No `_scope_`: our components are in MMAction2's registries.
        assert Config.fromfile(leaf).model == dict(type='A', x=2)

    def test_get_config(self, configs):
        from mmengine.hub import get_config

        assert get_config('memvit_mm::one.py').model.x == 1
        with pytest.raises(ValueError, match='there are: one.py'):
            get_config('memvit_mm::two.py')

    def test_fromfile(self, configs):
        assert Config.fromfile('memvit_mm::one.py').model.x == 1
        with pytest.raises(ValueError, match='there are: one.py'):
            Config.fromfile('memvit_mm::two.py')

    def test_inferencers(self, configs):
        from mmaction.apis import ActionRecogInferencer

        inferencer = object.__new__(ActionRecogInferencer)
        cfg, weights = inferencer._load_model_from_metafile('memvit_mm::one.py')
        assert cfg.model.x == 1 and weights is None
        inferencer.scope = 'mmaction'
        cfg, weights = inferencer._load_model_from_metafile('tsn')
        assert cfg.model.type == 'Recognizer2D' and weights.endswith('.pth')

    def test_other_packages_are_untouched(self, tmp_path):
        leaf = tmp_path / 'leaf.py'
        leaf.write_text("_base_ = 'mmaction::_base_/default_runtime.py'\n")
        assert Config.fromfile(leaf).default_scope == 'mmaction'
