"""A picture of a video's predictions: time x classes, with memory and without."""

import os
from collections.abc import Sequence
from typing import Optional

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from memvit_mm.apis.models.classes import ClassScores
from memvit_mm.apis.models.stream_info import StreamInfo, rows_of
from memvit_mm.apis.streams.results import Prediction
from memvit_mm.io.output_files import part_of, remove

# Of the colours, dark for 0 and bright for 1.
COLOURS = 'magma'
NOTHING = '#c8ccd4'
LONGEST_NAME = 32


def draw_timeline(
    path: str,
    predictions: Sequence[Prediction],
    info: StreamInfo,
    without_memory: Optional[Sequence[Prediction]] = None,
    title: Optional[str] = None,
    rows: int = 12,
) -> None:
    """Draw the probabilities of the classes over time.

    A row is a class, of verbs and of nouns, or of actions; for people it shows the
    highest score that anybody has. Shown are the classes with the highest scores in any
    clip, in the order of when they have them, so that a video reads from the upper left
    to the lower right. Below is the same of the clips alone, in the same rows and
    colours.

    Args:
        path (str): A picture: ``.png``, ``.pdf``, ``.svg`` or ``.jpg``.
        predictions (sequence[Prediction]): Of one video, in order of time.
        info (StreamInfo): Of the stream.
        without_memory (sequence[Prediction], optional): Of the same clips.
        title (str, optional): The video's name.
        rows (int): Classes at most, of each kind.

    Raises:
        ValueError: If there is no prediction.
    """
    if not predictions:
        raise ValueError(f'There is no prediction to draw in {path}.')
    if rows < 1:
        raise ValueError(f'rows={rows} must be at least 1 class.')
    groups = rows_of(predictions)
    twins = rows_of(without_memory) if without_memory else [None] * len(groups)
    begins = np.array([info.shown_from(p.time) for p in predictions])
    chosen = [_choose(*pair, rows) for pair in zip(groups, twins)]
    counts = [len(numbers) for numbers in chosen for _ in range(1 + bool(twins[0]))]

    names = max(
        len(_short(group.names[n]))
        for group, numbers in zip(groups, chosen)
        for n in numbers
    )
    span = begins[-1] - begins[0] + info.stride
    width = min(max(7.0, 4.0 + span / info.stride * 0.15), 16.0)
    margins = 0.95 + 0.45 * len(counts)
    figure = Figure(
        figsize=(width + 0.07 * names, margins + 0.24 * sum(counts)),
        dpi=120,
        layout='constrained',
    )
    axes = figure.subplots(
        len(counts), 1, sharex=True, squeeze=False, height_ratios=counts
    )[:, 0]
    highest = _highest(groups, twins)
    panel = 0
    for group, twin, numbers in zip(groups, twins, chosen):
        for shown, memory in ((group, True), (twin, False)):
            if shown is None:
                continue
            image = _panel(axes[panel], shown, numbers, begins, info.stride, highest)
            axes[panel].set_title(
                _heading(group.kind, memory, twin is not None, info),
                loc='left',
                fontsize=10,
                fontweight='bold' if memory else 'normal',
            )
            panel += 1
    axes[-1].xaxis.set_major_formatter(FuncFormatter(_clock_ticks(span)))
    axes[-1].set_xlabel(_axis(info))
    figure.colorbar(image, ax=list(axes), label='score', shrink=0.9, pad=0.01)
    figure.suptitle(_title(title, info), fontsize=11)
    part = part_of(path)
    try:
        figure.savefig(part)
        os.replace(part, path)
    finally:
        remove(part)


def _choose(group: ClassScores, twin: Optional[ClassScores], rows: int) -> list[int]:
    """Numbers of the classes to show, in the order of when they are highest."""
    both = group.scores if twin is None else np.concatenate([group.scores, twin.scores])
    both = np.where(np.isnan(both), -np.inf, both)
    best = np.argsort(-both.max(axis=0), kind='stable')[:rows]
    scores = np.where(np.isnan(group.scores), -np.inf, group.scores)
    highest = scores.max(axis=0)
    first = (scores >= 0.9 * highest).argmax(axis=0)
    return sorted(best.tolist(), key=lambda n: (first[n], -highest[n], n))


def _highest(groups: list, twins: list) -> float:
    """The score of the brightest colour: 1, or less where all are low."""
    scores = [g.scores for g in (*groups, *twins) if g is not None]
    top = max((float(np.nanmax(s)) for s in scores if not np.isnan(s).all()), default=1)
    return 1.0 if top > 0.5 else max(top, 1e-6)


def _panel(
    axis,
    shown: ClassScores,
    numbers: list,
    begins: np.ndarray,
    stride: float,
    highest: float,
):
    """One map: a column per clip; gaps between clips stay empty."""
    edges, columns = [begins[0]], []
    for number, begin in enumerate(begins):
        if begin > edges[-1] + 0.01 * stride:
            columns.append(np.full(len(numbers), np.nan))
            edges.append(begin)
        columns.append(shown.scores[number, numbers])
        after = begins[number + 1] if number + 1 < len(begins) else np.inf
        edges.append(min(begin + stride, after))
    axis.set_facecolor(NOTHING)
    image = axis.pcolormesh(
        edges,
        np.arange(len(numbers) + 1),
        np.ma.masked_invalid(np.stack(columns, axis=1)),
        cmap=COLOURS,
        vmin=0,
        vmax=highest,
        rasterized=True,
    )
    axis.invert_yaxis()
    labels = [_short(shown.names[n]) for n in numbers]
    axis.set_yticks(np.arange(len(numbers)) + 0.5, labels=labels, fontsize=9)
    axis.tick_params(axis='y', length=0)
    for line in range(1, len(numbers)):
        axis.axhline(line, color='white', linewidth=0.3, alpha=0.4)
    return image


def _heading(kind: str, memory: bool, compared: bool, info: StreamInfo) -> str:
    if info.kind == 'people':
        kind = 'actions, the highest score of anybody (grey: nobody)'
    if info.ahead:
        kind = f'{kind} foreseen {info.ahead:g} s ahead'
    if not compared:
        return kind
    return f'{kind}, {"with" if memory else "without"} memory'


def _title(title: Optional[str], info: StreamInfo) -> str:
    told = [] if title is None else [title]
    told.append(f'clips of {info.clip_seconds:.1f} s every {info.stride:g} s')
    if info.memory_seconds:
        told.append(f'memory of the {info.memory_seconds:g} s before')
    else:
        told.append('no memory')
    return '  |  '.join(told)


def _axis(info: StreamInfo) -> str:
    if info.ahead:
        return 'time of the prediction'
    return 'time of the keyframe' if info.centered else 'time'


def _clock_ticks(span: float):
    """Seconds, or for long videos minutes and hours."""

    def text(seconds: float, _place=None) -> str:
        if span <= 120:
            return f'{seconds:g} s'
        sign, rest = ('-', -seconds) if seconds < 0 else ('', seconds)
        minutes, rest = divmod(int(round(rest)), 60)
        hours, minutes = divmod(minutes, 60)
        start = f'{hours}:{minutes:02d}' if hours else f'{minutes}'
        return f'{sign}{start}:{rest:02d}'

    return text


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + '…'
