"""Check the files of an EPIC-KITCHENS dataset by reading them as a run does."""

from typing import Any

import numpy as np
from mmaction.registry import DATASETS
from mmengine.registry import DefaultScope

from .report import Report


def check_epic(report: Report, cfg: Any, where: str, dataset: Any, sample: int) -> None:
    """Check the files of one ``EpicKitchensDataset``.

    Args:
        report (Report): Takes the findings.
        cfg (mmengine.Config): The whole config.
        where (str): The config's path to the dataset.
        dataset (Mapping): Its config.
        sample (int): How many videos to read a clip of, through the whole pipeline;
            that they are on disk is looked up for all, if ``missing_videos`` says so.
    """
    try:
        # A clip that cannot be read is an error here, not left out.
        with DefaultScope.overwrite_default_scope('mmaction'):
            built = DATASETS.build({**dataset, 'on_bad_clip': 'stop'})
    except (ValueError, OSError) as error:
        report.error(f'{where}: {error}')
        return
    head = (cfg.get('model') or {}).get('cls_head') or {}
    found = head.get('num_verbs', 97), head.get('num_nouns', 300)
    if head.get('type') == 'EpicHead' and found != built.num_classes:
        verbs, nouns = built.num_classes
        report.error(
            f'{where}: {verbs} verbs and {nouns} nouns, but model.cls_head has '
            f'num_verbs={found[0]} and num_nouns={found[1]}: give it the same'
        )
    infos = map(built.get_data_info, range(len(built)))
    labelled = [
        (info['video_id'], index)
        for index, info in enumerate(infos)
        if info['narration_id'] is not None
    ]
    # The last segment of each video: it ends soonest if the video is cut off.
    last = dict(labelled)
    report.ok(
        f'{where}: {len(labelled):,} segments and {len(built) - len(labelled):,} clips '
        f'in between, in {len(last):,} videos'
    )
    read = 0
    places = np.linspace(0, len(last) - 1, min(sample, len(last))).astype(int)
    for video in [list(last)[place] for place in places]:
        try:
            built[last[video]]
            read += 1
        except Exception as error:  # whatever a pipeline raises
            report.error(f'{where}: {video}: {error or type(error).__name__}')
    if read:
        report.ok(f'{where}: a clip of each of {read} videos goes through the pipeline')
