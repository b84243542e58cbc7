"""Checkpoints load without running code that somebody put into them.

Whatever goes through mmengine's ``CheckpointLoader`` (``load_from``, a
``Pretrained`` initialization, ``init_recognizer``, ``resume``) is read with
``weights_only=True``, whatever torch's default is. What mmengine itself writes
besides weights, its log history, is on a list of harmless types. A file that holds
anything else is refused with one sentence, unless it is the run's own: only
``Runner.resume`` of a checkpoint in the run's own ``work_dir`` may unpickle more.
"""

import _compat_pickle
import codecs
import functools
import logging
import os
import pickle
import re
import tarfile
import threading
import types
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils import digit_version

# Parts of torch's message and of ours.
TORCHSCRIPT = 'TorchScript archive'
TAR = 'its old tar format'

_own_checkpoint = ContextVar('own_checkpoint', default=False)
_patching = threading.RLock()


def install() -> None:
    """Make mmengine's loader and ``Runner.resume`` follow the rule above."""
    load_checkpoint = CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(load_checkpoint)
    def load_checkpoint_safely(cls, filename, map_location=None, logger='current'):
        with _torch_load_is_safe(filename):
            return load_checkpoint(cls, filename, map_location, logger)

    load_checkpoint_safely.memvit_mm = True
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint_safely)

    resume = Runner.resume

    @functools.wraps(resume)
    def resume_own(self, filename, *args, **kwargs):
        token = _own_checkpoint.set(is_own_checkpoint(filename, self.work_dir))
        try:
            return resume(self, filename, *args, **kwargs)
        finally:
            _own_checkpoint.reset(token)

    Runner.resume = resume_own


def is_installed() -> bool:
    """Whether :func:`install` has been called."""
    return hasattr(CheckpointLoader.load_checkpoint.__func__, 'memvit_mm')


def is_own_checkpoint(filename: str, work_dir: str) -> bool:
    """Whether a run in ``work_dir`` wrote ``filename``.

    It did if the file lies below ``work_dir`` (links followed), or is the one that
    ``work_dir/last_checkpoint`` names (``CheckpointHook(out_dir=...)`` writes
    elsewhere).
    """
    if '://' in filename:
        return False
    path, work_dir = os.path.realpath(filename), os.path.realpath(work_dir)
    if os.path.commonpath([path, work_dir]) == work_dir:
        return True
    try:
        with open(os.path.join(work_dir, 'last_checkpoint'), encoding='utf-8') as file:
            return os.path.realpath(file.read().strip()) == path
    except OSError:
        return False


def allowed_globals() -> dict:
    """What a checkpoint may name besides torch's own types: name -> object.

    These are the types in mmengine's log history. Names are those in the pickle:
    numpy 1 and 2 keep the same functions in different modules.
    """
    reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]
    scalar = np.float64.__reduce__(np.float64())[0]
    allowed = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _history_statistic,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        # Protocol 2 writes bytes as text to encode, and sets as calls; newer torch has
        # these on its own list.
        '_codecs.encode': codecs.encode,
        'builtins.set': set,
        'builtins.bytearray': bytearray,
    }
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed[f'{module}._reconstruct'] = reconstruct
        allowed[f'{module}.scalar'] = scalar
    for code in '?bBhHiIlLqQefdUS':
        dtype = type(np.dtype(code))
        allowed[f'{dtype.__module__}.{dtype.__qualname__}'] = dtype
    return allowed


def has_named_safe_globals(version: str) -> bool:
    """Whether this torch takes allowed globals under a name of our choice (2.6)."""
    return digit_version(version) >= digit_version('2.6.0')


def _history_statistic(owner, name: str):
    # HistoryBuffer pickles its table of statistics ('mean', 'max', ...), methods of
    # its own, as getattr(HistoryBuffer, name). Allowing getattr would allow all.
    if owner is not HistoryBuffer or not isinstance(name, str) or name[:1] == '_':
        raise pickle.UnpicklingError('Unsupported global: GLOBAL builtins.getattr')
    return getattr(HistoryBuffer, name)


