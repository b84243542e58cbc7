"""AvaCheck: one AVA dataset of a config, which is being checked."""

import inspect
from typing import Any, Optional

import numpy as np
from mmaction.datasets import AVADataset

from memvit_mm.datasets.ava.dataset import MemoryAVADataset
from memvit_mm.datasets.ava.files import Keyframe, Row, first_label

from .report import Report, type_name

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
        names (dict[int, str]): The label map; empty if there is none.
        found (dict[(str, int), np.ndarray]): The proposals that can be read.

    Raises:
        ValueError: If an argument of the dataset is wrong.
    """

    def __init__(self, report: Report, where: str, cfg: Any) -> None:
        self.report, self.where, self.cfg = report, where, cfg
        self.is_ours = type_name(cfg) == 'MemoryAVADataset'
        if not cfg.get('ann_file'):
            raise ValueError(
                f'{type_name(cfg)} has no ann_file: set it to the CSV file.'
            )
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

    @property
    def keyframes(self) -> set[Keyframe]:
        """The keyframes in the annotation file."""
        return {row[:2] for _, row in self.rows}

    @property
    def first_label(self) -> int:
        """The least label."""
        return first_label(self.dataset._FPS, self.dataset.multilabel)
