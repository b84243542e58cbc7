"""Pictures of the documentation: those that pages show are there, and small."""

import re

import cv2
import pytest


@pytest.fixture(scope='module')
def pages(checkout):
    found = [checkout / 'README.md', *(checkout / 'docs').rglob('*.md')]
    return [path for path in found if '_build' not in path.parts]


def shown(page):
    """The pictures that a page shows, as files."""
    links = re.findall(
        r'!\[[^]]*\]\(([^)\s]+)\)|<img[^>]+src="([^"]+)"', page.read_text()
    )
    return [page.parent / (one or other) for one, other in links]


def test_every_picture_that_a_page_shows_is_there(pages, checkout):
    found = {path.resolve() for page in pages for path in shown(page)}
    assert checkout / 'docs' / 'images' / 'demo.png' in found
    missing = [str(path) for path in found if not path.is_file()]
    assert not missing


def test_pictures_are_small_and_open(checkout):
    pictures = sorted((checkout / 'docs' / 'images').iterdir())
    assert len(pictures) >= 5
    for path in pictures:
        assert path.stat().st_size <= 200_000, path
        if path.suffix != '.svg':
            height, width = cv2.imread(str(path)).shape[:2]
            assert width >= 600 and height >= 300, path
