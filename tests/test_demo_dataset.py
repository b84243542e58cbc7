"""The demo data: AVA's formats, and a story that no clip tells by itself."""

import csv
import errno
import hashlib
import importlib.util
import json
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from memvit_mm.demo import ava_scene as demo_scene
from memvit_mm.demo.ava import (
    DelayedDemoSettings,
    DemoSettings,
    annotation_rows,
    make_demo_dataset,
    make_proposals,
)
from memvit_mm.demo.ava_scene import (
    CLASS_IDS,
    DELAYS,
    MEMORY_CLASSES,
    OBJECTS,
    draw_frame,
    event_frames,
    person_box,
)
from memvit_mm.demo.files import VideoJob, read_meta, write_video
from memvit_mm.demo.preview import draw_preview
from memvit_mm.paths import get_tool_path

TINY = DemoSettings(num_train=2, num_val=1, seconds=20, size=64, people=2)
TOOL = Path(get_tool_path('data/make_demo_dataset.py'))
# Half a clip of 8 frames at every second frame and 12 fps, with frame jitter, is
# 0.75 s; nothing of the cue may be seen within this many seconds of a gesture.
CLEAR_SECONDS = 1.5


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'set'
    assert make_demo_dataset(out, TINY, rawframes=True, workers=1)
    return out


def rows_of(out, split):
    with open(out / 'annotations' / f'{split}.csv', newline='') as file:
        return list(csv.reader(file))


def take_other_objects(scene, shift=1):
    """The same scene, only that everybody takes another object each time."""
    people = []
    for person in scene.people:
        events = tuple(
            replace(e, item=OBJECTS[(OBJECTS.index(e.item) + shift) % len(OBJECTS)])
            for e in person.events
        )
        people.append(replace(person, events=events))
    return replace(scene, people=tuple(people))


def cue_frames(scene):
    return {
        frame
        for person in scene.people
        for event in person.events
        if event.kind == 'take'
        for frame in event_frames(scene, event)
    }


# ---------------------------------------------------------------------- formats


def test_mmaction2_reads_it(tiny):
    from mmaction.datasets import AVADataset
    from mmaction.evaluation import read_labelmap

    folder = tiny / 'annotations'
    with open(folder / 'action_list.pbtxt') as file:
        names, ids = read_labelmap(file)
    assert {item['name']: item['id'] for item in names} == CLASS_IDS
    assert ids == set(range(1, 15))

    common = dict(
        pipeline=[],
        label_file=str(folder / 'action_list.pbtxt'),
        num_classes=len(CLASS_IDS) + 1,
        fps=TINY.fps,
        timestamp_end=900 + TINY.seconds,
        use_frames=False,
        data_prefix=dict(img=str(tiny / 'videos')),
    )
    train = AVADataset(
        ann_file=str(folder / 'train.csv'),
        proposal_file=str(folder / 'proposals_train.pkl'),
        **common,
    )
    val = AVADataset(
        ann_file=str(folder / 'val.csv'),
        exclude_file=str(folder / 'excluded_val.csv'),
        proposal_file=str(folder / 'proposals_val.pkl'),
        test_mode=True,
        **common,
    )
    keyframes = TINY.seconds - 3  # 902 to 900 + seconds - 2
    assert len(train) == TINY.num_train * keyframes
    assert len(val) == keyframes - 1  # one is excluded
    for dataset in (train, val):
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            assert info['gt_bboxes'].shape == (TINY.people, 4)
            assert info['gt_labels'].any(axis=1).all()
            assert not info['gt_labels'][:, 0].any()
            assert len(info['proposals']) and info['scores'].min() >= 0.9


