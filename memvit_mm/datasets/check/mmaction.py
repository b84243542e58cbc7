"""Check what MMAction2's ``AVADataset`` does not take and ``MemoryAVADataset`` does."""

import os.path as osp

from mmaction.datasets.base import BaseActionDataset
from mmaction.registry import DATASETS
from mmengine.registry import DefaultScope

from .report import type_name
from .subject import AvaCheck


def check_mmaction(check: AvaCheck) -> None:
    """Build an ``AVADataset`` from files that are right otherwise, and read it."""
    report = check.report
    key = ''
    try:
        with DefaultScope.overwrite_default_scope('mmaction'):
            dataset = DATASETS.build({**check.cfg, 'pipeline': []})
        prefix = dataset.data_prefix.get('img') or ''
        # AVAKineticsDataset reads nothing else.
        of_frames = getattr(dataset, 'use_frames', True)
        for video in () if of_frames or '://' in prefix else sorted(check.videos):
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
            if keyframe in check.found and key not in dataset.proposals:
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
            f'{check.where}: {type_name(check.cfg)} cannot read these files, and stops '
            f'{f"at {key!r}" if key else "at once"} ({type(error).__name__}: {error}): '
            'mend them, or take MemoryAVADataset, which reads them'
        )
