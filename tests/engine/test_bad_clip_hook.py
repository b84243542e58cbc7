"""Runs on a damaged set are runs on the set without its bad clips."""

import pickle
import shutil

import damaged
import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook

from memvit_mm.engine.bad_clip_hook import summary

BAD = {('demo_va_000', 908), ('demo_va_001', 905), ('demo_tr_000', 904)}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return damaged.make(tmp_path_factory.mktemp('demo') / 'set', num_val=2)


@pytest.fixture(scope='module')
def broken(demo, tmp_path_factory):
    """The set without a frame of some of its clips."""
    broken = damaged.copy_of(demo, tmp_path_factory.mktemp('broken') / 'set')
    for video, second in BAD:
        # Frames count from 1, and clips begin 4 frames before their second.
        frame = (second - 900) * 12 + 2
        (broken / 'rawframes' / video / f'img_{frame:05d}.jpg').unlink()
    return broken


@pytest.fixture(scope='module')
def left_out(demo, tmp_path_factory):
    """The whole set, whose annotations leave out what is bad in the other."""
    folder = damaged.copy_of(demo, tmp_path_factory.mktemp('left') / 'set')
    with open(folder / 'annotations' / 'excluded_val.csv', 'a') as file:
        file.writelines(f'{video},{second}\n' for video, second in sorted(BAD))
    return folder


@HOOKS.register_module()
class Seen(Hook):
    """What the hooks of a run see: clips, losses, outputs."""

    def __init__(self):
        self.losses, self.clips = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if data_batch['data_samples']:
            self.losses.append(outputs['loss'].item())

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        clips = [(s.video_id, s.timestamp) for s in data_batch['data_samples']]
        assert clips == [(s.video_id, s.timestamp) for s in outputs]
        assert len(data_batch['inputs']) == len(clips)
        self.clips += clips


def config_of(folder, work_dir, **options) -> Config:
    cfg = damaged.config(folder, rawframes=True, **options)
    cfg.train_dataloader.dataset.exclude_file = cfg.val_evaluator.exclude_file
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    cfg.custom_hooks.append(dict(type='Seen'))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    # A step without gradient then changes nothing.
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
    dump = dict(type='DumpResults', out_file_path=str(work_dir / 'dump.pkl'))
    cfg.test_evaluator = [cfg.test_evaluator, dump]
    return cfg


def seen_by(runner) -> Seen:
    return next(hook for hook in runner.hooks if isinstance(hook, Seen))


def warnings_of(runner, monkeypatch) -> list:
    said = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    return said


def scores_of(work_dir) -> dict:
    dump = pickle.loads((work_dir / 'dump.pkl').read_bytes())
    scores = {
        (s['video_id'], s['timestamp']): s['pred_instances']['scores'] for s in dump
    }
    assert len(scores) == len(dump)
    return scores


def test_a_test_is_one_without_these_clips(broken, left_out, tmp_path, monkeypatch):
    results = []
    # With the sets' batch sizes apart: what else is in a batch makes no difference.
    for name, folder, batch_size in (('broken', broken, 2), ('left_out', left_out, 1)):
        (tmp_path / name).mkdir()
        cfg = config_of(folder, tmp_path / name, on_bad_clip='skip')
        cfg.test_dataloader.batch_size = batch_size
        runner = damaged.runner(cfg)
        said = warnings_of(runner, monkeypatch)
        results.append((runner.test(), scores_of(tmp_path / name)))
        assert len(seen_by(runner).clips) == len(results[-1][1]) == 27
        if name == 'left_out':
            assert not said
            continue
        assert len(said) == 1
        first, *lines = said[0].splitlines()
        assert first == (
            '2 of 29 clips of test were left out, since they could not be read '
            "(on_bad_clip='skip'):"
        )
        frames = broken / 'rawframes'
        assert lines[0].startswith(
            f'{frames / "demo_va_000"}: 1 clip, at 908: Frame {frames / "demo_va_000"}'
        )
        assert lines[1].startswith(f'{frames / "demo_va_001"}: 1 clip, at 905: Frame ')
    (metrics, scores), (expected_metrics, expected) = results
    assert metrics == expected_metrics
    assert scores.keys() == expected.keys()
    assert all(torch.equal(scores[key], expected[key]) for key in expected)


