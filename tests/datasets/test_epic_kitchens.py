import logging
import os
import subprocess
import textwrap
import warnings

import numpy as np
import pytest
import torch
from epic_data import (
    TEST_HEADER,
    row,
    write_classes,
    write_csv,
    write_frames,
    write_video,
)
from fork_server import python
from mmaction.registry import DATASETS
from mmengine.dataset import ConcatDataset, DefaultSampler
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from memvit_mm.datasets import EpicKitchensDataset, SequentialClipSampler
from memvit_mm.datasets.media import count_frames
from memvit_mm.models import ClipMemory
from memvit_mm.models.memory.rows import rows_of

ROWS = [  # in the official order, which is not that of time
    row('P01_11_0', 5, 6.5, 1, 2),
    row('P01_11_1', 0, 20, 3, 4),
    row('P01_11_10', 30, 31, 5, 6),
    row('P01_11_2', 5, 6.5, 7, 8),
    row('P02_101_0', 1.5, 9.5, 9, 10),
]
PIPELINE = [
    dict(type='VideoInit'),
    dict(type='SampleEpicFrames', clip_len=4, frame_interval=10),
    dict(type='VideoDecode'),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(
        type='PackActionInputs',
        meta_keys=(
            'img_shape',
            'video_id',
            'timestamp',
            'sample_idx',
            'narration_id',
        ),
    ),
]


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmaction')


@pytest.fixture
def ann_file(tmp_path):
    return write_csv(tmp_path / 'ann.csv', ROWS)


def build(ann_file, **options):
    return EpicKitchensDataset(
        **{
            'ann_file': ann_file,
            'pipeline': [],
            'missing_videos': 'unchecked',
            'serialize_data': False,
            'test_mode': True,
            **options,
        }
    )


