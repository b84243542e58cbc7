"""Painter: a frame, and what the model says about it, in one picture."""

from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw

from memvit_mm.apis.models.classes import ClassScores
from memvit_mm.apis.models.stream_info import StreamInfo
from memvit_mm.apis.streams.results import Prediction

from .draw_text import (
    ALONE,
    BACKGROUND,
    FAINT,
    KINDS,
    PEOPLE,
    TEXT,
    Bar,
    block_of_bars,
    clock,
    draw_bars,
    fit,
    font,
    row_height,
    width_of,
)
from .moments import Person, people_at, shown_at

# The longer side of what is drawn is at least this, in pixels, for the text's sake.
LEAST_SIDE = 640

# Of so many people at most: actions of each, and the part of the width for them.
CROWDS = ((4, 3, 4), (8, 2, 6), (float('inf'), 1, 8))


class Look(NamedTuple):
    """How predictions are drawn."""

    top: int = 5
    """Best classes that are shown, of people at most 3."""
    min_score: float = 0.3
    """Least score of a person's action that is shown."""
    max_side: int = 1280
    """Longer side of the video's picture at most, in pixels."""


class Painter:
    """Draws predictions on the frames of one stream.

    Below the picture is a strip with the time, and the best classes with their scores
    as bars; a yellow mark in a bar is the score without memory. People have a box in a
    colour of their own, with their actions beside it.

    Args:
        info (StreamInfo): Of the stream.
        size (tuple[int, int]): Height and width of the source's frames, in pixels.
        look (Look): How.

    Raises:
        ValueError: If something of ``look`` is out of range.
    """

    def __init__(
        self, info: StreamInfo, size: tuple[int, int], look: Optional[Look] = None
    ) -> None:
        look = look or Look()
        check_look(look)
        self.info = info
        self.look = look
        height, width = size
        side = max(height, width)
        wanted = min(max(side, LEAST_SIDE), look.max_side)
        self.scale = wanted / side
        # Video codecs want even sides.
        self.width = max(2, round(width * self.scale / 2) * 2)
        self.picture_height = max(2, round(height * self.scale / 2) * 2)
        self.text = max(12, min(round(self.width / 46), 24))
        rows = 1 if info.kind == 'people' else 2 + look.top
        self.pad = round(self.text * 0.75)
        strip = rows * row_height(self.text) + 2 * self.pad
        self.height = self.picture_height + strip + strip % 2
        self._strip: tuple[Optional[int], Optional[Image.Image]] = (None, None)
        self._blocks: dict[tuple, Image.Image] = {}
        self._sides: dict[tuple, int] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is drawn, in pixels."""
        return self.height, self.width

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """The picture as it is drawn, ``[H, W, 3]`` uint8."""
        size = (self.width, self.picture_height)
        if image.shape[1::-1] == size:
            return image
        # Enlarged smoothly, made smaller without flicker.
        how = cv2.INTER_CUBIC if self.scale > 1 else cv2.INTER_AREA
        return cv2.resize(image, size, interpolation=how)

    def paint(
        self,
        image: np.ndarray,
        time: float,
        before: Optional[Prediction] = None,
        after: Optional[Prediction] = None,
    ) -> np.ndarray:
        """A frame with what is known about it.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB.
            time (float): The frame's, in seconds.
            before (Prediction, optional): The last one whose time is not later.
            after (Prediction, optional): The first one whose time is later.

        Returns:
            np.ndarray: ``[*size, 3]`` uint8, RGB.
        """
        canvas = Image.new('RGB', (self.width, self.height), BACKGROUND)
        canvas.paste(Image.fromarray(self.scaled(image)), (0, 0))
        if self.info.kind == 'people':
            people = people_at(time, before, after, self.info)
            self._paint_people(canvas, people)
            told = f'{len(people)} {"person" if len(people) == 1 else "people"}'
            shown = people[0].prediction if people else None
        else:
            shown = shown_at(time, before, after, self.info)
            told = 'no clip of this moment'
            if shown is not None:
                told = self._about(shown)
            canvas.paste(self._strip_of(shown), (0, self.picture_height))
        self._paint_line(canvas, time, told, shown)
        return np.asarray(canvas)

    # ------------------------------------------------------------------- the strip

    def _about(self, shown: Prediction) -> str:
        if self.info.ahead:
            later = shown.time + self.info.ahead
            return f'foreseen at {clock(shown.time)} for {clock(later)}'
        return f'what was done in the last {self.info.stride:g} s'

    def _paint_line(
        self, canvas: Image.Image, time: float, told: str, shown: Optional[Prediction]
    ) -> None:
        """The strip's first line: the time, what is below, what marks mean."""
        draw, size = ImageDraw.Draw(canvas), self.text
        middle = self.picture_height + self.pad + row_height(size) // 2
        now, left = clock(time), self.pad
        draw.text((left, middle), now, TEXT, font(size, bold=True), anchor='lm')
        left += width_of('0:00:00.0', size, bold=True) + self.pad
        right = self.width - self.pad
        if shown is not None and shown.without_memory is not None:
            legend = 'without memory'
            draw.text((right, middle), legend, FAINT, font(size), anchor='rm')
            right -= width_of(legend, size) + self.pad
            mark = [right - max(2, size // 6), middle - size // 2, right - 1]
            draw.rectangle([*mark, middle + size // 2], fill=ALONE)
            right -= 2 * self.pad
        told = fit(told, size, right - left)
        if told != '…':
            draw.text((left, middle), told, FAINT, font(size), anchor='lm')

    def _strip_of(self, shown: Optional[Prediction]) -> Image.Image:
        """The strip without its first line; drawn once per prediction."""
        if self._strip[1] is not None and self._strip[0] == id(shown):
            return self._strip[1]
        size, high = self.text, row_height(self.text)
        strip = Image.new(
            'RGB', (self.width, self.height - self.picture_height), BACKGROUND
        )
        draw, top = ImageDraw.Draw(strip), self.pad + high
        if shown is not None:
            groups = shown.groups
            column = (self.width - 2 * self.pad * len(groups)) // len(groups)
            for number, (group, alone) in enumerate(zip(groups, _alone(shown))):
                left = self.pad + number * (column + 2 * self.pad)
                middle = (left, top + high // 2)
                draw.text(middle, group.kind, FAINT, font(size), anchor='lm')
                bars = _bars(group, alone, self.look.top)
                place = (left, top + high)
                draw_bars(strip, bars, place, column, size, KINDS[group.kind])
        self._strip = (id(shown), strip)
        self._shown = shown  # kept alive: its id is not given to another
        return strip

    # -------------------------------------------------------------------- the people

    def _paint_people(self, canvas: Image.Image, people: list[Person]) -> None:
        draw, thick = ImageDraw.Draw(canvas), max(2, self.text // 6)
        boxes = [person.box * self.scale for person in people]
        for person, box in zip(people, boxes):
            draw.rectangle(box.round().tolist(), outline=_colour(person), width=thick)
        taken: list[np.ndarray] = []
        for number, (person, box) in enumerate(zip(people, boxes)):
            block = self._block(person)
            others = boxes[:number] + boxes[number + 1 :]
            key = (id(person.prediction), person.row)
            places = self._places(box, block.size)
            side = self._sides.get(key)
            if side is None:
                # Chosen once: it does not jump from frame to frame.
                costs = [_cost(place, taken, others) for place in places]
                side = self._sides[key] = int(np.argmin(costs))
            place = places[side]
            taken.append(place)
            canvas.paste(block, (int(place[0]), int(place[1])))

    def _block(self, person: Person) -> Image.Image:
        prediction, row = person.prediction, person.row
        if self._blocks and not any(key[0] == id(prediction) for key in self._blocks):
            # At most the blocks of the keyframes before and after.
            for key in list(self._blocks)[: max(0, len(self._blocks) - 64)]:
                self._sides.pop(key, None)
                del self._blocks[key]
        key = (id(prediction), row)
        if key not in self._blocks:
            # The more people, the less there is room to say of each.
            crowd = len(prediction.boxes)
            rows, share = next(r for most, *r in CROWDS if crowd <= most)
            (group,), (alone,) = prediction.groups, _alone(prediction)
            bars = _bars(group, alone, min(self.look.top, rows), row)
            bars = [bar for bar in bars if bar.score >= self.look.min_score]
            size = max(11, round(0.72 * self.text))
            self._blocks[key] = block_of_bars(
                f'person {person.number}',
                bars,
                size,
                _colour(person),
                self.width // share,
            )
        return self._blocks[key]

    def _places(self, box: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
        """Where a block may be, in the picture: beside the box, or in it."""
        left, top, right, bottom = box
        width, height = size
        corners = [
            (left, top - height),
            (right, top),
            (left - width, top),
            (left, bottom),
            (right - width, top - height),
            (right - width, bottom),
            (left, top),
            (left, bottom - height),
        ]
        places = []
        for x, y in corners:
            x = min(max(x, 0), self.width - width)
            y = min(max(y, 0), max(self.picture_height - height, 0))
            places.append(np.array([x, y, x + width, y + height]))
        return places


def check_look(look: Look) -> None:
    """Refuse what cannot be drawn."""
    if not 1 <= look.top <= 20:
        raise ValueError(f'top={look.top} must be 1 to 20 classes.')
    if not 0 <= look.min_score <= 1:
        raise ValueError(f'min_score={look.min_score} must be 0 to 1.')
    if look.max_side < 64:
        raise ValueError(f'max_side={look.max_side} must be at least 64 pixels.')


def _alone(prediction: Prediction) -> list[Optional[ClassScores]]:
    """The same groups without memory; None each where that was not asked for."""
    if prediction.without_memory is None:
        return [None] * len(prediction.groups)
    return prediction.without_memory.groups


def _bars(
    group: ClassScores, alone: Optional[ClassScores], k: int, row: Any = ...
) -> list[Bar]:
    """The best classes, each with its score, and that without memory."""
    scores = group.scores[row].tolist()
    others = scores if alone is None else alone.scores[row].tolist()
    return [
        Bar(group.names[n], scores[n], None if alone is None else others[n])
        for n in group.order(k, row)
    ]


def _colour(person: Person) -> tuple[int, int, int]:
    return PEOPLE[person.number % len(PEOPLE)]


def _cost(place: np.ndarray, taken: list, others: list) -> float:
    """How much a block would hide, in pixels; other blocks count most."""
    hidden = sum(100 * _overlap(place, other) for other in taken)
    return hidden + sum(_overlap(place, other) for other in others)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))
