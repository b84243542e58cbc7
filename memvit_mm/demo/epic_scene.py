"""The made-up kitchens of the EPIC demo data: who prepares what, and its pixels.

A cook looks down on a board. For each **dish** a food and a tool lie on it for one
second, in which the cook begins: *cut tomato*. Then a cloth covers all of it, and under
the cloth the cook goes on, three times for a second, two seconds apart: the labels are
*cut tomato* each time, and the pixels are those of *stir lemon*. Who cannot remember
cannot tell what is being done, nor what will be done next.

A kitchen is planned first (plain numbers, no pixels) and drawn from the plan one frame
at a time; a frame depends on the plan and its index alone. Randomness that draws pixels
never sees which food and tool it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from .draw import circle, line, muted, rectangle, shape
from .plan import MIN_FPS, SPLITS, Plan, Settings

# Class names in the order of their ids, which start at 0 as in EPIC-KITCHENS.
VERBS = ('cut', 'stir', 'peel', 'pour')
NOUNS = ('tomato', 'lemon', 'lettuce', 'fish', 'aubergine', 'olive')
# Dishes with one of these are half as frequent: the tail of the distribution.
TAIL_VERBS, TAIL_NOUNS = ('pour',), ('olive',)

# Whole seconds from one segment's start to the next one's, and how long it takes.
# Between the cue and the cloth there are PERIOD - LENGTH seconds, in which the codec
# forgets: from 12 frames a second on it codes a frame by itself in that time.
PERIOD, LENGTH = 2, 1
# Segments of a dish: the first is seen, the others are under the cloth.
SEGMENTS = 4
# Seconds between two dishes, one is drawn each time; in them nobody is there.
PAUSES = (0, 1, 2, 3)
# Seconds at both ends of a video without a segment.
MARGIN = 2

TRAIN_COOKS = ('P01', 'P02', 'P03', 'P04')
# P05's kitchen is not seen in training.
VAL_COOKS = ('P01', 'P05', 'P02', 'P03', 'P04')
UNSEEN_COOKS = ('P05',)

_FOOD_BGR = {
    'tomato': (40, 30, 225),
    'lemon': (20, 215, 245),
    'lettuce': (50, 185, 30),
    'fish': (235, 80, 25),
    'aubergine': (190, 35, 170),
    'olive': (22, 24, 20),
}
# In units of the food's radius; the others are circles.
_FOOD_CORNERS = {
    'lemon': ((-1.1, 0), (0, -0.8), (1.1, 0), (0, 0.8)),
    'lettuce': ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    'fish': ((-1.1, 0), (0.9, -1.1), (0.9, 1.1)),
    'aubergine': ((-0.6, -1.1), (0.6, -1.1), (0.6, 1.1), (-0.6, 1.1)),
}
_TOOL_BGR = {
    'cut': (252, 252, 252),
    'stir': (0, 120, 255),
    'peel': (215, 215, 0),
    'pour': (190, 120, 255),
}
# By the cook: what the sleeves look like, and the skin. Muted, unlike any food.
_SLEEVES = (
    (70, 62, 60),
    (52, 80, 118),
    (122, 118, 48),
    (140, 138, 136),
    (58, 110, 104),
)
_SKINS = ((178, 200, 235), (132, 164, 208), (92, 124, 172))
_BOARD, _CLOTH, _STRIPE = (150, 182, 205), (122, 134, 128), (84, 96, 90)


@dataclass(frozen=True)
class EpicDemoSettings(Settings):
    """What :func:`make_epic_demo` draws.

    Args:
        num_train (int): Training videos. Defaults to 28.
        num_val (int): Validation videos. Defaults to 12.
        seconds (int): Length of each video. Defaults to 64.
        fps (int): Frames per second, 12 or more, so that the codec leaves no trace of
            what was shown under the cloth. Defaults to 12.
        size (int): Width and height of the videos in pixels. Defaults to 96.
        seed (int): Everything follows from it. Defaults to 0.

    Raises:
        ValueError: If a setting is out of its range.

    Examples:
        >>> EpicDemoSettings(num_train=2, num_val=1).kitchens('val')[0].video_id
        'P01_02'
    """

    num_train: int = 28
    num_val: int = 12
    seconds: int = 64
    fps: int = 12
    size: int = 96
    seed: int = 0

    format = 'epic'
    limits = {
        # Two digits after the participant: at most 99 videos of each.
        'num_train': (1, 320),
        'num_val': (1, 80),
        'seconds': (2 * MARGIN + SEGMENTS * PERIOD + 2, 3600),
        'fps': (MIN_FPS, 60),
        'size': (48, 1024),
        'seed': (0, 2**32 - 1),
    }

    def kitchens(self, split: str) -> list['Kitchen']:
        """The plans of a split's videos, 'train' or 'val'."""
        return plan_kitchens(self, split)

    @property
    def meta(self) -> dict:
        """What readers of ``meta.json`` want to know."""
        return {
            'num_verbs': len(VERBS),
            'num_nouns': len(NOUNS),
            'fps': self.fps,
            'seconds_from_segment_to_segment': PERIOD,
            'segments_of_a_dish': SEGMENTS,
        }