def infos(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def narrations(dataset):
    return [info['narration_id'] for info in infos(dataset)]


@pytest.fixture
def log():
    """What is logged, line by line."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Lines()
    level = logger.level
    # Also forgets which levels were not logged, which mmengine's loggers remember.
    logger.setLevel('INFO')
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def refusal(*args, **kwargs):
    """The sentence with which a dataset is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build(*args, **kwargs)
    sentence = str(caught.value)
    assert '\n' not in sentence and sentence.endswith('.')
    return sentence


# ------------------------------------------------------------------------- samples


def test_samples(ann_file):
    dataset = build(ann_file, data_prefix=dict(video='videos'))
    info = dataset.get_data_info(0)
    assert info.pop('segments').tolist() == [
        [5, 6.5, 1, 2],
        [0, 20, 3, 4],
        [30, 31, 5, 6],
        [5, 6.5, 7, 8],
    ]
    assert info == dict(
        filename='videos/P01/videos/P01_11.MP4',
        video_id='P01_11',
        narration_id='P01_11_0',
        participant_id='P01',
        start=5.0,
        stop=6.5,
        timestamp=6.5,
        jitter=0.0,
        earliest=5.0,
        previous=-np.inf,
        label=[1, 2],
        tau_a=0.0,
        sample_idx=0,
        stream=('P01_11', 0, 0, 0),
        modality='RGB',
        start_index=0,
    )
    assert narrations(dataset) == [
        'P01_11_0',
        'P01_11_2',
        'P01_11_1',
        'P01_11_10',
        'P02_101_0',
    ]
    times = [info['timestamp'] for info in infos(dataset)]
    assert times == [6.5, np.nextafter(6.5, 7), 11, 31, 6.5]


def test_what_starts_before_anything_was_seen(ann_file, log):
    """A test shows the first frame; training leaves it out. Both are counted."""
    options = dict(task='anticipation', tau_a=0.5)
    assert len(build(ann_file, **options)) == 5
    assert '1 with nothing to observe (first frame shown)' in log[-1]
    kept = narrations(build(ann_file, test_mode=False, **options))
    assert 'P01_11_1' not in kept and len(kept) == 4
    assert '1 with nothing to observe (left out)' in log[-1]


def test_the_metric_learns_what_is_left_out(ann_file):
    wanted = dict(videos=['P02_101'])
    dataset = build(ann_file, filter_cfg=wanted)
    left_out = dataset.metainfo['left_out']
    assert len(dataset) == 1 and len(left_out) == 4 and 'P01_11_0' in left_out
    assert 'expected a list of names' in refusal(ann_file, filter_cfg=dict(videos='P'))


def test_anticipation_samples(ann_file):
    dataset = build(ann_file, task='anticipation', tau_a=0.5)
    found = infos(dataset)
    assert [info['narration_id'] for info in found] == [
        'P01_11_1',
        'P01_11_0',
        'P01_11_2',
        'P01_11_10',
        'P02_101_0',
    ]
    assert [info['timestamp'] for info in found] == pytest.approx(
        [-0.5, 4.5, 4.5, 29.5, 1.0]
    )
    assert {info['tau_a'] for info in found} == {0.5}
    assert {info['earliest'] for info in found} == {0.0}
    assert [info['label'] for info in found][0] == [3, 4]


def test_jitter_is_for_training_recognition(ann_file):
    def jitters(**options):
        return {info['jitter'] for info in infos(build(ann_file, **options))}

    assert jitters() == jitters(test_mode=False, jitter=0) == {0}
    assert jitters(test_mode=False, task='anticipation') == {0}
    assert max(jitters(test_mode=False)) == 2.0
    assert max(jitters(test_mode=False, jitter=float('inf'))) > 5


def test_the_clip_is_as_long_as_the_pipeline_says(ann_file):
    def end(**options):
        found = infos(build(ann_file, **options))
        return {info['narration_id']: info['timestamp'] for info in found}['P01_11_1']

    assert end() == 11  # 2 seconds, in the middle of 0 to 20
    assert end(clip_seconds=4) == 12
    assert end(pipeline=PIPELINE) == 10.5


def test_the_test_set_has_no_labels(tmp_path, ann_file):
    path = write_csv(tmp_path / 'test.csv', ROWS, TEST_HEADER)
    assert {tuple(i['label']) for i in infos(build(path))} == {(-100, -100)}
    assert f'{path} lacks the column' in refusal(path, test_mode=False)


def test_clips_in_between(ann_file, log):
    dataset = build(ann_file, context_stride=2.0, task='anticipation')
    assert len(dataset) == 5 + 1 + 12
    assert log[-1] == (
        'context_stride=2.0 adds 13 unlabelled clips to 5 segments (3.6x the clips).'
    )
    found = infos(dataset)
    assert [info['narration_id'] for info in found][:6] == [
        'P01_11_1',
        None,
        'P01_11_0',
        'P01_11_2',
        None,
        None,
    ]
    between = found[1]
    assert between['label'] == [-100, -100]
    assert between['start'] is between['stop'] is None
    assert between['timestamp'] == 2.0 and between['earliest'] == 0.0
    assert between['participant_id'] == 'P01'
    assert between['filename'] == found[0]['filename']
    log.clear()
    assert len(build(ann_file, context_stride=0)) == 5
    assert len(log) == 1 and 'context_stride' not in log[0]


def test_odd_rows_are_counted_in_one_line(tmp_path, log):
    rows = [*ROWS, row('P01_11_3', 9, 9, verb_class=''), row('P03_1_0', 70, 75)]
    (tmp_path / 'info.csv').write_text('video_id,duration,fps\nP03_1,60,50\n')
    options = dict(data_root=str(tmp_path), video_info_file='info.csv')
    path = write_csv(tmp_path / 'odd.csv', rows)
    assert len(build('odd.csv', test_mode=False, **options)) == 6
    assert log == [
        f'{path}: 6 of 7 segments, in 2 videos; odd rows: 1 stopping no later than it '
        'starts (taken as an instant), 1 without a class (label -100), 1 starting '
        'after the video (left out).'
    ]
    assert len(build('odd.csv', **options)) == 7
    path = write_csv(tmp_path / 'ok.csv', ROWS)
    build(path)
    assert log[-1] == f'{path}: 5 of 5 segments, in 2 videos; odd rows: none.'


def test_class_names(tmp_path, ann_file):
    verbs = write_classes(tmp_path / 'verbs.csv', 10)
    write_classes(tmp_path / 'nouns.csv', 11)
    dataset = build(
        ann_file,
        class_files=(verbs, 'nouns.csv'),
        data_root=str(tmp_path),
        metainfo=dict(more=1),
        lazy_init=True,
    )
    assert dataset.metainfo['verb_classes'] == [f'class{i}' for i in range(10)]
    assert len(dataset.metainfo['noun_classes']) == 11
    assert dataset.metainfo['more'] == 1
    assert dataset.metainfo['dataset_type'] == 'EPIC-KITCHENS-100'
    assert 'verb_classes' not in build(ann_file, lazy_init=True).metainfo
    assert (
        "narration 'P02_101_0' has the noun_class '10', expected a number from 0 "
        in (refusal(ann_file, class_files=(verbs, verbs)))
    )
    assert 'two of each' in refusal(ann_file, class_files=(verbs,))
    assert "the verb_class '5'" in refusal(ann_file, num_classes=(5, 300))


# -------------------------------------------------------- mmengine's dataset options


@pytest.mark.parametrize('serialize', [True, False])
def test_options_of_mmengine(ann_file, serialize):
    options = dict(serialize_data=serialize, context_stride=2.0)
    whole = build(ann_file, **options)
    assert narrations(build(ann_file, indices=4, **options)) == narrations(whole)[:4]
    chosen = build(ann_file, indices=[3, 0], **options)
    assert narrations(chosen) == [narrations(whole)[3], narrations(whole)[0]]

    lazy = build(ann_file, lazy_init=True, **options)
    assert not lazy._fully_initialized
    videos, times = lazy.stream_keys()
    assert videos == [info['video_id'] for info in infos(whole)]
    assert times.dtype == np.float64
    assert times.tolist() == [info['timestamp'] for info in infos(whole)]

    subset = whole.get_subset([5, 1])
    assert subset.stream_keys()[1].tolist() == [times[5], times[1]]
    assert len(whole.stream_keys()[0]) == len(whole)
    whole.get_subset_(2)
    assert whole.stream_keys()[0] == videos[:2] and len(whole) == 2


def test_filters(ann_file):
    assert narrations(build(ann_file, filter_cfg=dict(participants=['P02']))) == [
        'P02_101_0'
    ]
    assert len(build(ann_file, filter_cfg=dict(videos=['P01_11']))) == 4
    nothing = refusal(ann_file, filter_cfg=dict(videos=['P09_11']))
    assert f'{ann_file} leaves no segment of 5: check filter_cfg=' in nothing
    assert "filter_cfg has 'video', it takes" in refusal(
        ann_file, filter_cfg=dict(video=['P01_11'])
    )


def test_registered(ann_file):
    dataset = DATASETS.build(
        dict(
            type='EpicKitchensDataset',
            ann_file=ann_file,
            pipeline=PIPELINE,
            missing_videos='unchecked',
        )
    )
    assert isinstance(dataset, EpicKitchensDataset) and len(dataset) == 5


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(task='classification'), 'task must be one of recognition, anticipation'),
        (dict(missing_videos='skip'), 'missing_videos must be one of stop, leave_out'),
        (dict(tau_a=-1), 'tau_a must be at least 0 seconds, got -1'),
        (dict(jitter=float('nan')), 'jitter must be at least 0 seconds, got nan'),
        (dict(clip_seconds=-1), 'clip_seconds must be at least 0 seconds, got -1'),
        (dict(context_stride=-0.5), 'context_stride must be at least 0 seconds'),
        (
            dict(context_stride='2'),
            "context_stride must be at least 0 seconds, got '2'",
        ),
        (dict(frame_fps=0), "above 0, or 'video_info', got 0."),
        (dict(frame_fps='30'), "or 'video_info', got '30'."),
        (dict(frame_fps='video_info'), "frame_fps='video_info' needs a video_info_f"),
        (dict(data_prefix=dict(img='a')), "data_prefix has 'img' and no 'video'"),
        (dict(on_bad_clip='go on'), "on_bad_clip must be 'stop' or 'skip'"),
        (dict(path_tmpl='{id}.mp4'), "path_tmpl='{id}.mp4' asks for 'id': it may hold"),
    ],
)
def test_options_that_are_refused(ann_file, options, sentence):
    assert sentence in refusal(ann_file, **options)


