"""An AVA-format action-detection set that is drawn on the spot and needs memory.

:mod:`memvit_mm.datasets.demo_scene` plans and draws the scenes; here they become a
data set that any AVA reader takes::

    OUT/
      videos/demo_tr_000.mp4 ...    and rawframes/<id>/img_00001.jpg ... if asked for
      annotations/train.csv, val.csv        video,time,x1,y1,x2,y2,label,person
      annotations/action_list.pbtxt         names and ids, from 1
      annotations/proposals_train.pkl, proposals_val.pkl   {'video,0902': [n, 5]}
      annotations/excluded_val.csv          video,time
      meta.json                             settings; which classes need memory

Timestamps start at 900, so that a video's frame is ``(timestamp - 900) * fps``.
"""

import csv
import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Union

import cv2
import numpy as np

from .demo_scene import (
    CLASS_IDS,
    CLASSES,
    CYCLES,
    DELAYS,
    EVENT_REACH,
    MARGIN,
    MEMORY_CLASSES,
    TIMESTAMP_START,
    Scene,
    draw_frame,
    person_box,
    person_labels,
    plan_scenes,
)

KIND = 'memvit_mm demo'
# Of each kind of fault, how often a made-up person detector has it.
MISSED = 0.04
FALSE_AND_SURE = 0.06
FALSE_AND_UNSURE = 0.4
# Scores from here on count as a detection in AVA's recipes.
SURE = 0.9


