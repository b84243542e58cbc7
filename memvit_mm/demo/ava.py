"""An AVA-format action-detection set that is drawn on the spot and needs memory.

:mod:`memvit_mm.demo.ava_scene` plans and draws the scenes; here they become a
data set that any AVA reader takes::

    OUT/
      videos/demo_tr_000.mp4 ...    and rawframes/<id>/img_00001.jpg ... if asked for
      annotations/train.csv, val.csv        video,time,x1,y1,x2,y2,label,person
      annotations/action_list.pbtxt         names and ids, from 1
      annotations/proposals_train.pkl, proposals_val.pkl   {'video,0902': [n, 5]}
      annotations/excluded_val.csv          video,time
      annotations/val_2s.csv, val_4s.csv ...  rows of val.csv by delay, if there are
                                            videos of different ones
      meta.json                             settings; which classes need memory

Timestamps start at 900, so that a video's frame is ``(timestamp - 900) * fps``.
"""

import csv
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Union

import numpy as np

from .ava_scene import (
    CLASS_IDS,
    DelayedDemoSettings,
    DemoSettings,
    Scene,
    draw_frame,
    person_box,
    person_labels,
)
from .files import VideoJob, write_dataset, write_videos
from .plan import SPLITS

# Of each kind of fault, how often a made-up person detector has it.
MISSED = 0.04
FALSE_AND_SURE = 0.06
FALSE_AND_UNSURE = 0.4
# Scores from here on count as a detection in AVA's recipes.
SURE = 0.9


def make_demo_dataset(
    out: Union[str, Path],
    settings: Optional[DemoSettings] = None,
    rawframes: bool = False,
    overwrite: bool = False,
    workers: Optional[int] = None,
) -> bool:
    """Draw the demo data set into a folder.

    A half-written set is never found there.

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
    settings = settings or DemoSettings()

    def fill(folder: Path) -> None:
        _write_annotations(folder / 'annotations', settings)
        jobs = []
        for scene in settings.scenes('train') + settings.scenes('val'):
            name = scene.video_id
            jpegs = folder / 'rawframes' / name if rawframes else None
            path = folder / 'videos' / f'{name}.mp4'
            jobs.append(VideoJob(scene, draw_frame, path, jpegs))
        write_videos(jobs, workers)

    return write_dataset(out, settings, fill, rawframes, overwrite)


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
    rng = scene.random(7)
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
    folder.mkdir()
    for split in SPLITS:
        scenes, proposals = settings.scenes(split), {}
        _write_rows(folder / f'{split}.csv', scenes)
        for scene in scenes:
            proposals.update(make_proposals(scene))
        data = pickle.dumps(proposals, protocol=4)
        (folder / f'proposals_{split}.pkl').write_bytes(data)
        if split == 'val':
            # The last keyframe of every fourth video: no stream gets a hole by it.
            lines = [f'{s.video_id},{s.keyframes[-1]:04d}\n' for s in scenes[::4]]
            (folder / 'excluded_val.csv').write_text(''.join(lines), encoding='utf-8')
        if split == 'val' and isinstance(settings, DelayedDemoSettings):
            for number, delay in enumerate(settings.delays):
                # Videos take turns.
                of_delay = scenes[number :: len(settings.delays)]
                _write_rows(folder / f'val_{delay}s.csv', of_delay)
    (folder / 'action_list.pbtxt').write_text(action_list(), encoding='utf-8')


def _write_rows(path: Path, scenes: Iterable[Scene]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    for scene in scenes:
        writer.writerows(annotation_rows(scene))
    path.write_text(table.getvalue(), encoding='utf-8')


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
