"""Pictures of the documentation: they open, are small, and some page shows them."""

import cv2
from doc_pages import PAGES, links

from memvit_mm.cli.demo import gestures_of, make_demo, most_telling


def test_pictures_are_small_and_open_and_shown(checkout):
    shown = {
        ((checkout / page).parent / link).resolve()
        for page in PAGES
        for link in links(page)
    }
    pictures = sorted((checkout / 'docs' / 'images').iterdir())
    assert len(pictures) >= 5
    for path in pictures:
        assert path in shown, path
        assert path.stat().st_size <= 200_000, path
        if path.suffix != '.svg':
            height, width = cv2.imread(str(path)).shape[:2]
            assert width >= 600 and height >= 300, path


def test_pictures_of_the_demo_are_made(checkout, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / 'docs'))
    import make_images

    # Half of the video is enough for a story.
    monkeypatch.setattr('memvit_mm.cli.demo.SECONDS', 20)
    demo = make_demo(str(tmp_path))
    one = most_telling(gestures_of(demo.scene, demo.predictions))
    make_images.draw_story(demo, one, tmp_path / 'story.png')
    assert cv2.imread(str(tmp_path / 'story.png')).shape[1] == 1280
    make_images.take_frame(demo.files['video'], one.time, tmp_path / 'frame.jpg')
    assert cv2.imread(str(tmp_path / 'frame.jpg')).shape == (688, 640, 3)
    for name in 'story.png', 'frame.jpg':
        assert (tmp_path / name).stat().st_size <= make_images.LIMIT
