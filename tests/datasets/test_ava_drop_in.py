"""MemoryAVADataset where a program or a config has MMAction2's AVADataset.

Each test runs on both, side by side, and what it expects is what AVADataset gives.
"""

import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmaction.datasets import AVADataset
from mmaction.evaluation import AVAMetric
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from memvit_mm.datasets import MemoryAVADataset, SequentialClipSampler
from memvit_mm.datasets.check import check_config
from memvit_mm.evaluation import MemoryAVAMetric

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'models'))

import small_models

BOX = (0.031, 0.162, 0.67, 0.995)
PERSON = [0.011, 0.157, 0.655, 0.983, 0.998163]
FRAMES = [dict(type='SampleAVAFrames', clip_len=32, frame_interval=2)]

BOTH = pytest.mark.parametrize('kind', [AVADataset, MemoryAVADataset])


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmaction'):
        yield


def rows(*lines):
    return ''.join(','.join(map(str, line)) + '\n' for line in lines)


@pytest.fixture
def ava(tmp_path):
    """AVA's files, and a folder in which no frame is."""
    (tmp_path / 'ann.csv').write_text(
        rows(
            ('one', '0902', *BOX, 12, 0),
            ('one', '0902', *BOX, 17, 0),
            ('one', '0902', *BOX, 79, 0),
            ('one', '0903', *BOX, 12, 0),
            ('two', '0902', *BOX, 74, 1),
            ('two', '0902', *BOX, 80, 1),
        )
    )
    (tmp_path / 'excluded.csv').write_text(rows(('one', '0903'), ('two', '0902')))
    (tmp_path / 'labels.pbtxt').write_text(
        ''.join(
            f'item {{\n  name: "action {label}"\n  id: {label}\n}}\n'
            for label in (12, 17, 74, 79, 80)
        )
    )
    people = {key: np.array([PERSON]) for key in ('one,0902', 'one,0903', 'two,0902')}
    (tmp_path / 'people.pkl').write_bytes(pickle.dumps(people))
    return tmp_path


def files(folder, excluded=True):
    """The arguments of AVADataset, in its order, as far as they are files."""
    named = [str(folder / 'excluded.csv') if excluded else None]
    return [str(folder / 'ann.csv'), FRAMES, *named, str(folder / 'labels.pbtxt')]


def options(folder, **more):
    return dict(
        data_prefix=dict(img=str(folder)),
        proposal_file=str(folder / 'people.pkl'),
        **more,
    )


@BOTH
@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize('excluded', [False, True])
def test_samples(ava, kind, test_mode, excluded):
    dataset = kind(*files(ava, excluded), **options(ava, test_mode=test_mode))
    assert len(dataset) == (1 if excluded else 3)
    sample = dataset[0]
    assert sample['img_key'] == 'one,0902' and sample['video_id'] == 'one'
    assert sample['frame_dir'] == str(ava / 'one') and sample['fps'] == 30
    assert sample['shot_info'] == (0, 900 * 30)
    assert sample['filename_tmpl'] == 'img_{:05}.jpg' and sample['modality'] == 'RGB'
    assert sample['start_index'] == 1 and sample['timestamp'] == 902
    assert (sample['timestamp_start'], sample['timestamp_end']) == (900, 1800)
    # To the last digit of the file.
    np.testing.assert_array_equal(sample['proposals'], [PERSON[:4]])
    np.testing.assert_array_equal(sample['scores'], [PERSON[4]])
    np.testing.assert_array_equal(sample['gt_bboxes'], [BOX])
    assert sample['entity_ids'].tolist() == [0]
    assert np.flatnonzero(sample['gt_labels'][0]).tolist() == [12, 17, 79]
    assert (sample['clip_len'], sample['frame_interval']) == (32, 2)
    assert len(sample['frame_inds']) == 32


