"""AVA's person proposals from videos: the people at every whole second."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from memvit_mm.apis.streams.clip_buffer import ClipBuffer
from memvit_mm.apis.streams.clip_grid import ClipGrid, ClipRecipe
from memvit_mm.apis.streams.sources import VideoFile
from memvit_mm.datasets.ava.dataset import VIDEO_EXTS
from memvit_mm.datasets.transforms.clips import SampleClipFrames


class Keyframe(NamedTuple):
    """A frame of a video at a whole second."""

    second: int
    """After the first frame."""
    image: np.ndarray
    """``[H, W, 3]`` uint8, RGB."""
    read: float
    """How much of the video has been read, 0 to 1; 0 where that is not known."""


def find_videos(paths: Sequence[Union[str, Path]]) -> list[Path]:
    """Video files: those that are named, and those in the folders that are named.

    Args:
        paths (sequence[str | Path]): Files, and folders, of which the files with the
            usual extensions are taken.

    Returns:
        list[Path]: Sorted by the names that the videos have in proposals: those of the
        files without extension.

    Raises:
        ValueError, FileNotFoundError: If there is no such file, a folder has no video,
            or two have the same name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in VIDEO_EXTS]
            if not files:
                raise ValueError(
                    f'Folder {path} has no video ({", ".join(VIDEO_EXTS)}) in it: name '
                    'the folder that holds them, or the files.'
                )
        elif path.exists():
            files = [path]
        else:
            raise FileNotFoundError(f'There is no video or folder {path}.')
        for file in files:
            other = found.setdefault(file.stem, file)
            if other.resolve() != file.resolve():
                raise ValueError(
                    f'{other} and {file} would have the same name in the proposals, '
                    f'{file.stem}: rename one, or write a file of proposals for each.'
                )
    return [found[name] for name in sorted(found)]


def keyframes(
    path: Union[str, Path],
    first: int = 1,
    last: Optional[int] = None,
    timing: str = 'frames',
    on_damage: str = 'stop',
) -> Iterator[Keyframe]:
    """The frames of a video at whole seconds, in order, at constant memory.

    They are those in the middle of the clips that :class:`MemoryAVADataset` and
    :class:`VideoStream` make of these seconds.

    Args:
        path (str | Path): The video.
        first (int): Second of the first one, after the first frame.
        last (int, optional): Second of the last one. By default to the end.
        timing (str): See :class:`VideoFile`. Of a video of variable frame rate data
            sets count frames (``'frames'``), streams take the times (``'auto'``).
        on_damage (str): See :class:`VideoFile`.

    Raises:
        ValueError, FileNotFoundError: As :class:`VideoFile`, or if there is none.
    """
    source = VideoFile(str(path), timing, on_damage)
    recipe = ClipRecipe(SampleClipFrames(1, 1, test_mode=True), [], True, 1.0)
    times = None if last is None else [float(s) for s in range(first, last + 1)]
    buffer = ClipBuffer(ClipGrid(recipe, source.fps, 1.0, times), name=f'Video {path}')
    found = False
    with contextlib.closing(source):
        for number, frame in enumerate(source, 1):
            for ready in buffer.feed(frame.image, frame.time):
                second = round(ready.clip.time)
                if second >= first:
                    found = True
                    read = min(number / source.count, 1.0) if source.count else 0.0
                    yield Keyframe(second, ready.clip.images[0], read)
                if second == last:
                    return
    if not found:
        raise ValueError(
            f'Video {path} is {frame.time + 1 / source.fps:.2f} seconds long, but its '
            f'first keyframe is {first} seconds after its beginning: check the first '
            'second and timestamp_start (--first, --timestamp-start).'
        )
