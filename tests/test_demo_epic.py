"""The demo kitchens: official files, and a story that no clip tells by itself."""

import csv
import hashlib
import importlib.util
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from memvit_mm.datasets import EpicKitchensDataset
from memvit_mm.demo.epic import EpicDemoSettings, make_epic_demo, video_path
from memvit_mm.demo.epic_scene import (
    NOUNS,
    PERIOD,
    SEGMENTS,
    TAIL_NOUNS,
    TAIL_VERBS,
    VERBS,
    draw_frame,
)
from memvit_mm.demo.files import VideoJob, write_video
from memvit_mm.demo.preview import draw_preview
from memvit_mm.paths import get_tool_path

TINY = EpicDemoSettings(num_train=2, num_val=2, seconds=24, size=64)
COLUMNS = (
    'narration_id participant_id video_id narration_timestamp start_timestamp '
    'stop_timestamp start_frame stop_frame narration verb verb_class noun noun_class '
    'all_nouns all_noun_classes'
).split()
TOOL = Path(get_tool_path('data/make_demo_dataset.py'))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'set'
    assert make_epic_demo(out, TINY, workers=1)
    return out


def rows_of(out: Path, name: str) -> list:
    path = out / 'annotations' / f'EPIC_100_{name}.csv'
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def other_dishes(kitchen, shift=1):
    """The same kitchen, only that something else is prepared each time."""
    dishes = []
    for dish in kitchen.dishes:
        verb = VERBS[(VERBS.index(dish.verb) + shift) % len(VERBS)]
        noun = NOUNS[(NOUNS.index(dish.noun) + shift) % len(NOUNS)]
        dishes.append(dish._replace(verb=verb, noun=noun))
    return replace(kitchen, dishes=tuple(dishes))


# ------------------------------------------------------------------------- files


