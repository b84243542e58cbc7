"""Every fault of AVA-style data that leads to an mAP of 0 gets its sentence."""

import importlib.util
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from memvit_mm.datasets.check import check_config
from memvit_mm.demo.ava import DemoSettings, make_demo_dataset

SETTINGS = DemoSettings(num_train=2, num_val=2, seconds=20, size=64, people=2)
TOOLS = Path(__file__).resolve().parents[1] / 'tools' / 'data'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('check') / 'demo'
    make_demo_dataset(out, SETTINGS, rawframes=True, workers=1)
    return out


class Data:
    """A small clean data set, a config for it, and ways to spoil either."""

    def __init__(self, source, folder):
        self.root = folder
        shutil.copytree(source / 'annotations', folder / 'annotations')
        for media in ('videos', 'rawframes'):
            (folder / media).mkdir()
            for path in (source / media).iterdir():
                (folder / media / path.name).symlink_to(path)
        self.cfg = Config(
            dict(
                model=dict(
                    type='MemoryFastRCNN',
                    roi_head=dict(bbox_head=dict(num_classes=15)),
                ),
                train_dataloader=self.loader('train'),
                val_dataloader=self.loader('val'),
                test_dataloader=self.loader('val'),
                val_evaluator=dict(
                    type='AVAMetric',
                    ann_file=str(self.path('val.csv')),
                    label_file=str(self.path('action_list.pbtxt')),
                    exclude_file=str(self.path('excluded_val.csv')),
                    num_classes=15,
                ),
            )
        )
        self.train = self.cfg.train_dataloader.dataset
        self.val = self.cfg.val_dataloader.dataset

    def path(self, name):
        return self.root / 'annotations' / name

    def loader(self, split):
        excluded = (
            {}
            if split == 'train'
            else {'exclude_file': str(self.path('excluded_val.csv'))}
        )
        return dict(
            batch_sampler=dict(type='SequentialClipSampler', shuffle=split == 'train'),
            dataset=dict(
                type='AVADataset',
                ann_file=str(self.path(f'{split}.csv')),
                proposal_file=str(self.path(f'proposals_{split}.pkl')),
                label_file=str(self.path('action_list.pbtxt')),
                data_prefix=dict(img=str(self.root / 'videos')),
                use_frames=False,
                fps=12,
                timestamp_end=920,
                num_classes=15,
                pipeline=[dict(type='SampleAVAFrames', clip_len=8)],
                test_mode=split != 'train',
                **excluded,
            ),
        )

    def edit(self, number, change, name='train.csv'):
        """Change one line (from 1), given as its columns, or all if number is None."""
        lines = self.path(name).read_text().splitlines()
        for index in range(len(lines)) if number is None else [number - 1]:
            lines[index] = ','.join(map(str, change(lines[index].split(','))))
        self.path(name).write_text('\n'.join(lines) + '\n')

    def proposals(self, change, name='proposals_train.pkl'):
        """Change the table of proposals."""
        with open(self.path(name), 'rb') as file:
            table = pickle.load(file)
        table = change(table) or table
        with open(self.path(name), 'wb') as file:
            pickle.dump(table, file)

    def use_frames(self):
        for dataset in (self.train, self.val, self.cfg.test_dataloader.dataset):
            dataset.use_frames = True
            dataset.data_prefix.img = str(self.root / 'rawframes')

    def check(self, *splits, **kwargs):
        return check_config(self.cfg, splits or ('train',), **kwargs)

    def expect(self, level, pattern, *splits):
        """The one finding of this level matches the pattern."""
        report = self.check(*splits)
        found = [f.text for f in report.findings if f.level == level]
        text = '\n'.join(map(str, report.findings))
        pattern = pattern.replace('ROOT', re.escape(str(self.root)))
        assert len(found) == 1 and re.search(pattern, found[0]), text
        if level == 'WARNING':
            assert report.count('ERROR') == 0, text


@pytest.fixture
def data(made, tmp_path):
    return Data(made, tmp_path)


