"""What MMAction2 1.2.0 and mmengine 0.10 need to run on today's torch and numpy.

``import memvit_mm`` calls :func:`apply` before anything imports ``mmaction.models``.
Each fix says whether it is needed, changes one thing, and names the issue upstream;
:func:`applied` tells which ones were.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from . import mmcv_ops

logger = logging.getLogger(__name__)
_applied: list = []


class Fix(NamedTuple):
    """One thing to repair: ``needed()`` looks, ``repair()`` does it."""

    name: str
    needed: Callable[[], bool]
    repair: Callable[[], None]


def apply() -> None:
    """Apply every fix that is needed here and has not been applied yet.

    Raises:
        ImportError: If a part of the OpenMMLab stack is missing; the message says
            how to install it.
    """
    check_stack()
    for fix in FIXES:
        if fix.name not in _applied and fix.needed():
            fix.repair()
            _applied.append(fix.name)
            logger.debug('Applied the fix %r (memvit_mm.compat).', fix.name)


def applied() -> tuple:
    """Names of the fixes that were needed here, in the order of application."""
    return tuple(_applied)


def check_stack() -> None:
    """Say what is missing before some import fails in the middle of MMAction2."""
    names = dict(mmengine='mmengine', mmcv='mmcv-lite', mmdet='mmdet')
    for package, pip_name in dict(names, mmaction='mmaction2').items():
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f'memvit_mm needs {pip_name}, which is not installed: install '
                'memvit_mm with its dependencies (`pip install memvit_mm`, or `pip '
                'install .` in a checkout).'
            )
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        raise ImportError(
            f'OpenCV cannot be loaded ({error}): on a machine without a screen, `pip '
            'install --force-reinstall --no-deps opencv-python-headless` puts the '
            'build in its place that needs no libGL.'
        ) from None


# --- mmengine without pkg_resources ------------------------------------------------


def needs_pkg_resources() -> bool:
    """Yes: setuptools 82 no longer has it, and those before warn of its import."""
    return True


def replace_pkg_resources() -> None:
    """Look packages up by ``importlib.metadata``; open-mmlab/mmengine#1676.

    mmengine needs this for ``mmaction::...`` in a config's ``_base_``.
    """
    import mmengine.config.config
    import mmengine.hub.hub
    import mmengine.utils.package_utils

    for module in (
        mmengine.utils.package_utils,
        mmengine.utils,
        mmengine.config.config,
        mmengine.hub.hub,
    ):
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)


def is_installed(package: str) -> bool:
    """As ``mmengine.utils.is_installed``."""
    try:
        importlib.metadata.distribution(package)
        return True
    except importlib.metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(package)
        return spec is not None and spec.origin is not None


def get_installed_path(package: str) -> str:
    """As ``mmengine.utils.get_installed_path``: the folder of a package's module."""
    top_level = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        top_level = importlib.metadata.distribution(package).read_text('top_level.txt')
    for module in (package, *(top_level or '').split()[:1]):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return os.path.dirname(spec.origin)
    raise importlib.metadata.PackageNotFoundError(package)


# --- MMAction2's missing folder ----------------------------------------------------


def needs_drn() -> bool:
    """Whether the wheel lacks ``mmaction/models/localizers/drn`` (1.2.0 does)."""
    mmaction = importlib.util.find_spec('mmaction')
    localizers = Path(mmaction.origin).parent / 'models' / 'localizers'
    return not (localizers / 'drn').is_dir()


def add_drn() -> None:
    """Let ``mmaction.models`` import DRN; open-mmlab/mmaction2#2714.

    The model itself is not in the wheel: building it says so.
    """
    from mmaction.registry import MODELS

    name = 'mmaction.models.localizers.drn'
    package, module = types.ModuleType(name), types.ModuleType(f'{name}.drn')
    package.__path__ = []
    package.drn, module.DRN = module, DRN
    sys.modules[package.__name__] = package
    sys.modules[module.__name__] = module
    MODELS.register_module(name='DRN', module=DRN, force=True)


