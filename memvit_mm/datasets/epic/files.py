"""Readers of EPIC-KITCHENS-100's official CSV files, as they are published.

Times are read from the timestamp columns. The frame columns are not: they index an
extraction of frames at 50 or 60 a second, not the frames of the video.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from memvit_mm.io.text import read_text
from memvit_mm.structures import IGNORE

SEGMENT_COLUMNS = (
    'narration_id',
    'participant_id',
    'video_id',
    'start_timestamp',
    'stop_timestamp',
)
LABEL_COLUMNS = ('verb_class', 'noun_class')


class Segment(NamedTuple):
    """One narrated action: a row of ``EPIC_100_train.csv`` and its like."""

    narration_id: str
    """The video and a number, ``'P01_11_4'``; unique."""
    participant_id: str
    """``'P01'``."""
    video_id: str
    """``'P01_11'``."""
    start: Optional[float]
    """In seconds from the start of the video; None where the file has none."""
    stop: Optional[float]
    """In seconds; None where the file has none."""
    verb: int
    """Class, or -100 where the file has none."""
    noun: int
    """Class, or -100 where the file has none."""
    line: int
    """Where in the file it is, counting from 1."""

    @property
    def number(self) -> int:
        """The number at the end of the narration's id, 0 if there is none."""
        number = self.narration_id.rpartition('_')[2]
        return int(number) if number.isdecimal() else 0


class VideoInfo(NamedTuple):
    """One video: a row of ``EPIC_100_video_info.csv``."""

    duration: float
    """In seconds."""
    fps: float
    """Frames per second of the video file."""


def parse_seconds(text: str) -> float:
    """Seconds in a timestamp ``HH:MM:SS.cc``, with any number of decimals.

    Raises:
        ValueError: If it is something else.

    Examples:
        >>> parse_seconds('00:01:36.46'), parse_seconds('01:00:00.125')
        (96.46, 3600.125)
    """
    hours, minutes, seconds = text.split(':')
    seconds, _, decimals = seconds.partition('.')
    parts = (hours, minutes, seconds, decimals or '0')
    if not all(part.isdecimal() for part in parts) or not (
        int(minutes) < 60 and int(seconds) < 60
    ):
        raise ValueError(text)
    # Not a sum, which would be 96.46000000000001.
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return float(f'{whole}.{parts[3]}')


def read_segments(
    path: str,
    num_classes: Sequence[int] = (97, 300),
    need_labels: bool = False,
    option: str = 'ann_file',
    of: str = 'the dataset',
) -> list[Segment]:
    """Read the segments of a split, in the order of the file.

    Args:
        path (str): ``EPIC_100_train.csv``, ``EPIC_100_validation.csv``,
            ``EPIC_100_test_timestamps.csv``, or a file with their columns.
        num_classes (Sequence[int]): Number of verbs and of nouns; classes count from 0.
        need_labels (bool): Whether a file without classes, as that of the test set is,
            is an error.
        option (str): The option that names the file, for messages.
        of (str): Whose option that is.

    Raises:
        FileNotFoundError, ValueError: In one sentence with file, line and id: for a
            column that is missing, a timestamp or class that is none, a narration
            that comes twice.
    """
    what = 'Annotation file'
    rows = _rows(path, what, option, SEGMENT_COLUMNS, LABEL_COLUMNS, of=of)
    header = next(rows)[1]
    missing = [name for name in LABEL_COLUMNS if name not in header]
    if len(missing) == 1 or (missing and need_labels):
        hint = ', and set test_mode=True if it is the test set, which has no labels'
        hint = hint if len(missing) == 2 else ''
        raise ValueError(
            f'Annotation file {path} lacks the column {missing[0]!r} (it has '
            f'{", ".join(header)}): check {option}{hint}.'
        )
    segments = []
    lines: dict[str, int] = {}
    for line, (narration, participant, video, start, stop, *labels) in rows:
        place = f'{path}:{line}'
        if not narration or not video:
            raise ValueError(
                f'{place}: the row of narration {narration!r} of video {video!r} does '
                'not say which it is: fill in narration_id and video_id.'
            )
        if lines.setdefault(narration, line) != line:
            raise ValueError(
                f'{place}: narration {narration!r} is already in line '
                f'{lines[narration]}: every narration_id may come once, remove one.'
            )
        classes = [
            _class(text, name, number, f'{place}: narration {narration!r}')
            for text, name, number in zip(labels, LABEL_COLUMNS, num_classes)
        ] or [IGNORE, IGNORE]
        times = []
        for text, column in ((start, 'start_timestamp'), (stop, 'stop_timestamp')):
            try:
                times.append(parse_seconds(text) if text else None)
            except ValueError as error:
                raise ValueError(
                    f'{place}: narration {narration!r} has the {column} {text!r}, '
                    'expected HH:MM:SS.cc such as 00:01:02.50.'
                ) from error
        participant = participant or video.partition('_')[0]
        segments.append(Segment(narration, participant, video, *times, *classes, line))
    if not segments:
        raise ValueError(
            f'Annotation file {path} has a header and no row: check {option}.'
        )
    return segments


def _class(text: str, column: str, number: int, place: str) -> int:
    if not text:
        return IGNORE
    if text.isdecimal() and int(text) < number:
        return int(text)
    raise ValueError(
        f'{place} has the {column} {text!r}, expected a number from 0 to {number - 1}: '
        'check the row, and class_files or num_classes if there are more classes.'
    )


