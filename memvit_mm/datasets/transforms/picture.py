"""Scaling and colour augmentation of the published AVA recipe."""

from collections.abc import Sequence
from typing import NamedTuple, Union

import cv2
import numpy as np
from mmaction.datasets.transforms import Resize
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

GREY = np.array([0.299, 0.587, 0.114])
"""The shares of R, G and B in a grey image."""


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):
    """Scale frames to a short side, given or drawn, bilinearly; boxes alike.

    The other side is rounded down, as in the published AVA code; MMAction2's ``Resize``
    and ``RandomRescale`` round to the nearest, and the latter draws the short side
    evenly. Here its inverse is drawn evenly: ``short_side = round(1 / u)``, ``u``
    uniform in ``[1 / high, 1 / low]``.

    Required keys: ``imgs`` and ``img_shape``; ``gt_bboxes`` and ``proposals`` (pixels)
    are scaled with them. Changed keys: as ``Resize``; ``short_edge`` is added.

    Args:
        short_side (int | tuple[int, int]): Pixels, or (low, high) between which it is
            drawn.

    Raises:
        ValueError: If a side is below 1, or low is above high.

    Examples:
        >>> import numpy as np
        >>> resize = ResizeShortSide(224)
        >>> frame = np.zeros((720, 1280, 3), np.uint8)
        >>> resize(dict(imgs=[frame], img_shape=(720, 1280)))['img_shape']
        (224, 398)
    """

    def __init__(self, short_side: Union[int, tuple[int, int]]) -> None:
        pair = (short_side,) * 2 if isinstance(short_side, int) else tuple(short_side)
        if len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
            raise ValueError(
                'short_side must be pixels, or (low, high) with 1 <= low <= high, got '
                f'{short_side}.'
            )
        self.low, self.high = pair

    def transform(self, results: dict) -> dict:
        """Scale frames and boxes."""
        short_side = self.low
        if self.low != self.high:
            short_side = round(1 / np.random.uniform(1 / self.high, 1 / self.low))
        height, width = results['img_shape']
        short = min(height, width)
        size = (width * short_side // short, height * short_side // short)
        results = Resize(size, keep_ratio=False)(results)
        results['short_edge'] = short_side
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(short_side=({self.low}, {self.high}))'


class ColorDraw(NamedTuple):
    """What :class:`ClipColors` drew for a clip."""

    steps: list[tuple[str, float]]
    """'brightness', 'contrast' and 'saturation' as they follow, with their factors."""
    lighting: np.ndarray
    """The share of each principal component, ``[3]``."""


@TRANSFORMS.register_module()
class ClipColors(BaseTransform):
    """Change brightness, contrast and saturation, in random order, then lighting.

    As in the published AVA code. Each of the three blends the clip with another image,
    ``image * f + other * (1 - f)``, ``f`` uniform in ``1 - strength ... 1 + strength``
    and the same for the whole clip: with black (brightness), with the mean of each
    frame's grey image (contrast), and with each frame's grey image (saturation). Then
    ``eigvec @ (alpha * eigval)`` is added to R, G and B, ``alpha`` normal around 0 with
    deviation ``lighting`` (PCA lighting, AlexNet, sec. 4.1). MMAction2's
    ``ColorJitter`` draws the order once for a whole run and cuts values off at 0 and
    255; nothing is cut off here, so frames become float32. Normalization stays the data
    preprocessor's.

    All steps together are one affine map of a pixel's colour, which differs between
    frames by the grey means only, so pixels are gone over once.

    Required key: ``imgs``, RGB from 0 to 255. They become float32 frames of the same
    scale.

    Args:
        brightness (float): Strength, from 0 to 1.
        contrast (float): Strength, from 0 to 1.
        saturation (float): Strength, from 0 to 1.
        lighting (float): Standard deviation of the principal components' shares.
        eigval (sequence[float]): Deviations of colours, in ``[0, 1]``, along their
            principal components. Defaults to the published ones.
        eigvec (sequence[sequence[float]]): Those components as columns; the rows are
            R, G and B. Defaults to the published ones.

    Raises:
        ValueError: If a strength is not between 0 and 1, or ``lighting`` below 0.

    Examples:
        >>> import numpy as np
        >>> colors = ClipColors(brightness=0.4, contrast=0.4, saturation=0.4)
        >>> frame = np.full((4, 6, 3), 100, np.uint8)
        >>> changed = colors(dict(imgs=[frame, frame]))['imgs']
        >>> changed[0].dtype, len(changed), changed[0].shape
        (dtype('float32'), 2, (4, 6, 3))
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        lighting: float = 0.1,
        eigval: Sequence[float] = (0.225, 0.224, 0.229),
        eigvec: Sequence[Sequence[float]] = (
            (-0.5675, 0.7192, 0.4009),
            (-0.5808, -0.0045, -0.8140),
            (-0.5836, -0.6948, 0.4203),
        ),
    ) -> None:
        self.strengths = dict(
            brightness=brightness, contrast=contrast, saturation=saturation
        )
        for name, value in self.strengths.items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must be between 0 and 1, got {value}.')
        if lighting < 0:
            raise ValueError(f'lighting must be at least 0, got {lighting}.')
        self.lighting = lighting
        self.eigval, self.eigvec = np.array(eigval), np.array(eigvec)

    def draw(self) -> ColorDraw:
        """Draw what is done to a clip."""
        names = list(self.strengths)
        steps = []
        for number in np.random.permutation(len(names)):
            strength = self.strengths[names[number]]
            steps.append((names[number], np.random.uniform(1 - strength, 1 + strength)))
        return ColorDraw(steps, np.random.normal(0, self.lighting, len(self.eigval)))

    def transform(self, results: dict) -> dict:
        """Change the colours of all frames."""
        frames = results['imgs']
        # [T, 3]
        means = np.array([cv2.mean(frame)[:3] for frame in frames])
        # A pixel becomes scale @ pixel + shift of its frame: [3, 3], [T, 3].
        scale, shift = np.eye(3), np.zeros_like(means)
        drawn = self.draw()
        for name, factor in drawn.steps:
            grey = (means @ scale.T + shift) @ GREY
            blend = factor * np.eye(3)
            if name == 'saturation':
                blend += (1 - factor) * GREY
            scale, shift = blend @ scale, shift @ blend.T
            if name == 'contrast':
                shift += (1 - factor) * grey[:, None]
        shift += 255 * (self.eigvec @ (drawn.lighting * self.eigval))
        results['imgs'] = [
            cv2.transform(frame.astype(np.float32), np.column_stack([scale, of_frame]))
            for frame, of_frame in zip(frames, shift)
        ]
        return results

    def __repr__(self) -> str:
        strengths = ', '.join(f'{n}={value}' for n, value in self.strengths.items())
        return f'{type(self).__name__}({strengths}, lighting={self.lighting})'
