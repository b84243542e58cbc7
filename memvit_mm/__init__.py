"""Memory-augmented multiscale vision transformers (MeMViT) for MMAction2.

``custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)`` in a config
registers everything and mends what MMAction2 1.2.0 needs on current torch and numpy.

Where torch or OpenMMLab's packages are missing, as on a device that runs exported
models, ``memvit_mm.deploy`` works all the same, and nothing else does.
"""

import importlib
import importlib.util
import warnings

from .version import __version__

STACK = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmaction')
_missing = [name for name in STACK if importlib.util.find_spec(name) is None]


def _whole_video_pipeline(transforms):
    # The APIs take their time to import: only who reads a video waits for them.
    from .apis.whole_video import WholeVideoPipeline

    return WholeVideoPipeline(transforms)


def _read_whole_videos():
    """Let MMAction2's inference functions read whole videos, for models with memory.

    They build their pipelines with ``Compose``. Other pipelines go on as they were.
    """
    for name in ('inference', 'inferencers.actionrecog_inferencer'):
        module = importlib.import_module(f'mmaction.apis.{name}')
        module.Compose = _whole_video_pipeline


if _missing and len(_missing) < len(STACK):
    warnings.warn(
        f'memvit_mm registers nothing, since it does not find {", ".join(_missing)}: '
        'run bash tools/setup_env.sh, or pip install memvit_mm with its dependencies.',
        stacklevel=2,
    )
if not _missing:
    from . import compat

    compat.apply()

    from .io import safe_load

    safe_load.install()

    from . import datasets, engine, evaluation, models

    _read_whole_videos()


def __getattr__(name):
    if name in __all__ and _missing:
        raise ModuleNotFoundError(
            f'memvit_mm.{name} needs {", ".join(_missing)}, not installed here: '
            'pip install memvit_mm with its dependencies (memvit_mm.deploy alone '
            'goes without).',
            name=_missing[0],
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = ['compat', 'datasets', 'engine', 'evaluation', 'models', '__version__']
