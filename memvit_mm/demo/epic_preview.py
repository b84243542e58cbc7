"""A picture of the demo kitchens that tells a person what they are about."""

from pathlib import Path
from typing import Union

import cv2
import numpy as np

from .ava_preview import GREY, blank_strip, read_frame, write_line
from .epic import EpicDemoSettings, video_path
from .epic_scene import LENGTH, PERIOD, SEGMENTS, VERBS, Dish, Kitchen
from .files import KIND, read_meta


def draw_epic_preview(out: Union[str, Path], png: Union[str, Path]) -> None:
    """Draw a contact sheet from the videos as they are on disk.

    Each row follows one dish from what is seen to what goes on under the cloth, one
    column per second, with the labels below.

    Args:
        out (str | Path): A demo data set of format 'epic'.
        png (str | Path): The picture to write.

    Raises:
        ValueError: If ``out`` is no such data set.
        OSError: If a video cannot be read or the picture cannot be written.
    """
    meta = read_meta(out)
    if meta.get('kind') != KIND or meta.get('format') != 'epic':
        raise ValueError(
            f'{out} is no demo data set of format epic; make it first with --format '
            'epic.'
        )
    settings = EpicDemoSettings(**meta['settings'])
    kitchens = settings.kitchens('val') + settings.kitchens('train')
    scale = max(1, round(190 / settings.size))
    rows = []
    for number, verb in enumerate(VERBS):
        # Another kitchen each.
        found = _find_dish(kitchens[number:] + kitchens, verb)
        rows.append(_draw_dish(out, *found, scale))
    head = blank_strip(rows[0].shape[1], 2)
    text = (
        'What is being done under the cloth? One row per dish, one column per second.'
    )
    write_line(head, 0, 6, text)
    text = (
        'A model that sees one clip cannot tell what goes on there, nor what comes '
        'next; one that remembers the first column can.'
    )
    write_line(head, 1, 6, text, GREY)
    _, data = cv2.imencode('.png', np.vstack([head, *rows]))
    Path(png).write_bytes(data.tobytes())


def _find_dish(kitchens: list[Kitchen], verb: str) -> tuple[Kitchen, Dish]:
    """A dish with this verb, or any: a small set need not have every one."""
    dishes = [(kitchen, dish) for kitchen in kitchens for dish in kitchen.dishes]
    return next((pair for pair in dishes if pair[1].verb == verb), dishes[0])


def _draw_dish(out, kitchen: Kitchen, dish: Dish, scale: int) -> np.ndarray:
    columns = []
    for second in range(dish.start, dish.start + SEGMENTS * PERIOD):
        index = round((second + LENGTH / 2) * kitchen.fps)
        image = read_frame(video_path(out, kitchen.video_id), index)
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST
        )
        below = blank_strip(image.shape[1], 2)
        write_line(below, 0, 6, f'{kitchen.video_id}  {second} s', GREY)
        if second in dish.starts:
            write_line(below, 1, 6, f'{dish.verb} {dish.noun}', (0, 90, 200))
        columns.append(np.vstack([image, below]))
    return np.hstack(columns)
