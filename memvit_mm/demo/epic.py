"""Kitchen videos in EPIC-KITCHENS-100's format that are drawn on the spot.

:mod:`memvit_mm.demo.epic_scene` plans and draws the kitchens; here they become
a data set that any reader of the official files takes::

    OUT/
      videos/P01/videos/P01_01.MP4 ...
      annotations/EPIC_100_train.csv, EPIC_100_validation.csv
      annotations/EPIC_100_video_info.csv
      annotations/EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv
      annotations/EPIC_100_tail_verbs.csv, EPIC_100_tail_nouns.csv
      annotations/EPIC_100_unseen_participant_ids_validation.csv
      meta.json                             settings; numbers of classes

4 verbs and 6 nouns instead of 97 and 300. Only what starts a dish is seen; the other
three quarters of the segments take memory.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Union

from .epic_scene import (
    LENGTH,
    NOUNS,
    TAIL_NOUNS,
    TAIL_VERBS,
    UNSEEN_COOKS,
    VERBS,
    EpicDemoSettings,
    Kitchen,
    draw_frame,
)
from .files import VideoJob, write_dataset, write_videos


def make_epic_demo(
    out: Union[str, Path],
    settings: Optional[EpicDemoSettings] = None,
    overwrite: bool = False,
    workers: Optional[int] = None,
) -> bool:
    """Draw the demo data set of kitchens into a folder.

    A half-written set is never found there.

    Args:
        out (str | Path): The folder; made if it does not exist.
        settings (EpicDemoSettings, optional): What to draw. Defaults to
            ``EpicDemoSettings()``.
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
    settings = settings or EpicDemoSettings()

    def fill(folder: Path) -> None:
        _write_annotations(folder / 'annotations', settings)
        jobs = [
            VideoJob(kitchen, draw_frame, video_path(folder, kitchen.video_id))
            for kitchen in settings.kitchens('train') + settings.kitchens('val')
        ]
        write_videos(jobs, workers)

    return write_dataset(out, settings, fill, overwrite=overwrite)


def video_path(out: Union[str, Path], video_id: str) -> Path:
    """Where a video is, as in the official download."""
    cook = video_id.partition('_')[0]
    return Path(out, 'videos', cook, 'videos', f'{video_id}.MP4')


# ------------------------------------------------------------------ annotations


def annotation_rows(kitchen: Kitchen) -> list[dict]:
    """Rows of ``EPIC_100_train.csv``, by column, in the order of time."""
    rows: list[dict] = []
    for dish in kitchen.dishes:
        verb, noun = VERBS.index(dish.verb), NOUNS.index(dish.noun)
        for start in dish.starts:
            stop, number = start + LENGTH, len(rows)
            rows.append(
                dict(
                    narration_id=f'{kitchen.video_id}_{number}',
                    participant_id=kitchen.cook,
                    video_id=kitchen.video_id,
                    # As in the official files, some have none.
                    narration_timestamp=(
                        '' if number % 20 == 19 else f'{_clock(start)}.120'
                    ),
                    start_timestamp=f'{_clock(start)}.00',
                    stop_timestamp=f'{_clock(stop)}.00',
                    # Of an extraction at 60 frames a second, not of the video.
                    start_frame=max(1, int(start * 60.0)),
                    stop_frame=max(1, int(stop * 60.0)),
                    narration=f'{dish.verb} {dish.noun}',
                    verb=dish.verb,
                    verb_class=verb,
                    noun=dish.noun,
                    noun_class=noun,
                    all_nouns=str([dish.noun]),
                    all_noun_classes=str([noun]),
                )
            )
    return rows


def _clock(seconds: int) -> str:
    return f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'


def _write_annotations(folder: Path, settings: EpicDemoSettings) -> None:
    folder.mkdir()

    def write(name: str, header: Iterable[str], rows: Iterable, end: str = '\n'):
        table = io.StringIO()
        writer = csv.writer(table, lineterminator=end)
        writer.writerow(header)
        writer.writerows(rows)
        path = folder / f'EPIC_100_{name}.csv'
        path.write_text(table.getvalue(), encoding='utf-8')

    videos: list[Kitchen] = []
    for split, name in (('train', 'train'), ('val', 'validation')):
        kitchens = settings.kitchens(split)
        videos += kitchens
        rows = [row for kitchen in kitchens for row in annotation_rows(kitchen)]
        # The official order is that of the ids as texts: _1, _10, _11, _2.
        rows.sort(key=lambda row: row['narration_id'])
        write(name, rows[0], (row.values() for row in rows))
    write(
        'video_info',
        ('video_id', 'duration', 'fps', 'resolution'),
        sorted(
            (v.video_id, f'{v.seconds:.6f}', float(v.fps), f'{v.size}x{v.size}')
            for v in videos
        ),
    )
    for kind, names, tail in (
        ('verb', VERBS, TAIL_VERBS),
        ('noun', NOUNS, TAIL_NOUNS),
    ):
        rows = [(i, name, str([name]), 'demo') for i, name in enumerate(names)]
        write(f'{kind}_classes', ('id', 'key', 'instances', 'category'), rows, '\r\n')
        write(f'tail_{kind}s', (kind,), ([names.index(name)] for name in tail))
    cooks = [(cook,) for cook in UNSEEN_COOKS]
    write('unseen_participant_ids_validation', ('participant_id',), cooks)