def test_a_keyframe_is_the_frame_at_its_timestamp(tiny):
    decord = pytest.importorskip('decord')
    scene = TINY.scenes('train')[0]
    reader = decord.VideoReader(str(tiny / 'videos' / f'{scene.video_id}.mp4'))
    assert len(reader) == TINY.seconds * TINY.fps
    assert reader.get_avg_fps() == TINY.fps
    person = scene.people[0]
    for event in person.events:
        image = reader[(event.timestamp - 900) * TINY.fps].asnumpy()
        index = scene.frame_of(event.timestamp)
        drawn = draw_frame(scene, index)[..., ::-1]
        assert np.abs(image.astype(int) - drawn).mean() < 6
        if event.kind == 'take':
            # The object's colour survives the codec: it is still nearest to its own.
            x, y = person.x[index], person.ground - 33 * person.unit
            seen = image[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
            seen = seen.mean((0, 1))[::-1]
            colours = {
                name: np.abs(seen - bgr).sum()
                for name, bgr in demo_scene._OBJECT_BGR.items()
            }
            assert min(colours, key=colours.get) == event.item


def test_rawframes_are_numbered_as_in_ava(tiny):
    folder = tiny / 'rawframes' / 'demo_va_000'
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == 'img_00001.jpg'
    assert len(names) == TINY.seconds * TINY.fps
    assert names[-1] == f'img_{len(names):05d}.jpg'
    image = cv2.imread(str(folder / 'img_00025.jpg'))
    drawn = draw_frame(TINY.scenes('val')[0], 24)
    assert np.abs(image.astype(int) - drawn).mean() < 6


def test_csv_has_the_official_columns(tiny):
    for row in rows_of(tiny, 'train') + rows_of(tiny, 'val'):
        assert len(row) == 8
        assert len(row[1]) == 4 and 902 <= int(row[1]) <= 900 + TINY.seconds - 2
        x1, y1, x2, y2 = map(float, row[2:6])
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        assert 1 <= int(row[6]) <= 14
        assert 0 <= int(row[7]) < TINY.people
    excluded = (tiny / 'annotations' / 'excluded_val.csv').read_text()
    assert excluded == 'demo_va_000,0918\n'


def test_meta_tells_what_needs_memory(tiny):
    meta = json.loads((tiny / 'meta.json').read_text())
    names = {number: name for name, number in meta['classes'].items()}
    assert tuple(names[number] for number in meta['need_memory']) == MEMORY_CLASSES
    assert {names[n] for n in meta['seen_in_the_clip']} == {
        'stand',
        'walk',
        *(f'take_{item}' for item in OBJECTS),
    }
    assert meta['num_classes'] == 15
    assert meta['fps'] == 12 and meta['timestamp_start'] == 900


def test_proposals_have_jitter_misses_and_false_positives():
    settings = DemoSettings()
    kinds = Counter()
    for scene in settings.scenes('val'):
        proposals = make_proposals(scene)
        assert list(proposals) == [f'{scene.video_id},{t:04d}' for t in scene.keyframes]
        for timestamp, found in zip(scene.keyframes, proposals.values()):
            assert found.dtype == np.float32 and found.shape[1] == 5
            assert found.min() >= 0 and found.max() <= 1
            assert (found[:, :2] < found[:, 2:4]).all()
            sure = found[found[:, 4] >= 0.9]
            true, hits = 0, 0
            for person in scene.people:
                box = person_box(scene, person, scene.frame_of(timestamp))
                overlap = iou(box, sure)
                hits += bool(overlap.max(initial=0) > 0.6)
                true += int((overlap > 0.6).sum())
                kinds['exact'] += bool(overlap.max(initial=0) > 0.9999)
            assert hits >= 1
            kinds['people'] += len(scene.people)
            kinds['hits'] += hits
            kinds['false and sure'] += len(sure) - true
            kinds['unsure'] += len(found) - len(sure)
    assert 0.93 < kinds['hits'] / kinds['people'] < 0.99
    assert kinds['exact'] == 0
    assert kinds['false and sure'] > 10
    assert kinds['unsure'] > 100


def iou(box, others):
    corner = np.maximum(box[:2], others[:, :2])
    inner = np.clip(np.minimum(box[2:], others[:, 2:4]) - corner, 0, None).prod(1)
    areas = (others[:, 2:4] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return inner / (areas - inner)


# -------------------------------------------------------------------- the story


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_no_clip_of_a_gesture_shows_its_cue(seed):
    settings = DemoSettings(seed=seed)
    for split in ('train', 'val'):
        for scene in settings.scenes(split):
            clear = round(CLEAR_SECONDS * scene.fps)
            for person in scene.people:
                shown = {
                    frame
                    for event in person.events
                    if event.kind == 'take'
                    for frame in event_frames(scene, event)
                }
                for event in person.events:
                    if event.kind != 'take':
                        centre = scene.frame_of(event.timestamp)
                        clip = range(centre - clear, centre + clear + 1)
                        assert shown.isdisjoint(clip)


def test_every_gesture_is_within_the_direct_reach_of_its_cue():
    for scene in DemoSettings().scenes('train'):
        for person in scene.people:
            by_time = {event.timestamp: event for event in person.events}
            assert len(by_time) == len(person.events)
            for event in person.events:
                assert event.timestamp in scene.keyframes
                if event.kind == 'take':
                    later = [by_time[event.timestamp + delay] for delay in DELAYS]
                    assert {e.kind for e in later} == {'lift', 'give'}
                    assert {e.item for e in later} == {event.item}


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_labels_are_balanced(seed):
    settings = DemoSettings(seed=seed)
    for split in ('train', 'val'):
        counts, delays = Counter(), Counter()
        for scene in settings.scenes(split):
            for person in scene.people:
                counts.update(event.label for event in person.events)
                events = person.events
                for take, first in zip(events[::3], events[1::3]):
                    delays[take.item, first.kind] += 1
                walking = np.mean(person.walking[:: scene.fps])
                counts['walk'] += walking
                counts['people'] += 1
        of_objects = [counts[f'take_{item}'] for item in OBJECTS]
        assert max(of_objects) - min(of_objects) <= 1
        assert min(of_objects) > (100 if split == 'train' else 40)
        for kind in ('lift', 'give'):
            assert [counts[f'{kind}_{item}'] for item in OBJECTS] == of_objects
        assert 0.35 < counts['walk'] / counts['people'] < 0.65
        for item in OBJECTS:  # which comes first says nothing about the object
            both = delays[item, 'lift'] + delays[item, 'give']
            assert 0.3 < delays[item, 'lift'] / both < 0.7


def test_pixels_outside_the_cue_do_not_depend_on_the_object():
    scene = TINY.scenes('train')[0]
    other, shown = take_other_objects(scene), cue_frames(scene)
    for index in range(scene.num_frames):
        same = np.array_equal(draw_frame(scene, index), draw_frame(other, index))
        assert same == (index not in shown)
    for index in range(0, scene.num_frames, scene.fps):
        for one, two in zip(scene.people, other.people):
            assert np.array_equal(
                person_box(scene, one, index), person_box(other, two, index)
            )
    for one, two in zip(make_proposals(scene).values(), make_proposals(other).values()):
        assert np.array_equal(one, two)


def test_the_codec_leaves_no_trace_of_the_cue(tmp_path):
    """mp4 codes most frames as changes; what is left of a cue must be gone in time."""
    scene = replace(DemoSettings(num_train=1).scenes('train')[0])
    videos = []
    for shift in range(3):
        changed = take_other_objects(scene, shift)
        # One person's cues at a time: others' are seen in the same frames.
        people = (changed.people[0], *scene.people[1:])
        changed = replace(changed, people=people, video_id=f'shift_{shift}')
        path = tmp_path / 'videos' / f'shift_{shift}.mp4'
        write_video(VideoJob(changed, draw_frame, path))
        reader = cv2.VideoCapture(str(path))
        videos.append([reader.read()[1] for _ in range(scene.num_frames)])
    clear = round(0.75 * scene.fps)
    for event in scene.people[0].events:
        centre = scene.frame_of(event.timestamp)
        for index in range(centre - clear, min(centre + clear, scene.num_frames)):
            same = [np.array_equal(videos[0][index], v[index]) for v in videos[1:]]
            if event.kind == 'take':
                if index == centre:
                    assert not any(same)
            else:
                assert all(same)


def test_people_are_told_apart_by_their_clothes_alone():
    for scene in DemoSettings(people=4).scenes('train'):
        assert len({person.shirt for person in scene.people}) == 4
    muted = np.array(demo_scene._SHIRTS)
    for bgr in demo_scene._OBJECT_BGR.values():
        assert np.abs(muted - bgr).sum(1).min() > 100


def test_the_same_seed_gives_the_same_data(tiny, tmp_path):
    # Two processes or one, with frames or without: the same files.
    make_demo_dataset(tmp_path / 'again', TINY, workers=2)
    for path in sorted((tmp_path / 'again').rglob('*')):
        if path.is_file() and path.name != 'meta.json':
            twin = tiny / path.relative_to(tmp_path / 'again')
            assert digest(path) == digest(twin), path.name


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_splits_and_seeds_differ():
    one = DemoSettings(num_train=1, num_val=1)
    scenes = [
        one.scenes('train')[0],
        one.scenes('val')[0],
        replace(one, seed=1).scenes('train')[0],
    ]
    plans = {str([event for p in s.people for event in p.events]) for s in scenes}
    pictures = {draw_frame(scene, 0).tobytes() for scene in scenes}
    assert len(plans) == len(pictures) == 3


# ------------------------------------------------------------------ long delays


def stories(scene):
    """Each person's stories: three seconds of a cue, three of a gesture."""
    for person in scene.people:
        events = person.events
        assert events and len(events) % 6 == 0
        yield [
            (events[i : i + 3], events[i + 3 : i + 6]) for i in range(0, len(events), 6)
        ]


@pytest.mark.parametrize(
    'delay, delays',
    [(4, (2, 4)), (5, (2, 4, 5)), (30, (2, 4, 8, 16, 30)), (32, (2, 4, 8, 16, 32))],
)
def test_the_delays_double_up_to_the_longest(delay, delays):
    assert DelayedDemoSettings(delay=delay).delays == delays


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_delayed_gesture_has_one_cue_within_reach(seed):
    settings = DelayedDemoSettings(num_val=20, people=3, seed=seed)
    for split in ('train', 'val'):
        counts, delays = Counter(), Counter()
        for number, scene in enumerate(settings.scenes(split)):
            delay = settings.delays[number % 5]
            for told in stories(scene):
                for cue, gesture in told:
                    assert {event.kind for event in cue} == {'take'}
                    (kind,) = {event.kind for event in gesture}
                    assert kind in ('lift', 'give')
                    (item,) = {event.item for event in (*cue, *gesture)}
                    times = [event.timestamp for event in (*cue, *gesture)]
                    first, begin = times[0], times[2] + delay
                    assert times == [*range(first, first + 3), *range(begin, begin + 3)]
                    assert set(times) <= set(scene.keyframes)
                    counts.update([item, kind])
                    delays[delay] += 1
                for (cue, gesture), (next_cue, next_gesture) in zip(told, told[1:]):
                    begin = next_gesture[0].timestamp
                    assert begin - cue[-1].timestamp > settings.delay + 2
                    assert next_cue[0].timestamp - gesture[-1].timestamp >= 3
        of_objects = [counts[item] for item in OBJECTS]
        assert max(of_objects) - min(of_objects) <= 1
        assert 0.4 < counts['lift'] / (counts['lift'] + counts['give']) < 0.6
        assert min(delays.values()) >= (45 if split == 'train' else 20)
        assert set(delays) == set(settings.delays)


def test_delayed_annotations_are_divided_by_delay(tmp_path):
    settings = DelayedDemoSettings(
        num_train=1, num_val=4, seconds=37, size=64, people=1, delay=10
    )
    assert make_demo_dataset(tmp_path / 'set', settings, workers=1)
    parts = [rows_of(tmp_path / 'set', f'val_{delay}s') for delay in (2, 4, 8, 10)]
    scenes = settings.scenes('val')
    for rows, scene in zip(parts, scenes):
        wanted = [list(map(str, row)) for row in annotation_rows(scene)]
        assert rows == wanted
        assert any(int(row[6]) >= CLASS_IDS['lift_red'] for row in rows)
    assert sum(parts, []) == rows_of(tmp_path / 'set', 'val')
    assert read_meta(tmp_path / 'set')['seconds_from_take_to_lift_and_give'] == [
        *(2, 4, 8, 10)
    ]
    draw_preview(tmp_path / 'set', tmp_path / 'sheet.png')
    assert cv2.imread(str(tmp_path / 'sheet.png')).shape[1] == 3 * 64 * 4


def test_the_set_without_delay_is_what_it_was(tiny):
    """The docs' numbers and the data on users' disks are of these very rows."""
    rows = [row for scene in TINY.scenes('train') for row in annotation_rows(scene)]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == '165766ea402630ed'
    assert list(read_meta(tiny)['settings']) == [
        *('num_train', 'num_val', 'seconds', 'fps', 'size', 'people', 'seed')
    ]
    assert not list((tiny / 'annotations').glob('val_*'))


# ------------------------------------------------------------- folders and faults


def test_what_is_there_is_kept(tmp_path, capsys):
    out = tmp_path / 'set'
    small = replace(TINY, num_train=1, seconds=17, people=1)
    assert make_demo_dataset(out, small, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert not make_demo_dataset(out, small, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    with pytest.raises(ValueError, match='of other settings .*seed 0.*--overwrite'):
        make_demo_dataset(out, replace(small, seed=1), workers=1)
    with pytest.raises(ValueError, match='of other settings'):
        make_demo_dataset(out, small, rawframes=True, workers=1)
    assert make_demo_dataset(out, replace(small, seed=1), overwrite=True, workers=1)
    assert read_meta(out)['settings']['seed'] == 1
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_with_other_things_is_left_alone(tmp_path, overwrite):
    (tmp_path / 'thesis.tex').write_text('all my work')
    with pytest.raises(ValueError, match='is no demo data set of memvit_mm; nothing'):
        make_demo_dataset(tmp_path, TINY, overwrite=overwrite)
    assert (tmp_path / 'thesis.tex').read_text() == 'all my work'


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    out = tmp_path / 'set'

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device', 'some.mp4')

    monkeypatch.setattr('memvit_mm.demo.files.write_video', fail)
    with pytest.raises(OSError, match='No space left'):
        make_demo_dataset(out, TINY, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_video_is_noticed(tmp_path, monkeypatch):
    real = cv2.VideoWriter

    class DiskFull:
        def __init__(self, *args):
            self.writer, self.left = real(*args), 5

        def isOpened(self):
            return self.writer.isOpened()

        def write(self, image):
            self.left -= 1
            if self.left >= 0:
                self.writer.write(image)

        def release(self):
            self.writer.release()

    monkeypatch.setattr(cv2, 'VideoWriter', DiskFull)
    with pytest.raises(OSError, match='5 of 240 frames'):
        make_demo_dataset(tmp_path / 'set', TINY, workers=1)


@pytest.mark.parametrize(
    'setting, sentence',
    [
        (dict(delay=3), 'delay is 3; the demo data takes 4 to 60.'),
        (dict(delay=61), 'delay is 61; the demo data takes 4 to 60.'),
        (dict(seconds=76), 'seconds is 76; the demo data takes 77 to 899.'),
        (dict(num_val=4), 'num_val is 4; the demo data takes 5 to 1000.'),
        (dict(people=5), 'people is 5; the demo data takes 1 to 4.'),
    ],
)
def test_delayed_settings_out_of_range(setting, sentence):
    with pytest.raises(ValueError) as error:
        DelayedDemoSettings(**setting)
    assert sentence == str(error.value)


@pytest.mark.parametrize(
    'setting, sentence',
    [
        (dict(fps=8), 'fps is 8; the demo data takes 12 to 60.'),
        (dict(seconds=10), 'seconds is 10; the demo data takes 17 to 899.'),
        (dict(size=65), 'size is 65; mp4 needs an even number of pixels: take 66.'),
        (dict(people=0), 'people is 0; the demo data takes 1 to 4.'),
        (dict(num_val=0), 'num_val is 0; the demo data takes 1 to 1000.'),
        (dict(seed=-1), 'seed is -1'),
    ],
)
def test_settings_out_of_range(setting, sentence):
    with pytest.raises(ValueError) as error:
        replace(TINY, **setting)
    assert sentence in str(error.value)


# --------------------------------------------------------------------- the tool


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    spec = importlib.util.spec_from_file_location('make_demo_dataset', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        monkeypatch.setattr('sys.argv', [str(TOOL), *map(str, args)])
        module.main()

    return run


SMALL = [
    '--num-train',
    '1',
    '--num-val',
    '1',
    '--seconds',
    '17',
    '--size',
    '64',
    '--people',
    '1',
    '--workers',
    '1',
]


def test_tool_makes_shows_and_keeps(tool, tmp_path, capsys):
    out, png = tmp_path / 'demo', tmp_path / 'sheet.png'
    tool(out, *SMALL, '--preview', png)
    captured = capsys.readouterr()
    assert f'{out}: 2 videos made in' in captured.out
    assert 'video 2 of 2' in captured.err
    assert cv2.imread(str(png)).shape[1] == 5 * 64 * 4
    tool(out, *SMALL)
    assert f'{out}: kept, it is there already' in capsys.readouterr().out


def test_tool_makes_delayed_data(tool, tmp_path):
    out = tmp_path / 'demo'
    tool(out, *SMALL, '--delay', 4, '--num-val', 2, '--seconds', 25)
    assert read_meta(out)['settings']['delay'] == 4
    assert (out / 'annotations' / 'val_4s.csv').stat().st_size > 0


def test_tool_says_what_is_wrong_in_one_sentence(tool, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for args, sentence in [
        ((tmp_path / 'new', '--fps', 5), 'fps is 5; the demo data takes 12 to 60.'),
        (
            (tmp_path / 'new', '--delay', 90),
            'delay is 90; the demo data takes 4 to 60.',
        ),
        (
            (tmp_path / 'new', '--delay', 30, '--seconds', 60),
            'seconds is 60; the demo data takes 77 to 899.',
        ),
        (
            (tmp_path / 'new', '--delay', 8, '--format', 'epic'),
            '--delay is for --format ava: leave it out.',
        ),
        ((tmp_path / 'file' / 'new', *SMALL), 'is a file, not a folder'),
        ((tmp_path, *SMALL), 'is no demo data set of memvit_mm'),
    ]:
        with pytest.raises(ValueError) as error:
            tool(*args)
        assert sentence in str(error.value) and '\n' not in str(error.value)
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: full)
    with pytest.raises(ValueError, match='No space left for .* MB are needed and 1 MB'):
        tool(tmp_path / 'new')


def test_preview_of_something_else(tmp_path):
    with pytest.raises(ValueError, match='is no demo data set'):
        draw_preview(tmp_path, tmp_path / 'sheet.png')


def test_proposal_file_holds_plain_arrays(tiny):
    with open(tiny / 'annotations' / 'proposals_val.pkl', 'rb') as file:
        proposals = pickle.load(file)
    assert set(map(type, proposals.values())) == {np.ndarray}
    assert 'demo_va_000,0902' in proposals
