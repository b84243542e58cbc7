"""What `check_dataset.py` says of EPIC-KITCHENS data: real files, real videos."""

import shutil

import pytest
from mmengine.config import Config

from memvit_mm.datasets.check import check_config
from memvit_mm.demo.epic import EpicDemoSettings, make_epic_demo
from memvit_mm.paths import get_config_path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('epic')
    make_epic_demo(
        folder, EpicDemoSettings(num_train=2, num_val=1), overwrite=True, workers=1
    )
    return folder


def check(data, split='train', **options):
    cfg = Config.fromfile(get_config_path('memvit_demo_epic_cls.py'))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.data_root = str(data)
    cfg.merge_from_dict(options)
    return check_config(cfg, [split])


def test_what_can_be_trained_on(data):
    report = check(data)
    lines = '\n'.join(map(str, report.findings))
    assert 'segments and' in lines and 'in 2 videos' in lines
    assert 'a clip of each of 2 videos goes through the pipeline' in lines
    assert report.summary().endswith('0 warnings: the data can be trained on')


def test_a_head_of_other_classes(data):
    report = check(data, **{'model.cls_head.num_verbs': 9})
    (error,) = [line for line in report.findings if line.level == 'ERROR']
    assert 'has num_verbs=9 and num_nouns=' in error.text
    assert error.text.endswith('give it the same')


def test_files_that_are_not_there(data):
    report = check(data, **{'train_dataloader.dataset.ann_file': 'none.csv'})
    (error,) = [line for line in report.findings if line.level == 'ERROR']
    assert 'none.csv' in error.text


def test_a_video_that_cannot_be_read(data, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(data, copy)
    bad = sorted(copy.rglob('*.MP4'))
    names = {path.stem for path in bad}
    for path in bad:
        path.write_bytes(b'no video')
    report = check(copy, **{'train_dataloader.dataset.on_bad_clip': 'skip'})
    errors = [line.text for line in report.findings if line.level == 'ERROR']
    assert len(errors) == 2 and all(any(n in text for n in names) for text in errors)
    assert 'mend the errors first' in report.summary()
