"""Check EpicKitchensDataset against the official annotations, not ours to ship.

    python tests/reference/check_epic_dataset.py FOLDER [FACTS]

FOLDER holds EPIC_100_validation.csv, EPIC_100_video_info.csv and, as far as they are to
be checked, EPIC_100_train.csv and EPIC_100_test_timestamps.csv. No video is needed.
FACTS is a JSON file of rows and sums to compare with: `val_rows`, `test_rows` and
`validation_summary`.

Checked for each split, for both tasks, for training and test, without and with clips in
between, over several epochs: every segment comes once; the timestamps of a video grow;
the real ClipMemory takes each clip as the next; no frame of a clip, at its video's true
frame rate, is later than it may be, nor than a frame of a clip after it.
"""

import argparse
import json
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from memvit_mm.datasets import ClipIndex, EpicKitchensDataset, SampleEpicFrames
from memvit_mm.datasets.epic.dataset import SHORTEST
from memvit_mm.datasets.epic.files import read_segments, read_video_info
from memvit_mm.models import ClipMemory
from memvit_mm.structures import Stream

SPLITS = ('train', 'validation', 'test_timestamps')
TAU_A = 1.0


def check(holds: bool, what: str) -> None:
    """Stop at the first thing that does not hold."""
    if not holds:
        sys.exit(f'FAILED: {what}')


def check_facts(folder: Path, facts: dict) -> None:
    """Compare what is read with known rows and sums."""
    for split, rows in (('validation', 'val_rows'), ('test_timestamps', 'test_rows')):
        path = folder / f'EPIC_100_{split}.csv'
        if not path.exists():
            continue
        segments = {s.narration_id: s for s in read_segments(str(path))}
        options = dict(task='anticipation', tau_a=TAU_A)
        clips = {info['narration_id']: info for info in infos(build(path, **options))}
        for row in facts[rows]:
            name = row['narration_id']
            found = segments[name]
            check(
                found.participant_id == row['participant_id']
                and found.video_id == row['video_id']
                and found.start == row['start_sec']
                and found.stop == row['stop_sec']
                and found.verb == row.get('verb_class', -100)
                and found.noun == row.get('noun_class', -100),
                f'{name} is {found}, expected {row}',
            )
            end = row['observed_window_tau_a_1s']['raw'][1]
            check(
                abs(clips[name]['timestamp'] - end) < 1e-9,
                f'{name} is observed until {clips[name]["timestamp"]}, not {end}',
            )
        print(f'{path.name}: {len(facts[rows])} rows are as in the facts')
    segments = read_segments(str(folder / 'EPIC_100_validation.csv'))
    empty = [s.narration_id for s in segments if s.start - TAU_A <= 0]
    found = dict(
        rows=len(segments),
        videos=len({s.video_id for s in segments}),
        participants=len({s.participant_id for s in segments}),
        sum_start_hundredths=sum(round(s.start * 100) for s in segments),
        sum_stop_hundredths=sum(round(s.stop * 100) for s in segments),
        sum_verb_class=sum(s.verb for s in segments),
        sum_noun_class=sum(s.noun for s in segments),
        distinct_verbs=len({s.verb for s in segments}),
        distinct_nouns=len({s.noun for s in segments}),
        distinct_actions=len({(s.verb, s.noun) for s in segments}),
        observed_window_empty_tau_a_1s=sorted(empty),
    )
    for key, value in found.items():
        expected = facts['validation_summary'][key]
        check(value == expected, f'{key} is {value}, expected {expected}')
    print(f'EPIC_100_validation.csv: {len(found)} sums are as in the facts')


def build(path: Path, **options) -> EpicKitchensDataset:
    """The dataset of a split, without videos."""
    return EpicKitchensDataset(
        **{
            'ann_file': str(path),
            'pipeline': [],
            'test_mode': True,
            'missing_videos': 'unchecked',
            'video_info_file': str(path.with_name('EPIC_100_video_info.csv')),
            **options,
        }
    )


def infos(dataset: EpicKitchensDataset, epoch: int = 0) -> list:
    """All samples, as a sampler asks for them."""
    return [
        dataset.get_data_info(ClipIndex(index, epoch=epoch))
        for index in range(len(dataset))
    ]


def check_streams(path: Path, fps: dict, epochs: int = 3, **options) -> None:
    """Order, memory and frames of one way to read a split."""
    start = time.process_time()
    dataset = build(path, **options)
    seconds = time.process_time() - start
    segments = {s.narration_id: s for s in read_segments(str(path))}
    if options.get('task') == 'anticipation' and not options.get('test_mode', True):
        # In training, what starts before anything could be observed is left out.
        segments = {
            name: segment
            for name, segment in segments.items()
            if segment.start - dataset.tau_a >= SHORTEST
        }
    samples = infos(dataset)
    named = [info['narration_id'] for info in samples if info['narration_id']]
    check(sorted(named) == sorted(segments), 'not every segment comes once')
    videos, times = dataset.stream_keys()
    check(videos == [info['video_id'] for info in samples], 'wrong stream keys')
    sample = SampleEpicFrames(clip_len=16, frame_interval=4)
    memory = ClipMemory(max_streams=1000)
    last = defaultdict(lambda: (-np.inf, -np.inf))
    repeated = 0
    for epoch in range(1 if dataset.test_mode else epochs):
        last.clear()
        memory.reset()
        for info, time_ in zip(infos(dataset, epoch), times):
            name, video = info['narration_id'], info['video_id']
            check(time_ > last[video][0], f'{name} of {video} at {time_} is not next')
            memory.step([Stream(video)], [time_]).commit()
            rate = fps[video]
            clip = sample(dict(info, avg_fps=rate, total_frames=10**7))
            shown, moments = clip['frame_inds'] / rate, clip['frame_times']
            until = time_
            if name and dataset.task == 'anticipation':
                until = segments[name].start - TAU_A
            elif name:
                until = segments[name].stop
                begins = int(segments[name].start * rate + 1e-6) / rate
                check(shown.min() >= begins, f'{name} shows what is before it')
            if until < 0:
                repeated += 1
                check(not shown.any(), f'{name} is too early and shows {shown}')
            else:
                check(shown.max() <= until + 1e-6, f'{name} shows {shown}, not {until}')
            check(
                moments.max() >= last[video][1] - 1e-9,
                f'a clip before {name} of {video} ends later, at {last[video][1]}',
            )
            last[video] = time_, moments.max()
    print(
        f'{path.name}: {dataset.task}, test_mode={dataset.test_mode}, '
        f'context_stride={dataset.context_stride}: {len(named)} segments, '
        f'{len(samples) - len(named)} clips in between, {repeated} that can only '
        f'repeat the first frame, in order; loaded in {seconds:.1f} s'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('facts', type=Path, nargs='?')
    args = parser.parse_args()
    warnings.simplefilter('error', UserWarning)  # such as the memory's
    info = read_video_info(str(args.folder / 'EPIC_100_video_info.csv'))
    fps = {video: row.fps for video, row in info.items()}
    if args.facts is not None:
        check_facts(args.folder, json.loads(args.facts.read_text()))
    for split in SPLITS:
        path = args.folder / f'EPIC_100_{split}.csv'
        if not path.exists():
            print(f'{path.name}: not there, not checked')
            continue
        for task in ('recognition', 'anticipation'):
            for stride in (0.0, 2.0):
                for test in (True, False):
                    if not test and split == 'test_timestamps':
                        continue
                    options = dict(task=task, context_stride=stride, test_mode=test)
                    check_streams(path, fps, **options)
    print('Everything holds.')


if __name__ == '__main__':
    main()
