"""Find what is wrong with a config's data before a run does, or does not.

Most faults of AVA-style data stop nothing: boxes whose keys are spelled otherwise are
replaced by the whole frame, labels that the label map lacks are not counted, frames
past a video's end repeat the last one. What they have in common is an mAP of 0, hours
later. :func:`check_config` reads the files that a config names, as they are, without
building a dataset, and says what is wrong where and what to do about it. EPIC-KITCHENS'
files are checked by :mod:`.check_epic`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import path as osp
from typing import Any, Optional

from .epic import check_epic
from .media import check_media
from .proposals import check_proposals
from .tables import Annotations, check_annotations, check_exclusions, check_label_map

SPLITS = ('train', 'val', 'test')
MEMORY_MODELS = ('MemoryRecognizer3D', 'MemoryFastRCNN')
SAMPLER = 'SequentialClipSampler'


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level (str): 'ERROR', 'WARNING' or 'OK'.
        text (str): Where, what, and the remedy.
    """

    level: str
    text: str

    def __str__(self) -> str:
        return f'{self.level:8}{self.text}'


@dataclass
class Report:
    """The findings, in order.

    Attributes:
        findings (list[Finding]): Them.
        unchecked (int): Datasets of other kinds, of which nothing was checked.
    """

    findings: list[Finding] = field(default_factory=list)
    unchecked: int = 0

    def error(self, text: str) -> None:
        self.findings.append(Finding('ERROR', text))

    def warning(self, text: str) -> None:
        self.findings.append(Finding('WARNING', text))

    def ok(self, text: str) -> None:
        self.findings.append(Finding('OK', text))

    def count(self, level: str) -> int:
        """How many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def summary(self) -> str:
        """One line: how many errors and warnings."""
        errors, warnings = self.count('ERROR'), self.count('WARNING')
        text = f'{_number(errors, "error")}, {_number(warnings, "warning")}'
        if errors:
            return f'{text}: mend the errors first, some hide others'
        if self.unchecked:
            return f'{text}: the data that was checked can be trained on'
        return f'{text}: the data can be trained on'


@dataclass
class AvaFields:
    """The fields of an AVA dataset's config, with MMAction2's defaults.

    Attributes:
        where (str): The config's path to it, such as ``train_dataloader.dataset``.
        strict (bool): Whether it is ``MemoryAVADataset``, which refuses or mends some
            of what ``AVADataset`` takes silently.
        Others: as in ``AVADataset``; paths are joined with ``data_root`` as it does.
    """

    where: str
    strict: bool
    ann_file: str
    proposal_file: Optional[str] = None
    label_file: Optional[str] = None
    exclude_file: Optional[str] = None
    prefix: str = ''
    use_frames: bool = True
    fps: float = 30
    timestamp_start: int = 900
    timestamp_end: int = 1800
    filename_tmpl: str = 'img_{:05}.jpg'
    start_index: int = 1
    video_ext: Optional[str] = None
    num_classes: int = 81
    custom_classes: Optional[Sequence[int]] = None
    multilabel: bool = True
    person_det_score_thr: float = 0.9
    keyframes: str = 'annotated'
    data_root: Optional[str] = None
    fps_from_video: bool = False
    for_memory: bool = False


# Fields that have the same name in a dataset's config.
_TAKEN_OVER = (
    'proposal_file',
    'label_file',
    'exclude_file',
    'use_frames',
    'fps',
    'timestamp_start',
    'timestamp_end',
    'filename_tmpl',
    'start_index',
    'video_ext',
    'num_classes',
    'custom_classes',
    'multilabel',
    'person_det_score_thr',
    'keyframes',
    'data_root',
)


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
    has_memory = _type_name(cfg.get('model') or {}) in MEMORY_MODELS
    seen: dict[str, str] = {}
    videos: dict[str, tuple[str, set[str]]] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        if has_memory:
            _check_sampler(report, split, loader)
        where = f'{split}_dataloader.dataset'
        for at, dataset in _datasets(where, loader.get('dataset') or {}):
            if _type_name(dataset) == 'EpicKitchensDataset':
                key = repr(dataset)
                if key in seen:
                    report.ok(f'{at}: the same data as {seen[key]}')
                    continue
                seen[key] = at
                check_epic(report, cfg, at, dataset, sample)
                continue
            fields = _fields(report, at, dataset, has_memory, split)
            if fields is None:
                continue
            key = repr({**vars(fields), 'where': ''})
            if key in seen:
                report.ok(f'{at}: the same data as {seen[key]}')
                continue
            seen[key] = at
            annotations = check_dataset(report, fields, sample)
            if annotations is not None:
                kind = 'train' if split == 'train' else 'val'
                _check_disjoint(report, kind, at, annotations, videos)
            _check_model(report, cfg, fields)
            if split != 'train':
                _check_evaluator(report, cfg, split, fields)
    return report


def check_dataset(
    report: Report, fields: AvaFields, sample: int = 20
) -> Optional[Annotations]:
    """Check one dataset's files.

    Args:
        report (Report): Takes the findings.
        fields (AvaFields): The dataset.
        sample (int): How many videos to open.

    Returns:
        Annotations | None: What its annotation file holds, if it can be read.
    """
    label_map = check_label_map(report, fields)
    annotations = check_annotations(report, fields, label_map)
    if annotations is None:
        return None
    check_exclusions(report, fields, annotations)
    check_proposals(report, fields, annotations)
    check_media(report, fields, annotations, sample)
    return annotations


# ------------------------------------------------------------------- the config


def _datasets(where: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    """The datasets inside ConcatDataset, RepeatDataset and other wrappers."""
    if dataset.get('datasets') is not None:
        for number, inner in enumerate(dataset['datasets']):
            yield from _datasets(f'{where}.datasets[{number}]', inner)
    elif dataset.get('dataset') is not None:
        yield from _datasets(f'{where}.dataset', dataset['dataset'])
    else:
        yield where, dataset


def _fields(
    report: Report, where: str, dataset: Any, has_memory: bool, split: str
) -> Optional[AvaFields]:
    name = _type_name(dataset)
    if 'AVA' not in name and 'proposal_file' not in dataset:
        report.warning(
            f'{where}: {name or "a dataset without type"} is no dataset of AVA or '
            'EPIC-KITCHENS; it is not checked'
        )
        report.unchecked += 1
        return None
    if not dataset.get('ann_file'):
        report.error(f'{where}: {name} needs an ann_file; name the CSV file')
        return None
    strict = name == 'MemoryAVADataset'
    given = {key: dataset[key] for key in _TAKEN_OVER if dataset.get(key) is not None}
    given.setdefault('start_index', 1 if given.get('use_frames', True) else 0)
    if strict:
        given.setdefault('video_ext', '.mp4')
        if (
            'keyframes' not in given
            and dataset.get('test_mode')
            and (given.get('proposal_file'))
        ):
            given['keyframes'] = 'detected'
    steps = [_type_name(step) for step in dataset.get('pipeline') or [] if step]
    return AvaFields(
        where=where,
        strict=strict,
        ann_file=_join(dataset.get('data_root'), dataset['ann_file']),
        prefix=_join(
            dataset.get('data_root'), (dataset.get('data_prefix') or {}).get('img', '')
        ),
        fps_from_video='SampleAVAFrames' not in steps and strict,
        for_memory=has_memory,
        **given,
    )


def _join(root: Optional[str], path: str) -> str:
    """As mmengine's ``BaseDataset`` joins ``data_root`` with a relative path."""
    if root and '://' not in path and not osp.isabs(path):
        return osp.join(root, path)
    return path


