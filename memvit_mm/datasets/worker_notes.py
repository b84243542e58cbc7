"""What each worker of a DataLoader reads, so that its death can be told by the clip.

A worker that the system kills (memory ran out) or that crashes in a decoder leaves no
message. Every worker therefore notes what it is about to read in a piece of memory that
it shares with the main process, which finds it there by the worker's process id.

Works where workers are forked, as on Linux; elsewhere there just are no notes.
"""

import mmap
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Optional

from torch.utils.data import get_worker_info

SLOTS, BYTES = 1024, 1024
# Anonymous memory, shared with all processes forked from this one.
_NOTES = mmap.mmap(-1, SLOTS * BYTES)


class Note(NamedTuple):
    """What a worker noted last."""

    reading: bool
    """Whether it was still reading; else it was done with that."""
    clip: str
    """The clip, in words."""


def _write(pid: int, note: str) -> None:
    start = pid % SLOTS * BYTES
    text = f'{pid} {note}'.encode()[:BYTES]
    _NOTES[start : start + BYTES] = text.ljust(BYTES, b'\0')


@contextmanager
def noting(clip: str) -> Iterator[None]:
    """Note, in a worker, that it reads this clip; do nothing in the main process."""
    if get_worker_info() is None:
        yield
        return
    pid = os.getpid()
    _write(pid, f'1 {clip}')
    try:
        yield
    finally:
        _write(pid, f'0 {clip}')


def note_of(pid: int) -> Optional[Note]:
    """The last note of a worker of this process, if it left one.

    Args:
        pid (int): Its process id, as torch's message about its death has it.
    """
    start = pid % SLOTS * BYTES
    text = bytes(_NOTES[start : start + BYTES]).rstrip(b'\0').decode(errors='replace')
    author, _, note = text.partition(' ')
    if author != str(pid):
        return None
    return Note(note.startswith('1 '), note[2:])


def notes_being_read() -> list[str]:
    """The clips that living workers of this process are reading now."""
    pids = [child.pid for child in multiprocessing.active_children()]
    notes = [note_of(pid) for pid in pids]
    return [note.clip for note in notes if note is not None and note.reading]
