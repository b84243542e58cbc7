"""Contact sheets of the demo data, which tell a person what it is about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Union

import cv2
import numpy as np

from .ava import DelayedDemoSettings, DemoSettings
from .ava_scene import DELAYS, OBJECTS, Event, Person, Scene, person_box, person_labels
from .epic import EpicDemoSettings, video_path
from .epic_scene import LENGTH, PERIOD, SEGMENTS, VERBS, Dish, Kitchen
from .files import KIND, read_meta

BLACK, WHITE, GREY, BLUE = (0, 0, 0), (255, 255, 255), (110, 110, 110), (0, 90, 200)
_MARK = (0, 140, 255)
_LINE = 20  # pixels per line of text

Line = tuple[str, tuple[int, int, int]]
"""A line of text and its colour."""


def draw_preview(out: Union[str, Path], png: Union[str, Path]) -> None:
    """Draw a contact sheet from the videos and annotations as they are on disk.

    Each row follows one story, one column per second, with the labels below: a person
    (thick box) from taking an object to both times the closed box is shown, or a dish
    from what is seen to what goes on under the cloth. A story of the delayed scenes has
    three columns: when the object is taken, half-way, and when the box is shown.

    Args:
        out (str | Path): A demo data set.
        png (str | Path): The picture to write.

    Raises:
        ValueError: If ``out`` is no demo data set.
        OSError: If a video cannot be read or the picture cannot be written.
    """
    meta, out = read_meta(out), Path(out)
    if meta.get('kind') != KIND:
        raise ValueError(f'{out} is no demo data set of memvit_mm; make it first.')
    draw = _draw_people if meta['format'] == 'ava' else _draw_kitchens
    _, data = cv2.imencode('.png', np.vstack(draw(out, meta['settings'])))
    Path(png).write_bytes(data.tobytes())


def _draw_people(out: Path, options: dict) -> list[np.ndarray]:
    delayed = 'delay' in options
    settings = (DelayedDemoSettings if delayed else DemoSettings)(**options)
    scenes = settings.scenes('val') + settings.scenes('train')
    scale = max(1, round(270 / settings.size))
    rows = []
    for first, item in enumerate(OBJECTS):
        found = scenes
        if delayed:
            # A row for each of the longest delays; validation videos take turns.
            turns = len(settings.delays)
            found = settings.scenes('val')[(first - len(OBJECTS)) % turns :: turns]
        rows.append(_draw_story(out, *_find_story(found, item, first), scale, delayed))
    head = _strip(
        rows[0].shape[1],
        ('Who took what? One row per person.', BLACK),
        (
            'The closed box looks the same whatever is in it: a model that sees one '
            'clip can only guess among four; one that remembers the first column '
            'knows.',
            GREY,
        ),
        ('the clip of the cue', BLACK),
    )
    later = [f'{second} s later' for second in range(1, max(DELAYS) + 1)]
    for column, title in enumerate(('half-way', 'the box') if delayed else later, 1):
        place = 6 + column * settings.size * scale
        _write(head, 2 * _LINE, place, title, BLACK)
    return [head, *rows]


def _find_story(
    scenes: list[Scene], item: str, first: int
) -> tuple[Scene, Person, Event]:
    """Somebody who takes ``item``; another video and person for each ``first``."""
    stories = [
        (scene, person, event)
        for scene in _rotated(scenes, first)
        for person in _rotated(scene.people, first)
        for event in person.events
        if event.kind == 'take'
    ]
    # A set of a few events need not have every object.
    other = scenes[0].people[0].events[0].item
    found = {event.item for _, _, event in stories}
    item = item if item in found else other
    return next(story for story in stories if story[2].item == item)


def _rotated(items: Sequence, first: int) -> Sequence:
    first %= len(items)
    return [*items[first:], *items[:first]]


def _draw_story(
    out: Path, scene: Scene, hero: Person, cue: Event, scale: int, delayed: bool
) -> np.ndarray:
    path = out / 'videos' / f'{scene.video_id}.mp4'
    seconds = range(cue.timestamp, cue.timestamp + max(DELAYS) + 1)
    if delayed:
        shown = next(
            event.timestamp
            for event in hero.events[hero.events.index(cue) :]
            if event.kind != 'take'
        )
        seconds = (cue.timestamp, (cue.timestamp + shown) // 2, shown)
    columns = []
    for timestamp in seconds:
        index = scene.frame_of(timestamp)
        image = _read_frame(path, index, scale)
        later = f'  + {timestamp - cue.timestamp} s' if delayed else ''
        lines = [(f'{scene.video_id}  {timestamp:04d}{later}', GREY)]
        for number, person in enumerate(scene.people):
            colour, width = (_MARK, 3) if person is hero else (WHITE, 1)
            corners = person_box(scene, person, index) * image.shape[0]
            x1, y1, x2, y2 = (round(float(value)) for value in corners)
            cv2.rectangle(image, (x1, y1), (x2, y2), colour, width)
            _write(image, y1, x1 + 3, str(number), colour)
            text = ', '.join(person_labels(scene, person, timestamp))
            lines.append((f'{number}: {text}', BLUE if person is hero else BLACK))
        lines.append(('', BLACK))
        columns.append(np.vstack([image, _strip(image.shape[1], *lines)]))
    return np.hstack(columns)


def _draw_kitchens(out: Path, options: dict) -> list[np.ndarray]:
    settings = EpicDemoSettings(**options)
    kitchens = settings.kitchens('val') + settings.kitchens('train')
    scale = max(1, round(190 / settings.size))
    rows = [
        # Another kitchen each.
        _draw_dish(out, *_find_dish(kitchens[number:] + kitchens, verb), scale)
        for number, verb in enumerate(VERBS)
    ]
    head = _strip(
        rows[0].shape[1],
        (
            'What is being done under the cloth? One row per dish, one column per '
            'second.',
            BLACK,
        ),
        (
            'A model that sees one clip cannot tell what goes on there, nor what comes '
            'next; one that remembers the first column can.',
            GREY,
        ),
    )
    return [head, *rows]


def _find_dish(kitchens: list[Kitchen], verb: str) -> tuple[Kitchen, Dish]:
    """A dish with this verb, or any: a small set need not have every one."""
    dishes = [(kitchen, dish) for kitchen in kitchens for dish in kitchen.dishes]
    return next((pair for pair in dishes if pair[1].verb == verb), dishes[0])


def _draw_dish(out: Path, kitchen: Kitchen, dish: Dish, scale: int) -> np.ndarray:
    columns = []
    for second in range(dish.start, dish.start + SEGMENTS * PERIOD):
        index = round((second + LENGTH / 2) * kitchen.fps)
        image = _read_frame(video_path(out, kitchen.video_id), index, scale)
        label = f'{dish.verb} {dish.noun}' if second in dish.starts else ''
        lines = (f'{kitchen.video_id}  {second} s', GREY), (label, BLUE)
        columns.append(np.vstack([image, _strip(image.shape[1], *lines)]))
    return np.hstack(columns)


def _read_frame(path: Path, index: int, scale: int) -> np.ndarray:
    """A frame of a video, enlarged, ``[H, W, 3]`` uint8, BGR."""
    reader = cv2.VideoCapture(str(path))
    image = None
    for _ in range(index + 1):  # seeking is inexact in some builds of OpenCV
        done, image = reader.read()
        if not done:
            raise OSError(
                f'{path} has no readable frame {index}; make the data again with '
                '--overwrite.'
            )
    reader.release()
    nearest = cv2.INTER_NEAREST
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=nearest)


def _strip(width: int, *lines: Line) -> np.ndarray:
    """Lines of text on white."""
    image = np.full((len(lines) * _LINE + 6, width, 3), 255, np.uint8)
    for number, (text, colour) in enumerate(lines):
        _write(image, number * _LINE, 6, text, colour)
    return image


def _write(image: np.ndarray, top: int, x: int, text: str, colour: tuple) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(image, text, (x, top + 16), font, 0.45, colour, 1, cv2.LINE_AA)
