"""Checkpoints are loaded without running code that somebody put into them.

Whatever goes through mmengine's ``CheckpointLoader`` (``load_from``, a ``Pretrained``
initialization, ``init_recognizer``, ``--resume``) is read with ``weights_only=True``,
whatever torch's default is. The types in mmengine's log history, which its own
checkpoints hold besides weights, are added to those that torch allows.
"""

import codecs
import functools
import pickle
import re
import tarfile
import threading
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

_patching = threading.RLock()


def install() -> None:
    """Make mmengine's loader follow the rule above; see open-mmlab/mmengine#1655."""
    if is_installed():
        return
    torch.serialization.add_safe_globals(_allowed_globals())
    load_checkpoint = CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(load_checkpoint)
    def load_checkpoint_safely(cls, filename, map_location=None, logger='current'):
        # mmengine calls torch.load in a dozen places, torch.hub's download among them,
        # and passes no weights_only: for the time of one call, torch.load is ours.
        with _patching:
            torch_load = torch.load
            torch.load = functools.partial(load_data, filename, torch_load=torch_load)
            try:
                return load_checkpoint(cls, filename, map_location, logger)
            finally:
                torch.load = torch_load

    load_checkpoint_safely.memvit_mm = True
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint_safely)


def is_installed() -> bool:
    """Whether :func:`install` has been called."""
    return hasattr(CheckpointLoader.load_checkpoint.__func__, 'memvit_mm')


def load_data(
    filename: str, file: Any, *args, torch_load: Callable = torch.load, **kwargs
) -> Any:
    """As ``torch.load``, for weights and plain data alone.

    Args:
        filename (str): What errors call the file.
        file, *args, **kwargs: As for ``torch.load``.
        torch_load (Callable): The true ``torch.load``.

    Raises:
        ValueError: If the file is damaged or holds anything else.
    """
    try:
        if tarfile.is_tarfile(file):
            # torch < 2.6 unpickles parts of its oldest file format whatever
            # weights_only says (CVE-2025-32434).
            raise pickle.UnpicklingError('a tar file')
        return torch_load(file, *args, **{**kwargs, 'weights_only': True})
    except (OSError, MemoryError):
        raise
    # What torch raises for bytes that are no pickle is of any kind.
    except Exception as error:
        refused = re.search(r"(?:GLOBAL |<class '|<function )([\w.]+)", str(error))
        if refused is None:
            raise ValueError(
                f'{filename} is no readable checkpoint (it is damaged, incomplete or '
                'of another kind): fetch or write it again.'
            ) from error
        raise ValueError(
            f'{filename} holds more than weights ({refused[1]}), and opening it could '
            'run code: if you trust where it is from, allow that type with '
            'torch.serialization.add_safe_globals, or load the file once with '
            'torch.load(..., weights_only=False), save its "state_dict" and use that.'
        ) from error


def _allowed_globals() -> list:
    """The types in mmengine's log history and in its schedulers' states."""
    reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]
    scalar = np.float64.__reduce__(np.float64())[0]
    return [
        HistoryBuffer,
        _named('builtins', 'getattr', _history_statistic),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in '?bBhHiIlLqQefdUS'},
        # numpy 1 and 2 keep the same functions in different modules.
        *(
            _named(module, name, function)
            for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
            for name, function in (('_reconstruct', reconstruct), ('scalar', scalar))
        ),
        # Protocol 2 writes bytes as text to encode, and sets as calls; torch >= 2.6
        # allows these itself.
        codecs.encode,
        set,
        bytearray,
    ]


def _named(module: str, name: str, function: Callable) -> Callable:
    """A function under the name by which a pickle asks for it.

    torch >= 2.6 takes names of our choice, older ones look at the attributes.
    """

    def call(*args):
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


def _history_statistic(owner: Any, name: Any) -> Callable:
    # HistoryBuffer pickles its table of statistics ('mean', 'max', ...), methods of
    # its own, as getattr(HistoryBuffer, name). Allowing getattr would allow all.
    if owner is not HistoryBuffer or not isinstance(name, str) or name[:1] == '_':
        raise pickle.UnpicklingError('Unsupported global: GLOBAL builtins.getattr')
    return getattr(HistoryBuffer, name)
