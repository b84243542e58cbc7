"""What both demo data sets share: settings, the plan of a video, and the camera."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

SPLITS = ('train', 'val')
# Frames per second from which on a cue's traces are gone in time. OpenCV's mp4 writer
# codes every 12th frame by itself and the frames between as changes, in which a faint
# trace of what was shown stays.
MIN_FPS = 12


class Settings:
    """Base of the settings, which are refused where they are out of their range.

    Attributes:
        format (str): 'ava' or 'epic'.
        limits (dict[str, tuple[int, int]]): The least and the greatest value, by name.
        meta (dict): What readers of ``meta.json`` want to know besides the settings.
    """

    format: ClassVar[str]

    limits: ClassVar[dict[str, tuple[int, int]]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f'{name} is {value}; the demo data takes {low} to {high}.'
                )
        if self.size % 2:
            raise ValueError(
                f'size is {self.size}; mp4 needs an even number of pixels: take '
                f'{self.size + 1}.'
            )

    def count(self, split: str) -> int:
        """Number of videos in a split, 'train' or 'val'."""
        return {'train': self.num_train, 'val': self.num_val}[split]


@dataclass(frozen=True)
class Plan:
    """Base of the plan of one video.

    Attributes:
        video_id (str): Its name.
        seed (tuple[int]): What its random numbers start from.
        seconds (int), fps (int), size (int): Length; frames per second; width and
            height in pixels.
    """

    video_id: str
    seed: tuple[int, ...]
    seconds: int
    fps: int
    size: int

    @property
    def num_frames(self) -> int:
        return self.seconds * self.fps

    def random(self, *purpose: int) -> np.random.Generator:
        """The random numbers for one purpose, a number of its own."""
        return np.random.default_rng([*self.seed, *purpose])

    def film(self, image: np.ndarray, index: int) -> np.ndarray:
        """A frame as the camera sees it: brightness drifts, every pixel is noisy.

        Args:
            image (np.ndarray): ``[size, size, 3]`` uint8.
            index (int): The frame, from 0.
        """
        phase = self.random(4).uniform(0, 2 * np.pi)
        gain = 0.97 + 0.06 * np.sin(2 * np.pi * (index / self.fps) / 23 + phase)
        noise = self.random(3, index).standard_normal(image.shape, dtype=np.float32) * 4
        return np.clip(image * np.float32(gain) + noise, 0, 255).astype(np.uint8)