@dataclass(frozen=True)
class DemoSettings:
    """What :func:`make_demo_dataset` draws.

    Args:
        num_train (int): Training videos. Defaults to 28.
        num_val (int): Validation videos. Defaults to 12.
        seconds (int): Length of each video. Defaults to 64.
        fps (int): Frames per second, 12 or more: OpenCV's mp4 writer codes every
            12th frame by itself, and the frames between as changes, in which a faint
            trace of what was shown stays. The trace must be gone before the box is
            lifted, or the object could be seen after all. Defaults to 12.
        size (int): Width and height of the videos in pixels. Defaults to 96.
        people (int): People in each video, 1 to 4. Defaults to 3.
        seed (int): Everything follows from it. Defaults to 0.

    Raises:
        ValueError: If a setting is out of its range.

    Examples:
        >>> from memvit_mm.datasets.demo import DemoSettings
        >>> DemoSettings(num_train=2, num_val=1).seconds
        64
    """

    num_train: int = 28
    num_val: int = 12
    seconds: int = 64
    fps: int = 12
    size: int = 96
    people: int = 3
    seed: int = 0

    def __post_init__(self):
        shortest = 2 * MARGIN + CYCLES[-1] + max(DELAYS)
        limits = {
            'num_train': (1, 1000),
            'num_val': (1, 1000),
            'seconds': (shortest, 899),
            'fps': (12, 60),
            'size': (48, 1024),
            'people': (1, 4),
            'seed': (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f'{name} is {value}; the demo data takes {low} to {high}.'
                )
        if self.size % 2:
            raise ValueError(
                f'size is {self.size}; mp4 needs an even number of pixels: '
                f'take {self.size + 1}.'
            )

    def count(self, split: str) -> int:
        """Number of videos in a split, 'train' or 'val'."""
        return {'train': self.num_train, 'val': self.num_val}[split]

    def scenes(self, split: str) -> list[Scene]:
        """The plans of a split's videos."""
        return plan_scenes(
            self.seed,
            split,
            self.count(split),
            self.seconds,
            self.fps,
            self.size,
            self.people,
        )


def make_demo_dataset(
    out: Union[str, Path],
    settings: Optional[DemoSettings] = None,
    rawframes: bool = False,
    overwrite: bool = False,
    workers: Optional[int] = None,
) -> bool:
    """Draw the demo data set into a folder.

    Everything is written beside ``out`` first and takes its place at the end, so
    that a half-written set is never found there.

    Args:
        out (str | Path): The folder; made if it does not exist.
        settings (DemoSettings, optional): What to draw. Defaults to
            ``DemoSettings()``.
        rawframes (bool): Write every frame as JPEG too. Defaults to False.
        overwrite (bool): Replace a demo data set that is there. Defaults to False:
            it is kept as it is.
        workers (int, optional): Processes that draw. Defaults to the number of
            cores this process may use.

    Returns:
        bool: True if a set was made, False if the one that was there is kept.

    Raises:
        ValueError: If ``out`` holds something that is no demo data set, or one of
            other settings that may not be overwritten.
        OSError: If ``out`` cannot be written or the disk is full.
    """
    out, settings = Path(out).absolute(), settings or DemoSettings()
    if _is_there(out, settings, rawframes, overwrite):
        return False
    staging = _make_staging(out, settings, rawframes)
    try:
        _write_annotations(staging, settings)
        _write_videos(staging, settings, rawframes, workers)
        meta = json.dumps(_meta(settings, rawframes), indent=2)
        _write_text(staging / 'meta.json', meta + '\n')
        os.chmod(staging, 0o755)
        _put_in_place(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return True


# ------------------------------------------------------------------ annotations


def annotation_rows(scene: Scene) -> Iterable[tuple]:
    """Rows of AVA's CSV: video, timestamp, x1, y1, x2, y2, label, person."""
    for timestamp in scene.keyframes:
        for number, person in enumerate(scene.people):
            box = person_box(scene, person, scene.frame_of(timestamp))
            for label in person_labels(scene, person, timestamp):
                yield (
                    scene.video_id,
                    f'{timestamp:04d}',
                    *(f'{value:.3f}' for value in box),
                    CLASS_IDS[label],
                    number,
                )


def make_proposals(scene: Scene) -> dict[str, np.ndarray]:
    """What a person detector could have found at each keyframe.

    Boxes are off by some percent; a few people are missed or found unsurely; now and
    then something is found that is no person, mostly unsurely. At least one person
    of each keyframe is found, so that no keyframe is without a sample.

    Returns:
        dict: 'video,0902' -> float32 ``[n, 5]``: x1, y1, x2, y2 in [0, 1], score.
    """
    rng = np.random.default_rng([*scene.seed, 7])
    proposals = {}
    for timestamp in scene.keyframes:
        boxes, scores = [], []
        missed = rng.random(len(scene.people)) < MISSED
        if missed.all():
            missed[rng.integers(len(missed))] = False
        for person, is_missed in zip(scene.people, missed):
            box = person_box(scene, person, scene.frame_of(timestamp))
            extent = np.tile(box[2:] - box[:2], 2)
            box = box + rng.normal(0, 0.03, 4) * extent
            sure, unsure = rng.uniform(0.92, 0.999), rng.uniform(0.3, 0.88)
            if is_missed and rng.random() < 0.5:
                continue
            boxes.append(box)
            scores.append(unsure if is_missed else sure)
        faults = (FALSE_AND_SURE, SURE, 0.96), (FALSE_AND_UNSURE, 0.05, 0.85)
        for how_often, low, high in faults:
            if rng.random() < how_often:
                corner, extent = rng.uniform(0, 0.7, 2), rng.uniform(0.1, 0.5, 2)
                boxes.append([*corner, *(corner + extent)])
                scores.append(rng.uniform(low, high))
        rows = np.column_stack([np.clip(boxes, 0, 1), scores]).astype(np.float32)
        proposals[f'{scene.video_id},{timestamp:04d}'] = rows
    return proposals


def _write_annotations(folder: Path, settings: DemoSettings) -> None:
    folder = folder / 'annotations'
    folder.mkdir()
    for split in ('train', 'val'):
        scenes, proposals = settings.scenes(split), {}
        table = io.StringIO()
        writer = csv.writer(table, lineterminator='\n')
        for scene in scenes:
            writer.writerows(annotation_rows(scene))
            proposals.update(make_proposals(scene))
        _write_text(folder / f'{split}.csv', table.getvalue())
        data = pickle.dumps(proposals, protocol=4)
        (folder / f'proposals_{split}.pkl').write_bytes(data)
        if split == 'val':
            # The last keyframe of every fourth video: no stream gets a hole by it.
            lines = [f'{s.video_id},{s.keyframes[-1]:04d}\n' for s in scenes[::4]]
            _write_text(folder / 'excluded_val.csv', ''.join(lines))
    _write_text(folder / 'action_list.pbtxt', action_list())


def action_list() -> str:
    """The classes, in the form of AVA's ``ava_action_list_v2.2.pbtxt``."""
    items = []
    for name, number in CLASS_IDS.items():
        kind = 'PERSON_MOVEMENT' if name in ('stand', 'walk') else 'OBJECT_MANIPULATION'
        items.append(
            f'label {{\n  name: "{name}"\n  label_id: {number}\n'
            f'  label_type: {kind}\n}}\n'
        )
    return ''.join(items)


def _meta(settings: DemoSettings, rawframes: bool) -> dict:
    return {
        'kind': KIND,
        'format': 'ava',
        'settings': asdict(settings),
        'rawframes': rawframes,
        'num_classes': len(CLASSES) + 1,
        'classes': CLASS_IDS,
        'seen_in_the_clip': [CLASS_IDS[n] for n in CLASSES if n not in MEMORY_CLASSES],
        'need_memory': [CLASS_IDS[n] for n in MEMORY_CLASSES],
        'fps': settings.fps,
        'timestamp_start': TIMESTAMP_START,
        'timestamp_end': TIMESTAMP_START + settings.seconds,
        'first_keyframe': TIMESTAMP_START + MARGIN,
        'last_keyframe': TIMESTAMP_START + settings.seconds - MARGIN,
        'seconds_from_take_to_lift_and_give': list(DELAYS),
        'seconds_shown_around_keyframe': EVENT_REACH,
    }


# ----------------------------------------------------------------------- videos


def _write_videos(
    folder: Path, settings: DemoSettings, rawframes: bool, workers: Optional[int]
) -> None:
    (folder / 'videos').mkdir()
    if rawframes:
        (folder / 'rawframes').mkdir()
    jobs = [
        (scene, str(folder), rawframes)
        for split in ('train', 'val')
        for scene in settings.scenes(split)
    ]
    workers = max(1, min(len(jobs), workers or _usable_cores()))
    if workers == 1:
        _show_progress(map(_write_video, jobs), len(jobs))
        return
    # A forked worker has its imports already.
    can_fork = 'fork' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if can_fork else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            _show_progress(pool.map(_write_video, jobs), len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_video(job: tuple[Scene, str, bool]) -> None:
    scene, folder, rawframes = job
    cv2.setNumThreads(1)
    path = os.path.join(folder, 'videos', f'{scene.video_id}.mp4')
    frames_folder = os.path.join(folder, 'rawframes', scene.video_id)
    if rawframes:
        os.mkdir(frames_folder)
    size = (scene.size, scene.size)
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), scene.fps, size)
    if not writer.isOpened():
        raise OSError(
            f"OpenCV {cv2.__version__} cannot write mp4 video ('mp4v') to {path}; "
            'install opencv-python-headless from the package index, whose wheel can.'
        )
    try:
        for index in range(scene.num_frames):
            image = draw_frame(scene, index)
            writer.write(image)
            if rawframes:
                done, jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])
                if not done:
                    raise OSError(f'OpenCV {cv2.__version__} cannot write JPEG.')
                name = f'img_{index + 1:05d}.jpg'
                Path(frames_folder, name).write_bytes(jpeg.tobytes())
    finally:
        writer.release()
    # OpenCV does not say that a disk is full; the file then lacks its index.
    reader = cv2.VideoCapture(path)
    written = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else 0
    reader.release()
    if written != scene.num_frames:
        raise OSError(errno.ENOSPC, f'{written} of {scene.num_frames} frames', path)


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


