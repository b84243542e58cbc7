"""Shapes with soft edges, for the demo data's scenes; lengths are in pixels."""

from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np

Colour = tuple[int, int, int]
_SHIFT = 4  # cv2 draws with this many fractional bits


def muted(rng: np.random.Generator, low: float, high: float) -> Colour:
    """A greyish BGR colour."""
    colour = rng.uniform(low, high, 3)
    return tuple(int(c) for c in 0.35 * colour + 0.65 * colour.mean())


def circle(image: np.ndarray, x: float, y: float, radius: float, colour: Colour):
    """Draw a filled circle into an image."""
    radius = max(1, round(radius * 2**_SHIFT))
    cv2.circle(image, _point(x, y), radius, colour, -1, cv2.LINE_AA, _SHIFT)


def polygon(image: np.ndarray, corners: Sequence[Sequence[float]], colour: Colour):
    """Draw a filled convex polygon into an image."""
    corners = np.array([_point(*corner) for corner in corners], np.int32)
    cv2.fillConvexPoly(image, corners, colour, cv2.LINE_AA, _SHIFT)


def shape(
    image: np.ndarray,
    x: float,
    y: float,
    radius: float,
    corners: Optional[Sequence[Sequence[float]]],
    colour: Colour,
):
    """Draw a polygon, whose corners are in units of the radius, or else a circle."""
    if corners is None:
        circle(image, x, y, radius, colour)
    else:
        polygon(image, [(x + radius * a, y + radius * b) for a, b in corners], colour)


def rectangle(
    image: np.ndarray, x1: float, y1: float, x2: float, y2: float, colour: Colour
):
    """Draw a filled rectangle into an image."""
    polygon(image, ((x1, y1), (x2, y1), (x2, y2), (x1, y2)), colour)


def line(
    image: np.ndarray,
    start: Sequence[float],
    end: Sequence[float],
    colour: Colour,
    width: float,
):
    """Draw a line into an image."""
    width = max(1, round(width))
    cv2.line(image, _point(*start), _point(*end), colour, width, cv2.LINE_AA, _SHIFT)


def _point(x: float, y: float) -> tuple[int, int]:
    return round(x * 2**_SHIFT), round(y * 2**_SHIFT)
