import collections
import json
import pickle
import time

import cv2
import numpy as np
import pytest
import torch
from mmaction.datasets import AVADataset
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from memvit_mm.datasets import MemoryAVADataset, SequentialClipSampler
from memvit_mm.datasets.ava.files import read_proposals
from memvit_mm.paths import get_config_path

ROWS = [
    # video, second, box, label, person
    ('b', 902, (0.1, 0.2, 0.5, 0.9), 3, 0),
    ('b', 902, (0.1, 0.2, 0.5, 0.9), 1, 0),
    ('b', 902, (0.5, 0.2, 0.9, 0.9), 3, 1),
    ('b', 904, (0.1, 0.2, 0.5, 0.9), 2, 0),
    ('b', 905, (0.1, 0.2, 0.5, 0.9), 4, 0),
    ('a', 902, (0.2, 0.2, 0.5, 0.8), 1, 7),
    ('a', 903, (0.2, 0.2, 0.5, 0.8), 2, 7),
]
BOX = [0.11, 0.21, 0.5, 0.88]
PROPOSALS = {
    'b,0902': np.array([[*BOX, 0.99], [0.5, 0.2, 0.9, 0.9, 0.9], [*BOX, 0.2]]),
    'b,0903': np.array([[*BOX, 0.95]]),  # a person, not annotated
    'b,0904': np.array([[*BOX, 0.5]]),  # below the threshold
    'b,0906': np.zeros((0, 5)),
    'a,0902': np.array([[*BOX, 0.95]]),
    'a,0901': np.array([[*BOX, 0.95]]),
    'other,0902': np.array([[*BOX, 0.95]]),  # of another split
}


def write_csv(path, rows=ROWS):
    path.write_text(
        ''.join(
            f'{video},{second:04d},{",".join(map(str, box))},{label},{person}\n'
            for video, second, box, label, person in rows
        )
    )
    return str(path)


def write_pickle(path, table):
    path.write_bytes(pickle.dumps(table))
    return str(path)


@pytest.fixture
def files(tmp_path):
    (tmp_path / 'excluded.csv').write_text('b,0905\nnone,0902\n')
    (tmp_path / 'labels.pbtxt').write_text(
        ''.join(f'label {{\n  name: "l{i}"\n  label_id: {i}\n}}\n' for i in range(1, 5))
    )
    return dict(
        ann_file=write_csv(tmp_path / 'ann.csv'),
        exclude_file=str(tmp_path / 'excluded.csv'),
        label_file=str(tmp_path / 'labels.pbtxt'),
        proposal_file=write_pickle(tmp_path / 'proposals.pkl', PROPOSALS),
        num_classes=5,
        pipeline=[],
    )


def build(files, **options):
    return MemoryAVADataset(**{'check_files': False, **files, **options})


def keys(dataset):
    return [dataset.get_data_info(index)['img_key'] for index in range(len(dataset))]


def test_equals_mmaction_on_annotated_keyframes(files):
    for options in (
        dict(),
        dict(exclude_file=None),
        dict(custom_classes=[1, 3], num_classes=3),
        dict(data_prefix=dict(img='frames'), serialize_data=False),
    ):
        ours = build(files, keyframes='annotated', keep_best_proposal=True, **options)
        theirs = AVADataset(**{**files, **options})
        assert len(ours) == len(theirs)
        for index in range(len(theirs)):
            found, expected = ours.get_data_info(index), theirs.get_data_info(index)
            if found['img_key'] not in PROPOSALS:
                # not a box as large as the frame, where there was none
                assert expected.pop('proposals').tolist() == [[0, 0, 1, 1]]
                assert found.pop('proposals').shape == (0, 4)
                expected.pop('scores'), found.pop('scores')
            assert found.pop('total_frames') == 27000
            assert found.pop('stream')[0] == found['video_id']
            found.pop('whole_frame_boxes')
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                if isinstance(value, np.ndarray):
                    assert found[key].shape == value.shape
                    np.testing.assert_allclose(found[key], value, rtol=1e-6)
                else:
                    assert found[key] == value