@BOTH
def test_every_argument_in_its_place(ava, kind):
    dataset = kind(
        *files(ava),
        '{:03}.png', 3, str(ava / 'people.pkl'), 0.5, 3, [17, 79], dict(img='frames'),
        'Flow', True, 7, 901, 904, False, 25, False,
    )  # fmt: skip
    assert dataset.label_file == str(ava / 'labels.pbtxt')
    assert dataset.proposal_file == str(ava / 'people.pkl')
    names = ('filename_tmpl', 'start_index', 'person_det_score_thr', 'num_classes')
    assert [getattr(dataset, name) for name in names] == ['{:03}.png', 3, 0.5, 3]
    names = ('custom_classes', 'modality', 'test_mode', 'num_max_proposals')
    assert [getattr(dataset, name) for name in names] == [[0, 17, 79], 'Flow', True, 7]
    names = ('timestamp_start', 'timestamp_end', 'use_frames', '_FPS', 'multilabel')
    assert [getattr(dataset, name) for name in names] == [901, 904, False, 25, False]
    assert dataset.data_prefix == dict(img='frames')


@BOTH
def test_custom_classes(ava, kind):
    more = options(ava, custom_classes=[17, 79], num_classes=3)
    dataset = kind(*files(ava), **more)
    assert len(dataset) == 1
    assert dataset[0]['gt_labels'].tolist() == [[0, 1, 1]]


@BOTH
@pytest.mark.parametrize(
    'excluded, keys',
    [(False, ['one,0902', 'one,0903', 'two,0902']), (True, ['one,0902'])],
)
def test_filter_data(ava, kind, excluded, keys):
    dataset = kind(*files(ava, excluded), **options(ava), lazy_init=True)
    dataset.full_init()
    found = [dataset.get_data_info(index)['img_key'] for index in range(len(dataset))]
    assert found == keys


@BOTH
def test_without_proposals(ava, kind):
    dataset = kind(*files(ava), data_prefix=dict(img=str(ava)))
    assert 'proposals' not in dataset[0]


def test_a_run_without_any_media_is_refused(ava):
    dataset = MemoryAVADataset(*files(ava, False), **options(ava))
    with pytest.raises(FileNotFoundError, match='2 of 2 frames do not exist'):
        SequentialClipSampler(DefaultSampler(dataset), 1, shuffle=False)


@pytest.mark.parametrize('metric', [AVAMetric, MemoryAVAMetric])
@BOTH
def test_evaluation(ava, kind, metric, monkeypatch, tmp_path):
    """What is annotated, as predictions: everything there is to find, and one miss."""
    monkeypatch.chdir(tmp_path)  # AVAMetric writes a file there
    dataset = kind(*files(ava, False), **options(ava))
    (ava / 'excluded.csv').write_text('')
    paths = [str(ava / name) for name in ('ann.csv', 'excluded.csv', 'labels.pbtxt')]
    found = metric(*paths, ('mAP',), 0.5, 81, None, 'cpu', 'ava')
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        scores = 0.9 * torch.from_numpy(info['gt_labels'])
        if info['img_key'] == 'one,0902':
            scores[:, 17] = 0.4  # below action_thr
        pred = dict(bboxes=torch.from_numpy(info['gt_bboxes']).float(), scores=scores)
        sample = {key: info[key] for key in ('video_id', 'timestamp')}
        found.process({}, [dict(sample, pred_instances=pred)])
    results = found.evaluate(len(dataset))
    assert results['ava/person_movement'] == results['ava/person_interaction'] == 1
    # AVAMetric's mean is over what was detected.
    missed = results['ava/object_manipulation']
    assert np.isnan(missed) if metric is AVAMetric else missed == 0


def test_options_of_the_metric(ava):
    paths = [str(ava / name) for name in ('ann.csv', 'excluded.csv', 'labels.pbtxt')]
    with pytest.raises(ValueError, match=r"options=\('AR',\) must be \('mAP',\)"):
        MemoryAVAMetric(*paths, ('AR',))


# --------------------------------------------------------------------- MultiSports

VIDEO = 'gym/v_1_c001.mp4'


@pytest.fixture
def sports(tmp_path):
    """Video ids are paths, timestamps count frames from 1, labels count from 0."""
    (tmp_path / 'ann.csv').write_text(
        rows(*((VIDEO, frame, *BOX, label, 0) for frame, label in FRAME_LABELS))
    )
    people = {
        f'{VIDEO},{frame:04d}': np.array([PERSON], np.float32)
        for frame, _ in FRAME_LABELS
    }
    (tmp_path / 'people.pkl').write_bytes(pickle.dumps(people))
    return tmp_path


FRAME_LABELS = ((20, 0), (21, 2), (24, 2))
SPORTS = dict(
    use_frames=False,
    multilabel=False,
    timestamp_start=1,
    start_index=0,
    fps=1,
    num_classes=3,
)


