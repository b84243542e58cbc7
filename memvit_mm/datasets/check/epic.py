"""Find what is wrong with EPIC-KITCHENS data before a run does."""

from typing import TYPE_CHECKING, Any, Optional

import numpy as np
from mmaction.registry import DATASETS
from mmengine.registry import DefaultScope

if TYPE_CHECKING:
    from memvit_mm.datasets.epic.dataset import EpicKitchensDataset

    from .config import Report


def check_epic(
    report: 'Report', cfg: Any, where: str, dataset: Any, sample: int = 20
) -> None:
    """Check the files of one ``EpicKitchensDataset``, by reading them as a run does.

    Args:
        report (Report): Takes the findings.
        cfg (mmengine.Config): The whole config.
        where (str): The config's path to the dataset.
        dataset (Mapping): Its config.
        sample (int): How many videos to read a clip of, through the whole pipeline;
            that they are on disk is looked up for all, if ``missing_videos`` says so.
    """
    built = _build(report, where, dataset)
    if built is None:
        return
    _check_head(report, cfg, where, tuple(built.num_classes))
    last: dict[str, int] = {}
    labelled = 0
    for index in range(len(built)):
        info = built.get_data_info(index)
        if info['narration_id'] is not None:
            labelled += 1
            # The last segment of a video: it ends soonest if the video is cut off.
            last[info['video_id']] = index
    between = len(built) - labelled
    report.ok(
        f'{where}: {labelled:,} segments and {between:,} clips in between, in '
        f'{len(last):,} videos'
    )
    chosen = np.linspace(0, len(last) - 1, min(sample, len(last))).astype(int)
    videos = list(last)
    read = 0
    for video in (videos[number] for number in chosen.tolist()):
        try:
            built[last[video]]
            read += 1
        except Exception as error:
            # Whatever a pipeline can raise; the next video may be readable.
            report.error(f'{where}: {video}: {_sentence(error)}')
    if read:
        report.ok(f'{where}: a clip of each of {read} videos goes through the pipeline')


def _check_head(report: 'Report', cfg: Any, where: str, classes: tuple) -> None:
    """The head has as many classes as the dataset."""
    head = (cfg.get('model') or {}).get('cls_head') or {}
    found = head.get('num_verbs', 97), head.get('num_nouns', 300)
    if head.get('type') == 'EpicHead' and found != classes:
        report.error(
            f'{where}: {classes[0]} verbs and {classes[1]} nouns, but model.cls_head '
            f'has num_verbs={found[0]} and num_nouns={found[1]}: give it the same'
        )


def _build(
    report: 'Report', where: str, dataset: Any
) -> Optional['EpicKitchensDataset']:
    try:
        # Clips that cannot be read are to be told, not left out.
        with DefaultScope.overwrite_default_scope('mmaction'):
            return DATASETS.build({**dataset, 'on_bad_clip': 'stop'})
    except (ValueError, OSError) as error:
        report.error(f'{where}: {_sentence(error)}')
        return None


def _sentence(error: Exception) -> str:
    """What went wrong, without the full stop; findings have none."""
    return str(error).strip().rstrip('.') or type(error).__name__
