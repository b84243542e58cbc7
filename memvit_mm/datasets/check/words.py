"""What checks of tables share: reading a file, and counting in words."""

from os import path as osp
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .config import AvaFields, Report


def read_content(
    report: 'Report', path: str, option: str, fields: 'AvaFields'
) -> Optional[bytes]:
    """The content of the file that an option names; None if that is reported."""
    if '://' in path:
        report.warning(f'{path}: not a local file; it is not checked')
        return None
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        hint = ''
        if option != 'ann_file' and fields.data_root and not osp.isabs(path):
            hint = ' (data_root is joined with ann_file and data_prefix only)'
        reason = error.strerror or error
        report.error(
            f'{path}: cannot be read ({reason}): check {option} of {fields.where}{hint}'
        )
        return None
    if not content:
        report.error(f'{path}: is empty: fetch or write it again ({option})')
        return None
    return content


def read_lines(
    report: 'Report', path: str, option: str, fields: 'AvaFields'
) -> Optional[list[str]]:
    """The lines of a text file as the dataset reads them; None if it cannot."""
    content = read_content(report, path, option, fields)
    if content is None:
        return None
    try:
        # AVADataset takes a byte order mark for part of the first line.
        return content.decode('utf-8-sig' if fields.strict else 'utf-8').splitlines()
    except UnicodeDecodeError as error:
        report.error(
            f'{path}: is not a text file ({error.reason} at byte {error.start}): '
            f'check {option} of {fields.where}'
        )
        return None


def and_more(count: int, noun: str, plural: Optional[str] = None) -> str:
    """How many there are besides the one that is shown.

    Examples:
        >>> and_more(1, 'box', 'boxes'), and_more(3, 'box', 'boxes')
        ('', ' (and 2 more boxes)')
    """
    if count == 1:
        return ''
    noun = noun if count == 2 else plural or f'{noun}s'
    return f' (and {count - 1:,} more {noun})'


def a_few(items: list, limit: int = 3) -> str:
    """The first of them, in words.

    Examples:
        >>> a_few(list('abcd'))
        'a, b, c, ...'
    """
    text = ', '.join(map(str, items[:limit]))
    return text + (', ...' if len(items) > limit else '')