class Dish(NamedTuple):
    """What is prepared, and from when on."""

    start: int
    """In seconds from the start of the video."""
    verb: str
    """What is done to it, all along."""
    noun: str
    """The food."""

    @property
    def starts(self) -> range:
        """When its segments start, in seconds."""
        return range(self.start, self.start + SEGMENTS * PERIOD, PERIOD)


@dataclass(frozen=True)
class Kitchen(Plan):
    """The plan of one video.

    Attributes:
        video_id (str): Its name, such as 'P01_02'.
        dishes (tuple[Dish]): In order of time.
        Others: as in :class:`Plan`.
    """

    dishes: tuple[Dish, ...]

    @property
    def cook(self) -> str:
        """The participant."""
        return self.video_id.partition('_')[0]

    def frames_of(self, start: float) -> range:
        """Indices of the frames of a segment that starts then (seconds)."""
        first = round(start * self.fps)
        return range(first, first + LENGTH * self.fps)


def plan_kitchens(settings: EpicDemoSettings, split: str) -> list[Kitchen]:
    """Plan all videos of a split, the dishes' frequencies as even as can be.

    Args:
        settings (EpicDemoSettings): Of the data set; splits draw disjoint random
            numbers from its seed.
        split (str): 'train' or 'val'.
    """
    base = (settings.seed, 100 + SPLITS.index(split))
    count = settings.count(split)
    cooks, first = TRAIN_COOKS, 1
    if split == 'val':
        # Validation goes on with each cook's numbers.
        cooks, first = VAL_COOKS, 1 + -(-settings.num_train // len(TRAIN_COOKS))
    starts = [
        _plan_starts(np.random.default_rng([*base, index, 0]), settings.seconds)
        for index in range(count)
    ]
    deck = _deal(np.random.default_rng([*base, count, 1]), sum(map(len, starts)))
    video = settings.seconds, settings.fps, settings.size
    kitchens = []
    for index, times in enumerate(starts):
        name = f'{cooks[index % len(cooks)]}_{first + index // len(cooks):02d}'
        dishes = tuple(Dish(time, *deck.pop()) for time in times)
        kitchens.append(Kitchen(name, (*base, index), *video, dishes))
    return kitchens


def _plan_starts(rng: np.random.Generator, seconds: int) -> list[int]:
    """When the dishes of one video start."""
    last = seconds - MARGIN - SEGMENTS * PERIOD + (PERIOD - LENGTH)
    times = [MARGIN + int(rng.integers(0, 3))]
    while times[-1] <= last:
        times.append(times[-1] + SEGMENTS * PERIOD + int(rng.choice(PAUSES)))
    return times[:-1]


def _deal(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Verbs and nouns of so many dishes: packs with every pair in it, shuffled."""
    pack = [
        (verb, noun)
        for verb in VERBS
        for noun in NOUNS
        for _ in range(1 if verb in TAIL_VERBS or noun in TAIL_NOUNS else 2)
    ]
    dealt: list = []
    while len(dealt) < count:
        dealt += [pack[i] for i in rng.permutation(len(pack))]
    return dealt[:count]


# --------------------------------------------------------------------- drawing


def draw_frame(kitchen: Kitchen, index: int) -> np.ndarray:
    """Draw one frame.

    Args:
        kitchen (Kitchen): The plan.
        index (int): The frame, from 0.

    Returns:
        np.ndarray: ``[size, size, 3]`` uint8, BGR as OpenCV has it.
    """
    image = _worktop(kitchen.cook, kitchen.seed, kitchen.size).copy()
    unit = kitchen.size / 96
    shown = [
        (dish, start == dish.start)
        for dish in kitchen.dishes
        for start in dish.starts
        if index in kitchen.frames_of(start)
    ]
    for dish, is_cue in shown:
        if is_cue:
            food = _FOOD_CORNERS.get(dish.noun), _FOOD_BGR[dish.noun]
            shape(image, 33 * unit, 44 * unit, 17 * unit, *food)
            _draw_tool(image, unit, dish.verb)
        else:
            _draw_cloth(image, unit)
        _draw_hands(image, unit, kitchen, index)
    return kitchen.film(image, index)


@lru_cache(maxsize=4)
def _worktop(cook: str, seed: Sequence[int], size: int) -> np.ndarray:
    """A worktop with tiles, one of each cook, the board, and what lies about."""
    unit = size / 96
    kitchen = np.random.default_rng([*cook.encode()])
    image = np.empty((size, size, 3), np.uint8)
    image[:] = muted(kitchen, 80, 150)
    for place in np.arange(kitchen.uniform(4, 12), 96, kitchen.uniform(12, 24)):
        line(image, (0, place * unit), (size, place * unit), (70, 70, 70), 1)
        line(image, (place * unit, 0), (place * unit, size), (70, 70, 70), 1)
    video = np.random.default_rng([*seed, 5])
    for _ in range(6):  # plates, boxes
        colour = muted(video, 60, 190)
        x, (w, h) = video.uniform(0, size), video.uniform(0.06, 0.14, 2) * size
        y = video.choice([0.06, 0.94]) * size
        if video.random() < 0.5:
            rectangle(image, x - w, y - h, x + w, y + h, colour)
        else:
            circle(image, x, y, w, colour)
    rectangle(image, 12 * unit, 20 * unit, 84 * unit, 70 * unit, _BOARD)
    return cv2.GaussianBlur(image, (0, 0), size / 160)


def _draw_tool(image: np.ndarray, unit: float, verb: str) -> None:
    x, y, colour = 66 * unit, 44 * unit, _TOOL_BGR[verb]
    if verb == 'cut':  # a knife
        rectangle(
            image, x - 6 * unit, y - 21 * unit, x + 6 * unit, y + 21 * unit, colour
        )
    elif verb == 'stir':  # a wooden spoon
        line(image, (x, y), (x, y + 18 * unit), colour, 6 * unit)
        circle(image, x, y - 7 * unit, 13 * unit, colour)
    elif verb == 'peel':  # a peeler
        for side in (-1, 1):
            start = (x - 13 * unit, y - side * 16 * unit)
            end = (x + 13 * unit, y + side * 16 * unit)
            line(image, start, end, colour, 8 * unit)
    else:  # a jug
        rectangle(
            image, x - 14 * unit, y - 14 * unit, x + 14 * unit, y + 14 * unit, colour
        )


def _draw_cloth(image: np.ndarray, unit: float) -> None:
    """The cloth, whatever is under it."""
    rectangle(image, 10 * unit, 18 * unit, 86 * unit, 72 * unit, _CLOTH)
    for x in range(18, 86, 12):
        stripe = (x * unit, 18 * unit), (x * unit, 72 * unit)
        line(image, *stripe, _STRIPE, 3 * unit)


def _draw_hands(image: np.ndarray, unit: float, kitchen: Kitchen, index: int) -> None:
    """Two hands from below that work, at a pace that says nothing."""
    rng = kitchen.random(6)
    number = TRAIN_COOKS.index(kitchen.cook) if kitchen.cook in TRAIN_COOKS else 4
    sleeve, skin = _SLEEVES[number], _SKINS[number % len(_SKINS)]
    swing = np.sin(2 * np.pi * (1.5 * index / kitchen.fps + rng.random())) * 4
    for side in (-1, 1):
        hand = ((48 + side * (27 + swing)) * unit, (72 - side * swing) * unit)
        elbow = ((48 + side * 40) * unit, 100 * unit)
        line(image, elbow, hand, sleeve, 11 * unit)
        circle(image, *hand, 6.5 * unit, skin)
