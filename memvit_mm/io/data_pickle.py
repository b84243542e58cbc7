"""Pickles of plain data, such as person proposals, read without running code."""

import io
import pickle
from typing import Any

import numpy as np


def unpickle_data(content: bytes) -> Any:
    """Unpickle arrays, containers, strings and numbers without running code.

    Raises:
        pickle.UnpicklingError: If it holds anything else.
    """
    return DataUnpickler(io.BytesIO(content), encoding='latin1').load()


class DataUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, containers, strings and numbers, and nothing else."""

    _numpy = {
        ('multiarray', '_reconstruct'),
        ('multiarray', 'scalar'),
        ('numeric', '_frombuffer'),
    }
    _other = {
        ('numpy', 'ndarray'),
        ('numpy', 'dtype'),
        ('_codecs', 'encode'),
        ('builtins', 'bytes'),
        ('__builtin__', 'bytes'),  # its name in pickles for Python 2
        ('collections', 'OrderedDict'),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle of arrays needs, under numpy 1's and 2's names."""
        package, _, part = module.rpartition('.')
        if package in ('numpy.core', 'numpy._core') and (part, name) in self._numpy:
            core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
            return super().find_class(f'{core}.{part}', name)
        if (module, name) in self._other or (
            module == 'numpy.dtypes' and name.endswith('DType')
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f'it holds {module}.{name}, and only numpy arrays, dicts, lists, strings '
            'and numbers are read'
        )
