"""The made-up scenes of the demo data: who does what and when, and its pixels.

Every person repeats one story. They **take** an object (red ball, green square, blue
triangle or yellow diamond), hide it in a closed white box, and two and four seconds
later **lift** that box over their head and **give** it, in either order. What is in
the box was to be seen when it was taken and at no other time: the pixels of
``lift_red`` and ``lift_blue`` are the same. Who cannot remember cannot tell.

With :class:`DelayedDemoSettings` a story has one gesture, either of the two, and it
comes up to half a minute after the object was last seen.

A scene is planned first (plain numbers, no pixels) and drawn from the plan one frame
at a time; a frame depends on the plan and its index alone. Randomness that draws
pixels or boxes never sees which object was taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .draw import circle, line, muted, rectangle, shape
from .plan import MIN_FPS, SPLITS, Plan, Settings

OBJECTS = ('red', 'green', 'blue', 'yellow')
# Class names in the order of their ids, which start at 1 as in AVA.
CLASSES = (
    'stand',
    'walk',
    *(f'take_{name}' for name in OBJECTS),
    *(f'lift_{name}' for name in OBJECTS),
    *(f'give_{name}' for name in OBJECTS),
)
CLASS_IDS = {name: index for index, name in enumerate(CLASSES, start=1)}
# Classes that no clip model can tell apart.
MEMORY_CLASSES = tuple(name for name in CLASSES if name[:5] in ('lift_', 'give_'))

# Seconds of AVA's clock at a video's first frame.
TIMESTAMP_START = 900
# Keyframes keep this distance (seconds) from both ends of a video, as in AVA.
MARGIN = 2
# Seconds from taking to lifting and giving. Two clips and four clips of a memory with
# gap 2, length 2 and a clip each second: what it attends to directly.
DELAYS = (2, 4)
# Seconds for which an object is taken and a box is shown in delayed scenes.
LASTS = 3
# An event is seen this many seconds before and after its keyframe.
EVENT_REACH = 0.4
# Seconds from a story to the person's next one; one is drawn each time.
PAUSES = (3, 4, 5)

_OBJECT_BGR = {
    'red': (40, 30, 225),
    'green': (50, 185, 30),
    'blue': (235, 80, 25),
    'yellow': (20, 215, 245),
}
# In units of the object's radius; the red one is a circle.
_OBJECT_CORNERS = {
    'green': ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    'blue': ((0, -1.1), (1.1, 0.9), (-1.1, 0.9)),
    'yellow': ((0, -1.2), (1.1, 0), (0, 1.2), (-1.1, 0)),
}
# Muted, so that none is taken for an object: charcoal, brown, purple, teal, pink,
# grey, olive, sand.
_SHIRTS = (
    (70, 62, 60),
    (52, 80, 118),
    (135, 62, 112),
    (122, 118, 48),
    (172, 140, 205),
    (140, 138, 136),
    (58, 110, 104),
    (142, 172, 188),
)
_TROUSERS = ((48, 44, 40), (84, 66, 58), (54, 66, 82), (92, 88, 86))
_SKINS = ((178, 200, 235), (132, 164, 208), (92, 124, 172), (60, 84, 124))
_WHITE = (248, 248, 248)
_OUTLINE = (30, 30, 30)


@dataclass(frozen=True)
class DemoSettings(Settings):
    """What :func:`make_demo_dataset` draws.

    Args:
        num_train (int): Training videos. Defaults to 28.
        num_val (int): Validation videos. Defaults to 12.
        seconds (int): Length of each video. Defaults to 64.
        fps (int): Frames per second, 12 or more: OpenCV's mp4 writer codes every
            12th frame by itself, and the frames between as changes, in which a faint
            trace of what was shown stays. The trace must be gone before the box is
            lifted, or the object could be seen after all. Defaults to 12.
        size (int): Width and height of the videos in pixels. Defaults to 96.
        people (int): People in each video, 1 to 4. Defaults to 3.
        seed (int): Everything follows from it. Defaults to 0.

    Raises:
        ValueError: If a setting is out of its range.

    Examples:
        >>> from memvit_mm.demo.ava import DemoSettings
        >>> DemoSettings(num_train=2, num_val=1).seconds
        64
    """

    num_train: int = 28
    num_val: int = 12
    seconds: int = 64
    fps: int = 12
    size: int = 96
    people: int = 3
    seed: int = 0

    format = 'ava'
    limits = {
        'num_train': (1, 1000),
        'num_val': (1, 1000),
        'seconds': (2 * MARGIN + PAUSES[-1] + 2 * max(DELAYS), 899),
        'fps': (MIN_FPS, 60),
        'size': (48, 1024),
        'people': (1, 4),
        'seed': (0, 2**32 - 1),
    }

    def scenes(self, split: str) -> list['Scene']:
        """The plans of a split's videos."""
        return plan_scenes(self, split)

    @property
    def delays(self) -> tuple[int, ...]:
        """Seconds from the end of taking to the start of a gesture: all that occur."""
        return DELAYS

    def story(self, video: int) -> 'Story':
        """What each person of a video repeats; ``video`` is its number in the split."""
        return Story(taking=(0,), gestures=DELAYS, mixed=True, length=max(DELAYS))

    @property
    def meta(self) -> dict:
        """What readers of ``meta.json`` want to know."""
        memory = [CLASS_IDS[name] for name in MEMORY_CLASSES]
        return {
            'num_classes': len(CLASSES) + 1,
            'classes': CLASS_IDS,
            'seen_in_the_clip': [i for i in CLASS_IDS.values() if i not in memory],
            'need_memory': memory,
            'fps': self.fps,
            'timestamp_start': TIMESTAMP_START,
            'timestamp_end': TIMESTAMP_START + self.seconds,
            'first_keyframe': TIMESTAMP_START + MARGIN,
            'last_keyframe': TIMESTAMP_START + self.seconds - MARGIN,
            'seconds_from_take_to_lift_and_give': list(self.delays),
            'seconds_shown_around_keyframe': EVENT_REACH,
        }