def replaced(index, value):
    return lambda columns: [*columns[:index], value, *columns[index + 1 :]]


# -------------------------------------------------------------------- clean data


@pytest.mark.parametrize(
    'kind, frames',
    [
        ('AVADataset', False),
        ('AVADataset', True),
        ('MemoryAVADataset', False),
        ('MemoryAVADataset', True),
        ('AVAKineticsDataset', True),
    ],
)
def test_clean_data(data, kind, frames):
    if frames:
        data.use_frames()
    for name in ('train', 'val', 'test'):
        dataset = data.cfg[f'{name}_dataloader'].dataset
        dataset.type = kind
        if kind == 'AVAKineticsDataset':
            # It reads frames alone, and wants to be told of no exclusions.
            del dataset.use_frames
            dataset.setdefault('exclude_file', None)
    report = data.check('train', 'val', 'test')
    lines = '\n'.join(map(str, report.findings))
    assert report.count('ERROR') == report.count('WARNING') == 0, lines
    assert 'rows, 34 keyframes of 2 videos, labels 1 to 14' in lines
    assert 'excluded_val.csv: 1 keyframes, 1 of them annotated' in lines
    assert 'test_dataloader.dataset: the same data as val_dataloader.dataset' in lines
    assert re.search(r'2 of 2 (frame folder|video)s are there; 2 of them', lines)
    assert report.summary() == '0 errors, 0 warnings: the data can be trained on'


def test_datasets_inside_wrappers_are_found(data):
    one, other = data.train.copy(), data.val.copy()
    other.ann_file = 'nowhere.csv'
    data.cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[one, other]),
    )
    data.expect(
        'ERROR',
        r'^train_dataloader\.dataset\.dataset\.datasets\[1\]: Annotation file '
        r'nowhere.csv does not exist: check ann_file',
    )


def test_what_is_not_looked_up(data):
    data.train.data_prefix.img = 's3://ava/videos/'
    data.expect('WARNING', '^s3://ava/videos/: .*; nothing in it is looked up')


def test_annotations_that_nobody_names(data):
    data.train.ann_file = ''
    data.expect('ERROR', 'AVADataset has no ann_file: set it to the CSV file')


# ------------------------------------------------------------------- annotations


@pytest.mark.parametrize(
    'column, value, sentence',
    [
        (6, 0, 'label 0 is not possible: labels count from 1, since 0 means no action'),
        (6, 15, 'label 15 is too large for num_classes=15: set it to the largest'),
        (6, 'walk', '.*,walk,.* is not a line of an AVA annotation file: expected vi'),
        (1, '902.5', '.*,902.5,.* is not a line of an AVA annotation file'),
        (2, 'left', '.*,left,.* is not a line of an AVA annotation file'),
        (4, '1.400', 'box .* is not x1, y1, x2, y2 .* as fractions of the frame'),
        (4, '87', 'box .* is not x1, .*: divide pixels by its width and height'),
        (4, '0.001', 'box .* is not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2'),
        (4, 'nan', 'box .*nan.* is not x1, y1, x2, y2'),
        (1, '0002', 'timestamp 2 is before the first frame, timestamp_start=900: set'),
        (1, '0933', 'timestamp 933 is not before the end, timestamp_end=920: .* 934'),
    ],
)
def test_one_bad_line_is_named(data, column, value, sentence):
    data.edit(7, replaced(column, value))
    report = data.check(sample=0)
    found = [f.text for f in report.findings if f.level == 'ERROR']
    pattern = f'^{re.escape(str(data.path("train.csv")))}:7: {sentence}'
    assert any(re.search(pattern, text) for text in found), found


def test_label_beyond_the_label_map_only(data):
    data.train.num_classes = 20
    data.cfg.model.roi_head.bbox_head.num_classes = 20
    data.edit(7, replaced(6, 17))
    data.expect(
        'WARNING', r'train.csv:7: label 17 is not in .*action_list.pbtxt, and n'
    )


