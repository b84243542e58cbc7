"""Check the data that a config names before a run reads it.

Most faults of AVA-style data stop nothing: boxes whose keys are spelled otherwise are
replaced by the whole frame, labels that the label map lacks are not counted, frames
past a video's end repeat the last one. What they have in common is an mAP of 0, hours
later.
"""

import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Any

from .ava import check_ava
from .epic import check_epic
from .report import Report, number, type_name
from .subject import AvaCheck

SPLITS = ('train', 'val', 'test')
MEMORY_MODELS = ('MemoryRecognizer3D', 'MemoryFastRCNN')
SAMPLER = 'SequentialClipSampler'


def check_config(cfg: Any, splits: Sequence[str] = SPLITS, sample: int = 20) -> Report:
    """Check the data that a config names.

    Args:
        cfg (mmengine.Config): The config.
        splits (Sequence[str]): Which of 'train', 'val' and 'test'.
        sample (int): How many videos (or folders of frames) of each dataset to open;
            that they exist is looked up for all of them. Defaults to 20.

    Returns:
        Report: The findings, file by file.

    Examples:
        >>> from mmengine.config import Config
        >>> print(check_config(Config(dict()), ['train']).findings[0].text)
        the config has no train_dataloader: name a config of AVA
    """
    report = Report()
    loaders = [f'{split}_dataloader' for split in splits]
    if not any(cfg.get(name) for name in loaders):
        report.error(f'the config has no {" or ".join(loaders)}: name a config of AVA')
        return report
    has_memory = type_name(cfg.get('model') or {}) in MEMORY_MODELS
    seen: dict[str, str] = {}
    videos: dict[str, tuple[bool, set[str]]] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        if has_memory:
            _check_sampler(report, split, loader)
        where = f'{split}_dataloader.dataset'
        for at, dataset in _datasets(where, loader.get('dataset') or {}):
            name = type_name(dataset)
            is_epic = name == 'EpicKitchensDataset'
            # Of AVA the files are checked, of EPIC-KITCHENS the pipeline, too.
            items = [i for i in dataset.items() if is_epic or i[0] != 'pipeline']
            key = repr(sorted(items, key=str))
            if key in seen:
                report.ok(f'{at}: the same data as {seen[key]}')
                continue
            seen[key] = at
            if is_epic:
                check_epic(report, cfg, at, dataset, sample)
            elif 'AVA' in name or 'proposal_file' in dataset:
                try:
                    check = AvaCheck(report, at, dataset)
                except (AssertionError, TypeError, ValueError) as error:
                    report.error(f'{at}: {error}')
                    continue
                check_ava(check, has_memory, sample)
                _check_disjoint(report, split == 'train', check, videos)
                _check_model(report, cfg, check)
                if split != 'train':
                    _check_evaluator(report, cfg, split, check)
            else:
                report.warning(
                    f'{at}: {name or "a dataset without type"} is no dataset of AVA or '
                    'EPIC-KITCHENS; it is not checked'
                )
                report.unchecked += 1
    return report


def _datasets(where: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    """The datasets inside ConcatDataset, RepeatDataset and other wrappers."""
    if dataset.get('datasets') is not None:
        for index, inner in enumerate(dataset['datasets']):
            yield from _datasets(f'{where}.datasets[{index}]', inner)
    elif dataset.get('dataset') is not None:
        yield from _datasets(f'{where}.dataset', dataset['dataset'])
    else:
        yield where, dataset


def _check_sampler(report: Report, split: str, loader: Any) -> None:
    if type_name(loader.get('batch_sampler') or {}) == SAMPLER:
        report.ok(f'{split}_dataloader: clips come in order ({SAMPLER})')
        return
    report.warning(
        f'{split}_dataloader: the model has a memory, but clips do not come in the '
        f'order of their videos: set batch_sampler=dict(type={SAMPLER!r}, '
        f'shuffle={split == "train"})'
    )


def _check_disjoint(
    report: Report,
    is_training: bool,
    check: AvaCheck,
    videos: dict[str, tuple[bool, set[str]]],
) -> None:
    for other_is_training, other in videos.values():
        common = sorted(check.videos & other)
        if is_training != other_is_training and common:
            report.warning(
                f'{check.where}: {number(len(common), "video")} are in training and '
                f'validation alike, such as {common[0]}: results on them say little'
            )
    videos[check.where] = is_training, check.videos


def _check_model(report: Report, cfg: Any, check: AvaCheck) -> None:
    roi_head = (cfg.get('model') or {}).get('roi_head') or {}
    classes = (roi_head.get('bbox_head') or {}).get('num_classes')
    ours = check.dataset.num_classes
    if classes is not None and classes != ours:
        report.error(
            f'{check.where}: num_classes={ours}, but '
            f'model.roi_head.bbox_head.num_classes={classes}: give both the number of '
            'labels plus one'
        )


def _check_evaluator(report: Report, cfg: Any, split: str, check: AvaCheck) -> None:
    """Whether the metrics of AVA compare with the files of the dataset."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    for metric in evaluators:
        if 'AVAMetric' not in type_name(metric):
            continue
        for key in ('ann_file', 'label_file', 'exclude_file', 'num_classes'):
            ours = getattr(check.dataset, key)
            theirs = metric.get(key, 81 if key == 'num_classes' else None)
            if isinstance(ours, str) and isinstance(theirs, str):
                differs = osp.realpath(ours) != osp.realpath(theirs)
            else:
                differs = (ours or None) != (theirs or None)
            # It may score the keyframes of some of the videos.
            part = key == 'ann_file' and metric.get('ignore_empty_frames')
            if differs and not part and not (key == 'label_file' and ours is None):
                report.error(
                    f'{split}_evaluator: {key}={theirs!r}, but {check.where} has '
                    f'{ours!r}: name the same in both, or results are scored against '
                    'something else'
                )
