"""MediaMixin: where the videos of a dataset are, as files or as folders of frames."""

import os.path as osp
from collections.abc import Callable


def count_frames(exists: Callable[[int], bool]) -> int:
    """Number of frames 0, 1, ... that exist, in few look-ups.

    One or two that are missing in the middle are not the end.

    Examples:
        >>> count_frames(lambda number: number < 1000 and number != 512)
        1000
    """

    def goes_on(number: int) -> bool:
        return any(exists(number + after) for after in range(3))

    low, high = 0, 1
    while goes_on(high):
        low, high = high, 2 * high
    # Something from low on exists, nothing from high on.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if goes_on(middle) else (low, middle)
    last = max((number for number in range(low, low + 3) if exists(number)), default=-1)
    return last + 1


class MediaMixin:
    """Mixin of a dataset with ``use_frames``, ``filename_tmpl`` and ``start_index``."""

    def frame_path(self, folder: str, number: int) -> str:
        """The file of a frame, of which the first is number 0."""
        return osp.join(folder, self.filename_tmpl.format(number + self.start_index))

    def count_frames(self, folder: str) -> int:
        """Number of frames in a folder, by :func:`count_frames`."""
        if not osp.isdir(folder):
            return 0
        return count_frames(lambda number: osp.exists(self.frame_path(folder, number)))