def test_all_lines_bad_in_one_way_are_one_finding(data):
    data.edit(None, lambda columns: columns[:7])
    data.expect('ERROR', r'train.csv:1: .* is not a line of .* \(and 79 more like it\)')


def test_headings(data):
    lines = data.path('train.csv').read_text()
    headings = 'video_id,timestamp,x1,y1,x2,y2,action,person\n'
    data.path('train.csv').write_text(headings + lines)
    data.expect(
        'ERROR', r"train.csv:1: 'video_id,timestamp,.*' is not a line of an AVA"
    )


def test_byte_order_mark(data):
    content = data.path('train.csv').read_bytes()
    data.path('train.csv').write_bytes(b'\xef\xbb\xbf' + content)
    data.expect(
        'ERROR',
        r'has boxes for .*demo_tr_000,0902. under a key .* without a byte order mark',
    )


def test_empty_line(data):
    data.path('train.csv').write_text(data.path('train.csv').read_text() + '\n')
    data.expect(
        'ERROR', r'AVADataset cannot read these files, and stops at once \(IndexError'
    )


def no_width(text):
    return re.sub(r'^(.*?,.*?),(.*?),(.*?),.*?,', r'\1,\2,\3,\2,', text)


@pytest.mark.parametrize('kind', ['AVADataset', 'MemoryAVADataset'])
@pytest.mark.parametrize(
    'name, change',
    [
        ('train.csv', lambda text: text.replace('\n', '\n\n  \n')),
        ('train.csv', lambda text: text.replace('\n', ',extra,\n')),
        ('train.csv', lambda text: text.replace('\n', '\r\n')),
        ('train.csv', lambda text: text.replace(',', ', ')),
        ('train.csv', lambda text: '\ufeff' + text),
        ('train.csv', lambda text: '\n\n'),
        ('train.csv', lambda text: b'\xe9' + text.encode()),
        ('train.csv', no_width),
        ('excluded_train.csv', lambda text: 'demo_tr_000,0902\n\n'),
        ('excluded_train.csv', lambda text: 'demo_tr_000,0902  \n'),
        ('excluded_train.csv', lambda text: 'demo_tr_000,0902,1\n'),
        ('excluded_train.csv', lambda text: '\ufeffdemo_tr_000,0902\n'),
        ('proposals_train.pkl', lambda boxes: boxes.astype(object)),
        ('proposals_train.pkl', lambda boxes: boxes.tolist()),
        ('proposals_train.pkl', lambda boxes: boxes[:0]),
        ('proposals_train.pkl', lambda boxes: boxes[0]),
    ],
)
def test_what_the_dataset_reads_is_no_error(data, kind, name, change):
    data.train.type = kind
    path = data.path(name)
    if name.endswith('.pkl'):
        data.proposals(set_first(change))
    else:
        content = change(path.read_text() if path.exists() else '')
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == 'excluded_train.csv':
        data.train.exclude_file = str(path)
    try:
        with DefaultScope.overwrite_default_scope('mmaction'):
            dataset = DATASETS.build(data.train)
        for index in range(len(dataset)):
            dataset.get_data_info(index)
        refused = False
    except Exception:  # AVADataset's are of many kinds
        refused = True
    found = data.check(sample=0).count('ERROR') > 0
    # AVADataset takes more than it understands, such as a byte order mark.
    assert found == refused if kind == 'MemoryAVADataset' else found >= refused


def test_empty_file(data):
    data.path('train.csv').write_text('')
    data.expect('ERROR', r'train.csv: has no line')


def test_timestamps_from_zero(data):
    data.edit(None, lambda c: [c[0], f'{int(c[1]) - 900:04d}', *c[2:]])
    report = data.check()
    text = '\n'.join(f.text for f in report.findings if f.level == 'ERROR')
    assert 'train.csv:1: timestamp 2 is before the first frame' in text
    assert 'timestamps seem to count from 2; set timestamp_start' in text
    assert 'none of its keyframes: timestamps run from 902 to 918, in the' in text