def test_not_multilabel(files, tmp_path):
    rows = [row for row in ROWS if row[:2] != ('b', 902)]
    files['ann_file'] = write_csv(tmp_path / 'single.csv', rows)
    info = build(files, multilabel=False).get_data_info(0)
    theirs = AVADataset(**files, multilabel=False).get_data_info(0)
    assert info['gt_labels'].tolist() == theirs['gt_labels'].tolist() == [[2]]


def test_detected_keyframes_leave_no_holes(files):
    dataset = build(files, test_mode=True)
    assert dataset.keyframes == 'detected'
    assert keys(dataset) == ['b,0902', 'b,0903', 'a,0901', 'a,0902']
    info = dataset.get_data_info(1)
    assert (info['video_id'], info['timestamp']) == ('b', 903)
    assert info['gt_bboxes'].shape == (0, 4)
    assert info['gt_labels'].shape == (0, 5)
    assert info['entity_ids'].shape == (0,)
    np.testing.assert_allclose(info['proposals'], [BOX], rtol=1e-6)
    annotated = build(files, test_mode=True, keyframes='annotated')
    assert keys(annotated) == ['b,0902', 'b,0904', 'a,0902', 'a,0903']
    assert keys(build(files, test_mode=True, proposal_file=None)) == keys(annotated)
    assert build(files).keyframes == 'annotated'


def test_training_keyframes_are_annotated_or_detected(files):
    dataset = build(files, keyframes='detected')
    # b,0905 is excluded; of b,0904 and a,0903, the ground truth alone is left.
    assert keys(dataset) == ['b,0902', 'b,0903', 'b,0904', 'a,0901', 'a,0902', 'a,0903']
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [len(info['gt_bboxes']) for info in infos] == [2, 0, 1, 0, 1, 1]
    assert [len(info['proposals']) for info in infos] == [2, 1, 0, 1, 1, 0]
    assert infos[1]['gt_labels'].shape == (0, 5)
    assert list(zip(*dataset.stream_keys()))[3] == ('a', 901)


@pytest.mark.parametrize('keyframes', ['annotated', 'detected'])
def test_keyframe_range(files, keyframes):
    every = keys(build(files, keyframes=keyframes))
    dataset = build(files, keyframes=keyframes, keyframe_range=(902, 903))
    assert keys(dataset) == [key for key in every if key[2:] in ('0902', '0903')]
    for wrong in ((903, 902), (902,), (902, 903, 904)):
        with pytest.raises(ValueError, match=r'first and the last second, .* got \(9'):
            build(files, keyframe_range=wrong)
    with pytest.raises(ValueError, match=r'no keyframe: .*keyframe_range=\(1, 9\)'):
        build(files, keyframe_range=(1, 9))


def test_threshold_holds(files):
    dataset = build(files)
    shapes = {
        info['img_key']: info['proposals'].shape
        for info in map(dataset.get_data_info, range(len(dataset)))
    }
    assert shapes == {'b,0902': (2, 4), 'b,0904': (0, 4), 'a,0902': (1, 4),
                      'a,0903': (0, 4)}  # fmt: skip
    lower = build(files, person_det_score_thr=0.5)
    assert len(lower.get_data_info(1)['proposals']) == 1
    best = build(files, keep_best_proposal=True)
    assert len(best.get_data_info(1)['proposals']) == 1
    assert len(build(files, num_max_proposals=1).get_data_info(0)['proposals']) == 1
    assert 'proposals' not in build(files, proposal_file=None).get_data_info(0)