# ------------------------------------------------------------------ files on the disk


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_roots_and_layouts(tmp_path, ann_file):
    """The first folder in which a video is; other layouts by a template."""
    first = touch(tmp_path / 'one' / 'P01' / 'videos' / 'P01_11.MP4')
    touch(tmp_path / 'two' / 'P01' / 'videos' / 'P01_11.MP4')
    second = touch(tmp_path / 'two' / 'P02' / 'videos' / 'P02_101.MP4')
    options = dict(missing_videos='stop', data_root=str(tmp_path))
    dataset = build(ann_file, data_prefix=dict(video=['one', 'two']), **options)
    assert {info['filename'] for info in infos(dataset)} == {first, second}
    absolute = [str(tmp_path / 'one'), str(tmp_path / 'two')]
    dataset = build(ann_file, missing_videos='stop', data_prefix=dict(video=absolute))
    assert {info['filename'] for info in infos(dataset)} == {first, second}

    flat = touch(tmp_path / 'P01_11.mp4')
    touch(tmp_path / 'P02_101.mp4')
    dataset = build(ann_file, path_tmpl='{video}.mp4', **options)
    assert dataset.get_data_info(0)['filename'] == flat


def test_videos_that_are_not_on_disk(tmp_path, ann_file, log):
    video = tmp_path / 'P01' / 'videos' / 'P01_11.MP4'
    touch(video)
    options = dict(missing_videos='stop', data_root=str(tmp_path))
    missing = tmp_path / 'P02' / 'videos' / 'P02_101.MP4'
    sentence = (
        f'1 of 2 videos in {ann_file} are not on disk, the first is {missing}: check '
        'data_prefix, path_tmpl and use_frames=False, or set '
        "missing_videos='leave_out' (their segments then count in no metric)."
    )
    assert refusal(ann_file, **options) == sentence
    dataset = build(ann_file, **{**options, 'missing_videos': 'leave_out'})
    assert len(dataset) == 4
    assert log[0] == sentence and '4 of 5 segments, in 1 videos' in log[1]
    # clips are there, and will be skipped one by one
    assert len(build(ann_file, on_bad_clip='skip', **options)) == 5
    video.unlink()
    for more in (dict(missing_videos='leave_out'), dict(on_bad_clip='skip')):
        assert '2 of 2 videos' in refusal(ann_file, **{**options, **more})
    # in a folder of another's nothing is looked up
    assert len(build(ann_file, **{**options, 'data_prefix': dict(video='s3://a')})) == 5


