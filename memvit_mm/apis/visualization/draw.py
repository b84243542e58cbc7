"""Painter: a video's frames with what the model predicts for them."""

from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw

from memvit_mm.apis.models.results import Prediction

from .draw_text import (
    ALONE,
    BACKGROUND,
    FAINT,
    KINDS,
    PEOPLE,
    TEXT,
    Bar,
    clock,
    draw_panel,
    fit,
    font,
    row_height,
)
from .moments import Person, people_at, shown_at
from .stream_info import StreamInfo

# The longer side of what is drawn is at least this, in pixels, to keep text readable.
LEAST_SIDE = 640
# With more people than this, each gets a smaller panel with only the best action.
FEW_PEOPLE = 4


class Look(NamedTuple):
    """How predictions are drawn."""

    top: int = 5
    """Best classes that are shown; for people at most 3."""
    min_score: float = 0.3
    """Least score of a person's action that is shown."""
    max_side: int = 1280
    """Longer side of the video's picture at most, in pixels."""


class Painter:
    """Draws predictions on the frames of one stream.

    Below the picture is a strip with the time, and the best classes with their scores
    as bars; a yellow mark in a bar is the score without memory. People have a box and a
    panel with their actions, in a colour of their own.

    Args:
        info (StreamInfo): The stream's.
        size (tuple[int, int]): Height and width of the source's frames, in pixels.
        look (Look): How to draw.

    Raises:
        ValueError: If a value of ``look`` is out of range.
    """

    def __init__(
        self, info: StreamInfo, size: tuple[int, int], look: Optional[Look] = None
    ) -> None:
        self.info = info
        self.look = look or Look()
        check_look(self.look)
        side = max(size)
        self.scale = min(max(side, LEAST_SIDE), self.look.max_side) / side
        # Video codecs want even sides.
        height, self.width = (max(2, round(s * self.scale / 2) * 2) for s in size)
        self.picture_height = height
        self.text = max(12, min(round(self.width / 46), 24))
        self.pad = round(self.text * 0.75)
        rows = 1 if info.kind == 'people' else 2 + self.look.top
        strip = rows * row_height(self.text) + 2 * self.pad
        self.height = height + strip + strip % 2

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is drawn, in pixels."""
        return self.height, self.width

    def paint(
        self,
        image: np.ndarray,
        time: float,
        before: Optional[Prediction] = None,
        after: Optional[Prediction] = None,
    ) -> np.ndarray:
        """Draw a frame and what is predicted for it.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB.
            time (float): The frame's, in seconds.
            before (Prediction, optional): The last one whose time is not later.
            after (Prediction, optional): The first one whose time is later.

        Returns:
            np.ndarray: ``[*size, 3]`` uint8, RGB.
        """
        # Cubic enlarges smoothly; area averaging makes smaller without flicker.
        how = cv2.INTER_CUBIC if self.scale > 1 else cv2.INTER_AREA
        size = (self.width, self.picture_height)
        canvas = Image.new('RGB', (self.width, self.height), BACKGROUND)
        canvas.paste(Image.fromarray(cv2.resize(image, size, interpolation=how)))
        if self.info.kind == 'people':
            people = people_at(time, before, after, self.info)
            told = self._draw_people(canvas, people)
            shown = people[0].prediction if people else None
        else:
            shown = shown_at(time, before, after, self.info)
            told = self._draw_groups(canvas, shown)
        compared = shown is not None and shown.without_memory is not None
        self._draw_time(ImageDraw.Draw(canvas), time, told, compared)
        return np.asarray(canvas)

    def _draw_time(
        self, draw: ImageDraw.ImageDraw, time: float, told: str, compared: bool
    ) -> None:
        """The strip's first line: the time, what is shown, and what marks mean."""
        size, left, right = self.text, self.pad, self.width - self.pad
        middle = self.picture_height + self.pad + row_height(size) // 2
        draw.text((left, middle), clock(time), TEXT, font(size, True), anchor='lm')
        left += round(font(size, True).getlength('0:00:00.0')) + self.pad
        if compared:
            legend = 'without memory'
            draw.text((right, middle), legend, FAINT, font(size), anchor='rm')
            right -= round(font(size).getlength(legend)) + self.pad
            mark = [right - max(2, size // 6), middle - size // 2]
            draw.rectangle([*mark, right - 1, middle + size // 2], fill=ALONE)
            right -= 2 * self.pad
        told = fit(told, size, right - left)
        draw.text((left, middle), told, FAINT, font(size), anchor='lm')

    def _draw_groups(self, canvas: Image.Image, shown: Optional[Prediction]) -> str:
        """The strip's panels, one for each kind of classes; returns what they are."""
        if shown is None:
            return 'no clip of this moment'
        top = self.picture_height + self.pad + row_height(self.text)
        step = (self.width - self.pad) // len(shown.groups)
        for place, group in enumerate(shown.groups):
            bars, colour = _bars(shown, place, ..., self.look.top), KINDS[group.kind]
            panel = draw_panel(group.kind, bars, step - self.pad, self.text, colour)
            canvas.paste(panel, (self.pad + place * step, top))
        if self.info.ahead:
            later = shown.time + self.info.ahead
            return f'foreseen at {clock(shown.time)} for {clock(later)}'
        return f'what was done in the last {self.info.stride:g} s'

    def _draw_people(self, canvas: Image.Image, people: list[Person]) -> str:
        """Boxes, and panels with actions above them, or at the top of the picture."""
        draw, thick = ImageDraw.Draw(canvas), max(2, self.text // 6)
        boxes = [(person.box * self.scale).round().tolist() for person in people]
        colours = [PEOPLE[person.number % len(PEOPLE)] for person in people]
        for box, colour in zip(boxes, colours):
            draw.rectangle(box, outline=colour, width=thick)
        size = max(11, round(0.72 * self.text))
        k, share = (3, 6) if len(people) <= FEW_PEOPLE else (1, 8)
        for person, (left, top, *_), colour in zip(people, boxes, colours):
            bars = _bars(person.prediction, 0, person.row, min(k, self.look.top))
            bars = tuple(bar for bar in bars if bar.score >= self.look.min_score)
            # As wide as the box in the keyframe, where that can be read.
            x1, _, x2, _ = person.prediction.boxes[person.row] * self.scale
            width = min(max(int(x2 - x1) + 1, self.width // share), self.width // 4)
            panel = draw_panel(f'person {person.number}', bars, width, size, colour)
            place = min(left, self.width - width), max(top - panel.height, 0)
            canvas.paste(panel, tuple(map(int, place)))
        return f'{len(people)} {"person" if len(people) == 1 else "people"}'


def check_look(look: Look) -> None:
    """Refuse what cannot be drawn."""
    if not 1 <= look.top <= 20:
        raise ValueError(f'top={look.top} must be 1 to 20 classes.')
    if not 0 <= look.min_score <= 1:
        raise ValueError(f'min_score={look.min_score} must be 0 to 1.')
    if look.max_side < 64:
        raise ValueError(f'max_side={look.max_side} must be at least 64 pixels.')


def _bars(shown: Prediction, place: int, row: Any, k: int) -> tuple[Bar, ...]:
    """The best classes with their scores, and those without memory if there are any.

    Args:
        shown (Prediction): What to show.
        place (int): Place of the kind of classes in ``groups``.
        row (int | Ellipsis): The person.
        k (int): How many classes.
    """
    group = shown.groups[place]
    scores = group.scores[row].tolist()
    others: list = [None] * len(scores)
    if shown.without_memory is not None:
        others = shown.without_memory.groups[place].scores[row].tolist()
    return tuple(Bar(group.names[n], scores[n], others[n]) for n in group.order(k, row))
