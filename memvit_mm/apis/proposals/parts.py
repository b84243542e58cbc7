"""ProposalParts: proposals of many videos, found by one process or many."""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from memvit_mm.apis.people.detector import PersonDetector
from memvit_mm.io.whole_file import write_bytes

from .keyframes import Keyframe, keyframes


class Joined(NamedTuple):
    """What is in a proposal file, and what is not."""

    videos: int
    keyframes: int
    """Keyframes with people."""
    boxes: int
    errors: list[str]
    """Sentences about the videos that could not be read."""


class ProposalParts:
    """A folder ``OUT.parts`` with a file for each video, and ``OUT`` joined from them.

    A part file gets a line of JSON for each keyframe as soon as its people are found: a
    process that is killed goes on after the last of them. Processes that share the
    videos (:meth:`share`) do not need to communicate: the one that ends last writes
    ``OUT``. The folder is removed when everything is in ``OUT``. If a video could not
    be read it stays, and the next run tries that video again.

    Args:
        out (str | Path): The proposal file.
        settings (Mapping): What the boxes depend on, as JSON takes it.
        timestamp_start (int): AVA's second at which videos begin.

    Raises:
        ValueError: If ``OUT`` exists and is complete, or its parts were made with other
            settings.
    """

    def __init__(
        self,
        out: Union[str, Path],
        settings: Mapping[str, Any],
        timestamp_start: int = 900,
    ) -> None:
        self.out = Path(out)
        self.folder = _folder(out)
        self.timestamp_start = timestamp_start
        if is_complete(out):
            raise ValueError(
                f'{out} exists already: pass --overwrite to make it again, or name '
                'another file.'
            )
        path = self.folder / 'settings.json'
        if not path.exists():
            write_bytes(str(path), json.dumps(dict(settings)).encode())
        there = json.loads(path.read_bytes())
        for key, value in settings.items():
            if there.get(key) != value:
                raise ValueError(
                    f'{self.folder} was made with {key}={there.get(key)!r}, now it is '
                    f'{value!r}: go on with the same settings, or pass --overwrite to '
                    'begin anew.'
                )

    @staticmethod
    def share(videos: Sequence[Path], rank: int, world: int) -> list[Path]:
        """The videos of one of several processes, about as many bytes for each."""
        by_size = sorted(videos, key=lambda path: (-path.stat().st_size, path.stem))
        return by_size[rank::world]

    def detect(
        self,
        detector: PersonDetector,
        video: Path,
        limit: int = 100,
        progress: Callable[[float], Any] = lambda read: None,
        **options: Any,
    ) -> Optional[str]:
        """Find the people in a video, from where an earlier run was stopped.

        Args:
            detector (PersonDetector): The detector.
            video (Path): The file.
            limit (int): Boxes of a keyframe at most, the best ones.
            progress (callable): Called after each keyframe with the part of the video
                that has been read, 0 to 1.
            **options: As for :func:`keyframes`.

        Returns:
            str, optional: Why the video could not be read, in one sentence.
        """
        about, path = video.stat(), self._path(video)
        begin = dict(file=[about.st_size, about.st_mtime_ns])
        lines = self._read(video)
        if lines[:1] != [begin] or lines[-1].get('error'):
            # A new video, another file of that name, or one that could not be read.
            path.unlink(missing_ok=True)
            lines = []
        elif 'error' in lines[-1]:
            return None
        last = lines[-1].get('second', -1) if lines else -1
        error = None
        with open(path, 'a', buffering=1) as file:
            # A line that was cut off ends here; readers leave it out.
            file.write('\n' if lines else f'{json.dumps(begin)}\n')
            frames = _readable(keyframes(video, **options))
            rest = (frame for frame in frames if frame.second > last)
            try:
                while batch := list(islice(rest, detector.batch_size)):
                    found = detector.detect([frame.image for frame in batch])
                    for frame, boxes in zip(batch, found):
                        height, width = frame.image.shape[:2]
                        size = np.array([width, height, width, height, 1], np.float32)
                        boxes = (boxes[:limit] / size).astype(np.float32).tolist()
                        line = dict(second=frame.second, boxes=boxes)
                        file.write(f'{json.dumps(line)}\n')
                        progress(frame.read)
            except _UnreadableVideo as unreadable:
                error = str(unreadable)
            file.write(f'{json.dumps(dict(error=error))}\n')
        return error

    def join(self, videos: Sequence[Path]) -> Optional[Joined]:
        """Write ``OUT``, if the parts of all videos are complete.

        Args:
            videos (sequence[Path]): Those of all processes, in the order of ``OUT``.

        Returns:
            Joined: What is in it; None if other processes are still at work.
        """
        table, errors = {}, []
        for video in videos:
            lines = self._read(video)
            if not lines or 'error' not in lines[-1]:
                # Or another process has joined them, and removed the parts.
                return None
            if lines[-1]['error']:
                errors.append(lines[-1]['error'])
                continue
            for line in lines[1:-1]:
                if line['boxes']:
                    second = line['second'] + self.timestamp_start
                    key = f'{video.stem},{second:04d}'
                    table[key] = np.array(line['boxes'], dtype=np.float32)
        write_bytes(str(self.out), pickle.dumps(table, protocol=4))
        if not errors:
            shutil.rmtree(self.folder, ignore_errors=True)
        boxes = sum(map(len, table.values()))
        return Joined(len(videos) - len(errors), len(table), boxes, errors)

    def _path(self, video: Path) -> Path:
        return self.folder / f'{video.stem}.part'

    def _read(self, video: Path) -> list[dict]:
        """The lines of a part: about the file, keyframes, and an end if complete."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path(video).read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines


def is_complete(out: Union[str, Path]) -> bool:
    """Whether a proposal file has all that it was to have."""
    return Path(out).exists() and not _folder(out).exists()


def remove_proposals(out: Union[str, Path]) -> None:
    """Remove a proposal file and its parts."""
    Path(out).unlink(missing_ok=True)
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Union[str, Path]) -> Path:
    return Path(f'{out}.parts')


def _readable(frames: Iterator[Keyframe]) -> Iterator[Keyframe]:
    """Keyframes; errors in reading them are told from those of the detector."""
    try:
        yield from frames
    except (ValueError, OSError) as error:
        raise _UnreadableVideo(str(error)) from error


class _UnreadableVideo(Exception):
    """A video cannot be read; the detector and its settings are not at fault."""
