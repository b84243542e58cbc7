"""Text and bars of scores as small pictures, for :mod:`.draw`."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional

import matplotlib
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 29)
TROUGH: Colour = (44, 48, 57)
TEXT: Colour = (240, 240, 240)
FAINT: Colour = (165, 170, 180)
ALONE: Colour = (255, 214, 64)
# Of kinds of classes, and of people in the order of their numbers; none is ALONE.
KINDS = dict(actions=(60, 145, 230), verbs=(60, 145, 230), nouns=(20, 170, 130))
PEOPLE: Sequence[Colour] = (
    (35, 110, 190),
    (200, 80, 20),
    (0, 128, 100),
    (170, 60, 130),
    (110, 90, 200),
    (140, 105, 10),
    (190, 40, 60),
    (70, 125, 40),
)


class Bar(NamedTuple):
    """A class and its score, 0 to 1."""

    name: str
    score: float
    alone: Optional[float] = None
    """Without memory."""


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along, which has letters of most of Europe."""
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    return ImageFont.truetype(str(folder / name), size)


def width_of(text: str, size: int, bold: bool = False) -> int:
    """How wide a text is, in pixels."""
    return int(font(size, bold).getlength(text) + 0.999)


def fit(text: str, size: int, width: float, bold: bool = False) -> str:
    """The text, cut off with an ellipsis where it is too wide.

    Examples:
        >>> fit('talk to a person', 12, 60)
        'talk to…'
        >>> fit('walk', 12, 60)
        'walk'
    """
    if width_of(text, size, bold) <= width:
        return text
    while text and width_of(text + '…', size, bold) > width:
        text = text[:-1]
    return text.rstrip() + '…'


def row_height(size: int) -> int:
    """Pixels from one bar to the next."""
    return int(size * 2.0)


def draw_bars(
    picture: Image.Image,
    bars: Sequence[Bar],
    place: tuple[int, int],
    width: int,
    size: int,
    colour: Colour,
) -> None:
    """Draw classes below each other: the name, the score, and the score as a bar.

    Args:
        picture (Image): To draw on.
        bars (sequence[Bar]): Of which the one with the highest score is first.
        place (tuple[int, int]): Left and top, in pixels.
        width (int): Of a whole bar, score 1.
        size (int): Of the text.
        colour (tuple): Of the bars.
    """
    draw = ImageDraw.Draw(picture)
    left, top = place
    thick = max(3, size // 4)
    for number, bar in enumerate(bars):
        y = top + number * row_height(size)
        low = y + row_height(size) - thick - max(3, size // 4)
        middle = (y + low) // 2
        score = f'{bar.score:.2f}'
        name = fit(bar.name, size, width - width_of(score, size) - size, number == 0)
        draw.text((left, middle), name, TEXT, font(size, number == 0), anchor='lm')
        draw.text((left + width, middle), score, TEXT, font(size), anchor='rm')
        draw.rectangle([left, low, left + width - 1, low + thick - 1], fill=TROUGH)
        filled = round(_part(bar.score) * width)
        if filled:
            draw.rectangle([left, low, left + filled - 1, low + thick - 1], fill=colour)
        if bar.alone is not None:
            # A mark at the score without memory.
            x = left + min(round(_part(bar.alone) * width), width - thick // 2 - 1)
            mark = [x - 1, low - 2, x + thick // 2, low + thick + 1]
            draw.rectangle(mark, fill=ALONE)


def _part(score: float) -> float:
    return min(max(score, 0.0), 1.0)


def block_of_bars(
    title: str, bars: Sequence[Bar], size: int, colour: Colour, widest: int
) -> Image.Image:
    """A small picture: a title, and below it classes with their scores.

    Args:
        title (str): Whose they are.
        bars (sequence[Bar]): May be empty.
        size (int): Of the text.
        colour (tuple): Of the title's background.
        widest (int): Pixels.
    """
    pad = max(4, size // 2)
    texts = [title] + [f'{bar.name}   0.00' for bar in bars]
    width = max(width_of(text, size, bold=True) for text in texts) + 2 * pad
    width = max(min(width, widest), 3 * size)
    height = row_height(size)
    picture = Image.new('RGB', (width, height * (1 + len(bars))), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, width, height - 1], fill=colour)
    shown = fit(title, size, width - 2 * pad, bold=True)
    draw.text((pad, height // 2), shown, TEXT, font(size, bold=True), anchor='lm')
    draw_bars(picture, bars, (pad, height), width - 2 * pad, size, colour)
    return picture


def clock(seconds: float) -> str:
    """A time as a player writes it.

    Examples:
        >>> clock(3.46), clock(75.3), clock(3675)
        ('0:03.5', '1:15.3', '1:01:15.0')
    """
    tenths = int(round(seconds * 10))
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f'{hours}:{minutes:02d}' if hours else f'{minutes}'
    return f'{start}:{tenths // 10:02d}.{tenths % 10}'
