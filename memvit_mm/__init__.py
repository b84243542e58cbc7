"""Memory-augmented multiscale vision transformers (MeMViT) for MMAction2.

``custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)`` in a config
registers everything and mends what MMAction2 1.2.0 needs on current torch and numpy.
"""

from . import compat

compat.apply()

from .io import safe_load  # noqa: E402

safe_load.install()

from . import datasets, engine, evaluation, models  # noqa: E402
from .apis import whole_video  # noqa: E402

whole_video.install()

from .version import __version__  # noqa: E402

__all__ = ['compat', 'datasets', 'engine', 'evaluation', 'models', '__version__']