def _is_there(
    out: Path, settings: DemoSettings, rawframes: bool, overwrite: bool
) -> bool:
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
    same = there.get('settings') == asdict(settings)
    if not same or (rawframes and not there.get('rawframes')):
        raise ValueError(
            f'{out} holds a demo data set of other settings '
            f'({_in_words(there)}): pass --overwrite to replace it, or name another '
            'folder.'
        )
    return True


def read_meta(out: Union[str, Path]) -> dict:
    """``meta.json`` of a demo data set; empty if it is none."""
    try:
        meta = json.loads((Path(out) / 'meta.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _in_words(meta: dict) -> str:
    settings = ', '.join(f'{k} {v}' for k, v in meta.get('settings', {}).items())
    return settings + (', rawframes' if meta.get('rawframes') else '')


def _make_staging(out: Path, settings: DemoSettings, rawframes: bool) -> Path:
    parent = out.parent
    parent.mkdir(parents=True, exist_ok=True)
    frames = (settings.num_train + settings.num_val) * settings.seconds * settings.fps
    # Noisy frames take about 0.1 byte per pixel in mp4 and 0.7 as JPEG, no less than
    # one disk block each.
    area = settings.size**2
    needed = frames * (0.15 * area + (max(0.8 * area, 4096) if rawframes else 0))
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


def _write_text(path: Path, text: str) -> None:
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
