"""Text and panels of scores, drawn into pictures with Pillow."""

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
# The colours of kinds of classes, and of people in the order of their numbers. None of
# them is ALONE.
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
    """The score without memory."""


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib; it covers most European languages."""
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    return ImageFont.truetype(str(folder / name), size)


def fit(text: str, size: int, width: float, bold: bool = False) -> str:
    """The text, cut off with an ellipsis where it is wider than ``width`` pixels.

    Examples:
        >>> fit('talk to a person', 12, 60)
        'talk to…'
        >>> fit('walk', 12, 60)
        'walk'
    """
    if font(size, bold).getlength(text) <= width:
        return text
    while text and font(size, bold).getlength(text + '…') > width:
        text = text[:-1]
    return text.rstrip() + '…'


def row_height(size: int) -> int:
    """The height of a line of text with its bar, in pixels."""
    return 2 * size


@lru_cache(maxsize=64)
def draw_panel(
    title: str, bars: tuple[Bar, ...], width: int, size: int, colour: Colour
) -> Image.Image:
    """Draw a title and below it classes: the name, the score, and the score as a bar.

    The picture is kept for the next frames, and must not be drawn into.

    Args:
        title (str): Below a line of ``colour``, as the bars are.
        bars (tuple[Bar]): The class with the highest score first.
        width (int): Width of the panel, in pixels. Its height is ``row_height(size)``
            for the title and for each of the bars.
        size (int): Size of the text, in pixels.
        colour (tuple): RGB.
    """
    high, left, thick = row_height(size), size // 2, max(3, size // 4)
    panel = Image.new('RGB', (width, high * (1 + len(bars))), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    draw.rectangle([0, 0, width, thick - 1], fill=colour)
    width -= 2 * left
    title = fit(title, size, width, True)
    draw.text((left, high // 2), title, TEXT, font(size, True), anchor='lm')
    for number, bar in enumerate(bars):
        low = (number + 2) * high - thick - max(3, size // 4)
        middle = low - size * 2 // 3
        score, bold = f'{bar.score:.2f}', number == 0
        name = fit(bar.name, size, width - 3 * size, bold)
        draw.text((left, middle), name, TEXT, font(size, bold), anchor='lm')
        draw.text((left + width, middle), score, TEXT, font(size), anchor='rm')
        for part, fill in ((1.0, TROUGH), (bar.score, colour)):
            end = left + round(min(max(part, 0.0), 1.0) * (width - 1))
            draw.rectangle([left, low, end, low + thick - 1], fill=fill)
        if bar.alone is not None:
            x = left + round(min(max(bar.alone, 0.0), 1.0) * (width - 1))
            mark = [x - 1, low - 2, x + thick // 2, low + thick + 1]
            draw.rectangle(mark, fill=ALONE)
    return panel


def clock(seconds: float, digits: int = 1) -> str:
    """A time as video players write it.

    Examples:
        >>> clock(3.46), clock(75.3), clock(3675, digits=0), clock(-4.2)
        ('0:03.5', '1:15.3', '1:01:15', '-0:04.2')
    """
    minutes, rest = divmod(round(abs(seconds), digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    start = f'{hours}:{minutes:02d}' if hours else f'{minutes}'
    sign = '-' if seconds < 0 else ''
    return f'{sign}{start}:{rest:0{3 + digits if digits else 2}.{digits}f}'
