"""Files of predictions: read with one sentence, written as a whole or not at all."""

import os

from mmengine.fileio import get

from .atomic_backend import AtomicLocalBackend


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError, ValueError: If it is not there or cannot be read.
    """
    try:
        return get(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'There is no file {path}.') from error
    except OSError as error:
        raise ValueError(
            f'{path} cannot be read ({error.strerror or error}).'
        ) from error


def write_bytes(path: str, content: bytes) -> None:
    """Write a file, and make its folder.

    Raises:
        ValueError: If it cannot be written, say on a full disk; what was there stays.
    """
    try:
        AtomicLocalBackend().put(content, path)
    except OSError as error:
        raise ValueError(
            f'{path} cannot be written ({error.strerror or error}): choose another '
            'place or make room.'
        ) from error


def require_place(path: str, suffixes: tuple[str, ...], option: str) -> None:
    """Refuse a file that could not be written later, before anything is computed.

    Raises:
        ValueError: If its suffix is none of those, or its folder cannot be made.
    """
    if not path.endswith(suffixes):
        raise ValueError(f'{option} writes {" or ".join(suffixes)}, not {path}.')
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f'{option}={path}: its folder cannot be made ({error.strerror or error}).'
        ) from error
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise ValueError(
            f'{option}={path} cannot be written: it is a folder, or lies in one that '
            'is read-only.'
        )