@contextmanager
def _torch_load_is_safe(filename: str):
    # mmengine calls torch.load in a dozen places, torch.hub's download among them,
    # and passes no weights_only: for the time of one call, torch.load is ours.
    with _patching:
        torch_load = torch.load

        @functools.wraps(torch_load)
        def load(file, *args, **kwargs):
            # torch.load(f, map_location, pickle_module): the latter is not wanted.
            kwargs.pop('weights_only', None)
            kwargs.pop('pickle_module', None)
            return _load(torch_load, filename, file, *args[:1], **kwargs)

        torch.load = load
        try:
            yield
        finally:
            torch.load = torch_load


def _load(torch_load, filename: str, file, *args, **kwargs):
    own = _own_checkpoint.get()
    try:
        return _load_allowed(torch_load, file, *args, **kwargs)
    except (pickle.UnpicklingError, EOFError, RuntimeError, tarfile.TarError) as error:
        foreign = _foreign_content(str(error))
        if foreign is None:
            raise ValueError(
                f'{filename} is no readable checkpoint (it is damaged, incomplete or '
                'of another kind): fetch or write it again.'
            ) from error
        if not own:
            raise ValueError(
                f'{filename} holds more than weights ({foreign}), and opening it '
                'could run code: if you trust where it is from, load it once with '
                'torch.load(..., weights_only=False), save its "state_dict" and use '
                'that file.'
            ) from error
    print_log(
        f'{filename} holds {foreign} besides weights; it is unpickled because it lies '
        "in this run's own work_dir.",
        logger='current',
        level=logging.WARNING,
    )
    _rewind(file)
    return torch_load(file, *args, weights_only=False, **kwargs)


def _foreign_content(message: str):
    """What an unpickler refused, by its message; None if it refused nothing."""
    for pattern in (
        r'GLOBAL (\S+)',
        r'[Uu]nsupported class (\S+)',
        r'unrecognized function (\S+)',
        r"but got <class '([^']+)'>",
        f'({TAR})',
        f'({TORCHSCRIPT})',
    ):
        found = re.search(pattern, message)
        if found:
            return found.group(1)
    return None


def _load_allowed(torch_load, file, *args, **kwargs):
    if has_named_safe_globals(torch.__version__):
        named = [(value, name) for name, value in allowed_globals().items()]
        with torch.serialization.safe_globals(named):
            return torch_load(file, *args, weights_only=True, **kwargs)
    # Before 2.6 torch cannot be told names, and before 2.4 not even types; the same
    # list then goes into an unpickler of our own.
    if isinstance(file, (str, os.PathLike)) and tarfile.is_tarfile(file):
        # torch < 2.6 unpickles parts of its oldest file format whatever weights_only
        # says (CVE-2025-32434).
        raise pickle.UnpicklingError(TAR)
    try:
        return torch_load(file, *args, weights_only=True, **kwargs)
    except pickle.UnpicklingError:
        _rewind(file)
        return torch_load(
            file,
            *args,
            weights_only=False,
            pickle_module=_restricted_pickle(),
            **kwargs,
        )


def _restricted_pickle():
    """The part of the module ``pickle`` that torch uses, for allowed types only."""
    allowed = {
        **torch._weights_only_unpickler._get_allowed_globals(),
        **allowed_globals(),
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            # torch saves by protocol 2, under Python 2's names: __builtin__.getattr.
            module, name = _compat_pickle.NAME_MAPPING.get(
                (module, name),
                (_compat_pickle.IMPORT_MAPPING.get(module, module), name),
            )
            try:
                return allowed[f'{module}.{name}']
            except KeyError:
                raise pickle.UnpicklingError(
                    f'Unsupported global: GLOBAL {module}.{name}'
                ) from None

    def load(file, **kwargs):
        return Unpickler(file, **kwargs).load()

    return types.SimpleNamespace(
        __name__='restricted_pickle',
        Unpickler=Unpickler,
        UnpicklingError=pickle.UnpicklingError,
        load=load,
    )


def _rewind(file) -> None:
    if hasattr(file, 'seek'):
        file.seek(0)