@pytest.mark.parametrize('serialize_data', [True, False])
def test_stream_keys(files, serialize_data):
    dataset = build(files, serialize_data=serialize_data)
    expected = [('b', 902), ('b', 904), ('a', 902), ('a', 903)]
    assert list(zip(*dataset.stream_keys())) == expected
    subset = dataset.get_subset([2, 0])
    assert list(zip(*subset.stream_keys())) == [expected[2], expected[0]]
    dataset.get_subset_(2)
    assert list(zip(*dataset.stream_keys())) == expected[:2]
    lazy = build(files, lazy_init=True, serialize_data=serialize_data, indices=[1])
    assert list(zip(*lazy.stream_keys())) == [expected[1]]


@pytest.mark.parametrize('shuffle', [True, False])
def test_sampler_orders_ours_and_mmactions_alike(files, shuffle):
    ours, theirs = build(files, keyframes='annotated'), AVADataset(**files)
    orders = [
        list(SequentialClipSampler(DefaultSampler(dataset, seed=0), 1, shuffle))
        for dataset in (ours, theirs)
    ]
    assert orders[0] == orders[1]
    assert shuffle or orders[0] == [[0], [1], [2], [3]]


# --- proposal files


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
def test_reads_pickles_of_any_protocol(tmp_path, protocol):
    table = collections.OrderedDict(
        (key, value.astype(np.float32)) for key, value in PROPOSALS.items()
    )
    table['list,902'] = [[*BOX, np.float64(0.5)]]
    table['four,902'] = np.array([BOX])
    table['none,902'] = []
    path = tmp_path / 'p.pkl'
    path.write_bytes(pickle.dumps(table, protocol=protocol))
    found = read_proposals(str(path))
    assert all(boxes.dtype == np.float32 for boxes in found.values())
    np.testing.assert_allclose(found['b', 902], PROPOSALS['b,0902'], rtol=1e-6)
    np.testing.assert_allclose(found['list', 902], [[*BOX, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(found['four', 902], [[*BOX, 1]], rtol=1e-6)
    assert found['none', 902].shape == (0, 5)


@pytest.mark.parametrize('package', [b'numpy.core', b'numpy._core'])
def test_reads_pickles_of_numpy_1_and_2(tmp_path, package):
    # protocol 0 is text
    content = pickle.dumps({'b,902': np.array([[*BOX, 0.9]])}, protocol=0)
    content = content.replace(b'numpy._core', b'numpy.core')
    assert b'numpy.core' in content
    (tmp_path / 'p.pkl').write_bytes(content.replace(b'numpy.core', package))
    assert len(read_proposals(str(tmp_path / 'p.pkl'))['b', 902]) == 1


def test_reads_json(tmp_path):
    (tmp_path / 'p.json').write_text(json.dumps({'b,0902': [[*BOX, 0.9]]}))
    assert read_proposals(str(tmp_path / 'p.json'))['b', 902].shape == (1, 5)


class Evil:
    def __reduce__(self):
        return print, ('run!',)


def test_runs_no_code(tmp_path, capsys):
    path = write_pickle(tmp_path / 'p.pkl', {'b,902': Evil()})
    with pytest.raises(
        ValueError, match='p.pkl cannot be read .*it holds .*print, and'
    ):
        read_proposals(path)
    assert capsys.readouterr().out == ''


# --- bad input


@pytest.mark.parametrize(
    'line, message',
    [
        ('video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id',
         "ann.csv:2: 'video_id,.*' is not a line of an AVA annotation file: expected "
         'video,second,x1,y1,x2,y2,label,person'),
        ('a,0902,0.1,0.1,0.5,0.5,1', 'ann.csv:2: .*is not a line of an AVA'),
        ('a,0902,0.1,0.1,0.5,x,1,0', 'ann.csv:2: .*is not a line of an AVA'),
        ('a,0902,0.1,0.1,0.5,0.5,0,0', 'ann.csv:2: label 0 is not possible: labels '
         'count from 1'),
        ('a,0902,0.1,0.1,0.5,0.5,5,0', 'ann.csv:2: label 5 is too large for '
         'num_classes=5: set it to the largest label plus one'),
        ('a,0902,10,20,300,200,1,0', 'ann.csv:2: box 10, 20, 300, 200 is not x1, y1, .*'
         'divide pixels by its width and height'),
        ('a,0902,0.5,0.1,0.1,0.5,1,0', 'ann.csv:2: box 0.5, 0.1, 0.1, 0.5 is not'),
        ('a,0902,nan,0.1,0.1,0.5,1,0', 'ann.csv:2: box nan'),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(files, tmp_path, line, message):
    good = 'a,0902,0.1,0.1,0.5,0.5,1,0\n'
    (tmp_path / 'ann.csv').write_text(good + line + '\n' + good)
    with pytest.raises(ValueError, match=message):
        build(files)


@pytest.mark.parametrize(
    'table, message',
    [
        ([1, 2], r"holds a list, expected a dict \{'video,second': array \[n, 5\]\}"),
        ({'b902': np.zeros((1, 5))}, "has the key 'b902', expected 'video,second'"),
        ({3: np.zeros((1, 5))}, "has the key 3, expected 'video,second'"),
        ({'b,902': np.zeros((1, 6))}, r"has an array \[1, 6\] for 'b,902', expected"),
        ({'b,902': dict(boxes=1)}, "has a dict for 'b,902'"),
        ({'b,902': np.full((1, 5), 40.0)}, 'has a box .* 40 to 40 for .*divide pixels'),
        ({'b,2': np.zeros((1, 5)), 'c,3': np.zeros((1, 5))},
         r'has boxes for none of the keyframes in .*ann.csv: found keys such as '
         r'b,0002, c,0003, expected such as b,0902'),
        ({}, 'has boxes for none .* keys such as none'),
    ],
)  # fmt: skip
def test_a_bad_proposal_file_is_named(files, tmp_path, table, message):
    files['proposal_file'] = write_pickle(tmp_path / 'bad.pkl', table)
    with pytest.raises(ValueError, match=f'Proposal file .*bad.pkl {message}'):
        build(files)


def test_missing_and_unreadable_files(files, tmp_path):
    for option in ('ann_file', 'exclude_file', 'proposal_file'):
        for name, error in (('none', 'does not exist'), ('.', 'cannot be read')):
            path = str(tmp_path / name)
            with pytest.raises(
                (FileNotFoundError, ValueError), match=f'{path}.* {error}.*{option}'
            ):
                build({**files, option: path})
    (tmp_path / 'text.pkl').write_text('no pickle')
    with pytest.raises(ValueError, match='text.pkl cannot be read .*expected a pickle'):
        build(files, proposal_file=str(tmp_path / 'text.pkl'))
    (tmp_path / 'binary.csv').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='binary.csv is not a text file'):
        build(files, ann_file=str(tmp_path / 'binary.csv'))
    (tmp_path / 'excluded.csv').write_text('b,0902,1\n')
    with pytest.raises(ValueError, match=r"excluded.csv:1: 'b,0902,1' does not name"):
        build(files)


def test_bad_options(files, tmp_path):
    with pytest.raises(ValueError, match="'annotated' or 'detected', got 'all'"):
        build(files, keyframes='all')
    with pytest.raises(ValueError, match='needs a proposal_file'):
        build(files, keyframes='detected', proposal_file=None)
    with pytest.raises(ValueError, match='between 0 and 1, got 90'):
        build(files, person_det_score_thr=90)
    with pytest.raises(ValueError, match='custom_classes needs the label_file'):
        build(files, custom_classes=[1, 2], num_classes=3, label_file=None)
    (tmp_path / 'excluded.csv').write_text('b,0902\nb,0903\na,0901\na,0902\n')
    with pytest.raises(
        ValueError,
        match=r"no keyframe: 5 annotated, keyframes='detected' chooses 4, and all",
    ):
        build(files, test_mode=True)


# --- frames and videos on disk


def write_frames(folder, number, size=(64, 48)):
    folder.mkdir(parents=True)
    for index in range(number):
        level = np.full((size[1], size[0], 3), 2 * index, np.uint8)
        cv2.imwrite(str(folder / f'img_{index + 1:05}.jpg'), level)


def test_counts_frames(files, tmp_path):
    write_frames(tmp_path / 'frames' / 'a', 100)
    write_frames(tmp_path / 'frames' / 'b', 7)
    options = dict(check_files=True, data_prefix=dict(img=str(tmp_path / 'frames')))
    dataset = build(files, **options)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert {info['video_id']: info['total_frames'] for info in infos} == dict(
        a=100, b=7
    )
    assert infos[0]['shot_info'] == (0, 7)
    # no more than there should be
    short = build(files, timestamp_end=903, **options)
    assert short.get_data_info(2)['total_frames'] == 90
    with pytest.raises(
        FileNotFoundError,
        match='1 of 2 frames do not exist, the first is .*/b/frame_00001.jpg: check',
    ):
        write_frames(tmp_path / 'other' / 'a', 1)
        (tmp_path / 'other' / 'a' / 'img_00001.jpg').rename(
            tmp_path / 'other' / 'a' / 'frame_00001.jpg'
        )
        options['data_prefix'] = dict(img=str(tmp_path / 'other'))
        build(files, filename_tmpl='frame_{:05}.jpg', **options)


def write_video(path, num_frames, fps=10, size=(64, 48)):
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
    for index in range(num_frames):
        writer.write(np.full((size[1], size[0], 3), 2 * index, np.uint8))
    writer.release()


def test_finds_videos(files, tmp_path):
    videos = tmp_path / 'videos'
    write_video(videos / 'a.avi', 5)
    write_video(videos / 'b.mp4', 5)
    (videos / 'b.mkv').write_text('')
    options = dict(
        check_files=True, use_frames=False, data_prefix=dict(img=str(videos))
    )
    dataset = build(files, **options)
    assert dataset.get_data_info(0)['filename'] == str(videos / 'b.mp4')
    assert dataset.get_data_info(2)['filename'] == str(videos / 'a.avi')
    assert dataset.get_data_info(0)['start_index'] == 0
    other = build(files, video_ext='.mkv', **options)
    assert other.get_data_info(0)['filename'] == str(videos / 'b.mkv')
    (videos / 'a.avi').unlink()
    with pytest.raises(
        FileNotFoundError,
        match='1 of 2 videos do not exist, the first is .*/a.mp4: che',
    ):
        build(files, **options)


# --- the configs


@pytest.mark.parametrize('source', ['rawframes', 'videos'])
def test_config_delivers_batches(files, tmp_path, source):
    """The base configs, on a small set, through the runner's dataloaders."""
    init_default_scope('mmaction')
    cfg = Config.fromfile(get_config_path(f'_base_/datasets/ava_{source}.py'))
    size = (340, 256)
    for video in 'ab':
        if source == 'rawframes':
            write_frames(tmp_path / 'data' / video, 100, size)
        else:
            write_video(tmp_path / 'data' / f'{video}.mp4', 100, 20, size)
    own = dict(files, timestamp_start=901, data_prefix=dict(img=str(tmp_path / 'data')))
    own.update(fps=20, keyframe_range=(901, 1798))
    del own['pipeline']
    for name in ('train', 'val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        assert dataset.keyframe_range == (902, 1798)
        assert dataset.keyframes == 'detected'
        dataset.update(own)
        cfg[f'{name}_dataloader'].num_workers = 2
        assert cfg[f'{name}_dataloader'].batch_size == 2
    assert cfg.test_dataloader.dataset.test_mode

    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    assert type(loader.dataset) is DATASETS.get('MemoryAVADataset')
    seen, keyframes = {}, []
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            for inputs, sample in zip(batch['inputs'], batch['data_samples']):
                assert inputs.shape == (3, 16, 224, 224)
                assert inputs.dtype == torch.float32
                meta = sample.metainfo
                assert set(meta) == {
                    'img_shape', 'img_key', 'video_id', 'timestamp', 'stream',
                    'whole_frame_boxes',
                }  # fmt: skip
                assert meta['stream'][-1] == epoch
                proposals = sample.proposals.bboxes
                assert proposals.shape[1:] == (4,)
                truth = sample.gt_instances
                assert truth.bboxes.shape == (len(truth.labels), 4)
                assert truth.labels.shape[1:] == (5,)
                keyframes.append(meta['img_key'])
                whole = meta['whole_frame_boxes']
                assert len(whole['gt_bboxes']) == len(truth.bboxes)
                assert len(whole['proposals']) == len(proposals)
                if meta['img_key'] in ('b,0904', 'a,0903'):
                    assert len(proposals) == 0
                if meta['img_key'] == 'b,0903':  # nobody is annotated
                    assert len(truth.bboxes) == 0
                    np.testing.assert_allclose(whole['proposals'], [BOX], rtol=1e-6)
                elif meta['img_key'] in ('a,0902', 'a,0903'):  # always the same box
                    box = tuple(truth.bboxes[0].tolist())
                    seen.setdefault(epoch, set()).add(box)
    assert set(keyframes) == {
        'b,0902', 'b,0903', 'b,0904', 'a,0901', 'a,0902', 'a,0903',
    }  # fmt: skip
    assert [len(boxes) for boxes in seen.values()] == [1, 1]
    assert seen[0] != seen[1]

    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    batches = list(loader)
    order = [[sample.img_key for sample in batch['data_samples']] for batch in batches]
    assert order == [['b,0902', 'a,0901'], ['b,0903', 'a,0902']]
    inputs, sample = batches[1]['inputs'][0], batches[1]['data_samples'][0]
    assert inputs.shape == (3, 16, 224, 297)
    assert sample.img_shape == (224, 297)
    assert sample.stream == ('b', 0, 0, 0)
    assert sample.gt_instances.bboxes.shape == (0, 4)
    assert sample.gt_instances.labels.shape == (0, 5)
    np.testing.assert_allclose(
        sample.proposals.bboxes, [np.multiply(BOX, [297, 224, 297, 224])], rtol=0.01
    )
    # second 903 is frame 40; of a clip of 16, 4 apart, the ninth
    assert inputs[:, 8].float().mean() == pytest.approx(80, abs=4)
    assert inputs[:, 9].float().mean() == pytest.approx(88, abs=4)

    # While training, the middle; the people in it are evaluated as they were found.
    batches = list(Runner.build_dataloader(cfg.val_dataloader, seed=0))
    inputs, sample = batches[1]['inputs'][0], batches[1]['data_samples'][0]
    assert inputs.shape == (3, 16, 224, 224)
    cropped = np.multiply(BOX, [297, 224, 297, 224]) - [36, 0, 36, 0]
    np.testing.assert_allclose(
        sample.proposals.bboxes, [cropped.clip(0, 223)], rtol=0.01
    )
    np.testing.assert_allclose(sample.whole_frame_boxes['proposals'], [BOX], rtol=1e-6)


def test_reads_ava_fast_enough(tmp_path):
    # A twentieth of AVA's training set (837,318 lines, at most 30 s).
    random = np.random.RandomState(0)
    with open(tmp_path / 'ann.csv', 'w') as file:
        for number in range(42_000):
            x, y = random.choice([0.1, 0.2], 2)
            file.write(
                f'v{number // 3600},{902 + number // 4 % 900:04d},{x},{y},0.9,0.8,'
                f'{number % 80 + 1},0\n'
            )
    (tmp_path / 'excluded.csv').write_text(
        ''.join(
            f'v{video},{second:04d}\n' for video in range(5) for second in range(500)
        )
    )
    start = time.process_time()
    dataset = MemoryAVADataset(
        str(tmp_path / 'ann.csv'),
        [],
        exclude_file=str(tmp_path / 'excluded.csv'),
        check_files=False,
    )
    assert len(dataset) == 10_500
    assert time.process_time() - start < 5
