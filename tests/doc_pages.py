"""Reads README.md and docs/*.md: their blocks of code, links and headings."""

import re
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = ['README.md', *sorted(f'docs/{p.name}' for p in CHECKOUT.glob('docs/*.md'))]
FENCE = re.compile(r'^```([^\n]*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code of a page."""

    page: str
    """Such as 'docs/ava.md'."""
    line: int
    """Of its first line of code, from 1."""
    language: str
    """What stands behind the fence; '' for figures and output."""
    text: str

    @property
    def place(self) -> str:
        return f'{self.page}:{self.line}'


def blocks(language=None, page=None) -> list:
    """The blocks of one language, or all; of one page, or of all."""
    found = []
    for name in PAGES if page is None else [page]:
        text = (CHECKOUT / name).read_text(encoding='utf-8')
        for match in FENCE.finditer(text):
            line = text.count('\n', 0, match.start()) + 2
            found.append(Block(name, line, *match.groups()))
    return [block for block in found if language in (None, block.language)]


def pages_with(language: str) -> list:
    return sorted({block.page for block in blocks(language)})


def prose(page: str) -> str:
    """A page without its blocks of code, where brackets mean other things."""
    return FENCE.sub('', (CHECKOUT / page).read_text(encoding='utf-8'))


def links(page: str) -> list:
    """Targets of links and pictures that are no addresses of other sites."""
    return re.findall(r'\]\((?!https?:|mailto:)([^)\s]+)\)', prose(page))


def anchors(page: str) -> set:
    """What GitHub, and MyST, make of a page's headings."""
    heads = re.findall(r'^#+ +(.+?) *$', prose(page), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}
