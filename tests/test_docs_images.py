"""Pictures of the documentation: those that pages show are there, and small."""

import re

import cv2
import pytest

from memvit_mm.cli.demo import gestures_of, make_demo, most_telling


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


def test_pictures_of_the_demo_are_made(checkout, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / 'docs'))
    import make_images

    demo = make_demo(str(tmp_path))
    one = most_telling(gestures_of(demo.scene, demo.predictions))
    make_images.draw_story(demo, one, tmp_path / 'story.png')
    assert cv2.imread(str(tmp_path / 'story.png')).shape[1] == 1280
    make_images.take_frame(demo.files['video'], one.time, tmp_path / 'frame.jpg')
    assert cv2.imread(str(tmp_path / 'frame.jpg')).shape == (688, 640, 3)
    for name in 'story.png', 'frame.jpg':
        assert (tmp_path / name).stat().st_size <= make_images.LIMIT
