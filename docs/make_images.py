"""Make the pictures of README.md and of these pages: docs/images/*.

    python docs/make_images.py

Runs the demo, photographs its report in Chromium, and draws the learning curves of the
quickstart, which it runs where work_dirs/ has none (6 minutes). recall.png is drawn
where work_dirs/recall.json is, which takes a quarter of an hour of processor time:

    python tools/analysis_tools/measure_recall.py --json work_dirs/recall.json

memory_*.svg are drawn by hand.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from memvit_mm.apis.visualization.draw_text import clock
from memvit_mm.cli.demo import Demo, Gesture, gestures_of, make_demo, most_telling
from memvit_mm.demo.ava_scene import (
    CLASS_IDS,
    MEMORY_CLASSES,
    TIMESTAMP_START,
    draw_frame,
    person_box,
)

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / 'docs' / 'images'
LIMIT = 200_000  # bytes of a picture
INK, FAINT, RIGHT, WRONG = '#1f2328', '#6a737d', '#1a7f37', '#cf222e'
HERO = '#0969da'


def main() -> None:
    parser = argparse.ArgumentParser(description='Make the pictures of the docs')
    parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    # What draws curves.
    sys.path.insert(0, str(ROOT / 'tools' / 'analysis_tools'))
    demo = make_demo(str(ROOT / 'work_dirs'))
    one = most_telling(gestures_of(demo.scene, demo.predictions))
    draw_story(demo, one, IMAGES / 'demo.png')
    take_frame(demo.files['video'], one.time, IMAGES / 'frame.jpg')
    shrink(Path(demo.files['timeline']), IMAGES / 'timeline.png')
    take_report(demo.files['report'], one.time, IMAGES / 'report.png')
    draw_curves(IMAGES / 'curves.png')
    draw_recall(IMAGES / 'recall.png')
    for path in sorted(IMAGES.iterdir()):
        size = path.stat().st_size
        print(f'{size / 1000:6.0f} kB  {path.relative_to(ROOT)}')
        if size > LIMIT:
            sys.exit(f'Error: {path} is larger than {LIMIT / 1000:.0f} kB.')


# ------------------------------------------------------------------ the README's


def draw_story(demo: Demo, one: Gesture, path: Path) -> None:
    """Draw three moments of a story, and below it the timelines of all stories.

    Args:
        demo (Demo): The demo.
        one (Gesture): How the story ends.
        path (Path): A .png file, 800 pixels wide at half its size.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.3), dpi=160, facecolor='white')
    verb = one.label.split('_')[0]
    between = (one.taken + one.time) / 2
    # Where the person shows the box once before, in the middle is the time after it.
    between = between + 1 if between == one.taken + 2 else between
    moments = (
        (one.taken, f'takes something {one.item}'),
        (between, 'nothing is to be seen'),
        (one.time, f'{verb}s a closed box'),
    )
    for place, (time, told) in enumerate(moments):
        axis = figure.add_axes([0.005 + 0.335 * place, 0.565, 0.32, 0.385])
        draw_moment(axis, demo, one.person, time)
        axis.set_title(
            f'{clock(time, 0)}  {told}', loc='left', fontsize=11, color=INK, pad=5
        )
    figure.text(0.01, 0.508, 'What is in the box?', fontsize=12.5, weight='bold')
    for x, who, said, score in (
        (0.30, 'with memory', one.said, one.score),
        (0.655, 'without', one.said_alone, one.score_alone),
    ):
        mark, colour = ('✓', RIGHT) if said == one.label else ('✗', WRONG)
        figure.text(x, 0.508, who, fontsize=11, color=FAINT)
        answer = f'{mark} {said.replace("_", " ")}  {score:.2f}'
        style = dict(fontsize=12.5, weight='bold', color=colour)
        figure.text(x + (0.135 if ' ' in who else 0.09), 0.508, answer, **style)
    alone = [prediction.without_memory for prediction in demo.predictions]
    for bottom, told, shown in (
        (0.265, 'with memory', demo.predictions),
        (0.04, 'without memory', alone),
    ):
        axis = figure.add_axes([0.115, bottom, 0.88, 0.17])
        draw_scores(axis, demo.scene, shown)
        axis.plot(one.time, -0.9, 'v', color=HERO, markersize=7, clip_on=False)
        axis.set_title(told, loc='left', fontsize=10, color=INK, pad=4, weight='bold')
        if told == 'with memory':
            legend = 'blue: the score; red frame: what is true; ▾: the moment above'
            axis.set_title(legend, loc='right', fontsize=9, color=FAINT, pad=4)
            axis.tick_params(labelbottom=False)
    figure.savefig(path, dpi=160)
    shrink(path, path)