def record(folder):
    """A video in which frame i has the level 4 * i."""
    (folder / VIDEO).parent.mkdir()
    writer = cv2.VideoWriter(
        str(folder / VIDEO), cv2.VideoWriter_fourcc(*'mp4v'), 24, (64, 48)
    )
    for number in range(40):
        writer.write(np.full((48, 64, 3), 4 * number, np.uint8))
    writer.release()


@BOTH
@pytest.mark.parametrize('test_mode', [False, True])
def test_sports_without_media(sports, kind, test_mode):
    more = options(sports, test_mode=test_mode, **SPORTS)
    dataset = kind(str(sports / 'ann.csv'), [], **more)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [info['gt_labels'].tolist() for info in infos] == [[[0]], [[2]], [[2]]]
    assert [info['timestamp'] for info in infos] == [20, 21, 24]
    assert infos[0]['filename'] == str(sports / VIDEO)
    assert infos[0]['img_key'] == f'{VIDEO},0020'
    assert infos[0]['shot_info'] is None and infos[0]['fps'] == 1


@BOTH
@pytest.mark.parametrize('test_mode', [False, True])
def test_sports_pipeline(sports, kind, test_mode):
    record(sports)
    pipeline = [
        dict(type='DecordInit'),
        dict(type='SampleAVAFrames', clip_len=8, frame_interval=2, test_mode=True),
        dict(type='DecordDecode'),
    ]
    more = options(sports, test_mode=test_mode, **SPORTS)
    sample = kind(str(sports / 'ann.csv'), pipeline, **more)[0]
    assert sample['fps'] == 1 and sample['start_index'] == 0
    assert sample['frame_inds'].tolist() == [11, 13, 15, 17, 19, 21, 23, 25]
    assert np.mean(sample['imgs'][4]) == pytest.approx(4 * 19, abs=3)
    size = [64, 48, 64, 48]
    np.testing.assert_allclose(
        sample['proposals'], [np.multiply(PERSON[:4], size)], rtol=1e-6
    )
    np.testing.assert_allclose(sample['gt_bboxes'], [np.multiply(BOX, size)], rtol=1e-6)
    np.testing.assert_allclose(sample['scores'], [PERSON[4]], rtol=1e-6)


def test_sports_are_trained_and_tested(sports):
    """As MMAction2's config has it: multilabel=True in the dataset, not in the head."""
    record(sports)
    pipeline = [
        dict(type='VideoInit'),
        dict(type='SampleClipFrames', clip_len=8, frame_interval=2),
        dict(type='VideoDecode'),
        dict(type='Resize', scale=(32, 32), keep_ratio=False),
        dict(type='FormatShape', input_format='NCTHW', collapse=True),
        dict(
            type='PackActionInputs',
            meta_keys=('img_shape', 'img_key', 'video_id', 'timestamp', 'sample_idx'),
        ),
    ]
    dataset_cfg = dict(
        type='MemoryAVADataset',
        ann_file=str(sports / 'ann.csv'),
        pipeline=pipeline,
        **options(sports, **{**SPORTS, 'multilabel': True}),
    )
    loader_cfg = dict(
        batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
        dataset=dataset_cfg,
    )
    report = check_config(Config(dict(train_dataloader=loader_cfg)), ['train'])
    assert report.count('ERROR') == report.count('WARNING') == 0, report.findings

    dataset = MemoryAVADataset(**{k: v for k, v in dataset_cfg.items() if k != 'type'})
    sampler = SequentialClipSampler(DefaultSampler(dataset, seed=0), 1, shuffle=True)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=pseudo_collate)
    model = small_models.detector()
    head = model.roi_head.bbox_head
    head.num_classes, head.background_class, head.multilabel = 3, False, False
    head.topk, head.fc_cls = (1,), torch.nn.Linear(small_models.DIMS, 3)
    for data in loader:
        data = model.data_preprocessor(data, training=True)
        losses = model(**data, mode='loss')
        assert torch.isfinite(losses['loss_action_cls'])
        assert losses['loss_action_cls'] > 0
    model.reset_memory()
    for data in loader:
        with torch.no_grad():
            (sample,) = model.test_step(data)
        scores = sample.pred_instances.scores
        torch.testing.assert_close(scores.sum(1), torch.ones(1))