def test_folders_of_frames(tmp_path, ann_file):
    official = tmp_path / 'P01' / 'rgb_frames' / 'P01_11'
    write_frames(official, 10)
    write_frames(tmp_path / 'P02' / 'rgb_frames' / 'P02_101', 7)
    options = dict(missing_videos='stop', data_root=str(tmp_path), use_frames=True)
    found = infos(build(ann_file, **options))
    assert found[0]['frame_dir'] == str(official)
    assert [found[i]['total_frames'] for i in (0, 4)] == [10, 7]
    assert [found[i]['fps'] for i in (0, 4)] == [60, 50]
    assert found[0]['filename_tmpl'] == 'frame_{:010d}.jpg'
    assert found[0]['start_index'] == 1
    assert infos(build(ann_file, frame_fps=30, **options))[0]['fps'] == 30

    (tmp_path / 'info.csv').write_text('video_id,duration,fps\nP01_11,99,59.94\n')
    own = dict(frame_fps='video_info', video_info_file='info.csv', **options)
    assert refusal(ann_file, **own) == (
        f"{tmp_path}/info.csv has no video 'P02_101', whose frame rate is needed for "
        "frame_fps='video_info': add its row, or give the frames per second as a "
        'number.'
    )
    dataset = build(ann_file, filter_cfg=dict(videos=['P01_11']), **own)
    assert dataset.get_data_info(0)['fps'] == 59.94
    missing = refusal(ann_file, filename_tmpl='img_{:05d}.jpg', **options)
    assert f'2 of 2 videos in {ann_file} are not on disk, the first is ' in missing
    assert 'P01_11/img_00001.jpg' in missing


