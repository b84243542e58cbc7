"""Output files: checked before the work begins, named while they are written."""

import os
import os.path as osp
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

# The endings of each kind of output.
ENDINGS = dict(
    video=('.mp4', '.webm', '.avi', '.mkv', '.mov'),
    lines=('.jsonl', '.json'),
    timeline=('.png', '.pdf', '.svg', '.jpg'),
    report=('.html', '.htm'),
    model=('.onnx',),
)


def check_output(kind: str, path: str, source: Optional[str] = None) -> str:
    """Make sure that a file can be written, and its folder exists.

    Args:
        kind (str): 'video', 'lines', 'timeline', 'report' or 'model'.
        path (str): The file. Folders on the way to it are made.
        source (str, optional): The file that is read, which it must not replace.

    Returns:
        str: The path, ``~`` expanded.

    Raises:
        ValueError, PermissionError: If it cannot.

    Examples:
        >>> check_output('timeline', 'a.txt')
        Traceback (most recent call last):
        ValueError: The timeline file a.txt must end in .png, .pdf, .svg or .jpg.
    """
    path = osp.expanduser(os.fspath(path))
    if osp.splitext(path)[1].lower() not in ENDINGS[kind]:
        *first, last = ENDINGS[kind]
        told = f'{", ".join(first)} or {last}' if first else last
        raise ValueError(f'The {kind} file {path} must end in {told}.')
    if osp.isdir(path):
        raise ValueError(f'The {kind} file {path} is a folder: name a file in it.')
    if source is not None and osp.exists(path) and osp.samefile(path, source):
        raise ValueError(
            f'The {kind} file {path} is the video that is read: name another file.'
        )
    folder = osp.dirname(path) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
        _try_to_write(path)
    except OSError as error:
        told = f'{folder} is a file' if osp.isfile(folder) else error.strerror
        raise PermissionError(
            f'The {kind} file {path} cannot be written ({told}): check its folder, or '
            'name another one.'
        ) from None
    return path


def check_apart(paths: Mapping[str, str]) -> None:
    """Refuse to write two outputs into one file.

    Examples:
        >>> check_apart(dict(lines='a.json', report='a.json'))
        Traceback (most recent call last):
        ValueError: The lines file and the report file are both a.json: name two files.
    """
    taken: dict[str, str] = {}
    for kind, path in paths.items():
        other = taken.setdefault(osp.realpath(path), kind)
        if other != kind:
            raise ValueError(
                f'The {other} file and the {kind} file are both {path}: name two files.'
            )


def part_of(path: str) -> str:
    """The path of a file while it is being written.

    The ending stays, since writers of videos and pictures choose the format by it. The
    name is hidden and has the process's number, so that it replaces no user's file.

    Examples:
        >>> part_of('out/a.mp4').replace(str(os.getpid()), 'PID')
        'out/.a.mp4.PID.part.mp4'
    """
    folder, name = osp.split(path)
    ending = osp.splitext(name)[1]
    return osp.join(folder, f'.{name}.{os.getpid()}.part{ending}')


def _try_to_write(path: str) -> None:
    """Open the file as it will be, and leave an existing one as it is."""
    if osp.exists(path):
        open(path, 'ab').close()
    part = Path(part_of(path))
    try:
        # A full disk raises an error at the first byte.
        part.write_bytes(b' ')
    finally:
        part.unlink(missing_ok=True)
