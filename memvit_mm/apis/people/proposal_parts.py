"""ProposalParts: proposals of many videos, made by many processes, killed or not."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from memvit_mm.io.data_pickle import unpickle_data

from .proposals import proposal_key


@dataclasses.dataclass
class Part:
    """What is known of one video."""

    boxes: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    """By second after the first frame, ``[people, 5]``, see ``detect_keyframes``."""
    second: int = -1
    """The last one that was looked at."""
    finished: bool = False
    error: Optional[str] = None
    """Why it could not be read, in one sentence."""
    file: tuple = ()
    """Size and time of the video's file."""


class Merged(NamedTuple):
    """What is in a proposal file, and what is not."""

    videos: int
    keyframes: int
    """With somebody in them."""
    boxes: int
    errors: dict[str, str]
    """Why videos could not be read, by path."""


class ProposalParts:
    """A folder ``OUT.parts`` with a file for each video, and ``OUT`` made of them.

    Files are whole or not there, whenever a process is killed. Processes share the
    videos (:meth:`share`) and need not know of each other: who finishes last writes
    ``OUT``. The folder goes when all is in ``OUT``; videos that could not be read keep
    it, and are tried again the next time.

    Args:
        out (str | Path): The proposal file.
        settings (Mapping, optional): What the boxes depend on, as JSON takes it. None
            where parts are only merged.

    Raises:
        ValueError: If ``OUT`` is there and finished, or its parts were made with other
            settings.
    """

    def __init__(
        self, out: Union[str, Path], settings: Optional[Mapping[str, Any]] = None
    ) -> None:
        self.out = Path(out)
        self.folder = _folder(self.out)
        if settings is not None:
            self._begin(settings)

    def _begin(self, settings: Mapping[str, Any]) -> None:
        if is_finished(self.out):
            raise ValueError(
                f'{self.out} exists already: pass --overwrite to make it again, or '
                'name another file.'
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        path = self.folder / 'settings.json'
        _write(path, json.dumps(settings, indent=1).encode(), keep=True)
        there = json.loads(path.read_text())
        for key in sorted({*there, *settings}):
            old, new = there.get(key), settings.get(key)
            if old != new:
                raise ValueError(
                    f'{self.folder} was made with {key}={_short(old)}, now it is '
                    f'{_short(new)}: go on with the same settings, or pass --overwrite '
                    'to begin anew.'
                )

    @staticmethod
    def share(videos: Sequence[Path], rank: int, world: int) -> list[Path]:
        """The videos of one of several processes, about as many bytes for each."""
        by_size = sorted(videos, key=lambda path: (-_size(path), path.stem))
        return by_size[rank::world]

    def load(self, video: Path) -> Part:
        """What is known of a video: nothing if its file has changed since."""
        part = self._read(video)
        file = _stamp(video)
        if part is None or part.file != file or part.error is not None:
            part = Part(file=file)
        return part

    def save(self, video: Path, part: Part) -> None:
        """Keep what is known of a video."""
        content = pickle.dumps(dataclasses.asdict(part), protocol=4)
        _write(self._path(video), content)

    def merge(
        self, videos: Sequence[Path], timestamp_start: int = 900
    ) -> Optional[Merged]:
        """Write ``OUT``, if all videos are done with.

        Args:
            videos (sequence[Path]): Those of all processes, in the order of ``OUT``.
            timestamp_start (int): AVA's second at which videos begin.

        Returns:
            Merged: What is in it; None if not all are done with: others will merge.
        """
        while True:
            before = self._stamps(videos)
            parts = {video: self._read(video) for video in videos}
            if not all(_is_done(*pair) for pair in parts.items()):
                # Or another process has merged, and taken the parts away.
                return None
            table = {
                # A new array: what was pickled before would show in the bytes.
                proposal_key(video.stem, second + timestamp_start): boxes.astype('f4')
                for video, part in parts.items()
                if part.finished
                for second, boxes in sorted(part.boxes.items())
            }
            _write(self.out, pickle.dumps(table, protocol=4))
            if self._stamps(videos) == before:
                break
        errors = {str(v): part.error for v, part in parts.items() if part.error}
        if not errors:
            shutil.rmtree(self.folder, ignore_errors=True)
        count = sum(map(len, table.values()))
        return Merged(len(videos) - len(errors), len(table), count, errors)

    def _path(self, video: Path) -> Path:
        return self.folder / f'{video.stem}.part'

    def _read(self, video: Path) -> Optional[Part]:
        try:
            content = self._path(video).read_bytes()
        except FileNotFoundError:
            return None
        return Part(**unpickle_data(content))

    def _stamps(self, videos: Sequence[Path]) -> list[tuple]:
        return [_stamp(self._path(video)) for video in videos]


def remove_proposals(out: Union[str, Path]) -> None:
    """Remove a proposal file and its parts."""
    Path(out).unlink(missing_ok=True)
    shutil.rmtree(_folder(Path(out)), ignore_errors=True)


def is_finished(out: Union[str, Path]) -> bool:
    """Whether a proposal file has all that it was to have."""
    return Path(out).exists() and not _folder(Path(out)).exists()


def _folder(out: Path) -> Path:
    return out.with_name(f'{out.name}.parts')


def _write(path: Path, content: bytes, keep: bool = False) -> None:
    """Write a file that is there as a whole or not at all; ``keep`` one that is."""
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not keep:
            os.replace(part, path)
        elif not path.exists():
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_done(video: Path, part: Optional[Part]) -> bool:
    if part is None:
        return False
    return part.error is not None or (part.finished and part.file == _stamp(video))


def _stamp(path: Path) -> tuple:
    try:
        about = path.stat()
    except FileNotFoundError:
        return ()
    return about.st_size, about.st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
