"""``python -m memvit_mm demo``: a fresh video, predicted with memory and without."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Optional

WEIGHTS = Path(__file__).resolve().parents[1] / 'demo' / 'memvit_demo.pth'
"""Weights of configs/memvit_demo.py, which come with the package."""
CONFIG = 'memvit_demo.py'
SECONDS = 40
# The model sees 48 x 48 pixels; people like to see more than the 96 of its data set.
SIDE = 320


class Demo(NamedTuple):
    """What :func:`make_demo` made."""

    files: dict[str, str]
    """Paths by kind: 'report', 'video' and 'timeline'."""
    scene: Any
    """The :class:`Scene`, the plan of the video that was drawn."""
    predictions: list
    """A :class:`PeoplePrediction` for each second, with ``without_memory``."""


class Gesture(NamedTuple):
    """A closed box is lifted or given, and the model says what it sees."""

    person: int
    """Number of the person, from 1."""
    item: str
    """What is in the box: 'red', 'green', 'blue' or 'yellow'."""
    taken: float
    """When it was taken and last seen, in seconds."""
    time: float
    """When the box is shown, in seconds."""
    label: str
    """The right class, such as 'lift_red'."""
    said: str
    """The class with the highest score of those that need memory, ..."""
    score: float
    """... and that score, with memory; ..."""
    said_alone: str
    """... the same without memory."""
    score_alone: float


def show_demo(
    out_dir: str = 'work_dirs', checkpoint: Optional[str] = None, seed: int = 3
) -> None:
    """Run :func:`make_demo` and print what it left, and what there is to see in it.

    Args:
        out_dir, checkpoint, seed: As of :func:`make_demo`.
    """
    demo = make_demo(out_dir, checkpoint, seed)
    told = dict(
        report='the report, every score over time; open it in a browser',
        video='the video with what the model says; yellow marks: without memory',
        timeline='the timeline, with memory and, below it, without',
    )
    for kind, words in told.items():
        print(f'{demo.files[kind]}  {words}')
    print(f'\n{tell(gestures_of(demo.scene, demo.predictions))}')


def make_demo(
    out_dir: str = 'work_dirs', checkpoint: Optional[str] = None, seed: int = 3
) -> Demo:
    """Draw a video that no training has seen, and predict it with memory and without.

    Where people are is known, as the video is drawn. It is made of the random numbers
    of validation, so whatever the seed it is none of the training videos.

    Args:
        out_dir (str): Where demo.html, demo.mp4 and demo.png go; made if missing.
        checkpoint (str, optional): Weights of configs/memvit_demo.py. Defaults to those
            of the package.
        seed (int): Of the video.

    Raises:
        ModuleNotFoundError: If a part of the OpenMMLab stack is missing.
        ValueError, OSError: If the checkpoint does not fit, or a file cannot be
            written; in one sentence.
    """
    # Says what is missing where the stack is not complete.
    from memvit_mm import models  # noqa: F401, I001
    import torch
    from memvit_mm.apis import (
        ComparingPredictor,
        Look,
        Outputs,
        VideoStream,
        annotate_video,
        init_detector_model,
    )
    from memvit_mm.demo import DemoSettings
    from memvit_mm.demo.ava_scene import CLASS_IDS, draw_frame
    from memvit_mm.demo.files import VideoJob, write_video

    # Several would only wait for each other: the model is too small for them.
    torch.set_num_threads(1)
    settings = DemoSettings(
        num_train=1, num_val=1, seconds=SECONDS, size=SIDE, seed=seed
    )
    (scene,) = settings.scenes('val')
    out = Path(out_dir).expanduser()
    outputs = Outputs(
        video=str(out / 'demo.mp4'),
        timeline=str(out / 'demo.png'),
        report=str(out / 'demo.html'),
    )
    outputs.check()
    model = init_detector_model(CONFIG, str(checkpoint or WEIGHTS))
    labels = {number: name for name, number in CLASS_IDS.items()}
    predictor = ComparingPredictor(model, boxes=people_of(scene), labels=labels)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f'demo_{seed}.mp4'
        write_video(VideoJob(scene, draw_frame, source))
        about = dict(config=CONFIG, checkpoint=(checkpoint or WEIGHTS.name))
        made = annotate_video(
            VideoStream(predictor), str(source), outputs, Look(top=2), about=about
        )
    return Demo(made.files, scene, made.predictions)


def people_of(scene: Any):
    """A function that says where the people of a drawn scene are, and who is who.

    Args:
        scene (Scene): The plan of the video.

    Returns:
        callable: For ``boxes`` of :class:`VideoStream`.
    """
    import numpy as np

    from memvit_mm.apis import PersonBoxes
    from memvit_mm.demo.ava_scene import person_box

    def find(image, time):
        index = round(time * scene.fps)
        boxes = np.stack([person_box(scene, one, index) for one in scene.people])
        numbers = np.arange(1, len(boxes) + 1)
        size = np.tile(image.shape[1::-1], 2)
        return PersonBoxes(np.float32(boxes * size), np.ones(len(boxes)), numbers)

    return find


def gestures_of(scene: Any, predictions: list) -> list[Gesture]:
    """What the model says about each closed box, in order of time.

    Args:
        scene (Scene): The plan of the video.
        predictions (list[PeoplePrediction]): One for each second, of the people that
            :func:`people_of` finds, with ``without_memory``.
    """
    from memvit_mm.demo.ava_scene import CLASS_IDS, MEMORY_CLASSES, TIMESTAMP_START

    by_time = {round(one.time): one for one in predictions}
    gestures = []

    def best(prediction, row):
        scores = {
            name: prediction.scores[row, CLASS_IDS[name]] for name in MEMORY_CLASSES
        }
        name = max(scores, key=scores.get)
        return name, float(scores[name])

    for number, person in enumerate(scene.people, 1):
        taken = None
        for event in person.events:
            time = event.timestamp - TIMESTAMP_START
            if event.kind == 'take':
                taken = time
                continue
            prediction = by_time[time]
            (row,) = (prediction.track_ids == number).nonzero()[0]
            said = *best(prediction, row), *best(prediction.without_memory, row)
            gestures.append(
                Gesture(number, event.item, taken, time, event.label, *said)
            )
    return sorted(gestures, key=lambda one: (one.time, one.person))


def most_telling(gestures: list[Gesture]) -> Gesture:
    """The one where memory made most of a difference, after the longer delay."""

    def key(one):
        gain = (one.said == one.label) - (one.said_alone == one.label)
        return gain, one.time - one.taken, one.score

    return max(gestures, key=key)


def tell(gestures: list[Gesture]) -> str:
    """The video's most telling moment, and how often the model was right, in words."""
    from memvit_mm.apis.visualization.draw_text import clock

    one = most_telling(gestures)
    known = sum(g.said == g.label for g in gestures)
    alone = sum(g.said_alone == g.label for g in gestures)
    verb = one.label.split('_')[0]
    return (
        f'What to look at: at {clock(one.taken, 0)} person {one.person} takes '
        f'something {one.item}. At {clock(one.time, 0)} they {verb} the closed white '
        f'box that holds it: with memory the model says {one.said} '
        f'({one.score:.2f}), without memory {one.said_alone} ({one.score_alone:.2f}).\n'
        f'Of {len(gestures)} closed boxes in this video, it knows the content of '
        f'{known} with memory and of {alone} without; the box looks the same whatever '
        'is in it.'
    )
