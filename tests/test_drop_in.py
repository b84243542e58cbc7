"""What takes the place of a class of OpenMMLab takes its arguments in its order."""

import importlib
import inspect
import pkgutil

import mmaction.registry
import mmdet.registry
import mmengine.registry
import pytest
from mmengine.registry import Registry

import memvit_mm

for module in pkgutil.walk_packages(memvit_mm.__path__, 'memvit_mm.'):
    importlib.import_module(module.name)

STACK = ('mmaction', 'mmdet', 'mmengine')


def registered():
    """All classes in OpenMMLab's registries, ours and theirs."""
    found = {}
    for package in (mmengine.registry, mmaction.registry, mmdet.registry):
        for registry in vars(package).values():
            if isinstance(registry, Registry):
                found.update(dict.fromkeys(registry.module_dict.values()))
    return [one for one in found if inspect.isclass(one)]


CLASSES = registered()


def replaced(ours):
    """The registered class of OpenMMLab that a class of ours stands in for."""
    for base in ours.__mro__[1:]:
        if base.__module__.split('.')[0] in STACK:
            return base if base in CLASSES else None
    return None


def pairs():
    for ours in CLASSES:
        theirs = replaced(ours)
        # Not the stand-ins for what MMAction2's wheel lacks.
        if ours.__module__.startswith('memvit_mm.') and theirs is not None:
            yield pytest.param(ours, theirs, id=ours.__name__)


PAIRS = list(pairs())

# As MMAction2Inferencer names it; and ours takes more than a label file.
OTHER_NAMES = {
    ('MemViTInferencer', 'model'): 'rec',
    ('MemViTInferencer', 'label_file'): 'labels',
}


def same_order(ours, theirs, name):
    """Whether a function takes what another takes, in its order, and ours after it."""
    parameters = list(inspect.signature(ours).parameters.values())
    expected = inspect.signature(theirs).parameters.values()
    for place, parameter in enumerate(expected):
        if parameter.kind is parameter.VAR_KEYWORD:
            if name != 'MemoryVisionTransformer':
                assert parameters[-1].kind is parameter.VAR_KEYWORD, parameter
            # VisionTransformer drops them unread, ours refuses what it does not know.
            continue
        found = parameters[place]
        if found.kind is found.VAR_POSITIONAL:
            return  # handed on as they are
        wanted = OTHER_NAMES.get((name, parameter.name), parameter.name)
        assert found.name == wanted and found.kind is parameter.kind, parameter
        if parameter.default is not parameter.empty:
            assert found.default is not found.empty, parameter


def test_there_is_something_to_compare():
    names = {ours.__name__ for ours, _ in (pair.values for pair in PAIRS)}
    assert names >= {
        'MeMViT', 'MemoryRecognizer3D', 'MemoryFastRCNN', 'MemoryAVARoIHead',
        'MemoryAVADataset', 'MemoryAVAMetric', 'SampleClipFrames', 'VideoInit',
        'VideoDecode', 'MemViTInferencer', 'MemoryCheckpointHook', 'CPUAmpOptimWrapper',
    }  # fmt: skip


@pytest.mark.parametrize('ours, theirs', PAIRS)
def test_arguments_in_their_order(ours, theirs):
    same_order(ours, theirs, ours.__name__)


@pytest.mark.parametrize('ours, theirs', PAIRS)
def test_arguments_of_methods_in_their_order(ours, theirs):
    for name in dir(theirs):
        method, other = getattr(ours, name), getattr(theirs, name)
        public = name == '__call__' or not name.startswith('_')
        if public and inspect.isfunction(method) and method is not other:
            same_order(method, other, ours.__name__)
