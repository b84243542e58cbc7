"""Files of predictions: ``.npz``, ``.pkl`` of tools/test.py, and submissions."""

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from memvit_mm.io.data_pickle import DataUnpickler
from memvit_mm.io.safe_load import load_data
from memvit_mm.io.whole_file import read_bytes, write_bytes
from memvit_mm.structures import ClipIndex

from .labels import NUM_CLASSES
from .predictions import (
    ARRAYS,
    EpicPredictions,
    as_predictions,
    gather,
    prediction_of,
)
from .submission import SUFFIXES, read_submission


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
    if suffix in SUFFIXES:
        return read_submission(path, num_classes)[1]
    readers = {'.npz': _read_npz, '.pkl': _read_dump, '.pickle': _read_dump}
    if suffix not in readers:
        raise ValueError(
            f'The file of predictions {path} must end in .npz, .pkl, .pickle, .json '
            'or .zip.'
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
    try:
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        if 'Object arrays' in str(error):
            raise ValueError(
                f'{path} has an array of Python objects, which is not read: save '
                'narration_id as np.array(narration_id, dtype=str), the others as '
                'numbers.'
            ) from error
        raise ValueError(
            f'{path} is not an .npz file, or damaged: write it again.'
        ) from error
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
        found = list(filter(None, map(prediction_of, samples)))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return gather(found, path)


class _DumpUnpickler(DataUnpickler):
    """Unpickles tensors, arrays, containers, strings and numbers, runs no code."""

    _torch = {
        ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
        ('torch.storage', '_load_from_bytes'): lambda content: load_data(
            'a tensor', io.BytesIO(content), map_location='cpu'
        ),
        ('torch', 'Size'): torch.Size,
        ('memvit_mm.structures', 'ClipIndex'): ClipIndex,
        # Where it was in earlier versions.
        ('memvit_mm.datasets.sampler', 'ClipIndex'): ClipIndex,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle of data samples needs."""
        found = self._torch.get((module, name))
        return super().find_class(module, name) if found is None else found
