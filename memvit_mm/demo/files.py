"""Writing a demo data set: whole or not at all, by several processes, videos too."""

import errno
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional, Union

import cv2
import numpy as np

from memvit_mm.video.open_video import written_frames

KIND = 'memvit_mm demo'
# Frames per second from which on a cue's traces are gone in time. OpenCV's mp4 writer
# codes every 12th frame by itself and the frames between as changes, in which a faint
# trace of what was shown stays.
MIN_FPS = 12


def check_settings(settings: Any, limits: Mapping[str, tuple[int, int]]) -> None:
    """Refuse settings that are out of their range.

    Args:
        settings: What has the attributes named in ``limits``, and ``size``.
        limits (dict): By name, the least and the greatest value.

    Raises:
        ValueError: If one is out of its range, or ``size`` is odd.
    """
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f'{name} is {value}; the demo data takes {low} to {high}.')
    if settings.size % 2:
        raise ValueError(
            f'size is {settings.size}; mp4 needs an even number of pixels: take '
            f'{settings.size + 1}.'
        )


def write_dataset(
    out: Union[str, Path],
    meta: dict,
    needed: float,
    fill: Callable[[Path], None],
    overwrite: bool = False,
) -> bool:
    """Write a data set into a folder, with ``meta.json``.

    Everything is written beside ``out`` first and takes its place at the end, so
    that a half-written set is never found there.

    Args:
        out (str | Path): The folder; made if it does not exist.
        meta (dict): What is in it: ``kind``, ``format``, ``settings``, ``rawframes``
            and what else readers want to know.
        needed (float): Bytes that it takes.
        fill (callable): Writes the set into the folder that it gets.
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
    if _is_there(out, meta, overwrite):
        return False
    staging = _make_staging(out, needed)
    try:
        fill(staging)
        write_text(staging / 'meta.json', json.dumps(meta, indent=2) + '\n')
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


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    path.write_text(text, encoding='utf-8')


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


def video_bytes(num_frames: int, size: int, rawframes: bool) -> float:
    """About how many bytes videos take, frames of ``size`` x ``size`` pixels."""
    # Noisy frames take about 0.1 byte per pixel in mp4 and 0.7 as JPEG, no less than
    # one disk block each.
    area = size**2
    return num_frames * (0.15 * area + (max(0.8 * area, 4096) if rawframes else 0))


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int,
    size: int,
    jpegs: Optional[Path] = None,
) -> None:
    """Encode a video as mp4 and, if asked for, its frames as JPEG.

    Args:
        path (Path): The video.
        frames (iterable[np.ndarray]): ``[size, size, 3]`` uint8, BGR.
        fps (int): Frames per second.
        size (int): Width and height in pixels.
        jpegs (Path, optional): Folder for ``img_00001.jpg`` and so on; made here.

    Raises:
        OSError: If OpenCV cannot write mp4 or JPEG, or the disk is full.
    """
    cv2.setNumThreads(1)
    if jpegs is not None:
        jpegs.mkdir()
    fourcc = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), fourcc, fps, (size, size))
    if not writer.isOpened():
        raise OSError(
            f"OpenCV {cv2.__version__} cannot write mp4 video ('mp4v') to {path}; "
            'install opencv-python-headless from the package index, whose wheel can.'
        )
    count = 0
    try:
        for count, image in enumerate(frames, start=1):
            writer.write(image)
            if jpegs is not None:
                done, jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])
                if not done:
                    raise OSError(f'OpenCV {cv2.__version__} cannot write JPEG.')
                (jpegs / f'img_{count:05d}.jpg').write_bytes(jpeg.tobytes())
    finally:
        writer.release()
    written = written_frames(str(path), fps)
    if written != count:
        raise OSError(errno.ENOSPC, f'{written} of {count} frames', str(path))


def write_videos(
    write: Callable[[Any], None], jobs: Sequence[Any], workers: Optional[int] = None
) -> None:
    """Call ``write`` on every job, in several processes, and show how far it is.

    Args:
        write (callable): Writes one video; importable, as what it gets is picklable.
        jobs (sequence): What to call it on.
        workers (int, optional): Processes. Defaults to the number of cores this
            process may use.
    """
    workers = max(1, min(len(jobs), workers or _usable_cores()))
    if workers == 1:
        _show_progress(map(write, jobs), len(jobs))
        return
    # A forked worker has its imports already.
    can_fork = 'fork' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if can_fork else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            _show_progress(pool.map(write, jobs), len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _show_progress(done: Iterable, total: int) -> None:
    for count, _ in enumerate(done, start=1):
        if sys.stderr.isatty():
            end = '\n' if count == total else ''
            print(f'\rvideo {count} of {total}', end=end, file=sys.stderr, flush=True)
        elif count == total or count % 10 == 0:
            print(f'video {count} of {total}', file=sys.stderr, flush=True)


def _usable_cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---------------------------------------------------------------- the OUT folder


def _is_there(out: Path, meta: dict, overwrite: bool) -> bool:
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
    same = all(there.get(key) == meta[key] for key in ('format', 'settings'))
    if not same or (meta['rawframes'] and not there.get('rawframes')):
        raise ValueError(
            f'{out} holds a demo data set of other settings '
            f'({_in_words(there)}): pass --overwrite to replace it, or name another '
            'folder.'
        )
    return True


def _in_words(meta: dict) -> str:
    words = [f'format {meta.get("format")}']
    words += [f'{key} {value}' for key, value in meta.get('settings', {}).items()]
    return ', '.join(words) + (', rawframes' if meta.get('rawframes') else '')


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
    if out.exists() and any(out.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f'.{out.name}-old-', dir=out.parent))
        os.rename(out, old / out.name)
        try:
            os.rename(staging, out)
        except OSError:
            os.rename(old / out.name, out)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        if out.exists():
            out.rmdir()
        os.rename(staging, out)