def test_width_and_height_for_corners(data):
    def change(c):
        x1, y1, x2, y2 = map(float, c[2:6])
        return [*c[:4], f'{(x2 - x1) / 9:.3f}', f'{(y2 - y1) / 9:.3f}', *c[6:]]

    data.edit(None, change)
    report = data.check()
    (text,) = [f.text for f in report.findings if 'box' in f.text and 'csv' in f.text]
    assert 'is not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2' in text
    assert text.endswith('more like it)')


def test_streams_with_holes(data):
    lines = data.path('train.csv').read_text().splitlines()
    kept = [line for line in lines if int(line.split(',')[1]) % 5 in (0, 1, 3)]
    data.path('train.csv').write_text('\n'.join(kept) + '\n')
    pattern = r'% of the steps from one keyframe to the next .*keyframes=.detected'
    data.expect('WARNING', pattern)
    data.train.update(type='MemoryAVADataset', keyframes='detected')
    assert data.check().count('WARNING') == 0


# --------------------------------------------------------- label map and classes


def test_label_map_that_mmaction2_reads_nothing_from(data):
    path = data.path('action_list.pbtxt')
    path.write_text(path.read_text().replace('  ', '\t'))
    data.expect('ERROR', r'action_list.pbtxt: no label is read from it')


def test_label_map_with_label_0(data):
    path = data.path('action_list.pbtxt')
    path.write_text(path.read_text().replace('label_id: 14', 'label_id: 0'))
    report = data.check()
    assert any("label 0 ('give_yellow')" in f.text for f in report.findings)


def test_custom_classes(data):
    data.train.custom_classes = [1, 2, 77]
    report = data.check()
    text = '\n'.join(f.text for f in report.findings if f.level == 'ERROR')
    assert 'action_list.pbtxt: lacks [77] of custom_classes' in text
    assert 'num_classes=15 with 3 custom_classes: set it to 4' in text


def test_numbers_of_classes_disagree(data):
    data.cfg.model.roi_head.bbox_head.num_classes = 81
    data.expect('ERROR', r'num_classes=15, but model.roi_head.bbox_head.num_classes=81')


def test_evaluator_of_another_file(data):
    data.cfg.val_evaluator.ann_file = str(data.path('train.csv'))
    data.expect('ERROR', r'val_evaluator: ann_file=.*train.csv., but val_data', 'val')
    # One that scores a part of the keyframes has a file of its own.
    data.cfg.val_evaluator.ignore_empty_frames = True
    assert not any('but val_data' in f.text for f in data.check('val').findings)


# --------------------------------------------------------------------- proposals


def test_key_without_leading_zero(data):
    def change(table):
        return {key.replace(',0', ','): value for key, value in table.items()}

    data.proposals(change)
    data.expect(
        'ERROR',
        r"proposals_train.pkl: has boxes for 'demo_tr_000,0902' under a key that "
        r'AVADataset does not find: write .* four digits.* \(and 33 more like it\)',
    )
    data.train.type = 'MemoryAVADataset'  # which reads them as numbers
    assert data.check().count('ERROR', 'WARNING') == 0


def test_key_without_timestamp(data):
    data.proposals(
        lambda table: {f'{k[:11]}_{n}': v for n, (k, v) in enumerate(table.items())}
    )
    data.expect(
        'ERROR',
        r"has the key 'demo_tr_000_0', expected 'video,second' such as .*"
        r'\(and 33 more like it\)',
    )


