"""Check the files of an AVA dataset, and whether they go together.

They are read by the readers of :class:`MemoryAVADataset`, which find what is wrong in a
line or an entry. What is here compares them with each other and with the config.
"""

import inspect
import math
from collections import Counter
from functools import partial
from itertools import groupby
from typing import Any, Optional

import numpy as np
from mmaction.datasets import AVADataset
from mmaction.evaluation import read_labelmap

from memvit_mm.datasets.ava.dataset import MemoryAVADataset
from memvit_mm.datasets.ava.files import (
    Keyframe,
    Row,
    first_label,
    read_exclusions,
    read_rows,
)
from memvit_mm.io.text import read_lines

from .media import check_media
from .mmaction import check_mmaction
from .proposals import check_proposals
from .report import Report, a_few, type_name

# Arguments that are taken from a dataset's config.
ARGUMENTS = {
    'data_root',
    *inspect.signature(AVADataset).parameters,
    *inspect.signature(MemoryAVADataset).parameters,
} - {'pipeline', 'custom_classes', 'check_files'}


class AvaCheck:
    """The check of one ``AVADataset`` or ``MemoryAVADataset``.

    Args:
        report (Report): Takes the findings.
        where (str): The config's path to the dataset: ``train_dataloader.dataset``.
        cfg (Mapping): Its config.

    Attributes:
        dataset (MemoryAVADataset): The dataset, which has read no file; for an
            ``AVADataset`` one with the same arguments.
        rows (list[tuple[int, Row]]): The lines of the annotation file that can be
            read, with their numbers.

    Raises:
        ValueError: If an argument of the dataset is wrong.
    """

    def __init__(self, report: Report, where: str, cfg: Any) -> None:
        self.report, self.where, self.cfg = report, where, cfg
        self.is_ours = type_name(cfg) == 'MemoryAVADataset'
        if not cfg.get('ann_file'):
            raise ValueError(f'{type_name(cfg)} needs an ann_file; name the CSV file.')
        arguments = {key: cfg[key] for key in cfg if key in ARGUMENTS}
        if not self.is_ours:
            arguments['keyframes'] = 'annotated'
        self.dataset = MemoryAVADataset(pipeline=[], lazy_init=True, **arguments)
        self.custom_classes: Optional[list[int]] = cfg.get('custom_classes')
        self.rows: list[tuple[int, Row]] = []
        self.names: dict[int, str] = {}
        self.found: dict[Keyframe, np.ndarray] = {}

    @property
    def videos(self) -> set[str]:
        """The videos in the annotation file."""
        return {row.video for _, row in self.rows}

    def run(self, has_memory: bool, sample: int) -> None:
        """Check all files.

        Args:
            has_memory (bool): Whether the model has a memory.
            sample (int): How many videos to open.
        """
        errors = self.report.count('ERROR')
        steps = [self._check_labels, self._check_annotations]
        if has_memory and self.dataset.keyframes == 'annotated':
            steps.append(self._check_holes)
        steps += [self._check_exclusions, self._check_proposals]
        steps.append(partial(self._check_media, sample))
        for step in steps:
            try:
                step()
            except (OSError, ValueError) as error:
                self.report.error(f'{self.where}: {error}')
            if step == self._check_annotations and not self.rows:
                return
        if not self.is_ours and self.report.count('ERROR') == errors:
            check_mmaction(self.report, self.where, self.cfg, self.videos, self.found)

    def _check_labels(self) -> None:
        path, classes = self.dataset.label_file, self.custom_classes
        if path is None:
            return
        try:
            labels, _ = read_labelmap(read_lines(path, 'Label file', 'label_file'))
        except IndexError as error:
            raise ValueError(f'{path}: MMAction2 cannot read it ({error})') from error
        names = {label['id']: label['name'] for label in labels}
        if not names:
            raise ValueError(
                f'{path}: no label is read from it: MMAction2 takes lines that begin '
                "with exactly two blanks, '  name: \"walk\"' and then '  id: 12'"
            )
        least, largest = min(names), max(names)
        if least < self._first_label:
            self.report.error(
                f'{path}: label {least} ({names[least]!r}) is in it, but labels count '
                'from 1: add one to all of them, here and in the annotations'
            )
        number = self.dataset.num_classes
        if classes is None and largest >= number:
            self.report.warning(
                f'{path}: has label {largest} ({names[largest]!r}), too large for '
                f'num_classes={number}: set it to the largest label plus one'
            )
        unknown = sorted(set(classes or ()) - set(names))
        if unknown:
            self.report.error(
                f'{path}: lacks {unknown} of custom_classes of {self.where}: take ids '
                'that are in it'
            )
        if classes is not None and number != len(classes) + 1:
            self.report.error(
                f'{self.where}: num_classes={number} with {len(classes)} '
                f'custom_classes: set it to {len(classes) + 1}, their number plus one'
            )
        self.names = names

    @property
    def _first_label(self) -> int:
        return first_label(self.dataset._FPS, self.dataset.multilabel)

    def _check_annotations(self) -> None:
        report, path, classes = self.report, self.dataset.ann_file, self.custom_classes
        before = report.count('ERROR', 'WARNING')
        number = self.dataset.num_classes if classes is None else None
        problem = report.errors_of(path)
        self.rows = list(read_rows(path, number, self._first_label, problem))
        if not self.rows:
            if report.count('ERROR', 'WARNING') == before:
                raise ValueError(f'{path}: has no line')
            return
        labels = Counter(row.label for _, row in self.rows)
        if classes is not None and not labels.keys() & set(classes):
            report.error(
                f'{path}: has none of custom_classes={list(classes)} of {self.where}: '
                f'its labels are {a_few(sorted(labels))}'
            )
        unknown = sorted(labels.keys() - self.names)
        if unknown and self.names and classes is None:
            # AVA's own files hold 20 rare labels that the evaluated map leaves out.
            many = sum(labels[label] for label in unknown) > len(self.rows) / 2
            line = next(line for line, row in self.rows if row.label in unknown)
            (report.error if many else report.warning)(
                f'{path}:{line}: label {a_few(unknown)} is not in '
                f'{self.dataset.label_file}, and not scored: add it to the label map '
                'if it should be'
            )
        self._check_seconds()
        if report.count('ERROR', 'WARNING') == before:
            keyframes = {row[:2] for _, row in self.rows}
            report.ok(
                f'{path}: {len(self.rows):,} rows, {len(keyframes):,} keyframes of '
                f'{len(self.videos):,} videos, labels {min(labels)} to {max(labels)}'
            )

    def _check_seconds(self) -> None:
        path, start = self.dataset.ann_file, self.dataset.timestamp_start
        end, problem = self.dataset.timestamp_end, self.report.errors_of(path)
        if self.dataset._FPS == 1 and not self.dataset.use_frames:
            end = math.inf  # timestamps count frames, which end where the video does
        seconds = [row.second for _, row in self.rows]
        first, last = min(seconds), max(seconds)
        hint = 'set timestamp_start to the time of the first frame'
        if sum(second < start for second in seconds) > len(seconds) / 2:
            hint = (
                f'timestamps seem to count from {first}; set timestamp_start '
                f'and timestamp_end of {self.where}, or add {start} to all of them '
                'including the proposals'
            )
        for line, row in self.rows:
            if row.second < start:
                problem(
                    'early',
                    f'{path}:{line}: timestamp {row.second} is before the first frame, '
                    f'timestamp_start={start}: {hint}',
                )
            elif row.second >= end:
                problem(
                    'late',
                    f'{path}:{line}: timestamp {row.second} is not before the end, '
                    f'timestamp_end={end}: set that of {self.where} to at least '
                    f'{last + 1}',
                )

    def _check_holes(self) -> None:
        keyframes = sorted({row[:2] for _, row in self.rows})
        steps: Counter = Counter()
        for _, group in groupby(keyframes, key=lambda keyframe: keyframe[0]):
            steps.update(np.diff([second for _, second in group]).tolist())
        if not steps:
            return
        ((usual, count),) = steps.most_common(1)
        uneven = 1 - count / sum(steps.values())
        if uneven > 0.25:
            self.report.warning(
                f'{self.dataset.ann_file}: {uneven:.0%} of the steps from one keyframe '
                f'to the next are not the usual {usual} s, and memory counts clips, '
                "not seconds: set keyframes='detected' (MemoryAVADataset with a "
                'proposal_file)'
            )

    def _check_exclusions(self) -> None:
        path, errors = self.dataset.exclude_file, self.report.count('ERROR')
        excluded = read_exclusions(path, self.report.errors_of(path))
        keyframes = {row[:2] for _, row in self.rows}
        if excluded and keyframes <= excluded:
            self.report.error(
                f'{path}: excludes every keyframe of {self.dataset.ann_file}: check '
                f'exclude_file of {self.where}'
            )
        elif path is not None and self.report.count('ERROR') == errors:
            common = len(keyframes & excluded)
            self.report.ok(
                f'{path}: {len(excluded):,} keyframes, {common:,} of them annotated'
            )

    def _check_proposals(self) -> None:
        path = self.cfg.get('proposal_file')
        if path is not None:
            self.found = check_proposals(
                self.report, self.where, self.dataset, path, self.rows
            )
        elif not self.is_ours:
            self.report.warning(
                f'{self.where}: has no proposal_file; boxes come from the annotations'
            )

    def _check_media(self, sample: int) -> None:
        last: dict[str, int] = {}
        for _, row in self.rows:
            last[row.video] = max(row.second, last.get(row.video, row.second))
        steps = [type_name(step) for step in self.cfg.get('pipeline') or [] if step]
        check_media(
            self.report,
            self.where,
            self.dataset,
            last,
            'SampleAVAFrames' not in steps,
            sample,
        )