@dataclass(frozen=True)
class DelayedDemoSettings(DemoSettings):
    """The same scenes, in which what was taken is asked for much later.

    A story is: take an object for three seconds, hide it, and ``d`` seconds later lift
    the box or give it, one of the two, for three seconds. ``d`` is the same all along a
    video; the videos take turns with 2, 4, 8, ... and ``delay`` seconds, so that
    results can be told by delay. The three seconds of a gesture are three questions;
    the first comes ``d`` seconds after the object was last seen, the last ``d + 2``.
    When a gesture begins, nothing else was taken for longer than ``delay + 2`` seconds;
    the box of the person's earlier story may have been shown since.

    Args:
        num_train (int): Training videos. Defaults to 80.
        num_val (int): Validation videos, at least one for each ``d``. Defaults to 40.
        seconds (int): Length of each video. Defaults to 120.
        people (int): People in each video, 1 to 4. Defaults to 1: with more it is also
            asked who took what, which these few videos teach less well.
        delay (int): The longest ``d``, 4 to 60. Defaults to 30.
        Others: as in :class:`DemoSettings`.

    Raises:
        ValueError: If a setting is out of its range.

    Examples:
        >>> DelayedDemoSettings(delay=30).delays
        (2, 4, 8, 16, 30)
    """

    num_train: int = 80
    num_val: int = 40
    seconds: int = 120
    people: int = 1
    delay: int = 30

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        # Whoever starts latest gets to the end of one story.
        least = 2 * MARGIN + PAUSES[-1] + 2 * (self.delay + 2 * LASTS - 2)
        return {
            'delay': (4, 60),
            **DemoSettings.limits,
            'num_val': (len(self.delays), 1000),
            'seconds': (least, 899),
        }

    @property
    def delays(self) -> tuple[int, ...]:
        doubled = [2]
        while 2 * doubled[-1] < self.delay:
            doubled.append(2 * doubled[-1])
        return (*doubled, self.delay)

    def story(self, video: int) -> 'Story':
        delay = self.delays[video % len(self.delays)]
        gestures = range(LASTS - 1 + delay, 2 * LASTS - 1 + delay)
        length = max(gestures[-1], self.delay - delay)
        return Story(range(LASTS), gestures, mixed=False, length=length)


