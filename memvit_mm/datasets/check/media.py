"""Whether the videos, or folders of frames, are there and as long as they should be."""

import os
from os import path as osp
from typing import TYPE_CHECKING, Optional

import numpy as np

from memvit_mm.datasets.ava.dataset import video_file
from memvit_mm.video.open_video import open_video

if TYPE_CHECKING:
    from .config import AvaFields, Report
    from .tables import Annotations

# A frame rate may differ from the one in the config by this share.
_FPS_TOLERANCE = 0.01


def check_media(
    report: 'Report', fields: 'AvaFields', annotations: 'Annotations', sample: int
) -> None:
    """Look all videos up, and open some of them.

    Args:
        report (Report): Takes the findings.
        fields (AvaFields): The dataset.
        annotations (Annotations): Which videos, and until when.
        sample (int): How many to open, spread over all of them; 0 for none.
    """
    kind = 'frame folder' if fields.use_frames else 'video'
    if '://' in fields.prefix:
        report.warning(f'{fields.prefix}: not a local folder; no {kind} is looked up')
        return
    if not osp.isdir(fields.prefix or '.'):
        report.error(
            f'{fields.prefix}: there is no such folder: set data_prefix=dict(img=...) '
            f'of {fields.where} to the folder of the {kind}s'
        )
        return
    found, missing, empty = {}, [], []
    for video in annotations.videos:
        path = _find(fields, video)
        if path is None:
            missing.append(video)
        elif not fields.use_frames and os.stat(path).st_size == 0:
            empty.append(path)
        else:
            found[video] = path
    total = len(annotations.videos)
    if missing:
        report.error(
            f'{len(missing):,} of {total:,} {kind}s are missing, such as '
            f'{_expected(fields, missing[0])}: check data_prefix and '
            f'{"use_frames" if fields.use_frames else "the extension"} of '
            f'{fields.where}, or take them out of {fields.ann_file}'
        )
    if empty:
        report.error(
            f'{empty[0]}: an empty file ({len(empty):,} of {total:,} videos are): '
            'fetch it again'
        )
    before = report.count('ERROR') + report.count('WARNING')
    names = list(found)
    opened = [
        names[index]
        for index in np.unique(np.linspace(0, len(names) - 1, sample).astype(int))
        if names and sample > 0
    ]
    check = _check_frames if fields.use_frames else _check_video
    for video in opened:
        last = annotations.last_keyframe[video]
        check(report, fields, found[video], last)
    if names and report.count('ERROR') + report.count('WARNING') == before:
        report.ok(
            f'{fields.prefix}: {len(names):,} of {total:,} {kind}s are there; '
            f'{len(opened)} of them were opened and are long enough'
        )


def _find(fields: 'AvaFields', video: str) -> Optional[str]:
    path = _expected(fields, video)
    return path if (osp.isdir if fields.use_frames else osp.isfile)(path) else None


def _expected(fields: 'AvaFields', video: str) -> str:
    path = osp.join(fields.prefix, video)
    if fields.use_frames:
        return path
    if fields.strict:
        return video_file(path, fields.video_ext or '.mp4')
    # MMAction2's DecordInit adds .mp4 only if there is no dot.
    return path if osp.splitext(path)[1] else path + '.mp4'


def _check_video(
    report: 'Report', fields: 'AvaFields', path: str, last_keyframe: int
) -> None:
    try:
        frames, fps = _open(path)
    except Exception as error:  # whatever the decoder raises, it cannot be read
        reason = str(error).strip().splitlines() or [type(error).__name__]
        report.error(
            f'{path}: no readable video ({reason[-1]}): fetch or encode it again'
        )
        return
    # With fps=1 timestamps count frames.
    differs = abs(fps - fields.fps) > _FPS_TOLERANCE * fields.fps and fields.fps != 1
    if differs and not fields.fps_from_video:
        report.error(
            f'{path}: {fps:g} frames per second, but {fields.where} says '
            f'fps={fields.fps}: clips would be cut at the wrong times; set fps, or '
            'encode the videos again'
        )
        return
    rate = fps if fields.fps_from_video and fields.fps != 1 else fields.fps
    _check_length(report, fields, path, frames, last_keyframe, rate)


def _open(path: str) -> tuple[int, float]:
    """Number of frames and frames per second, of a video whose first frame decodes."""
    reader = open_video(path)
    reader[0]
    return len(reader), float(reader.get_avg_fps())


def _check_frames(
    report: 'Report', fields: 'AvaFields', path: str, last_keyframe: int
) -> None:
    first = fields.filename_tmpl.format(fields.start_index)
    names = sorted(os.listdir(path))
    if first not in names:
        there = f'the first file is {names[0]}' if names else 'the folder is empty'
        report.error(
            f'{osp.join(path, first)}: no such frame ({there}): check filename_tmpl '
            f'and start_index of {fields.where}'
        )
        return
    ending = osp.splitext(first)[1]
    frames = sum(name.endswith(ending) for name in names)
    if not _check_length(report, fields, path, frames, last_keyframe, fields.fps):
        return
    expected = (fields.timestamp_end - fields.timestamp_start) * fields.fps
    if frames > 1.05 * expected and fields.fps != 1:
        report.warning(
            f'{path}: {frames:,} frames, more than timestamp_start='
            f'{fields.timestamp_start}, timestamp_end={fields.timestamp_end} and fps='
            f'{fields.fps} of {fields.where} account for ({expected:,}): were they '
            'extracted at another rate?'
        )


def _check_length(report, fields, path, frames, last_keyframe, fps) -> bool:
    needed = (last_keyframe - fields.timestamp_start) * fps
    if frames > needed:
        return True
    report.error(
        f'{path}: {frames:,} frames, but the keyframe {last_keyframe:04d} is frame '
        f'{needed:,.0f} (({last_keyframe} - timestamp_start='
        f'{fields.timestamp_start}) x {fps:g} fps): it is cut short, or '
        f'timestamp_start or fps of {fields.where} is wrong'
    )
    return False
