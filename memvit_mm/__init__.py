"""Memory-augmented multiscale vision transformers (MeMViT) for MMAction2.

``custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)`` in a config
registers everything and mends what MMAction2 1.2.0 needs on current torch and numpy.
"""

import importlib

from . import compat

compat.apply()

from .io import safe_load  # noqa: E402

safe_load.install()

from . import datasets, engine, evaluation, models  # noqa: E402
from .version import __version__  # noqa: E402


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


_read_whole_videos()

__all__ = ['compat', 'datasets', 'engine', 'evaluation', 'models', '__version__']