@pytest.mark.parametrize('total', [0, 1, 2, 3, 4, 5, 63, 64, 65, 100000])
def test_counts_frames(total):
    looked = []

    def exists(number):
        looked.append(number)
        return number < total

    assert count_frames(exists) == total
    assert len(looked) < 120


# ------------------------------------------------------------- streams and the pipeline


def test_sampler_plays_the_streams(ann_file):
    dataset = build(ann_file, context_stride=2.0)
    sampler = SequentialClipSampler(
        DefaultSampler(dataset, shuffle=False), batch_size=2, shuffle=False
    )
    videos, times = dataset.stream_keys()
    last = {}
    for batch in sampler:
        for index in batch:
            assert times[index] > last.get(videos[index], -1)
            last[videos[index]] = times[index]
    both = ConcatDataset([dataset, build(ann_file, task='anticipation')])
    sampler = SequentialClipSampler(
        DefaultSampler(both, shuffle=True, seed=0), batch_size=2, shuffle=True
    )
    assert sampler.num_clips == len(both)


@pytest.mark.parametrize('task', ['recognition', 'anticipation'])
def test_memory_takes_every_clip_as_the_next(tmp_path, task):
    """Real videos, a real dataloader with workers, and a memory that never warns."""
    rows = [
        row('P01_01_0', 0, 9, 1, 2),
        row('P01_01_1', 3, 4, 3, 4),
        row('P01_01_2', 3, 4, 5, 6),
        row('P01_01_3', 8, 8.1, 7, 8),
        row('P02_101_0', 0.5, 0.9, 9, 10),
        row('P02_101_1', 0.5, 0.9, 9, 10),
    ]
    for video, fps in (('P01_01', 60000 / 1001), ('P02_101', 50)):
        path = tmp_path / video[:3] / 'videos' / f'{video}.MP4'
        write_video(path, fps, round(9 * fps))
    loader = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=False),
            dataset=dict(
                type='EpicKitchensDataset',
                ann_file=write_csv(tmp_path / 'a.csv', rows),
                data_root=str(tmp_path),
                pipeline=PIPELINE,
                task=task,
                context_stride=1.0,
                test_mode=True,
            ),
        )
    )
    memory = ClipMemory()
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        for batch in loader:
            samples = batch['data_samples']
            memory.step(*rows_of(samples)).commit()
            seen += [sample.narration_id for sample in samples]
            for sample, clip in zip(samples, batch['inputs']):
                assert clip.shape == (1, 3, 4, 64, 64)
                assert sample.gt_label.dtype == torch.int64
                between = sample.narration_id is None
                assert (sample.gt_label.tolist() == [-100, -100]) == between
    assert sorted(filter(None, seen)) == sorted(row['narration_id'] for row in rows)
    assert None in seen