def test_files_are_the_official_ones(tiny):
    names = sorted(path.name for path in (tiny / 'annotations').iterdir())
    assert names == [
        f'EPIC_100_{name}.csv'
        for name in (
            'noun_classes',
            'tail_nouns',
            'tail_verbs',
            'train',
            'unseen_participant_ids_validation',
            'validation',
            'verb_classes',
            'video_info',
        )
    ]
    for name, cooks in (('train', {'P01', 'P02'}), ('validation', {'P01', 'P05'})):
        rows = rows_of(tiny, name)
        assert list(rows[0]) == COLUMNS
        assert {row['participant_id'] for row in rows} == cooks
        ids = [row['narration_id'] for row in rows]
        assert ids == sorted(ids) and len(set(ids)) == len(ids)
        for row in rows:
            start, stop = (
                float(row[f'{end}_timestamp'].rpartition(':')[2])
                for end in ('start', 'stop')
            )
            assert row['start_timestamp'].startswith('00:00:') and stop == start + 1
            assert int(row['start_frame']) == int(start * 60)
            assert row['narration'] == f'{row["verb"]} {row["noun"]}'
            assert VERBS[int(row['verb_class'])] == row['verb']
            assert NOUNS[int(row['noun_class'])] == row['noun']
            assert row['all_nouns'] == f"['{row['noun']}']"
    videos = {row['video_id']: row for row in rows_of(tiny, 'video_info')}
    assert sorted(videos) == ['P01_01', 'P01_02', 'P02_01', 'P05_02']
    for video, row in videos.items():
        reader = cv2.VideoCapture(str(video_path(tiny, video)))
        fps, frames = (
            reader.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        assert float(row['fps']) == fps == 12
        assert float(row['duration']) == frames / fps == TINY.seconds
    assert [row['key'] for row in rows_of(tiny, 'verb_classes')] == list(VERBS)
    assert [row['key'] for row in rows_of(tiny, 'noun_classes')] == list(NOUNS)
    tail = [NOUNS[int(row['noun'])] for row in rows_of(tiny, 'tail_nouns')]
    assert tuple(tail) == TAIL_NOUNS
    (unseen,) = rows_of(tiny, 'unseen_participant_ids_validation')
    assert unseen == dict(participant_id='P05')


@pytest.mark.parametrize('task', ['recognition', 'anticipation'])
def test_the_dataset_reads_it(tiny, task):
    init_default_scope('mmaction')
    dataset = EpicKitchensDataset(
        task=task,
        data_root=str(tiny),
        ann_file='annotations/EPIC_100_train.csv',
        video_info_file='annotations/EPIC_100_video_info.csv',
        class_files=[
            f'annotations/EPIC_100_{kind}_classes.csv' for kind in ('verb', 'noun')
        ],
        data_prefix=dict(video='videos'),
        context_stride=2.0,
        pipeline=[
            dict(type='VideoInit'),
            dict(type='SampleEpicFrames', clip_len=8, frame_interval=1, target_fps=12),
            dict(type='VideoDecode'),
        ],
    )
    assert dataset.metainfo['verb_classes'] == list(VERBS)
    samples = [dataset[i] for i in range(len(dataset))]
    segments = [s for s in samples if s['narration_id'] is not None]
    assert len(segments) == len(rows_of(tiny, 'train')) < len(samples)
    # The observed clip shows the board of one second; its brightness tells which.
    for sample in segments:
        assert len(sample['imgs']) == 8
        number = int(sample['narration_id'].rpartition('_')[2]) % SEGMENTS
        shown = number if task == 'recognition' else number - 1
        board = np.mean(sample['imgs'][:6], axis=0)[16:44, 10:54]
        spread = board.std()
        if shown == 0:
            assert spread > 40
        elif shown > 0:
            assert spread < 30


def test_meta_tells_the_numbers_of_classes(tiny):
    meta = json.loads((tiny / 'meta.json').read_text())
    assert (meta['format'], meta['num_verbs'], meta['num_nouns']) == ('epic', 4, 6)
    assert meta['fps'] == 12


# --------------------------------------------------------------------- the story


def test_pixels_outside_the_cue_do_not_depend_on_the_dish():
    kitchen = TINY.kitchens('train')[0]
    other = other_dishes(kitchen)
    cues = {i for dish in kitchen.dishes for i in kitchen.frames_of(dish.start)}
    for index in range(kitchen.num_frames):
        same = np.array_equal(draw_frame(kitchen, index), draw_frame(other, index))
        assert same == (index not in cues)


@pytest.mark.parametrize('fps', [12, 13, 20])
def test_the_codec_leaves_no_trace_of_the_cue(tmp_path, fps):
    """mp4 codes most frames as changes; what is left of a cue must be gone in time."""
    settings = replace(TINY, num_train=1, fps=fps)
    kitchen = settings.kitchens('train')[0]
    videos = []
    for shift in range(3):
        path = video_path(tmp_path / str(shift), kitchen.video_id)
        write_video(VideoJob(other_dishes(kitchen, shift), draw_frame, path))
        reader = cv2.VideoCapture(str(path))
        videos.append([reader.read()[1] for _ in range(kitchen.num_frames)])
    assert kitchen.dishes
    for dish in kitchen.dishes:
        for number, start in enumerate(dish.starts):
            for index in kitchen.frames_of(start):
                same = [np.array_equal(videos[0][index], v[index]) for v in videos[1:]]
                # What shows a segment under the cloth shows nothing of the dish.
                assert all(same) if number else not any(same)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_dishes_are_balanced_and_in_time(seed):
    settings = EpicDemoSettings(seed=seed)
    for split in ('train', 'val'):
        pairs = Counter()
        for kitchen in settings.kitchens(split):
            starts = [dish.start for dish in kitchen.dishes]
            assert starts[0] >= 2 and starts[-1] + SEGMENTS * PERIOD < settings.seconds
            assert (np.diff(starts) >= SEGMENTS * PERIOD).all() and len(starts) >= 5
            pairs.update((dish.verb, dish.noun) for dish in kitchen.dishes)
        assert len(pairs) == len(VERBS) * len(NOUNS)
        tail = {p for p in pairs if p[0] in TAIL_VERBS or p[1] in TAIL_NOUNS}
        least, most = (1, 4) if split == 'val' else (4, 10)
        assert all(least <= count <= most for count in pairs.values())
        mean = np.mean([pairs[p] for p in pairs if p not in tail])
        assert 1.4 < mean / np.mean([pairs[p] for p in tail]) < 2.6
    assert not {k.video_id for k in settings.kitchens('train')} & {
        k.video_id for k in settings.kitchens('val')
    }


def test_splits_seeds_and_kitchens_differ():
    one = replace(TINY, num_train=2)
    kitchens = [
        *one.kitchens('train'),
        one.kitchens('val')[0],
        replace(one, seed=1).kitchens('train')[0],
    ]
    assert len({draw_frame(kitchen, 0).tobytes() for kitchen in kitchens}) == 4


def test_the_same_seed_gives_the_same_data(tiny, tmp_path):
    make_epic_demo(tmp_path / 'again', TINY, workers=2)
    for path in sorted((tmp_path / 'again').rglob('*')):
        if path.is_file():
            twin = tiny / path.relative_to(tmp_path / 'again')
            assert digest(path) == digest(twin), path.name


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------- folders and faults


def test_a_set_of_another_format_is_not_replaced(tiny, tmp_path):
    assert not make_epic_demo(tiny, TINY, workers=1)
    with pytest.raises(ValueError, match='of other settings .format epic, num_train 2'):
        make_epic_demo(tiny, replace(TINY, seed=1))
    (tmp_path / 'thesis.tex').write_text('all my work')
    with pytest.raises(ValueError, match='is no demo data set of memvit_mm; nothing'):
        make_epic_demo(tmp_path, TINY, overwrite=True)


@pytest.mark.parametrize(
    'setting, sentence',
    [
        (dict(fps=8), 'fps is 8; the demo data takes 12 to 60.'),
        (dict(seconds=10), 'seconds is 10; the demo data takes 14 to 3600.'),
        (dict(size=65), 'size is 65; mp4 needs an even number of pixels: take 66.'),
        (dict(num_val=81), 'num_val is 81; the demo data takes 1 to 80.'),
    ],
)
def test_settings_out_of_range(setting, sentence):
    with pytest.raises(ValueError) as error:
        replace(TINY, **setting)
    assert sentence in str(error.value)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    spec = importlib.util.spec_from_file_location('make_demo_dataset', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        args = [str(TOOL), *map(str, args), '--format', 'epic']
        monkeypatch.setattr('sys.argv', args)
        module.main()

    return run


SMALL = '--num-train 1 --num-val 1 --seconds 14 --size 48 --workers 1'.split()


def test_tool_makes_shows_and_keeps(tool, tmp_path, capsys, tiny):
    out, png = tmp_path / 'demo', tmp_path / 'sheet.png'
    tool(out, *SMALL, '--preview', png)
    assert f'{out}: 2 videos made in' in capsys.readouterr().out
    assert cv2.imread(str(png)).shape[1] == 8 * 48 * 4
    tool(out, *SMALL)
    assert f'{out}: kept, it is there already' in capsys.readouterr().out
    draw_preview(tiny, png)
    assert cv2.imread(str(png)).shape[1] == 8 * 64 * 3


def test_tool_says_what_is_wrong_in_one_sentence(tool, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for args, sentence in [
        ((tmp_path / 'new', '--fps', 5), 'fps is 5; the demo data takes 12 to 60.'),
        ((tmp_path / 'new', '--people', 2), '--people is for --format ava: leave'),
        ((tmp_path / 'new', '--rawframes'), '--rawframes is for --format ava: leave'),
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
