"""Where the videos of EPIC-KITCHENS are, and how fast their frames follow."""

import os.path as osp
from collections.abc import Mapping
from typing import Any, Optional

from .files import VideoInfo

VIDEO_TMPL = '{participant}/videos/{video}.MP4'
FRAMES_TMPL = '{participant}/rgb_frames/{video}'

UNKNOWN = 2**31
"""Number of frames of a folder that is not looked into."""


def official_fps(video: str) -> float:
    """Frames per second at which the official frames of a video were extracted.

    Examples:
        >>> official_fps('P01_11'), official_fps('P01_101')
        (60.0, 50.0)
    """
    return 50.0 if len(video.rpartition('_')[2]) == 3 else 60.0


def find_video(
    dataset: Any,
    participant: str,
    video: str,
    infos: Mapping[str, VideoInfo],
) -> tuple[dict, Optional[str]]:
    """Find a video in the first of the dataset's folders that has it.

    Args:
        dataset (EpicKitchensDataset): The dataset.
        participant, video (str): The ids.
        infos (Mapping[str, VideoInfo]): What the video-info file says of the videos.

    Returns:
        What the pipeline needs to open it, and its path if it is not there.

    Raises:
        ValueError: If ``path_tmpl`` has other fields, or the frame rate is not known.
    """
    try:
        inside = dataset.path_tmpl.format(participant=participant, video=video)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f'path_tmpl={dataset.path_tmpl!r} asks for {error}: it may hold '
            '{participant} and {video}.'
        ) from error
    paths = [osp.join(root, inside) for root in dataset.roots]
    missing = None
    for path in paths:
        if dataset.missing_videos == 'unchecked' or '://' in path:
            number = UNKNOWN
        elif dataset.use_frames:
            number = dataset.count_frames(path)
        else:
            number = int(osp.isfile(path))
        if number:
            break
    else:
        path = paths[0]
        missing = dataset.frame_path(path, 0) if dataset.use_frames else path
    if not dataset.use_frames:
        return dict(filename=path), missing
    fps = _frames_per_second(dataset, video, infos)
    return dict(frame_dir=path, total_frames=number, fps=fps), missing


def _frames_per_second(
    dataset: Any, video: str, infos: Mapping[str, VideoInfo]
) -> float:
    if dataset.frame_fps is None:
        return official_fps(video)
    if dataset.frame_fps != 'video_info':
        return float(dataset.frame_fps)
    if video not in infos:
        raise ValueError(
            f'{dataset.video_info_file} has no video {video!r}, whose frame rate is '
            "needed for frame_fps='video_info': add its row, or give the frames per "
            'second as a number.'
        )
    return infos[video].fps
