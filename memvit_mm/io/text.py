"""Read files that an option of a config names; errors name file and option."""

from mmengine.fileio import get


def read_lines(path: str, what: str, option: str, of: str = 'the dataset') -> list[str]:
    """Read the lines of a text file, as :func:`read_text` reads it."""
    return read_text(path, what, option, of).splitlines()


def read_text(path: str, what: str, option: str, of: str = 'the dataset') -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args: As :func:`read_content`.

    Raises:
        FileNotFoundError, ValueError: If it does not exist or is not text.
    """
    content = read_content(path, what, option, of)
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{what} {path} is not a text file ({error.reason} at byte '
            f'{error.start}): check {option} of {of}.'
        ) from error


def read_content(path: str, what: str, option: str, of: str = 'the dataset') -> bytes:
    """Read a file that an option of a config names.

    Args:
        path (str): A path or an address that mmengine's file backends know.
        what (str): What the file is, for the message: ``'Annotation file'``.
        option (str): The option that names it.
        of (str): Whose option that is.

    Raises:
        FileNotFoundError, ValueError: If it does not exist or cannot be read.
    """
    try:
        return get(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{what} {path} does not exist: check {option} of {of}.'
        ) from error
    except OSError as error:
        raise ValueError(
            f'{what} {path} cannot be read ({error.strerror or error}): check {option} '
            f'of {of}.'
        ) from error