def set_first(value):
    def change(table):
        key = next(iter(table))
        table[key] = value(table[key]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    'value, sentence',
    [
        (
            lambda a: a[:, :3],
            r"has an array \[\d, 3\] for 'demo_tr_000,0902', expected",
        ),
        (lambda a: a[0], r'has an array \[5\] for .*, expected an array \[n, 5\]'),
        (lambda a: np.full(a.shape, 'x'), r'has an array \[\d, 5\] for .*, expected'),
        (lambda a: a.tolist(), r"stops at 'demo_tr_000,0902' \(AttributeError: 'list'"),
        (lambda a: a[:0], r"AVADataset .* stops at 'demo_tr_000,0902' \(ValueError: "),
        (
            lambda a: a * [96, 96, 96, 96, 1],
            r'box .* for .*, expected fractions of the',
        ),
        (lambda a: a + [0.05, 0, 1, 0, 0], r'box with coordinates .*: divide pixels'),
        (
            lambda a: a * [1, 1, 1, 0, 1] + [0, 0, 0, 1.05, 0],
            r'\(AssertionError: relative proposals inv',
        ),
        (lambda a: a * [1, 1, 1, 1, 100], r'scores run from .* is a score in \[0, 1\]'),
        (lambda a: a * [np.nan, 1, 1, 1, 1], r'box with coordinates nan to nan'),
    ],
)
def test_one_bad_array_is_named(data, value, sentence):
    data.proposals(set_first(value))
    data.expect('ERROR', sentence)


def test_detector_that_is_never_sure(data):
    def change(table):
        for boxes in table.values():
            boxes[:, 4] *= 0.5

    data.proposals(change)
    data.expect(
        'ERROR', r'no score reaches person_det_score_thr=0.9 .*the highest is 0.\d+\)'
    )


def test_rows_that_are_there_twice(data):
    path = data.path('train.csv')
    first, *others = path.read_text().splitlines()
    path.write_text('\n'.join([first, first, *others]) + '\n')
    data.expect('WARNING', r'train.csv:2: the same row as one before')


def test_people_with_the_same_box(data):
    path = data.path('train.csv')
    first, *others = path.read_text().splitlines()
    other = ','.join([*first.split(',')[:-1], '77'])
    path.write_text('\n'.join([first, other, *others]) + '\n')
    data.expect('WARNING', r'train.csv:2: person 77 has the same box as another person')


def test_an_empty_video_that_is_not_among_the_sample(data):
    path = data.root / 'videos' / 'demo_tr_001.mp4'
    path.unlink()
    path.touch()
    report = data.check('train', sample=1)
    (found,) = [f.text for f in report.findings if f.level == 'ERROR']
    assert 'demo_tr_001.mp4: no readable video (an empty file)' in found


def test_frames_that_count_from_elsewhere(data):
    data.use_frames()
    data.train.start_index = 0
    data.expect('ERROR', r'img_00000.jpg: there is no such frame.*start_index of train')


def test_proposals_of_the_other_split(data):
    data.train.proposal_file = str(data.path('proposals_val.pkl'))
    data.expect(
        'ERROR',
        r'proposals_val.pkl: has none of the videos in .*train.csv, neither demo_tr_000'
        r' nor another; it has demo_va_000, .*: is it of the other split',
    )


def test_proposals_with_nothing_in_them(data):
    def change(table):
        for key, boxes in table.items():
            table[key] = np.vstack([boxes, [[0.5, 0.5, 0.4, 0.6, 0.9]]])

    data.proposals(change)
    data.expect(
        'ERROR', r'proposals_train.pkl: (\d+) of \d+ boxes have nothing in them'
    )


def test_keyframes_without_proposals(data):
    def change(table):
        for second in (905, 906):
            del table[f'demo_tr_001,{second:04d}']

    data.proposals(change)
    data.expect(
        'WARNING',
        r'2 of 34 annotated keyframes \(5.9%\) have no proposal, such as '
        r'demo_tr_001,0905, demo_tr_001,0906; there is no box there',
    )


@pytest.mark.parametrize(
    'order, sentence',
    [
        ([1, 0, 3, 2, 4], 'seem to be stored as y1, x1, y2, x2; store x1, y1'),
        (None, 'are they of other videos, or at other times'),
    ],
)
def test_boxes_elsewhere_than_the_people(data, order, sentence):
    def change(table):
        for key, boxes in table.items():
            if order is None:
                table[key][:, :4] = [0.4, 0.0, 0.6, 0.1]
            else:
                table[key] = boxes[:, order]

    data.proposals(change)
    data.expect('ERROR', f'of the annotated boxes overlap with a proposal .*{sentence}')