@dataclass(frozen=True)
class Story:
    """What a person does again and again; times are in seconds from its start.

    Attributes:
        taking (Sequence[int]): When the object is seen.
        gestures (Sequence[int]): When the box is.
        mixed (bool): Whether the gestures are 'lift' and 'give' in turn, beginning with
            either; else all are the same.
        length (int): The pause before the next story begins then.
    """

    taking: Sequence[int]
    gestures: Sequence[int]
    mixed: bool
    length: int


@dataclass(frozen=True)
class Event:
    """Something a person does around one keyframe.

    Attributes:
        timestamp (int): The keyframe, in AVA's seconds.
        kind (str): 'take', 'lift' or 'give'.
        item (str): The object that is taken, or that is in the box.
    """

    timestamp: int
    kind: str
    item: str

    @property
    def label(self) -> str:
        return f'{self.kind}_{self.item}'


@dataclass(frozen=True)
class Person:
    """One person of a scene.

    Attributes:
        x (np.ndarray): Horizontal position at every frame, in pixels.
        phase (np.ndarray): How far the legs have swung at every frame, in radians.
        walking (np.ndarray): Whether they walk, at every frame.
        ground (float): Vertical position of the feet, in pixels.
        unit (float): Pixels per unit of the figure, which is 55 units tall.
        shirt, trousers, skin (tuple): BGR colours, the same all along the video.
        hat (bool): Whether they wear a hat.
        events (tuple[Event]): What they do, in order of time.
    """

    x: np.ndarray
    phase: np.ndarray
    walking: np.ndarray
    ground: float
    unit: float
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    skin: tuple[int, int, int]
    hat: bool
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Scene(Plan):
    """The plan of one video.

    Attributes:
        video_id (str): Its name; 11 characters, as AVA's.
        people (tuple[Person]): From left to right.
        Others: as in :class:`Plan`.
    """

    people: tuple[Person, ...]

    @property
    def keyframes(self) -> range:
        """Every second from 902 on, until two seconds before the end."""
        end = TIMESTAMP_START + self.seconds - MARGIN
        return range(TIMESTAMP_START + MARGIN, end + 1)

    def frame_of(self, timestamp: float) -> int:
        """Index of the frame at a time in AVA's seconds."""
        return round((timestamp - TIMESTAMP_START) * self.fps)


def event_frames(scene: Scene, event: Event) -> range:
    """Indices of the frames that show an event."""
    centre, reach = scene.frame_of(event.timestamp), int(EVENT_REACH * scene.fps)
    return range(centre - reach, centre + reach + 1)


def person_labels(scene: Scene, person: Person, timestamp: int) -> list[str]:
    """Class names of what a person does at a keyframe: 'stand' or 'walk' always."""
    labels = ['walk' if person.walking[scene.frame_of(timestamp)] else 'stand']
    labels += [e.label for e in person.events if e.timestamp == timestamp]
    return labels


def plan_scenes(settings: DemoSettings, split: str) -> list[Scene]:
    """Plan all videos of a split, each object being taken equally often.

    Args:
        settings (DemoSettings): Of the data set; splits draw disjoint random numbers
            from its seed.
        split (str): 'train' or 'val'.
    """
    base = (settings.seed, SPLITS.index(split))
    count = settings.count(split)
    starts = []
    for index in range(count):
        rng = np.random.default_rng([*base, index, 0])
        people, story = range(settings.people), settings.story(index)
        starts.append([_plan_starts(rng, settings.seconds, story) for _ in people])
    total = sum(len(times) for people in starts for times in people)
    items = [OBJECTS[i % len(OBJECTS)] for i in range(total)]
    np.random.default_rng([*base, count, 1]).shuffle(items)
    deck = iter(items)
    scenes = []
    for index in range(count):
        name = f'demo_{split[:2]}_{index:03d}'
        video = (name, (*base, index), settings.seconds, settings.fps, settings.size)
        people = _plan_people(Plan(*video), starts[index], deck, settings.story(index))
        scenes.append(Scene(*video, people))
    return scenes


def _plan_starts(rng: np.random.Generator, seconds: int, story: Story) -> list[int]:
    """Timestamps at which one person takes something."""
    last = TIMESTAMP_START + seconds - MARGIN - story.gestures[-1]
    longest = story.length + PAUSES[-1]
    times = [TIMESTAMP_START + MARGIN + int(rng.integers(0, longest))]
    while times[-1] + longest <= last:
        times.append(times[-1] + story.length + int(rng.choice(PAUSES)))
    return [time for time in times if time <= last]


