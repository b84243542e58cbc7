"""EpicLabels: the segments of a split, their classes and the scored subsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from mmengine.fileio import exists, join_path

from memvit_mm.datasets.epic.files import read_classes, read_column, read_segments

# Whose options name files, in messages.
OWNER = 'EpicMetric, the evaluator'

NUM_CLASSES = (97, 300)
"""Verbs and nouns of EPIC-KITCHENS-100."""

PARTS = ('verb', 'noun', 'action')

ANNOTATION_FILES = {
    'train': 'EPIC_100_train.csv',
    'validation': 'EPIC_100_validation.csv',
    'test': 'EPIC_100_test_timestamps.csv',
}
CLASS_FILES = ('EPIC_100_verb_classes.csv', 'EPIC_100_noun_classes.csv')
TAIL_FILES = ('EPIC_100_tail_verbs.csv', 'EPIC_100_tail_nouns.csv')
UNSEEN_FILE = 'EPIC_100_unseen_participant_ids_{split}.csv'


@dataclass(frozen=True)
class EpicLabels:
    """The segments of a split, their classes, and the subsets that are scored.

    Args:
        narration_ids (tuple[str]): The N segments, in the order of the file.
        participants (tuple[str]): Who is seen in each.
        classes (np.ndarray): int64 ``[N, 2]``, verb and noun; -100 for none.
        num_classes (tuple[int]): Numbers of verbs and of nouns.
        tail (tuple[frozenset[int]], optional): The tail verbs and the tail nouns.
        unseen (frozenset[str], optional): The participants not seen in training.
        source (str): The annotation file.
        notes (tuple[str]): A sentence for each subset whose file is missing.
    """

    narration_ids: tuple[str, ...]
    participants: tuple[str, ...]
    classes: np.ndarray
    num_classes: tuple[int, int] = NUM_CLASSES
    tail: Optional[tuple[frozenset, frozenset]] = None
    unseen: Optional[frozenset] = None
    source: str = 'the annotations'
    notes: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether any segment has a class: those of the test set have none."""
        return bool((self.classes >= 0).any())

    def subsets(self, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Which of some segments count: in all, of unseen participants, of the tail.

        Args:
            rows (np.ndarray): Indices ``[n]`` of segments.

        Returns:
            dict[str, dict[str, np.ndarray]]: bool ``[n]`` by subset (``'all'``,
            ``'unseen'``, ``'tail'``) and part (``'verb'``, ``'noun'``, ``'action'``).
            An action is of the tail if its verb *or* its noun is. A segment that lacks
            a class does not count where the class does; a subset that nobody listed is
            not there.
        """
        verb, noun = self.classes[rows].T
        labelled = {'verb': verb >= 0, 'noun': noun >= 0}
        labelled['action'] = labelled['verb'] & labelled['noun']
        found = {'all': labelled}
        if self.unseen is not None:
            who = np.array([self.participants[row] in self.unseen for row in rows])
            unseen = who.astype(bool)
            found['unseen'] = {part: labelled[part] & unseen for part in PARTS}
        if self.tail is not None:
            tail = {
                'verb': np.isin(verb, list(self.tail[0])),
                'noun': np.isin(noun, list(self.tail[1])),
            }
            tail['action'] = tail['verb'] | tail['noun']
            found['tail'] = {part: labelled[part] & tail[part] for part in PARTS}
        return found


def read_labels(
    annotations: Optional[str] = None,
    split: str = 'validation',
    ann_file: Optional[str] = None,
    num_classes: Optional[Sequence[int]] = None,
) -> EpicLabels:
    """Read the labels of a split and the lists of its subsets.

    Args:
        annotations (str, optional): Folder of the official CSV files. A list of tail
            classes or unseen participants that is not in there leaves out its numbers,
            with a note.
        split (str): ``'validation'``, ``'test'`` (it has no labels) or ``'train'``.
        ann_file (str, optional): The file of the segments, if it is not the folder's.
        num_classes (Sequence[int], optional): Numbers of verbs and nouns. By default
            those in the folder's files of classes, else 97 and 300.

    Raises:
        FileNotFoundError, ValueError: In one sentence with file, line and id.
    """
    if split not in ANNOTATION_FILES:
        raise ValueError(
            f'split must be one of {", ".join(ANNOTATION_FILES)}, got {split!r}.'
        )
    if annotations is None and ann_file is None:
        raise ValueError(
            'Give annotations, the folder of the official CSV files, or ann_file, the '
            'file of the segments.'
        )
    option = 'ann_file'
    if ann_file is None:
        option = 'annotations'
        ann_file = join_path(annotations, ANNOTATION_FILES[split])
        if not exists(ann_file):
            raise FileNotFoundError(
                f'There is no {ann_file}: annotations must be the folder of the '
                'official CSV files (epic-kitchens-100-annotations) with that of the '
                f'{split} split, or choose another split.'
            )
    if num_classes is None:
        files = [_find(annotations, name) for name in CLASS_FILES]
        counts = [
            path and len(read_classes(path, 'annotations', OWNER)) for path in files
        ]
        num_classes = [count or known for count, known in zip(counts, NUM_CLASSES)]
    # Nobody can predict what has no start; the dataset leaves it out, too.
    segments = read_segments(ann_file, num_classes, option=option, of=OWNER)
    segments = [segment for segment in segments if segment.start is not None]
    classes = [(segment.verb, segment.noun) for segment in segments]
    tail, unseen, notes = _read_subsets(annotations, split, num_classes)
    return EpicLabels(
        narration_ids=tuple(segment.narration_id for segment in segments),
        participants=tuple(segment.participant_id for segment in segments),
        classes=np.array(classes, dtype=np.int64).reshape(-1, 2),
        num_classes=tuple(num_classes),
        tail=tail,
        unseen=unseen,
        source=ann_file,
        notes=notes,
    )


def _read_subsets(
    annotations: Optional[str], split: str, num_classes: Sequence[int]
) -> tuple[Optional[tuple], Optional[frozenset], tuple[str, ...]]:
    """The tail classes, the unseen participants, and a note on each missing file."""
    unseen_file = UNSEEN_FILE.format(split=split)
    where = 'named' if annotations is None else f'in {annotations}'
    found, notes = {}, []
    for name in (*TAIL_FILES, unseen_file):
        found[name] = _find(annotations, name)
        if found[name] is None:
            subset = 'unseen' if name == unseen_file else 'tail'
            notes.append(f'There is no {name} {where}: no {subset} numbers.')
    tail, unseen = None, None
    tail_files = [found[name] for name in TAIL_FILES]
    if all(tail_files):
        tail = tuple(map(_tail_classes, tail_files, PARTS, num_classes))
    if found[unseen_file]:
        what = 'List of unseen participants'
        people = read_column(
            found[unseen_file], 'participant_id', what, 'annotations', OWNER
        )
        unseen = frozenset(people)
    return tail, unseen, tuple(notes)


def _find(annotations: Optional[str], name: str) -> Optional[str]:
    path = None if annotations is None else join_path(annotations, name)
    return path if path is not None and exists(path) else None


def _tail_classes(path: str, kind: str, number: int) -> frozenset:
    found = read_column(path, kind, f'List of tail {kind}s', 'annotations', OWNER)
    for text in found:
        if not (text.isdecimal() and int(text) < number):
            raise ValueError(
                f'{path} has the {kind} {text!r}, expected class ids from 0 to '
                f'{number - 1}.'
            )
    return frozenset(map(int, found))
