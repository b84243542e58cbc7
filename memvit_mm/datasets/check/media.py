"""Check that the videos, or folders of frames, of an AVA dataset are long enough."""

import numpy as np

from memvit_mm.datasets.ava.dataset import MemoryAVADataset
from memvit_mm.video.open_video import open_video

from .report import Report

# A frame rate may differ from the one in the config by this share.
FPS_TOLERANCE = 0.01


def check_media(
    report: Report,
    where: str,
    dataset: MemoryAVADataset,
    last: dict[str, int],
    fps_from_video: bool,
    sample: int,
) -> None:
    """Look all videos up, and open some of them.

    Args:
        report (Report): Takes the findings.
        where (str): The config's path to the dataset.
        dataset (MemoryAVADataset): The dataset; it need not have read its files.
        last (dict[str, int]): The videos, and the timestamps of their last keyframes.
        fps_from_video (bool): Whether the pipeline takes a video's frame rate from its
            file, not from the dataset.
        sample (int): How many to open, spread over all of them; 0 for none.

    Raises:
        FileNotFoundError: If some do not exist.
    """
    prefix = dataset.data_prefix.get('img') or ''
    if '://' in prefix:
        report.warning(f'{prefix}: not a local folder; nothing in it is looked up')
        return
    before = report.count('ERROR', 'WARNING')
    sources = dataset.find_media(last)
    if dataset.no_media is not None:
        raise FileNotFoundError(dataset.no_media)
    places = np.unique(np.linspace(0, len(last) - 1, sample).astype(int))
    opened = [list(last)[place] for place in places]
    for video in opened:
        if dataset.use_frames:
            path, frames = sources[video]['frame_dir'], sources[video]['total_frames']
            fps = dataset._FPS
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
            elif not fps_from_video and abs(fps / dataset._FPS - 1) > FPS_TOLERANCE:
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
