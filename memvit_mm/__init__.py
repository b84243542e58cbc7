"""Memory-augmented multiscale vision transformers (MeMViT) for MMAction2.

``custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)`` in a config
registers everything and mends what MMAction2 1.2.0 needs on current torch and numpy.
"""

import importlib

from . import compat

compat.apply()

from . import datasets, engine, evaluation, models  # noqa: E402


def _whole_video_pipeline(transforms):
    """Build a test pipeline that also takes whole videos, for models with memory."""
    # The APIs are imported when they are used: they take their time.
    from .apis.whole_video import WholeVideoPipeline

    return WholeVideoPipeline(transforms)


# MMAction2's inference functions build their pipelines with it.
for _name in ('inference', 'inferencers.actionrecog_inferencer'):
    importlib.import_module(f'mmaction.apis.{_name}').Compose = _whole_video_pipeline

__version__ = '0.1.0'

__all__ = ['compat', 'datasets', 'engine', 'evaluation', 'models', '__version__']