def _plan_people(
    video: Plan, starts: list[list[int]], deck: Iterator[str], story: Story
) -> tuple[Person, ...]:
    rng, size, num_people = video.random(2), video.size, len(starts)
    shirts = rng.permutation(len(_SHIRTS))
    trousers = rng.permutation(len(_TROUSERS))
    room = size / num_people
    people = []
    for index, times in enumerate(starts):
        unit = size / 96 * rng.uniform(0.92, 1.04) * min(1, 3 / num_people)
        home = room * (index + 0.5) + rng.uniform(-0.06, 0.06) * room
        x, phase, walking = _plan_walk(rng, home, 0.15 * room, unit, video)
        events = []
        for time in times:
            item, kinds = next(deck), rng.permutation(['lift', 'give'])
            for second in story.taking:
                events.append(Event(time + second, 'take', item))
            for number, second in enumerate(story.gestures):
                kind = kinds[number % 2 if story.mixed else 0]
                events.append(Event(time + second, str(kind), item))
        people.append(
            Person(
                x=x,
                phase=phase,
                walking=walking,
                ground=size * rng.uniform(0.9, 0.96),
                unit=unit,
                shirt=_SHIRTS[shirts[index]],
                trousers=_TROUSERS[trousers[index]],
                skin=_SKINS[rng.integers(len(_SKINS))],
                hat=bool(rng.random() < 0.5),
                events=tuple(events),
            )
        )
    return tuple(people)