@pytest.mark.parametrize(
    'content, sentence',
    [
        (b'no pickle', r' cannot be read'),
        (pickle.dumps([1, 2]), r' holds a list, expected a dict'),
        (pickle.dumps({}), r': has none of the videos in .*; it has none: is it'),
        (pickle.dumps({'a,0902': Path('x')}), r' cannot be read \(it holds pathlib'),
    ],
)
def test_file_that_holds_no_proposals(data, content, sentence):
    data.path('proposals_train.pkl').write_bytes(content)
    data.expect('ERROR', f'proposals_train.pkl{sentence}')


def test_no_proposal_file(data):
    del data.train['proposal_file']
    data.expect('WARNING', 'train_dataloader.dataset: has no proposal_file')
    data.train.proposal_file = 'nowhere.pkl'
    data.expect('ERROR', r'Proposal file nowhere.pkl does not exist: check proposal')


# -------------------------------------------------------------------- exclusions


def test_exclusion_that_names_no_keyframe(data):
    data.path('excluded_val.csv').write_text('demo_va_000,0918\ndemo_va_001\n')
    data.expect(
        'ERROR', r"excluded_val.csv:2: 'demo_va_001' does not name a keyframe", 'val'
    )


def test_everything_is_excluded(data):
    lines = [f'demo_va_00{v},{t:04d}\n' for v in (0, 1) for t in range(902, 919)]
    data.path('excluded_val.csv').write_text(''.join(lines))
    data.expect('ERROR', r'excludes every keyframe of', 'val')


# --------------------------------------------------------------- videos and frames


def write_video(path, frames, fps):
    path.unlink()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, (64, 64))
    for _ in range(frames):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()


def test_missing_videos(data):
    (data.root / 'videos' / 'demo_tr_001.mp4').unlink()
    data.expect(
        'ERROR',
        r'1 of 2 videos do not exist, the first is ROOT/videos/demo_tr_001.mp4: ',
    )


def test_missing_folder(data):
    data.train.data_prefix.img = str(data.root / 'vidoes')
    data.expect('ERROR', r'2 of 2 videos do not exist, .*/vidoes/.*: check data_prefix')


def test_other_extension(data):
    for name in ('demo_tr_000', 'demo_tr_001'):
        path = data.root / 'videos' / f'{name}.mp4'
        path.rename(path.with_suffix('.mkv'))
    data.expect(
        'ERROR', r'demo_tr_000.mp4: the video has another ending, .*1 more like it'
    )
    data.train.type = 'MemoryAVADataset'  # which finds them
    assert data.check().count('ERROR') == 0


def test_empty_video(data):
    path = data.root / 'videos' / 'demo_tr_001.mp4'
    path.unlink()
    path.write_bytes(b'')
    data.expect(
        'ERROR', r'demo_tr_001.mp4: no readable video \(.*\): fetch or encode it again'
    )


def test_unreadable_video(data):
    path = data.root / 'videos' / 'demo_tr_001.mp4'
    path.unlink()
    path.write_bytes(b'<html>404</html>' * 99)
    data.expect('ERROR', r'demo_tr_001.mp4: no readable video \(.*\): fetch or encode')


def test_short_video(data):
    write_video(data.root / 'videos' / 'demo_tr_001.mp4', 12 * 15, 12)
    data.expect(
        'ERROR',
        r'demo_tr_001.mp4: 180 frames, but the keyframe 0918 is frame 216 '
        r'\(\(918 - timestamp_start=900\) x 12 fps\): it is cut short',
    )


def test_other_frame_rate(data):
    write_video(data.root / 'videos' / 'demo_tr_001.mp4', 25 * 20, 25)
    data.expect(
        'ERROR',
        r'demo_tr_001.mp4: 25 frames per second, but train_dataloader.dataset says '
        r'fps=12: clips would be cut at the wrong times',
    )
    # Ours goes by the container's rate, unless MMAction2's transform is used.
    data.train.update(
        type='MemoryAVADataset', pipeline=[dict(type='SampleClipFrames', clip_len=8)]
    )
    assert data.check().count('ERROR') == 0