def test_the_clip_would_have_been_remembered(demo, left_out, tmp_path):
    for name, folder in (('whole', demo), ('left_out', left_out)):
        (tmp_path / name).mkdir()
        cfg = config_of(folder, tmp_path / name, indices=14)
        damaged.runner(cfg).test()
    whole, without = scores_of(tmp_path / 'whole'), scores_of(tmp_path / 'left_out')
    assert torch.equal(whole['demo_va_000', 907], without['demo_va_000', 907])
    assert not torch.equal(whole['demo_va_000', 910], without['demo_va_000', 910])


def test_a_training_is_one_without_these_clips(broken, left_out, tmp_path, monkeypatch):
    results = []
    for name, folder, clips in (('broken', broken, 8), ('left_out', left_out, 7)):
        cfg = config_of(folder, tmp_path / name, on_bad_clip='skip', indices=clips)
        # One row: else the clips would be dealt to rows in another way.
        cfg.train_dataloader.batch_size = 1
        cfg.randomness = dict(seed=0)
        runner = damaged.runner(cfg)
        said = warnings_of(runner, monkeypatch)
        runner.train()
        weights = [p.detach().clone() for p in runner.model.parameters()]
        results.append((seen_by(runner).losses, weights))
        if name == 'broken':
            (text,) = (text for text in said if 'clips' in text)
            assert text.startswith('1 of 8 clips of training epoch 1 were left out')
    (losses, weights), (expected_losses, expected) = results
    assert len(losses) == 7 and losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, expected))


def test_by_iterations_it_is_told_before_validation(broken, tmp_path, monkeypatch):
    cfg = config_of(broken, tmp_path, on_bad_clip='skip', indices=4)
    val = damaged.config(broken, rawframes=True, indices=2)
    cfg.val_cfg = dict(type='ValLoop')
    cfg.val_dataloader, cfg.val_evaluator = val.val_dataloader, val.val_evaluator
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=2)
    runner = damaged.runner(cfg)
    said = warnings_of(runner, monkeypatch)
    runner.train()
    told = [text.split(' were left out')[0] for text in said if 'clips' in text]
    # Seconds 902 and 904, 903 and 905; and 902 and 904 once more.
    assert told == [
        '1 of 4 clips of training up to iteration 2',
        '1 of 2 clips of training up to iteration 3',
    ]


def test_nothing_can_be_read_any_more(demo, tmp_path):
    gone = damaged.copy_of(demo, tmp_path / 'set')
    cfg = config_of(gone, tmp_path, on_bad_clip='skip', indices=4)
    runner = damaged.runner(cfg)
    dataset = runner.test_loop.dataloader.dataset
    dataset._any_readable_clip('')
    shutil.rmtree(gone / 'rawframes')
    with pytest.raises(ValueError, match='None of the 4 clips of test could be read; '):
        runner.test()


def test_another_model(demo, tmp_path):
    cfg = config_of(demo, tmp_path, on_bad_clip='skip')
    cfg.model = dict(
        type='Recognizer3D',
        backbone=dict(type='MeMViT', arch='tiny', memory_layers=()),
        cls_head=dict(type='MViTHead', num_classes=2, in_channels=768),
        data_preprocessor=dict(type='ActionDataPreprocessor'),
    )
    cfg.custom_hooks = [dict(type='BadClipHook')]
    runner = damaged.runner(cfg)
    with pytest.raises(ValueError, match='Recognizer3D does not: set on_bad_clip='):
        runner.test()
    # Without the option it is none of its business.
    cfg.test_dataloader.dataset.on_bad_clip = 'stop'
    cfg.experiment_name = 'stop'
    runner = damaged.runner(cfg)
    runner._test_loop = runner.build_test_loop(cfg.test_cfg)
    runner.call_hook('before_run')


def test_blending(demo, tmp_path):
    cfg = config_of(demo, tmp_path, on_bad_clip='skip')
    cfg.model.data_preprocessor.blending = dict(
        type='mmaction.MixupBlending', num_classes=2
    )
    with pytest.raises(ValueError, match='blends the clips .* remove its blending'):
        damaged.runner(cfg).test()


def test_many_clips_of_a_file():
    clips = [('a.mp4', float(second), f'Bad ({second}).') for second in range(50)]
    (line,) = summary(clips).splitlines()
    assert line.startswith('a.mp4: 50 clips, at 0.0, 1.0, 2.0, ')
    assert line.endswith(', 17.0, ..., 49.0; the first: Bad (0).')
    assert summary([('b', 'x', 'Bad.'), ('b', 2, 'No.')]).startswith('b: 2 clips, at 2')