def test_the_config_in_the_docstring(tmp_path, monkeypatch):
    """With the official layout around it, it trains."""
    monkeypatch.chdir(tmp_path)
    annotations = tmp_path / 'data' / 'epic' / 'annotations'
    annotations.mkdir(parents=True)
    rows = [row(f'P01_01_{number}', number, number + 2.5) for number in range(9)]
    write_csv(annotations / 'EPIC_100_train.csv', rows)
    (annotations / 'EPIC_100_video_info.csv').write_text(
        'video_id,duration,fps,resolution\nP01_01,10.0,50.0,64x64\n'
    )
    write_classes(annotations / 'EPIC_100_verb_classes.csv', 97)
    write_classes(annotations / 'EPIC_100_noun_classes.csv', 300)
    videos = tmp_path / 'data' / 'epic' / 'EPIC-KITCHENS' / 'P01' / 'videos'
    write_video(videos / 'P01_01.MP4', 50, 500)
    code = EpicKitchensDataset.__doc__.split('::\n')[1].split('A test takes')[0]
    config = {}
    exec(textwrap.dedent(code), config)
    config['train_dataloader']['num_workers'] = 0
    batch = next(iter(Runner.build_dataloader(config['train_dataloader'])))
    assert len(batch['inputs']) == 8
    assert batch['inputs'][0].shape == (1, 3, 16, 224, 224)


def test_bad_clips_can_be_skipped(tmp_path, ann_file):
    write_video(tmp_path / 'P01' / 'videos' / 'P01_11.MP4', 50, 2000)
    (tmp_path / 'P02' / 'videos').mkdir(parents=True)
    (tmp_path / 'P02' / 'videos' / 'P02_101.MP4').write_bytes(b'none' * 100)
    options = dict(data_root=str(tmp_path), missing_videos='stop', pipeline=PIPELINE)
    with pytest.raises(ValueError, match='P02_101.MP4 cannot be opened .*sample 4'):
        build(ann_file, **options)[4]
    sample = build(ann_file, on_bad_clip='skip', **options)[4]['data_samples']
    assert 'P02_101.MP4 cannot be opened' in sample.skipped
    assert sample.narration_id == 'P02_101_0'


# ------------------------------------------------------------------------------ cost

LOAD = """
import re, resource, sys, time
from pathlib import Path
from memvit_mm.datasets import EpicKitchensDataset
pages = int(Path('/proc/self/statm').read_text().split()[1])
before, start = pages * resource.getpagesize(), time.process_time()
dataset = EpicKitchensDataset(sys.argv[1], [], context_stride=2.0,
                              data_root=str(Path(sys.argv[1]).parent))
dataset.stream_keys()
seconds = time.process_time() - start
# Not ru_maxrss, which begins with that of the process that started this one.
status = Path('/proc/self/status').read_text()
peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024
print(len(dataset), seconds, (peak - before) / 1e6)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs Linux')
def test_the_whole_training_set_loads_quickly(tmp_path):
    """As many rows and videos as EPIC_100_train.csv has, and clips in between."""
    random = np.random.RandomState(0)
    rows = []
    for video in range(495):
        name = f'P{video % 37 + 1:02d}_{video:02d}'
        touch(tmp_path / name[:3] / 'videos' / f'{name}.MP4')
        starts = np.sort(random.rand(136)) * 500
        rows += [
            row(f'{name}_{number}', start, start + random.exponential(3) + 0.1)
            for number, start in enumerate(starts)
        ]
    path = write_csv(tmp_path / 'train.csv', rows[:67217])
    result = subprocess.run(
        [python(), '-c', LOAD, path], capture_output=True, text=True, check=True
    )
    clips, seconds, megabytes = result.stdout.strip().splitlines()[-1].split()
    print(f'{clips} clips in {seconds} s of CPU and {megabytes} MB')
    assert '67217 of 67217 segments, in 495 videos' in result.stdout
    assert int(clips) > 100000
    assert float(seconds) < 5 and float(megabytes) < 500