def draw_moment(axis, demo: Demo, number: int, time: float) -> None:
    """One person of a frame, and whom of them it is about."""
    from matplotlib.patches import Rectangle

    scene = demo.scene
    index, person = round(time * scene.fps), scene.people[number - 1]
    image = cv2.cvtColor(draw_frame(scene, index), cv2.COLOR_BGR2RGB)
    x1, y1, x2, y2 = person_box(scene, person, index) * scene.size
    side = round(0.78 * scene.size)
    # The same section each time: around where they are in the end.
    left = np.clip((x1 + x2) / 2 - side / 2, 0, scene.size - side)
    low = np.clip(person.ground + 0.05 * scene.size, side, scene.size)
    # The camera's noise would be most of the file; people beside them recede.
    image = cv2.fastNlMeansDenoisingColored(image, None, 8, 8)
    rows, columns = (slice(round(a), round(b)) for a, b in ((y1, y2), (x1, x2)))
    faded = cv2.addWeighted(image, 0.55, np.full_like(image, 255), 0.45, 0)
    faded[rows, columns] = image[rows, columns]
    axis.imshow(faded, interpolation='bilinear')
    axis.set(xlim=(left, left + side), ylim=(low, low - side))
    axis.set_axis_off()
    box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=HERO, linewidth=2.5)
    axis.add_patch(box)


def draw_scores(axis, scene, predictions: list) -> None:
    """Scores over time of the classes that need memory, and what is true."""
    from matplotlib.patches import Rectangle

    numbers = [CLASS_IDS[name] for name in MEMORY_CLASSES]
    scores = np.stack([one.scores[:, numbers].max(axis=0) for one in predictions])
    begin = predictions[0].time - 0.5
    end = predictions[-1].time + 0.5
    extent = (begin, end, len(numbers) - 0.5, -0.5)
    axis.imshow(scores.T, cmap='Blues', vmin=0, vmax=1, extent=extent, aspect='auto')
    for row in range(len(numbers)):
        axis.axhline(row + 0.5, color='white', linewidth=1)
    for person in scene.people:
        for event in person.events:
            if event.label in MEMORY_CLASSES:
                place = event.timestamp - TIMESTAMP_START - 0.5
                row = MEMORY_CLASSES.index(event.label) - 0.5
                axis.add_patch(
                    Rectangle((place, row), 1, 1, fill=False, color=WRONG, zorder=3)
                )
    names = [name.replace('_', ' ') for name in MEMORY_CLASSES]
    axis.set_yticks(range(len(names)), labels=names, fontsize=7.5)
    axis.tick_params(length=0)
    ticks = range(5, int(end), 5)
    axis.set_xticks(ticks, labels=[clock(tick, 0) for tick in ticks], fontsize=8)
    for side in axis.spines.values():
        side.set_visible(False)


# ------------------------------------------------------------- what the demo left


def take_frame(video: str, time: float, path: Path) -> None:
    """A frame of a video as it is."""
    capture = cv2.VideoCapture(video)
    count = round(time * capture.get(cv2.CAP_PROP_FPS)) + 1
    for _ in range(count):
        _, image = capture.read()
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 88])


def take_report(page: str, time: float, path: Path) -> None:
    """Photograph a report at a moment of its video, in Chromium."""
    from playwright.sync_api import sync_playwright

    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sys.exit('Error: there is no Chromium to photograph the report: install it.')
    arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        size = dict(width=1280, height=1425)
        opened = browser.new_page(viewport=size)
        opened.goto(Path(page).resolve().as_uri())
        opened.wait_for_selector('body[data-ready]')
        # From the first clip, at one second, on.
        for _ in range(round(time) - 1):
            opened.keyboard.press('ArrowRight')
        opened.wait_for_timeout(500)
        opened.screenshot(path=str(path))
        browser.close()
    shrink(path, path)


# ------------------------------------------------------------------------- curves


def draw_curves(path: Path) -> None:
    """Learning curves of the quickstart's trainings, which are run if missing."""
    runs = [
        ROOT / 'work_dirs' / name for name in ('memvit_demo', 'memvit_demo_no_memory')
    ]
    import plot_demo

    if not all(list(run.glob('*/vis_data/scalars.json')) for run in runs):
        command = [sys.executable, str(ROOT / 'tools' / 'quickstart.py')]
        subprocess.run(command, cwd=ROOT, check=True)
    curves = [plot_demo.read_curve(run) for run in runs]
    plot_demo.draw([plot_demo.run_name(run) for run in runs], curves, path)
    shrink(path, path)


def draw_recall(path: Path) -> None:
    """Recall by delay, of a measurement that was kept; else what is there stays."""
    measured = ROOT / 'work_dirs' / 'recall.json'
    if not measured.is_file():
        print(f'{path.name} stays as it is: there is no {measured.relative_to(ROOT)}.')
        return
    import measure_recall

    measure_recall.draw(json.loads(measured.read_text())['runs'], path)


def shrink(source: Path, path: Path) -> None:
    """Write a picture with 256 colours, which takes a third of the bytes."""
    from PIL import Image

    picture = Image.open(source).convert('RGB')
    colours = Image.Quantize.MEDIANCUT
    picture = picture.quantize(256, colours, kmeans=3, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == '__main__':
    main()