class DRN:
    """Stands where MMAction2's localizer of this name should be."""

    def __init__(self, *args, **kwargs):
        raise ImportError(
            "DRN is missing from mmaction2 1.2.0's wheel (open-mmlab/mmaction2#2714): "
            'install MMAction2 from its source to use this model.'
        )


# --- names that numpy 2 removed ----------------------------------------------------

NUMPY_NAMES = {'NAN': np.nan, 'Inf': np.inf, 'in1d': np.isin}
NUMPY_USERS = (
    'mmaction.evaluation.functional.ava_evaluation.metrics',
    'mmaction.evaluation.metrics.multimodal_metric',
    'mmaction.datasets.transforms.pose_transforms',
    'mmaction.utils.misc',
)


def needs_numpy_names() -> bool:
    """Whether numpy lacks a name that MMAction2 uses (2.0 and later)."""
    return not all(name in vars(np) for name in NUMPY_NAMES)


def lend_numpy_names() -> None:
    """Give them to the modules that use them, not to numpy.

    Not reported upstream: MMAction2 1.2.0 is older than numpy 2 (whose migration guide
    lists the names). Without ``np.NAN``, ``AVAMetric`` fails on the first class that
    has no box.
    """
    for name in NUMPY_USERS:
        importlib.import_module(name).np = numpy_with_old_names()


def numpy_with_old_names() -> types.ModuleType:
    """``numpy`` for one module, with the names in ``NUMPY_NAMES`` as well."""
    module = types.ModuleType('numpy')
    vars(module).update(vars(np), **NUMPY_NAMES)
    return module


# --- memvit_mm::some_config.py -----------------------------------------------------


def needs_config_scope() -> bool:
    """Whether mmengine does not know ``memvit_mm::``; its packages are a fixed list."""
    from mmengine.config.utils import MODULE2PACKAGE

    return 'memvit_mm' not in MODULE2PACKAGE


def add_config_scope() -> None:
    """Let whatever takes a config take ``memvit_mm::NAME.py``.

    That is ``_base_``, ``Config.fromfile``, ``mmengine.hub.get_config`` and
    MMAction2's inferencers.

    No issue upstream: mmengine keeps the list of packages to itself. The scope that
    goes with ``package::`` is left out, since our components are in MMAction2's
    registries.
    """
    import mmengine.hub
    from mmengine.config import Config
    from mmengine.infer import BaseInferencer

    from .paths import get_config_path

    prefix = 'memvit_mm::'

    def redirect(owner: Any, name: str, ours: Callable) -> None:
        """Let a function that takes a config's name call ``ours`` for our configs."""
        original = getattr(owner, name)
        first = next(iter(inspect.signature(original).parameters))

        @functools.wraps(original)
        def function(*args, **kwargs):
            if not args and first in kwargs:
                args = (kwargs.pop(first),)
            if args and str(args[0]).startswith(prefix):
                path = get_config_path(str(args[0])[len(prefix) :])
                return ours(path, *args[1:], **kwargs)
            return original(*args, **kwargs)

        is_class = isinstance(owner, type)
        setattr(owner, name, staticmethod(function) if is_class else function)

    redirect(Config, '_get_cfg_path', lambda path, filename: (path, None))
    redirect(Config, 'fromfile', Config.fromfile)
    for module in (mmengine.hub, mmengine.hub.hub):
        redirect(
            module, 'get_config', lambda path, pretrained=False: Config.fromfile(path)
        )

    from_metafile = BaseInferencer._load_model_from_metafile

    def from_metafile_or_ours(self, model):
        # A model zoo has weights for each of its configs, we have not.
        if model.startswith(prefix):
            return Config.fromfile(model), None
        return from_metafile(self, model)

    BaseInferencer._load_model_from_metafile = from_metafile_or_ours


FIXES = (
    Fix('mmcv_ops', mmcv_ops.needed, mmcv_ops.install),
    Fix('pkg_resources', needs_pkg_resources, replace_pkg_resources),
    Fix('drn', needs_drn, add_drn),
    Fix('numpy_names', needs_numpy_names, lend_numpy_names),
    Fix('config_scope', needs_config_scope, add_config_scope),
)
