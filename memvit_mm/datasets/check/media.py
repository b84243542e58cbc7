"""Check that the videos, or folders of frames, of an AVA dataset are long enough."""

import os.path as osp

import numpy as np

from memvit_mm.video.open_video import open_video

from .report import type_name
from .subject import AvaCheck

# A frame rate may differ from the one in the config by this share.
FPS_TOLERANCE = 0.01


def check_media(check: AvaCheck, sample: int) -> None:
    """Look all videos up, and open some of them.

    Args:
        check (AvaCheck): The dataset.
        sample (int): How many to open, spread over all of them; 0 for none.

    Raises:
        FileNotFoundError: If some do not exist.
    """
    report, where, dataset = check.report, check.where, check.dataset
    prefix = dataset.data_prefix.get('img') or ''
    if '://' in prefix:
        report.warning(f'{prefix}: not a local folder; nothing in it is looked up')
        return
    last: dict[str, int] = {}
    for _, row in check.rows:
        last[row.video] = max(row.second, last.get(row.video, row.second))
    # Other transforms take a video's frame rate from its file, not from the dataset.
    steps = map(type_name, filter(None, check.cfg.get('pipeline') or []))
    is_fixed = 'SampleAVAFrames' in steps
    before = report.count('ERROR', 'WARNING')
    sources = dataset.find_media(last)
    if dataset.no_media is not None:
        raise FileNotFoundError(dataset.no_media)
    readable = list(last)
    for video, source in sources.items():
        path = source.get('filename')
        if path is not None and osp.getsize(path) == 0:
            readable.remove(video)
            report.error(
                f'{path}: no readable video (an empty file): fetch or encode it again',
                (prefix, 'empty'),
            )
    places = np.linspace(0, len(readable) - 1, sample).astype(int)
    opened = [readable[place] for place in np.unique(places) if readable]
    for video in opened:
        if dataset.use_frames:
            path, frames = sources[video]['frame_dir'], sources[video]['total_frames']
            fps = dataset._FPS
            first = dataset.frame_path(path, 0) if dataset.modality == 'RGB' else path
            if not osp.exists(first):
                report.error(
                    f'{first}: there is no such frame, which would be the first: check '
                    f'filename_tmpl and start_index of {where}',
                    (prefix, 'first'),
                )
                continue
        else:
            path = sources[video]['filename']
            try:
                reader = open_video(path)
                reader[0]
            except Exception as error:  # whatever the decoder raises
                reason = str(error).strip().splitlines() or [type(error).__name__]
                report.error(
                    f'{path}: no readable video ({reason[-1]}): fetch or encode it '
                    'again'
                )
                continue
            frames, fps = len(reader), float(reader.get_avg_fps())
            if dataset._FPS == 1:
                fps = 1
            elif is_fixed and abs(fps / dataset._FPS - 1) > FPS_TOLERANCE:
                report.error(
                    f'{path}: {fps:g} frames per second, but {where} says '
                    f'fps={dataset._FPS}: clips would be cut at the wrong times; set '
                    'fps, or encode the videos again'
                )
                continue
        needed = (last[video] - dataset.timestamp_start) * fps
        if frames <= needed:
            report.error(
                f'{path}: {frames:,} frames, but the keyframe {last[video]:04d} is '
                f'frame {needed:,.0f} (({last[video]} - timestamp_start='
                f'{dataset.timestamp_start}) x {fps:g} fps): it is cut short, or '
                f'timestamp_start or fps of {where} is wrong'
            )
    if report.count('ERROR', 'WARNING') == before:
        report.ok(
            f'{prefix}: {len(last):,} of {len(last):,} '
            f'{"frame folder" if dataset.use_frames else "video"}s are there; '
            f'{len(opened)} of them were opened and are long enough'
        )