def settle(
    segments: Sequence[Segment], durations: Mapping[str, float], test_mode: bool
) -> tuple[list[Segment], list[str]]:
    """Settle what rows with odd content mean, so that all have a start and a stop.

    - No start: left out, since nothing says where the action is.
    - No stop, or a stop that is not after the start: an instant, at its start.
    - A stop after the end of the video: stops there. A start there, too: in training
      left out, in a test an instant at the end of the video, since it is scored.
    - A class that is missing: -100, which no loss counts.

    Args:
        segments (Sequence[Segment]): As read.
        durations (Mapping[str, float]): Seconds of the videos; those not in it are
            taken to be long enough.
        test_mode (bool): Whether every segment is scored.

    Returns:
        The segments to be used, and a phrase with a count for each odd thing met.

    Examples:
        >>> row = Segment('P01_1_0', 'P01', 'P01_1', 2.0, 9.5, 3, 4, line=2)
        >>> kept, odd = settle([row], {'P01_1': 8.0}, test_mode=False)
        >>> kept[0].stop, odd
        (8.0, ['1 ending after the video (cut there)'])
    """
    kept = []
    odd: Counter = Counter()
    labelled = any(segment.verb >= 0 or segment.noun >= 0 for segment in segments)
    for segment in segments:
        start, stop = segment.start, segment.stop
        duration = durations.get(segment.video_id, float('inf'))
        if start is None:
            odd['without a start (left out)'] += 1
            continue
        if start >= duration:
            if not test_mode:
                odd['starting after the video (left out)'] += 1
                continue
            odd['starting after the video (taken as its last frame)'] += 1
            start = stop = duration
        elif stop is None or stop <= start:
            odd['stopping no later than it starts (taken as an instant)'] += 1
            stop = start
        elif stop > duration:
            odd['ending after the video (cut there)'] += 1
            stop = duration
        if labelled and min(segment.verb, segment.noun) < 0:
            odd[f'without a class (label {IGNORE})'] += 1
        if (start, stop) != (segment.start, segment.stop):
            segment = segment._replace(start=start, stop=stop)
        kept.append(segment)
    return kept, [f'{count} {what}' for what, count in odd.items()]


def read_video_info(path: str) -> dict[str, VideoInfo]:
    """Read ``EPIC_100_video_info.csv``: duration and frame rate of every video.

    Raises:
        FileNotFoundError, ValueError: If a column is missing or a number is none.
    """
    rows = _rows(
        path, 'Video info file', 'video_info_file', ('video_id', 'duration', 'fps')
    )
    next(rows)
    videos = {}
    for line, (video, duration, fps) in rows:
        try:
            info = VideoInfo(float(duration), float(fps))
            if not (0 < info.duration < float('inf') and 0 < info.fps < float('inf')):
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f'{path}:{line}: video {video!r} has the duration {duration!r} and the '
                f'fps {fps!r}, expected seconds and frames per second.'
            ) from error
        videos[video] = info
    return videos


def read_classes(
    path: str, option: str = 'class_files', of: str = 'the dataset'
) -> list[str]:
    """Read the names in ``EPIC_100_verb_classes.csv`` or ``..._noun_classes.csv``.

    Args:
        path (str): The file.
        option (str): The option that names it, for messages.
        of (str): Whose option that is.

    Raises:
        FileNotFoundError, ValueError: If a column is missing, or the ids are not
            0, 1, 2, ... in order.
    """
    rows = _rows(path, 'Class file', option, ('id', 'key'), of=of)
    next(rows)
    names = []
    for line, (number, name) in rows:
        if number != str(len(names)):
            raise ValueError(
                f'{path}:{line}: class {name!r} has the id {number!r}, expected '
                f'{len(names)}: ids count from 0, in order.'
            )
        names.append(name)
    if not names:
        raise ValueError(f'Class file {path} has no class: check {option}.')
    return names


def read_column(
    path: str, column: str, what: str, option: str, of: str = 'the dataset'
) -> list[str]:
    """One column of a CSV file, as text, such as the list of tail classes.

    Args:
        path (str): The file.
        column (str): The column's name.
        what (str): What the file is called in messages.
        option (str): The option that names it.
        of (str): Whose option that is.

    Raises:
        FileNotFoundError, ValueError: If the file or the column is missing.
    """
    rows = _rows(path, what, option, (column,), of=of)
    next(rows)
    return [field for _, (field,) in rows]


def _rows(
    path: str,
    what: str,
    option: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    of: str = 'the dataset',
) -> Iterator[tuple[int, list[str]]]:
    """The header, then of each row its line and the fields of some columns."""
    # Not splitlines, which ends lines at more characters than csv files do.
    reader = csv.reader(io.StringIO(read_text(path, what, option, of), newline=''))
    rows = _as_csv(reader, path)
    header = [name.strip() for name in next(rows, [])]
    for name in columns:
        if name not in header:
            raise ValueError(
                f'{what} {path} lacks the column {name!r} (it has '
                f'{", ".join(header) or "none"}): check {option}, it takes the '
                'official CSV files of EPIC-KITCHENS-100.'
            )
    yield 1, header
    places = [header.index(n) for n in (*columns, *optional) if n in header]
    for fields in rows:
        if not fields:
            continue
        if len(fields) != len(header):
            raise ValueError(
                f'{path}:{reader.line_num}: the row {",".join(fields)[:60]!r} has '
                f'{len(fields)} fields and the header {len(header)}: the file is '
                'damaged, download it again.'
            )
        yield reader.line_num, [fields[place].strip() for place in places]


def _as_csv(reader: Any, path: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f'{path}:{reader.line_num}: this is no CSV file ({error}): download it '
            'again.'
        ) from error
