"""The findings of a check: errors, warnings and what is fine."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        level (str): 'ERROR', 'WARNING' or 'OK'.
        sentence (str): Where, what, and the remedy.
        more (int): How many lines, keys or boxes besides this one are wrong alike.
    """

    level: str
    sentence: str
    more: int = 0

    @property
    def text(self) -> str:
        """The sentence, with the number of those like it."""
        more = f' (and {self.more:,} more like it)' if self.more else ''
        return self.sentence.removesuffix('.') + more

    def __str__(self) -> str:
        return f'{self.level:8}{self.text}'


@dataclass
class Report:
    """The findings, in order.

    Attributes:
        findings (list[Finding]): All of them.
        unchecked (int): Datasets of other kinds, of which nothing was checked.
    """

    findings: list[Finding] = field(default_factory=list)
    unchecked: int = 0
    _first: dict[Hashable, Finding] = field(default_factory=dict)

    def error(self, text: str, kind: Optional[Hashable] = None) -> None:
        """Add an error, or count it if there is one of this kind."""
        self._add('ERROR', text, kind)

    def warning(self, text: str, kind: Optional[Hashable] = None) -> None:
        """Add a warning, or count it if there is one of this kind."""
        self._add('WARNING', text, kind)

    def ok(self, text: str) -> None:
        """Add what is fine."""
        self._add('OK', text)

    def errors_of(self, path: str) -> Callable[[str, str], None]:
        """The ``on_problem`` of a reader of ``path``: errors, counted by kind."""
        return lambda kind, text: self.error(text, (path, kind))

    def count(self, *levels: str) -> int:
        """How many findings are of these levels."""
        return sum(finding.level in levels for finding in self.findings)

    def summary(self) -> str:
        """One line: how many errors and warnings."""
        errors = number(self.count('ERROR'), 'error')
        text = f'{errors}, {number(self.count("WARNING"), "warning")}'
        if self.count('ERROR'):
            return f'{text}: mend the errors first, some hide others'
        if self.unchecked:
            return f'{text}: the data that was checked can be trained on'
        return f'{text}: the data can be trained on'

    def _add(self, level: str, text: str, kind: Optional[Hashable] = None) -> None:
        if kind is not None and (level, kind) in self._first:
            self._first[level, kind].more += 1
            return
        self.findings.append(Finding(level, text))
        if kind is not None:
            self._first[level, kind] = self.findings[-1]


def number(count: int, noun: str) -> str:
    """A number with its noun.

    Examples:
        >>> number(1, 'error'), number(2000, 'error')
        ('1 error', '2,000 errors')
    """
    return f'{count:,} {noun}' + ('' if count == 1 else 's')


def a_few(items: list, limit: int = 3) -> str:
    """The first of some items.

    Examples:
        >>> a_few(list('abcd'))
        'a, b, c, ...'
    """
    text = ', '.join(map(str, items[:limit]))
    return text + (', ...' if len(items) > limit else '')


def type_name(cfg: Any) -> str:
    """The name of the class that a config is of, '' if there is none.

    Examples:
        >>> type_name(dict(type='mmaction.AVADataset')), type_name(dict(type=Report))
        ('AVADataset', 'Report')
    """
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rsplit('.', 1)[-1]
