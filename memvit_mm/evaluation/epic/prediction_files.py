"""The files in which predictions come: of programs, of test.py, of the challenge."""

import io
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from memvit_mm.io.data_pickle import DataUnpickler
from memvit_mm.io.whole_file import read_bytes, write_bytes
from memvit_mm.structures import ClipIndex

from .labels import NUM_CLASSES
from .predictions import (
    ACTION_ARRAYS,
    ARRAYS,
    EpicPredictions,
    as_predictions,
    gather,
    prediction_of,
)
from .submission import read_submission

WANTED = ('narration_id', 'skipped', *ARRAYS, *ACTION_ARRAYS)


def read_predictions(
    path: str, num_classes: Sequence[int] = NUM_CLASSES
) -> EpicPredictions:
    """Read predictions of any of the formats there are.

    Args:
        path (str): One of

            - ``.npz``: arrays ``narration_id`` (str ``[N]``), ``verb_logits``
              ``[N, V]``, ``noun_logits`` ``[N, C]``; explicit action scores as
              ``action_scores`` ``[N, K]`` and ``action_pairs`` (int ``[K, 2]``, or
              ``[N, K, 2]``: verb and noun).
            - ``.pkl``: what ``tools/test.py --dump`` writes. It may hold tensors,
              arrays, containers, strings and numbers, nothing that runs code.
            - ``.json`` or ``.zip``: a submission to the challenge.
        num_classes (Sequence[int]): Numbers of verbs and nouns a submission must have.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or something else.
    """
    suffix = os.path.splitext(path)[1]
    readers = {'.npz': _read_npz, '.pkl': _read_dump, '.pickle': _read_dump}
    if suffix in ('.json', '.zip'):
        return read_submission(path, num_classes)[1]
    if suffix not in readers:
        raise ValueError(
            f'{path} is no file of predictions by its name: expected .npz, .pkl, '
            '.json or .zip.'
        )
    return readers[suffix](path)


def write_npz(
    path: str, predictions: EpicPredictions, skipped: Sequence[str] = ()
) -> None:
    """Write predictions as ``.npz``, as :func:`read_predictions` reads them.

    Args:
        path (str): The file; its folder is made.
        predictions (EpicPredictions): Written as they are, whether right or wrong.
        skipped (Sequence[str]): Segments that could not be read, a list for people.
    """
    arrays = {
        'narration_id': np.array(predictions.narration_ids, dtype=np.str_),
        'verb_logits': predictions.verb,
        'noun_logits': predictions.noun,
        'action_scores': predictions.action_scores,
        'action_pairs': predictions.action_pairs,
        'skipped': np.array(skipped, dtype=np.str_) if len(skipped) else None,
    }
    content = io.BytesIO()
    np.savez(content, **{k: v for k, v in arrays.items() if v is not None})
    write_bytes(path, content.getvalue())


def _read_npz(path: str) -> EpicPredictions:
    content = io.BytesIO(read_bytes(path))
    arrays = {}
    try:
        with np.load(content, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError as error:
                    raise ValueError(
                        f'{path} has {name} as an array of Python objects, which is '
                        f'not read: save np.array({name}, dtype=str), or numbers.'
                    ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        AttributeError,
        TypeError,
    ) as error:
        raise ValueError(f'{path} is no .npz file, or a damaged one.') from error
    except ValueError as error:
        if str(error).startswith(path):
            raise
        raise ValueError(f'{path} is no .npz file, or a damaged one.') from error
    for name in ('narration_id', *ARRAYS):
        if name not in arrays:
            raise ValueError(
                f'{path} has no array {name!r} (it has '
                f'{", ".join(map(repr, arrays)) or "none"}): expected narration_id, '
                'verb_logits and noun_logits.'
            )
    names = arrays['narration_id']
    if names.ndim != 1 or names.dtype.kind not in 'US':
        raise ValueError(
            f'{path} has narration_id of shape {list(names.shape)} and type '
            f"{names.dtype}, expected strings [N] such as 'P01_11_0'."
        )
    if names.dtype.kind == 'S':
        names = np.char.decode(names, 'utf-8')
    return as_predictions(names.tolist(), arrays, path)


def _read_dump(path: str) -> EpicPredictions:
    content = io.BytesIO(read_bytes(path))
    try:
        samples = _DumpUnpickler(content).load()
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f'{path} cannot be read ({error}): expected what tools/test.py --dump '
            'writes.'
        ) from error
    if not isinstance(samples, (list, tuple)) or not all(
        isinstance(sample, dict) for sample in samples
    ):
        raise ValueError(
            f'{path} holds a {type(samples).__name__}, expected a list of data '
            'samples, each a dict: what tools/test.py --dump writes.'
        )
    try:
        found = [prediction_of(sample) for sample in map(_with_tensors, samples)]
    except Exception as error:  # so does a damaged tensor
        raise ValueError(f'{path}: {error}') from error
    return gather([one for one in found if one is not None], path)


def _with_tensors(sample: dict) -> dict:
    """What is read of a data sample, with its tensors out of their bytes."""
    if sample.get('narration_id') is None:
        return sample
    found = {name: sample[name] for name in WANTED if name in sample}
    return {
        name: value.load() if isinstance(value, _PickledTensor) else value
        for name, value in found.items()
    }


class _PickledTensor(NamedTuple):
    """A tensor of a dump as it is in the file: most of them nobody asks for."""

    storage: bytes
    """What torch.save makes of its numbers."""
    layout: tuple
    """Offset, size, stride and so on, for torch's function."""

    def load(self) -> torch.Tensor:
        if tarfile.is_tarfile(io.BytesIO(self.storage)):
            # torch < 2.6 unpickles parts of this format whatever weights_only says.
            raise pickle.UnpicklingError("a tensor is in torch's old tar format")
        storage = torch.load(
            io.BytesIO(self.storage), map_location='cpu', weights_only=True
        )
        return torch._utils._rebuild_tensor_v2(storage, *self.layout)


class _DumpUnpickler(DataUnpickler):
    """Unpickles arrays, containers, strings and numbers, and keeps tensors' bytes."""

    _torch = {
        ('torch._utils', '_rebuild_tensor_v2'): lambda storage, *layout: _PickledTensor(
            storage, layout
        ),
        ('torch.storage', '_load_from_bytes'): lambda content: content,
        ('torch', 'Size'): torch.Size,
        (ClipIndex.__module__, ClipIndex.__qualname__): ClipIndex,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle of data samples needs."""
        found = self._torch.get((module, name))
        return super().find_class(module, name) if found is None else found
