"""A picture of the demo data that tells a person what it is about."""

from pathlib import Path
from typing import Union

import cv2
import numpy as np

from .ava import DemoSettings
from .ava_scene import DELAYS, OBJECTS, Event, Person, Scene, person_box, person_labels
from .files import KIND, read_meta

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (110, 110, 110)
_MARK = (0, 140, 255)
_LINE = 20  # pixels per line of text


def draw_preview(out: Union[str, Path], png: Union[str, Path]) -> None:
    """Draw a contact sheet from the videos and annotations as they are on disk.

    Each row follows one person (thick box) from taking an object to both times the
    closed box is shown, one column per second; every person's labels stand below.

    Args:
        out (str | Path): A demo data set.
        png (str | Path): The picture to write.

    Raises:
        ValueError: If ``out`` is no demo data set.
        OSError: If a video cannot be read or the picture cannot be written.
    """
    meta = read_meta(out)
    if meta.get('kind') != KIND:
        raise ValueError(f'{out} is no demo data set of memvit_mm; make it first.')
    settings = DemoSettings(**meta['settings'])
    scenes = settings.scenes('val') + settings.scenes('train')
    scale = max(1, round(270 / settings.size))
    rows = [
        _draw_story(Path(out), *_find_story(scenes, item, first), scale)
        for first, item in enumerate(OBJECTS)
    ]
    head = blank_strip(rows[0].shape[1], 3)
    write_line(head, 0, 6, 'Who took what? One row per person, one column per second.')
    text = (
        'The closed box looks the same whatever is in it: a model that sees one clip '
        'can only guess among four; one that remembers the first column knows.'
    )
    write_line(head, 1, 6, text, GREY)
    for column in range(max(DELAYS) + 1):
        text = 'the clip of the cue' if column == 0 else f'{column} s later'
        write_line(head, 2, 6 + column * settings.size * scale, text)
    _, data = cv2.imencode('.png', np.vstack([head, *rows]))
    Path(png).write_bytes(data.tobytes())


def _find_story(
    scenes: list[Scene], item: str, first: int
) -> tuple[Scene, Person, Event]:
    """Somebody who takes ``item``; another video and person for each ``first``."""
    stories = [
        (scene, person, event)
        for offset in range(len(scenes))
        for scene in [scenes[(first + offset) % len(scenes)]]
        for number in range(len(scene.people))
        for person in [scene.people[(first + number) % len(scene.people)]]
        for event in person.events
        if event.kind == 'take' and event.item == item
    ]
    if not stories:
        # A set of a few events need not have every object.
        return _find_story(scenes, scenes[0].people[0].events[0].item, first)
    return stories[0]


def _draw_story(
    out: Path, scene: Scene, hero: Person, cue: Event, scale: int
) -> np.ndarray:
    path = out / 'videos' / f'{scene.video_id}.mp4'
    columns = []
    for timestamp in range(cue.timestamp, cue.timestamp + max(DELAYS) + 1):
        index = scene.frame_of(timestamp)
        image = read_frame(path, index)
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST
        )
        below = blank_strip(image.shape[1], len(scene.people) + 2)
        write_line(below, 0, 6, f'{scene.video_id}  {timestamp:04d}', GREY)
        for number, person in enumerate(scene.people):
            colour, width = (_MARK, 3) if person is hero else (WHITE, 1)
            corners = person_box(scene, person, index) * image.shape[0]
            x1, y1, x2, y2 = (round(float(value)) for value in corners)
            cv2.rectangle(image, (x1, y1), (x2, y2), colour, width)
            write_line(image, 0, x1 + 3, str(number), colour, top=y1)
            text = ', '.join(person_labels(scene, person, timestamp))
            colour = (0, 90, 200) if person is hero else BLACK
            write_line(below, number + 1, 6, f'{number}: {text}', colour)
        columns.append(np.vstack([image, below]))
    return np.hstack(columns)


def read_frame(path: Path, index: int) -> np.ndarray:
    """A frame of a video, ``[H, W, 3]`` uint8, BGR; OSError if there is none."""
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
    return image


def blank_strip(width: int, lines: int) -> np.ndarray:
    """White, high enough for some lines of text."""
    return np.full((lines * _LINE + 6, width, 3), 255, np.uint8)


def write_line(image, line: int, x: int, text: str, colour=BLACK, top: int = 0) -> None:
    """Write a line of text into an image."""
    place = x, top + line * _LINE + 16
    cv2.putText(
        image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA
    )
