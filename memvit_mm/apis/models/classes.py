"""A model's classes: their names, which of them are the best, and the reserved class.

This is the one place where classes are named and ranked.
"""

import math
import os.path as osp
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from mmaction.evaluation.functional.ava_utils import read_labelmap
from torch import nn

from memvit_mm.datasets.clip_recipe import test_dataset
from memvit_mm.datasets.epic.files import read_classes

Labels = Union[str, Mapping, Sequence, None]
Names = Optional[Sequence[str]]


class ClassScores(NamedTuple):
    """The classes of one kind and their scores."""

    kind: str
    """'actions', 'verbs' or 'nouns'."""
    names: list[str]
    """Names of the classes."""
    scores: np.ndarray
    """``[..., classes]``."""

    @classmethod
    def of(
        cls, kind: str, names: Names, scores: np.ndarray, reserved: bool = False
    ) -> 'ClassScores':
        """Name what a model scored.

        Args:
            kind (str): 'actions', 'verbs' or 'nouns'.
            names (sequence[str], optional): By class number; those that are not known
                are made up.
            scores (np.ndarray): ``[..., classes]``.
            reserved (bool): Whether class 0 stands for no action and is left out.

        Examples:
            >>> ClassScores.of('actions', ['-', 'sit'], np.ones((5, 3)), True).names
            ['sit', 'class 2']
        """
        scores = np.asarray(scores)
        first = int(reserved)
        names = all_names(names, scores.shape[-1])[first:]
        return cls(kind, names, scores[..., first:])

    def order(self, k: int, row: Any = ...) -> list[int]:
        """Places of the best classes in ``names``, best first."""
        return np.argsort(-self.scores[row], kind='stable')[:k].tolist()

    def best(
        self, k: int = 5, threshold: float = -math.inf, row: Any = ...
    ) -> list[tuple[str, float]]:
        """The best classes and their scores, best first.

        Args:
            k (int): How many at most.
            threshold (float): Least score. By default none: a model's scores may be
                logits, below 0.
            row (int, optional): Whose, where there are several.

        Examples:
            >>> scores = np.array([0.1, 0.7, 0.2])
            >>> ClassScores.of('actions', ['sit', 'stand', 'run'], scores).best(2)
            [('stand', 0.7), ('run', 0.2)]
        """
        scores = self.scores[row]
        return [
            (self.names[place], float(scores[place]))
            for place in self.order(k, row)
            if scores[place] >= threshold
        ]


class Classes(NamedTuple):
    """All classes of a model."""

    names: dict[str, list[str]]
    """Names of the 'actions', or of the 'verbs' and the 'nouns', by class number."""
    reserved: bool = False
    """Whether number 0 of the actions is no class: AVA's files count from 1, and the
    detector's loss leaves that column out."""
    known: bool = True
    """Whether the names were given somewhere, or all of them are made up."""

    def groups(self, scores: np.ndarray) -> list[ClassScores]:
        """Scores ``[classes]`` of all kinds, one kind after the other."""
        sizes = [len(names) for names in self.names.values()]
        parts = np.split(np.asarray(scores), np.cumsum(sizes)[:-1], axis=-1)
        return [
            ClassScores.of(kind, self.names[kind], part, self.reserved)
            for kind, part in zip(self.names, parts)
        ]


def classes_of(model: nn.Module, cfg: Mapping, labels: Labels = None) -> Classes:
    """The classes of a model.

    Args:
        model (nn.Module): A recognizer or detector.
        cfg (Config): Its config. Where the test dataset or metric has
            ``custom_classes``, a detector's classes are these, after the reserved 0,
            as in MMAction2.
        labels (optional): Their names: a file, see :func:`read_names`, a list, a
            mapping from numbers, or ``dict(verbs=..., nouns=...)`` of these. Numbers
            are the model's; where there are more names than classes, those that
            ``custom_classes`` has. By default the names that the model's
            ``dataset_meta`` or the config's files have.

    Raises:
        ValueError, FileNotFoundError: If ``labels`` is something else or of other
            classes, or there are more names than classes.
    """
    counts = _counts(model)
    found = find_names(labels, cfg, getattr(model, 'dataset_meta', None))
    chosen, reserved = (), False
    if hasattr(model, 'roi_head'):
        chosen, count = custom_classes(cfg), counts['actions']
        if chosen and len(chosen) + 1 != count:
            raise ValueError(
                f'The config has custom_classes={chosen}, but its bbox_head has '
                f'num_classes={count}: set num_classes={len(chosen) + 1}, the number '
                'of custom_classes plus one, or remove custom_classes.'
            )
        head = model.roi_head.bbox_head
        reserved = bool(chosen) or getattr(head, 'background_class', True)
    return name_classes(counts, found, labels is not None, chosen, reserved)