def _plan_walk(
    rng: np.random.Generator, home: float, reach: float, unit: float, video: Plan
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bouts of walking to and fro around ``home``, and of standing still."""
    fps, num_frames = video.fps, video.num_frames
    x, walking = np.empty(num_frames), np.zeros(num_frames, dtype=bool)
    # Bouts change half-way between keyframes, so that a clip of one second around a
    # keyframe shows one of the two.
    frame, walks = 0, bool(rng.random() < 0.5)
    while frame < num_frames:
        end = frame + int(rng.integers(3, 7)) * fps + (fps // 2 if frame == 0 else 0)
        walking[frame:end] = walks
        frame, walks = end, not walks
    at, towards = home + rng.uniform(-reach, reach), rng.choice([-1.0, 1.0])
    for frame in range(num_frames):
        x[frame] = at
        if walking[frame]:
            at += towards * 3.0 * unit / fps
            if abs(at - home) > reach:
                towards = -np.sign(at - home)
    return x, np.cumsum(walking) * (2 * np.pi * 1.5 / fps), walking


# --------------------------------------------------------------------- drawing


def draw_frame(scene: Scene, index: int) -> np.ndarray:
    """Draw one frame.

    Args:
        scene (Scene): The plan.
        index (int): The frame, from 0.

    Returns:
        np.ndarray: ``[size, size, 3]`` uint8, BGR as OpenCV has it.
    """
    image = _background(scene.seed, scene.size).copy()
    _draw_distractors(image, scene, index)
    for person in scene.people:
        _draw_person(image, person, index, _current_event(scene, person, index))
    return scene.film(image, index)


def person_box(scene: Scene, person: Person, index: int) -> np.ndarray:
    """A person's box at a frame, arms and what they hold included.

    Returns:
        np.ndarray: ``[4]``: x1, y1, x2, y2 in [0, 1].
    """
    event = _current_event(scene, person, index)
    top = 72 if event is not None and event.kind == 'lift' else 58
    x, ground, unit = person.x[index], person.ground, person.unit
    box = (x - 11 * unit, ground - top * unit, x + 11 * unit, ground + 2 * unit)
    return np.clip(np.array(box) / scene.size, 0, 1)


def _current_event(scene: Scene, person: Person, index: int):
    for event in person.events:
        if index in event_frames(scene, event):
            return event
    return None


@lru_cache(maxsize=4)
def _background(seed: Sequence[int], size: int) -> np.ndarray:
    """A wall, a floor and what stands about, all of it muted."""
    rng = np.random.default_rng([*seed, 5])
    image = np.empty((size, size, 3), np.uint8)
    wall, floor = rng.uniform(105, 165, 3), rng.uniform(75, 120, 3)
    wall, floor = (0.3 * c + 0.7 * c.mean() for c in (wall, floor))
    horizon = int(size * rng.uniform(0.68, 0.78))
    image[:horizon], image[horizon:] = wall, floor
    for _ in range(7):  # pictures, windows, boxes
        colour = muted(rng, 60, 190)
        x, y = rng.uniform(0, size), rng.uniform(0, horizon)
        w, h = rng.uniform(0.06, 0.16, 2) * size
        if rng.random() < 0.5:
            rectangle(image, x - w, y - h, x + w, y + h, colour)
        else:
            circle(image, x, y, w, colour)
    return cv2.GaussianBlur(image, (0, 0), size / 160)


def _draw_distractors(image: np.ndarray, scene: Scene, index: int) -> None:
    """A cart, a bouncing ball and a bird pass behind the people."""
    size, seconds, u = scene.size, index / scene.fps, scene.size / 96
    rng = scene.random(6)
    for kind in ('cart', 'ball', 'bird'):
        colour = muted(rng, 50, 200)
        start, speed = rng.uniform(0, 1.4), rng.uniform(0.06, 0.16)
        x = ((start + speed * rng.choice([-1, 1]) * seconds) % 1.4 - 0.2) * size
        ground, sky = rng.uniform(0.78, 0.86) * size, rng.uniform(0.06, 0.2) * size
        if kind == 'cart':
            rectangle(image, x - 8 * u, ground - 7 * u, x + 8 * u, ground, colour)
            for wheel in (-5, 5):
                circle(image, x + wheel * u, ground + u, 2.5 * u, _OUTLINE)
        elif kind == 'ball':
            height = abs(np.sin(seconds * 3)) * 26 * u
            circle(image, x, ground - height, 4 * u, colour)
        else:
            flap = np.sin(seconds * 9) * 3 * u
            for side in (-1, 1):
                tip = (x + side * 5 * u, sky - flap)
                line(image, (x, sky), tip, colour, 2 * u)


def _draw_person(image, person: Person, index: int, event) -> None:
    x, ground, u = person.x[index], person.ground, person.unit

    def at(dx, up):
        return x + dx * u, ground - up * u

    swing = np.sin(person.phase[index]) * 7 if person.walking[index] else 2.0
    hip, neck = at(0, 23), at(0, 43)
    for foot in (swing, -swing):
        line(image, hip, at(foot, 1), person.trousers, 4.5 * u)
    if event is None:
        sway = swing * 0.5 if person.walking[index] else 0
        hands = at(-8 + sway, 25), at(8 + sway, 25)
    elif event.kind == 'lift':
        hands = at(-6, 62), at(6, 62)
    else:
        hands = at(-7, 32), at(7, 32)
    shoulders = at(-5, 41), at(5, 41)
    line(image, hip, neck, person.shirt, 11 * u)
    for shoulder, hand in zip(shoulders, hands):
        line(image, shoulder, hand, person.shirt, 4 * u)
    circle(image, *at(0, 49), 6 * u, person.skin)
    if person.hat:
        rectangle(image, *at(-6, 57), *at(6, 52.5), person.trousers)
    if event is None:
        pass
    elif event.kind == 'take':
        corners, colour = _OBJECT_CORNERS.get(event.item), _OBJECT_BGR[event.item]
        shape(image, *at(0, 33), 7.5 * u, corners, colour)
    else:
        _draw_box(image, *at(0, 65 if event.kind == 'lift' else 33), u)
    for hand in hands:
        circle(image, *hand, 2.4 * u, person.skin)


def _draw_box(image, x, y, u) -> None:
    """The closed white box, whatever is in it."""
    rectangle(image, x - 9 * u, y - 6.5 * u, x + 9 * u, y + 6.5 * u, _OUTLINE)
    rectangle(image, x - 8 * u, y - 5.5 * u, x + 8 * u, y + 5.5 * u, _WHITE)
    line(image, (x, y - 5.5 * u), (x, y + 5.5 * u), (150, 150, 150), 1.5 * u)
