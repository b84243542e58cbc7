"""Writing a demo data set: whole or not at all, by several processes."""

import errno
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Optional, Union

import cv2
import numpy as np

from memvit_mm.video.open_video import written_frames

from .plan import Plan, Settings

KIND = 'memvit_mm demo'


def write_dataset(
    out: Union[str, Path],
    settings: Settings,
    fill: Callable[[Path], None],
    rawframes: bool = False,
    overwrite: bool = False,
) -> bool:
    """Write a data set into a folder, with ``meta.json``.

    Everything is written beside ``out`` first and takes its place at the end, so
    that a half-written set is never found there.

    Args:
        out (str | Path): The folder; made if it does not exist.
        settings (Settings): What is drawn.
        fill (callable): Writes the set into the folder that it gets.
        rawframes (bool): Whether every frame is a JPEG too. Defaults to False.
        overwrite (bool): Replace a demo data set that is there. Defaults to False:
            it is kept as it is.

    Returns:
        bool: True if a set was made, False if the one that was there is kept.

    Raises:
        ValueError: If ``out`` holds something that is no demo data set, or one of
            other settings that may not be overwritten.
        OSError: If ``out`` cannot be written or the disk is full.
    """
    out = Path(out).absolute()
    about = dict(format=settings.format, settings=asdict(settings), rawframes=rawframes)
    if _is_there(out, about, overwrite):
        return False
    staging = _make_staging(out, _needed_bytes(settings, rawframes))
    try:
        fill(staging)
        text = json.dumps(dict(kind=KIND, **about, **settings.meta), indent=2)
        (staging / 'meta.json').write_text(text + '\n', encoding='utf-8')
        os.chmod(staging, 0o755)
        _put_in_place(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return True


def read_meta(out: Union[str, Path]) -> dict:
    """``meta.json`` of a demo data set; empty if it is none."""
    try:
        meta = json.loads((Path(out) / 'meta.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def write_error(error: OSError, out: Union[str, Path]) -> str:
    """One sentence on why the data could not be written, and the remedy."""
    where = error.filename or out
    if error.errno == errno.ENOSPC:
        return (
            f'No space left for {out} ({error.strerror}: {where}); free some, or name '
            'a folder on another disk.'
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f'{where} may not be written ({error.strerror}); name another folder.'
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f'{where} is a file, not a folder; name another one.'
    return f'{out} could not be written: {error}'


# ----------------------------------------------------------------------- videos


class VideoJob(NamedTuple):
    """A video that is to be written."""

    plan: Plan
    draw_frame: Callable[[Plan, int], np.ndarray]
    """Draws a frame of the plan, ``[size, size, 3]`` uint8, BGR."""
    path: Path
    """The mp4 file; its folder is made."""
    jpegs: Optional[Path] = None
    """Folder for ``img_00001.jpg`` and so on, if wanted; made, too."""


def write_video(job: VideoJob) -> None:
    """Encode a video as mp4 and, if asked for, its frames as JPEG.

    Raises:
        OSError: If OpenCV cannot write mp4 or JPEG, or the disk is full.
    """
    cv2.setNumThreads(1)
    for folder in filter(None, (job.path.parent, job.jpegs)):
        folder.mkdir(parents=True, exist_ok=True)
    plan, path = job.plan, str(job.path)
    fourcc = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(path, fourcc, plan.fps, (plan.size, plan.size))
    if not writer.isOpened():
        raise OSError(
            f"OpenCV {cv2.__version__} cannot write mp4 video ('mp4v') to {path}; "
            'install opencv-python-headless from the package index, whose wheel can.'
        )
    try:
        for index in range(plan.num_frames):
            image = job.draw_frame(plan, index)
            writer.write(image)
            if job.jpegs is not None:
                done, jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])
                if not done:
                    raise OSError(f'OpenCV {cv2.__version__} cannot write JPEG.')
                (job.jpegs / f'img_{index + 1:05d}.jpg').write_bytes(jpeg.tobytes())
    finally:
        writer.release()
    written = written_frames(path, plan.fps)
    if written != plan.num_frames:
        why = f'{written} of {plan.num_frames} frames'
        raise OSError(errno.ENOSPC, why, path)


def write_videos(jobs: Sequence[VideoJob], workers: Optional[int] = None) -> None:
    """Write videos in several processes, and show how far it is.

    Args:
        jobs (sequence[VideoJob]): The videos.
        workers (int, optional): Processes. Defaults to the number of cores.
    """
    workers = max(1, min(len(jobs), workers or os.cpu_count() or 1))
    if workers == 1:
        _show_progress(map(write_video, jobs), len(jobs))
        return
    # A forked worker has its imports already.
    can_fork = 'fork' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if can_fork else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            _show_progress(pool.map(write_video, jobs), len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _show_progress(done: Iterable, total: int) -> None:
    for count, _ in enumerate(done, start=1):
        if count == total or count % 10 == 0:
            print(f'video {count} of {total}', file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the OUT folder


def _is_there(out: Path, about: dict, overwrite: bool) -> bool:
    """Whether ``out`` holds this very data set and may stay."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    there = read_meta(out)
    if there.get('kind') != KIND:
        raise ValueError(
            f'{out} exists and is no demo data set of memvit_mm; nothing in it was '
            'touched: name another folder.'
        )
    if overwrite:
        return False
    same = all(there.get(key) == about[key] for key in ('format', 'settings'))
    if not same or (about['rawframes'] and not there.get('rawframes')):
        words = [f'format {there.get("format")}']
        words += [f'{key} {value}' for key, value in there.get('settings', {}).items()]
        raise ValueError(
            f'{out} holds a demo data set of other settings ({", ".join(words)}'
            f'{", rawframes" if there.get("rawframes") else ""}): pass --overwrite to '
            'replace it, or name another folder.'
        )
    return True


def _needed_bytes(settings: Settings, rawframes: bool) -> float:
    """About how many bytes the videos take."""
    # Noisy frames take about 0.1 byte per pixel in mp4 and 0.7 as JPEG, no less than
    # one disk block each.
    videos = settings.count('train') + settings.count('val')
    area = settings.size**2
    per_frame = 0.15 * area + (max(0.8 * area, 4096) if rawframes else 0)
    return videos * settings.seconds * settings.fps * per_frame


def _make_staging(out: Path, needed: float) -> Path:
    parent = out.parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f'about {needed / 2**20:.0f} MB are needed and {free / 2**20:.0f} MB free',
            str(parent),
        )
    return Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=parent))


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename ``staging``; what has its new name is put aside and then removed."""
    old = Path(tempfile.mkdtemp(prefix=f'.{out.name}-old-', dir=out.parent))
    try:
        if out.exists():
            os.rename(out, old / out.name)
        try:
            os.rename(staging, out)
        except OSError:
            if (old / out.name).exists():
                os.rename(old / out.name, out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
