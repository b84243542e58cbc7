"""Check what MMAction2's ``AVADataset`` does not take and ``MemoryAVADataset`` does."""

import os.path as osp
from typing import Any

import numpy as np
from mmaction.datasets.base import BaseActionDataset
from mmaction.registry import DATASETS
from mmengine.registry import DefaultScope

from memvit_mm.datasets.ava.files import Keyframe

from .report import Report


def check_mmaction(
    report: Report,
    where: str,
    cfg: Any,
    videos: set[str],
    found: dict[Keyframe, np.ndarray],
) -> None:
    """Build an ``AVADataset`` from files that are right otherwise, and read it.

    Args:
        report (Report): Takes the findings.
        where (str): The config's path to the dataset.
        cfg (Mapping): Its config.
        videos (set[str]): Those in the annotation file.
        found (dict[(str, int), np.ndarray]): The proposals.
    """
    key = ''
    try:
        with DefaultScope.overwrite_default_scope('mmaction'):
            dataset = DATASETS.build({**cfg, 'pipeline': []})
        prefix = dataset.data_prefix.get('img') or ''
        for video in () if dataset.use_frames or '://' in prefix else sorted(videos):
            path = osp.join(prefix, video)
            path += '' if osp.splitext(video)[1] else '.mp4'
            if not osp.isfile(path):
                report.error(
                    f'{path}: the video has another ending, and MMAction2 looks for '
                    'this one: rename it, or take MemoryAVADataset, which finds it',
                    'ending',
                )
        for index in range(len(dataset)):
            info = BaseActionDataset.get_data_info(dataset, index)
            key = info['img_key']
            keyframe = info['video_id'].lstrip('\ufeff'), info['timestamp']
            if keyframe in found and key not in dataset.proposals:
                report.error(
                    f'{dataset.proposal_file}: has boxes for {key!r} under a key that '
                    'AVADataset does not find: write the second in four digits, '
                    'without blanks, and the annotations without a byte order mark, '
                    'or take MemoryAVADataset',
                    'key',
                )
            dataset.get_data_info(index)
    except Exception as error:  # whatever AVADataset raises
        report.error(
            f'{where}: AVADataset cannot read these files, and stops '
            f'{f"at {key!r}" if key else "at once"} ({type(error).__name__}: {error}): '
            'mend them, or take MemoryAVADataset, which reads them'
        )