def _type_name(cfg: Any) -> str:
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rsplit('.', 1)[-1]


def _check_sampler(report: Report, split: str, loader: Any) -> None:
    name = _type_name(loader.get('batch_sampler') or {})
    if name == SAMPLER:
        report.ok(f'{split}_dataloader: clips come in order ({SAMPLER})')
        return
    shuffle = split == 'train'
    report.warning(
        f'{split}_dataloader: the model has a memory, but clips do not come in the '
        f'order of their videos: set batch_sampler=dict(type={SAMPLER!r}, '
        f'shuffle={shuffle})'
    )


def _check_disjoint(report, kind, where, annotations, videos) -> None:
    names = set(annotations.videos)
    for other_kind, other in videos.values():
        common = sorted(names & other)
        if kind != other_kind and common:
            report.warning(
                f'{where}: {_number(len(common), "video")} are in training and '
                f'validation alike, such as {common[0]}: results on them say little'
            )
    videos[where] = kind, names


def _check_model(report: Report, cfg: Any, fields: AvaFields) -> None:
    roi_head = (cfg.get('model') or {}).get('roi_head') or {}
    classes = (roi_head.get('bbox_head') or {}).get('num_classes')
    if classes is not None and classes != fields.num_classes:
        report.error(
            f'{fields.where}: num_classes={fields.num_classes}, but '
            f'model.roi_head.bbox_head.num_classes={classes}: give both the number of '
            'labels plus one'
        )


def _check_evaluator(report: Report, cfg: Any, split: str, fields: AvaFields) -> None:
    name = f'{split}_evaluator'
    evaluators = cfg.get(name) or []
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    for metric in evaluators:
        if 'AVAMetric' not in _type_name(metric):
            continue
        same = dict(
            ann_file=fields.ann_file,
            label_file=fields.label_file,
            exclude_file=fields.exclude_file,
            num_classes=fields.num_classes,
        )
        default = dict(num_classes=81)
        for key, expected in same.items():
            value = metric.get(key, default.get(key))
            if isinstance(value, str) and isinstance(expected, str):
                differs = osp.realpath(value) != osp.realpath(expected)
            else:
                differs = value != expected and (value or expected) is not None
            if differs and not (key == 'label_file' and expected is None):
                report.error(
                    f'{name}: {key}={value!r}, but {fields.where} has {expected!r}: '
                    'name the same in both, or results are scored against something '
                    'else'
                )


def _number(count: int, noun: str) -> str:
    return f'{count:,} {noun}' + ('' if count == 1 else 's')
