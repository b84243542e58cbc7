"""Read whole files, and write files that are complete or not there at all."""

import contextlib
import os
import os.path as osp
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, get, register_backend

PARTIAL = '.partial'


def read_bytes(path: str) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError, ValueError: If it does not exist or cannot be read.
    """
    try:
        return get(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'There is no file {path}.') from error
    except OSError as error:
        raise ValueError(
            f'{path} cannot be read ({error.strerror or error}).'
        ) from error


def write_bytes(path: Union[str, Path], content: bytes) -> None:
    """Write a file, and make its folder.

    The content is written under another name in the same folder
    (``.NAME.PID.partial``), flushed to the disk and then renamed, which replaces an
    existing file at once. A process that is killed leaves the old file or none, and
    perhaps a partial one.

    Raises:
        ValueError: If it cannot be written, for example on a full disk. An existing
            file stays as it was.
    """
    folder, name = osp.split(osp.abspath(path))
    partial = osp.join(folder, f'.{name}.{os.getpid()}{PARTIAL}')
    try:
        os.makedirs(folder, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(
            f'{path} cannot be written ({error.strerror or error}): choose another '
            'place or make room.'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(partial)


def require_place(path: str, suffixes: tuple[str, ...], option: str) -> None:
    """Make the folder of an output file before anything is computed.

    Raises:
        ValueError: If the file has none of the suffixes or cannot be written.
    """
    if not path.endswith(suffixes):
        raise ValueError(f'{option} writes {" or ".join(suffixes)}, not {path}.')
    folder = osp.dirname(osp.abspath(path))
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    if osp.isdir(path) or not osp.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f'{option}={path} cannot be written: it is a folder, or its folder cannot '
            'be made or is read-only.'
        )


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """mmengine's ``LocalBackend``, which writes by :func:`write_bytes`.

    Examples:
        >>> import tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> AtomicLocalBackend().put(b'weights', os.path.join(folder, 'a.pth'))
        >>> os.listdir(folder)
        ['a.pth']
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file."""
        write_bytes(filepath, obj)

    def put_text(
        self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8'
    ) -> None:
        """Write text to a file."""
        write_bytes(filepath, obj.encode(encoding))


def remove_partial(folder: Union[str, Path]) -> None:
    """Remove the partial files that killed processes left in a folder."""
    for path in Path(folder).glob(f'.*{PARTIAL}'):
        path.unlink()
