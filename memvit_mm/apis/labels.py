"""Names of a model's classes: from its checkpoint, its config, or a file."""

import os.path as osp
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

from mmaction.evaluation.functional.ava_utils import read_labelmap

from ..datasets.epic_files import read_classes
from .clip_grid import test_dataset

Labels = Union[str, Mapping, Sequence, None]


class ClassNames(NamedTuple):
    """Names by class number; None where they are not known."""

    actions: Optional[list[str]] = None
    verbs: Optional[list[str]] = None
    nouns: Optional[list[str]] = None


def read_names(path: str) -> list[str]:
    """Read names of classes, one per number.

    Args:
        path (str): A label map as AVA's (``.pbtxt``, with ids), EPIC-KITCHENS' classes
            (``.csv``), or a text file with a name in each line.

    Raises:
        FileNotFoundError, ValueError: If there is no such file or no name in it.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'Label file {path} does not exist: check its path.')
    if path.endswith('.csv'):
        return read_classes(path)
    with open(path, encoding='utf-8') as file:
        if path.endswith('.pbtxt'):
            names = _by_number({e['id']: e['name'] for e in read_labelmap(file)[0]})
        else:
            names = [line.strip() for line in file if line.strip()]
    if not names:
        raise ValueError(f'Label file {path} has no name of a class in it.')
    return names


def find_names(labels: Labels, cfg: Mapping, dataset_meta: Any = None) -> ClassNames:
    """Names of the classes, from the first place that has some.

    Args:
        labels: What the caller gave: a file, a list, a mapping from class numbers or,
            for verbs and nouns, ``dict(verbs=..., nouns=...)`` of these.
        cfg (Config): The model's config, whose dataset may name files that exist.
        dataset_meta (dict, optional): The checkpoint's.
    """
    if isinstance(labels, Mapping) and set(labels) <= {'verbs', 'nouns'} and labels:
        return ClassNames(None, *(_names(labels.get(k)) for k in ('verbs', 'nouns')))
    if labels is not None:
        return ClassNames(_names(labels))
    meta = dataset_meta or {}
    if 'verb_classes' in meta:
        return ClassNames(None, list(meta['verb_classes']), list(meta['noun_classes']))
    if meta.get('classes'):
        return ClassNames(list(meta['classes']))
    dataset = test_dataset(cfg)
    root = dataset.get('data_root') or ''
    files = [osp.join(root, path) for path in dataset.get('class_files') or ()]
    if len(files) == 2 and all(map(osp.isfile, files)):
        return ClassNames(None, *map(read_names, files))
    file = dataset.get('label_file')
    if file and osp.isfile(file):
        return ClassNames(read_names(file))
    return ClassNames()


def _names(labels: Labels) -> Optional[list[str]]:
    if labels is None:
        return None
    if isinstance(labels, str) or hasattr(labels, '__fspath__'):
        return read_names(str(labels))
    if isinstance(labels, Mapping):
        return _by_number(labels)
    if not isinstance(labels, Iterable):
        raise ValueError(
            f'labels is a {type(labels).__name__}: it takes a file of names, a list of '
            'them, or a dict from class numbers.'
        )
    return [str(name) for name in labels]


def _by_number(names: Mapping) -> list[str]:
    """A list from a mapping; numbers without a name, as AVA's 0, stand for themselves.

    Examples:
        >>> _by_number({1: 'bend', 3: 'crouch'})
        ['0', 'bend', '2', 'crouch']
    """
    size = max(map(int, names), default=-1) + 1
    listed = [str(number) for number in range(size)]
    for number, name in names.items():
        listed[int(number)] = str(name)
    return listed