def test_only_a_sample_is_opened(data):
    path = data.root / 'videos' / 'demo_tr_001.mp4'
    path.unlink()
    path.write_bytes(b'not opened')
    assert data.check(sample=1).count('ERROR') == 0
    assert data.check(sample=0).count('ERROR') == 0
    assert data.check(sample=2).count('ERROR') == 1


def copy_frames(data, count=None):
    folder = data.root / 'rawframes' / 'demo_tr_001'
    source = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for path in sorted(source.iterdir())[:count]:
        (folder / path.name).symlink_to(path)
    return folder


def test_missing_frame_folder(data):
    data.use_frames()
    (data.root / 'rawframes' / 'demo_tr_001').unlink()
    data.expect('ERROR', r'1 of 2 frames do not exist, .*demo_tr_001/img_00001.jpg')


def test_frames_named_otherwise(data):
    data.use_frames()
    for path in copy_frames(data).iterdir():
        path.rename(path.with_name(f'demo_tr_001_{path.name[4:]}'))
    data.expect(
        'ERROR',
        r'1 of 2 frames do not exist, the first is .*demo_tr_001/img_00001.jpg: check '
        'data_prefix, filename_tmpl',
    )


def test_too_few_frames(data):
    data.use_frames()
    copy_frames(data, 200)
    data.expect('ERROR', r'demo_tr_001: 200 frames, but the keyframe 0918 is frame 216')


# ------------------------------------------------------------------- the config


def test_sampler_that_does_not_keep_the_order(data):
    data.cfg.train_dataloader.batch_sampler = None
    data.expect(
        'WARNING',
        r'train_dataloader: the model has a memory, but clips do not come in the order '
        r"of their videos: set batch_sampler=dict\(type='SequentialClipSampler', "
        r'shuffle=True\)',
    )
    data.cfg.model.type = 'FastRCNN'
    assert data.check().count('WARNING') == 0


def test_videos_in_both_splits(data):
    data.cfg.val_dataloader.dataset = data.train
    data.cfg.val_evaluator = None
    report = data.check('train', 'val')
    assert report.count('ERROR') == 0
    data.cfg.val_dataloader.dataset = dict(data.train, test_mode=True, fps=12.0)
    data.cfg.val_dataloader.dataset['person_det_score_thr'] = 0.8
    data.expect(
        'WARNING', r'2 videos are in training and validation alike', 'train', 'val'
    )


def test_config_without_ava(data):
    data.train.clear()
    data.train.update(type='VideoDataset', ann_file='list.txt')
    data.expect('WARNING', r'VideoDataset is no dataset of AVA or EPIC-KITCHENS')
    empty = check_config(Config(dict()))
    assert 'the config has no train_dataloader or val_dataloader' in str(
        empty.findings[0]
    )


# --------------------------------------------------------------------- the tool


def test_tool(data, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location(
        'check_dataset', TOOLS / 'check_dataset.py'
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = tmp_path / 'config.py'
    data.cfg.dump(str(config))

    def run(*args):
        monkeypatch.setattr('sys.argv', ['check_dataset.py', str(config), *args])
        with pytest.raises(SystemExit) as stop:
            tool.main()
        return stop.value.code, capsys.readouterr().out

    code, out = run()
    assert code == 0
    assert re.search(
        r'\n0 errors, 0 warnings: the data can be trained on \(\d+ s\)\n$', out
    )
    assert all(line[:8].strip() == 'OK' for line in out.splitlines()[:-1])
    code, out = run(
        '--split', 'train', '--cfg-options', 'train_dataloader.dataset.num_classes=5'
    )
    assert code == 1
    assert 'ERROR   ' in out and 'val_dataloader' not in out
    assert 'is too large for num_classes=5' in out
