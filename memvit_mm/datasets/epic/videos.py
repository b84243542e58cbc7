"""Where the videos of EPIC-KITCHENS are, as files or as folders of frames."""

import os.path as osp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from .files import VideoInfo

VIDEO_TMPL = '{participant}/videos/{video}.MP4'
FRAMES_TMPL = '{participant}/rgb_frames/{video}'

UNKNOWN = 2**31
"""Number of frames of a folder that is not looked into."""


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


def official_fps(video: str) -> float:
    """Frames per second at which the official frames of a video were extracted.

    Examples:
        >>> official_fps('P01_11'), official_fps('P01_101')
        (60.0, 50.0)
    """
    return 50.0 if len(video.rpartition('_')[2]) == 3 else 60.0


@dataclass(frozen=True)
class VideoFinder:
    """Finds a video under a list of folders.

    Args:
        roots (Sequence[str]): Folders; the first in which a video exists is taken.
        path_tmpl (str): Path in there, of ``{participant}`` and ``{video}``.
        use_frames (bool): Folders of frames instead of files.
        filename_tmpl (str): Name of a frame.
        start_index (int): Number of the first frame in its name.
        frame_fps (float or str, optional): Frames per second of the frames,
            ``'video_info'`` for that in ``infos``, None for the official ones.
        infos (Mapping[str, VideoInfo]): What the video-info file says of the videos.
        info_file (str, optional): Where that is.
        look (bool): Whether to look at the disk at all; remote folders never are.
    """

    roots: Sequence[str]
    path_tmpl: str
    use_frames: bool
    filename_tmpl: str
    start_index: int
    frame_fps: Union[float, str, None]
    infos: Mapping[str, VideoInfo]
    info_file: Optional[str]
    look: bool

    def find(self, participant: str, video: str) -> tuple[dict, Optional[str]]:
        """What the pipeline needs to open a video, and its path if it is not there.

        Raises:
            ValueError: If the template has other fields, or the video's frame rate is
                not known.
        """
        try:
            inside = self.path_tmpl.format(participant=participant, video=video)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f'path_tmpl={self.path_tmpl!r} asks for {error}: it may hold '
                '{participant} and {video}.'
            ) from error
        for root in self.roots:
            path = osp.join(root, inside)
            number = self._frames_at(path) if self.use_frames else self._is_file(path)
            if number:
                return self._source(path, video, number), None
        path = osp.join(self.roots[0], inside)
        missing = self._frame(path, 0) if self.use_frames else path
        return self._source(path, video, 0), missing

    def _source(self, path: str, video: str, number: int) -> dict:
        if not self.use_frames:
            return dict(filename=path)
        return dict(frame_dir=path, total_frames=number, fps=self._fps(video))

    def _looks_at(self, path: str) -> bool:
        return self.look and '://' not in path

    def _is_file(self, path: str) -> bool:
        return not self._looks_at(path) or osp.isfile(path)

    def _frames_at(self, path: str) -> int:
        if not self._looks_at(path):
            return UNKNOWN
        if not osp.isdir(path):
            return 0
        return count_frames(lambda number: osp.exists(self._frame(path, number)))

    def _frame(self, folder: str, number: int) -> str:
        return osp.join(folder, self.filename_tmpl.format(number + self.start_index))

    def _fps(self, video: str) -> float:
        if self.frame_fps is None:
            return official_fps(video)
        if self.frame_fps != 'video_info':
            return float(self.frame_fps)
        if video not in self.infos:
            raise ValueError(
                f'{self.info_file} has no video {video!r}, whose frame rate is needed '
                "for frame_fps='video_info': add its row, or give the frames per "
                'second as a number.'
            )
        return self.infos[video].fps