def name_classes(
    counts: Mapping[str, Optional[int]],
    found: Mapping[str, Sequence[str]],
    given: bool = False,
    chosen: Sequence[int] = (),
    reserved: bool = False,
) -> Classes:
    """Names for so many classes.

    Args:
        counts (mapping): How many there are of each kind.
        found (mapping): The names that are known, by kind.
        given (bool): Whether the caller gave them.
        chosen (sequence[int]): The labels that ``custom_classes`` has.
        reserved (bool): Whether number 0 of the actions is no class.

    Raises:
        ValueError, FileNotFoundError: As :func:`classes_of`.
    """
    other = [kind for kind in found if kind not in counts]
    if given and other:
        files = 'two files, of verbs and of nouns' if 'verbs' in counts else 'one file'
        raise ValueError(
            f'labels has names of {" and ".join(other)}, but the model predicts '
            f'{" and ".join(counts)}: give {files}.'
        )
    names = {}
    for kind, count in counts.items():
        own = found.get(kind, ())
        if chosen and (not own or len(own) > count):
            own = _choose(own, chosen)
        told = f'There are {len(own)} names for {count} classes ({kind})'
        # Names by number have a 'class 0' in front.
        if reserved and own and own[0] != 'class 0' and len(own) + 1 == count:
            raise ValueError(
                f'{told}, of which number 0 is reserved: put a name for number 0 '
                "first, or give a dict from numbers, {1: 'bend', ...}."
            )
        if count is not None and len(own) > count:
            raise ValueError(
                f'{told}: give those of the classes that the model was trained on '
                '(number 0 is no class in AVA).'
            )
        names[kind] = all_names(own, count)
    return Classes(names, reserved, any(kind in found for kind in counts))


def all_names(names: Names, count: Optional[int] = None) -> list[str]:
    """A name for every class, made up where there is none.

    Examples:
        >>> all_names(['sit'], 3)
        ['sit', 'class 1', 'class 2']
    """
    names = [str(name) for name in names or ()][:count]
    return names + [f'class {number}' for number in range(len(names), count or 0)]


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
        return read_classes(path, 'labels', 'the call')
    with open(path, encoding='utf-8') as file:
        if path.endswith('.pbtxt'):
            names = _by_number({e['id']: e['name'] for e in read_labelmap(file)[0]})
        else:
            names = [line.strip() for line in file if line.strip()]
    if not names:
        raise ValueError(f'Label file {path} has no name of a class in it.')
    return names


def find_names(
    labels: Labels, cfg: Mapping, dataset_meta: Any = None
) -> dict[str, list[str]]:
    """Names of 'actions', or of 'verbs' and 'nouns', from the first place with some.

    Args:
        labels: What the caller gave, see :func:`classes_of`.
        cfg (Config): The model's config, which may name files that exist.
        dataset_meta (dict, optional): The checkpoint's.
    """
    if isinstance(labels, Mapping) and set(labels) <= {'verbs', 'nouns'} and labels:
        return {k: _names(labels[k]) for k in labels if labels[k] is not None}
    if labels is not None:
        return dict(actions=_names(labels))
    meta = dataset_meta or {}
    if 'verb_classes' in meta:
        return dict(verbs=list(meta['verb_classes']), nouns=list(meta['noun_classes']))
    if meta.get('classes'):
        return dict(actions=list(meta['classes']))
    dataset = test_dataset(cfg)
    root = dataset.get('data_root') or ''
    files = [osp.join(root, path) for path in dataset.get('class_files') or ()]
    if len(files) == 2 and all(map(osp.isfile, files)):
        return dict(zip(('verbs', 'nouns'), map(read_names, files)))
    file = _told(cfg, 'label_file')
    if file and osp.isfile(file):
        return dict(actions=_choose(read_names(file), custom_classes(cfg)))
    return {}


def custom_classes(cfg: Mapping) -> list[int]:
    """The labels that a config has chosen from a label file; [] where it has all."""
    return list(_told(cfg, 'custom_classes') or ())


def _told(cfg: Mapping, key: str) -> Any:
    """A setting of the test dataset or of a test metric."""
    metrics = cfg.get('test_evaluator') or ()
    metrics = [metrics] if isinstance(metrics, Mapping) else metrics
    for part in (test_dataset(cfg), *metrics):
        if isinstance(part, Mapping) and part.get(key) is not None:
            return part[key]
    return None


def _choose(names: Names, chosen: Sequence[int]) -> list[str]:
    """The names of a model of custom classes; all where none are chosen."""
    if not chosen:
        return list(names)
    names = all_names(names, max(chosen) + 1)
    return [names[number] for number in (0, *chosen)]


def _counts(model: nn.Module) -> dict[str, Optional[int]]:
    """How many classes of each kind a model has; None where its head does not say."""
    if hasattr(model, 'roi_head'):
        return dict(actions=model.roi_head.bbox_head.num_classes)
    head = getattr(model, 'cls_head', None)
    if hasattr(head, 'num_verbs'):
        return dict(verbs=head.num_verbs, nouns=head.num_nouns)
    return dict(actions=getattr(head, 'num_classes', None))


def _names(labels: Labels) -> list[str]:
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
    """A list from a mapping, in which numbers may be missing, as AVA's 0.

    Examples:
        >>> _by_number({1: 'bend', 3: 'crouch'})
        ['class 0', 'bend', 'class 2', 'crouch']
    """
    listed = all_names((), max(map(int, names), default=-1) + 1)
    for number, name in names.items():
        listed[int(number)] = str(name)
    return listed
