"""A picture of a video's predictions: time x classes, with memory and without."""

import os.path as osp
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Optional

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from memvit_mm.apis.models.classes import ClassScores
from memvit_mm.apis.models.results import Prediction
from memvit_mm.io.whole_file import write_bytes

from .draw_text import clock
from .stream_info import StreamInfo, rows_of

# Dark for score 0, bright for score 1, and grey where there is no score.
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
    """Draw the scores of the classes over time.

    A row is a class, of verbs and of nouns, or of actions; for people it shows the
    highest score of any person. Shown are the classes with the highest scores in any
    clip, in the order of when they have them, so that a video reads from the upper left
    to the lower right. Below is the same without memory, in the same rows and colours.

    Args:
        path (str): A picture: ``.png``, ``.pdf``, ``.svg`` or ``.jpg``.
        predictions (sequence[Prediction]): Of one video, in order of time.
        info (StreamInfo): The stream's.
        without_memory (sequence[Prediction], optional): Of the same clips.
        title (str, optional): The video's name.
        rows (int): Classes at most, of each kind.

    Raises:
        ValueError: If there is no prediction, or the picture cannot be written.
    """
    if not predictions:
        raise ValueError(f'There is no prediction to draw in {path}.')
    if rows < 1:
        raise ValueError(f'rows={rows} must be at least 1 class.')
    begins = np.array([info.shown_from(p.time) for p in predictions])
    panels = _panels(predictions, info, without_memory, rows)
    counts = [len(shown.names) for _, shown in panels]
    longest = max(len(name) for _, shown in panels for name in shown.names)
    width = np.clip(4 + 0.15 * (np.ptp(begins) / info.stride + 1), 7, 16)
    width += 0.07 * min(longest, LONGEST_NAME)
    height = 0.95 + 0.45 * len(counts) + 0.24 * sum(counts)
    figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
    axes = figure.subplots(
        len(counts), sharex=True, squeeze=False, height_ratios=counts
    )[:, 0]
    # The brightest colour is score 1, or less where all scores are low.
    top = max(float(np.nan_to_num(shown.scores).max()) for _, shown in panels)
    highest = 1.0 if top > 0.5 else max(top, 1e-6)
    for axis, (heading, shown) in zip(axes, panels):
        image = _draw_panel(axis, shown, begins, info.stride, highest)
        weight = 'normal' if heading.endswith('without memory') else 'bold'
        axis.set_title(heading, loc='left', fontsize=10, fontweight=weight)
    # Ticks at whole seconds, and at whole minutes where there are many.
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 3, 6, 10]))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x, 0)))
    what = ' of the keyframe' if info.centered else ''
    axes[-1].set_xlabel('time' + (' of the prediction' if info.ahead else what))
    figure.colorbar(image, ax=list(axes), label='score', shrink=0.9, pad=0.01)
    memory = 'no memory'
    if info.memory_seconds:
        memory = f'memory of the {info.memory_seconds:g} s before'
    clips = f'clips of {info.clip_seconds:.1f} s every {info.stride:g} s'
    figure.suptitle('  |  '.join(filter(None, (title, clips, memory))), fontsize=11)
    picture = BytesIO()
    figure.savefig(picture, format=osp.splitext(path)[1][1:].lower())
    write_bytes(path, picture.getvalue())


def _panels(
    predictions: Sequence[Prediction],
    info: StreamInfo,
    without_memory: Optional[Sequence[Prediction]],
    rows: int,
) -> list[tuple[str, ClassScores]]:
    """Headings, and the classes and scores ``[clips, classes]`` below them."""
    groups = rows_of(predictions)
    others = rows_of(without_memory) if without_memory else [None] * len(groups)
    panels = []
    for group, other in zip(groups, others):
        heading = group.kind
        if info.kind == 'people':
            heading = 'actions, the highest score of any person (grey: no person)'
        if info.ahead:
            heading += f' foreseen {info.ahead:g} s ahead'
        chosen = _choose(group, other, rows)
        for shown, told in ((group, 'with'), (other, 'without')):
            if shown is not None:
                names = [shown.names[number] for number in chosen]
                told = '' if other is None else f', {told} memory'
                scores = shown.scores[:, chosen]
                panels.append((heading + told, ClassScores(group.kind, names, scores)))
    return panels


def _choose(group: ClassScores, other: Optional[ClassScores], rows: int) -> list[int]:
    """Numbers of the classes to show, in the order of when they are highest."""
    scores = np.nan_to_num(group.scores, nan=-np.inf)
    highest = scores.max(axis=0)
    best = highest
    if other is not None:
        best = np.fmax(best, np.nan_to_num(other.scores, nan=-np.inf).max(axis=0))
    first = (scores >= 0.9 * highest).argmax(axis=0)
    chosen = np.argsort(-best, kind='stable')[:rows].tolist()
    return sorted(chosen, key=lambda number: (first[number], -highest[number], number))


def _draw_panel(
    axis: Any, shown: ClassScores, begins: np.ndarray, stride: float, highest: float
) -> Any:
    """One map with a column per clip; where clips are missing it stays empty."""
    ends = np.minimum(begins + stride, np.append(begins[1:], np.inf))
    # Between two clips is a column without scores, which is mostly of no width.
    columns = np.full((len(shown.names), 2 * len(begins) - 1), np.nan)
    columns[:, ::2] = shown.scores.T
    axis.set_facecolor(NOTHING)
    image = axis.pcolormesh(
        np.column_stack([begins, ends]).ravel(),
        np.arange(len(shown.names) + 1),
        np.ma.masked_invalid(columns),
        cmap=COLOURS,
        vmin=0,
        vmax=highest,
        rasterized=True,
    )
    axis.invert_yaxis()
    labels = [
        name if len(name) <= LONGEST_NAME else f'{name[: LONGEST_NAME - 1]}…'
        for name in shown.names
    ]
    axis.set_yticks(np.arange(len(labels)) + 0.5, labels=labels, fontsize=9)
    axis.tick_params(axis='y', length=0)
    for line in range(1, len(labels)):
        axis.axhline(line, color='white', linewidth=0.3, alpha=0.4)
    return image
