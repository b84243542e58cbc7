"""decord, where it is installed, and the errors of what decodes videos."""

from types import ModuleType
from typing import Optional


def find_decord() -> Optional[ModuleType]:
    """The module; None where it is not installed (it has no build for aarch64)."""
    try:
        import decord
    except ImportError:
        return None
    return decord


def decode_errors() -> tuple[type[Exception], ...]:
    """What readers raise where a frame cannot be decoded."""
    decord = find_decord()
    errors = (RuntimeError, IndexError)
    return errors if decord is None else (*errors, decord.DECORDError)


def silence_decord() -> None:
    """Keep its ffmpeg from printing: it says hundreds of lines that name no file."""
    decord = find_decord()
    if decord is not None:
        decord.logging.set_level(decord.logging.QUIET)
