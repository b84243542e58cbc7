"""Files that are whole or not there."""

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, Union

from mmengine.fileio import LocalBackend, register_backend

PARTIAL = '.partial'


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """mmengine's ``LocalBackend``, whose files are never half-written.

    A file is written under another name in the same folder (``.NAME.PID.partial``),
    flushed to the disk and then renamed, which replaces what was there at once. A
    process that is killed leaves the old file, or none, and perhaps a partial one.

    Examples:
        >>> import tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> AtomicLocalBackend().put(b'weights', os.path.join(folder, 'a.pth'))
        >>> os.listdir(folder)
        ['a.pth']
    """

    def __init__(self) -> None:
        self._outdated: Optional[dict[str, int]] = None

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file; see the class."""
        folder, name = osp.split(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        partial = osp.join(folder, f'.{name}.{os.getpid()}{PARTIAL}')
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, filepath)
            _flush_folder(folder)
        except BaseException:
            if osp.exists(partial):
                os.remove(partial)
            raise

    def put_text(
        self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8'
    ) -> None:
        """Write text to a file; see the class."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Remove a file, at the end of :meth:`removing_last` if inside of it."""
        if self._outdated is None:
            super().remove(filepath)
        else:
            self._outdated[str(filepath)] = os.stat(filepath).st_ino

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Remove nothing before what is written meanwhile is on the disk.

        A path may be removed and then written anew; the new file, which has another
        inode, stays.
        """
        self._outdated = {}
        try:
            yield
        except BaseException:
            self._outdated = None
            raise
        outdated, self._outdated = self._outdated, None
        for filepath, inode in outdated.items():
            if os.stat(filepath).st_ino == inode:  # else it was written anew
                super().remove(filepath)

    @staticmethod
    def remove_partial(folder: Union[str, Path]) -> list[str]:
        """Remove what killed processes left in a folder; returns the names."""
        names = []
        if osp.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.startswith('.') and name.endswith(PARTIAL):
                    os.remove(osp.join(folder, name))
                    names.append(name)
        return names


def _flush_folder(folder: str) -> None:
    """Bring a new name to the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
