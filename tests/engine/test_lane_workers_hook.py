"""LaneWorkersHook under real runners, with workers that read videos."""

import cv2
import numpy as np
import pytest
import small_runs
from mmaction.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from memvit_mm.datasets import LaneDataLoader

VIDEOS, SECONDS, FPS = small_runs.VIDEOS, 5, 8


@DATASETS.register_module()
class SmallVideos(BaseDataset):
    """A second of four frames, every second."""

    def load_data_list(self):
        (folder,) = self.metainfo['folders']
        return [
            dict(
                filename=f'{folder}/{video}.mp4',
                video_id=str(video),
                timestamp=second,
                timestamp_start=0,
                fps=FPS,
                label=video,
                modality='RGB',
            )
            for video in range(VIDEOS)
            for second in range(1, SECONDS)
        ]


PIPELINE = [
    dict(type='VideoInit'),
    dict(type='SampleClipFrames', clip_len=4, frame_interval=3, jitter=False),
    dict(type='VideoDecode', resize=dict(scale=(16, 16), keep_ratio=False)),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('video_id', 'timestamp', 'sample_idx')),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for video in range(VIDEOS):
        codec = cv2.VideoWriter_fourcc(*'mp4v')
        path = str(folder / f'{video}.mp4')
        writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, codec, FPS, (32, 32))
        random = np.random.RandomState(video)
        for _ in range(SECONDS * FPS):
            writer.write(random.randint(0, 255, (32, 32, 3), dtype=np.uint8))
        writer.release()
    return str(folder)


def runner_of(tmp_path, folder, train_cfg, num_workers, hook):
    def loader(shuffle):
        return dict(
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle),
            dataset=dict(
                type='SmallVideos', metainfo=dict(folders=[folder]), pipeline=PIPELINE
            ),
        )

    hooks = [dict(type='MemoryResetHook')]
    hooks += [dict(type='LaneWorkersHook')] if hook else []
    return small_runs.runner_of(
        tmp_path,
        train_cfg,
        train_dataloader=loader(True),
        val_dataloader=loader(False),
        test_dataloader=loader(False),
        custom_hooks=hooks,
        model=dict(
            small_runs.MODEL,
            data_preprocessor=dict(
                type='ActionDataPreprocessor',
                mean=[128.0] * 3,
                std=[64.0] * 3,
                format_shape='NCTHW',
            ),
        ),
    )


TRAIN = [
    dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
    dict(type='IterBasedTrainLoop', max_iters=12, val_interval=9),
]


@pytest.mark.parametrize('train_cfg', TRAIN, ids=['epochs', 'iterations'])
def test_training_and_testing_stay_the_same(tmp_path, folder, train_cfg):
    results = []
    for number, (num_workers, hook) in enumerate([(0, False), (2, True)]):
        runner = runner_of(
            tmp_path / str(number), folder, dict(train_cfg), num_workers, hook
        )
        runner.train()
        scores = runner.test()['first_class']
        weights = [p.detach().clone() for p in runner.model.parameters()]
        results.append((scores, weights))
        loops = (runner.train_loop, runner.val_loop, runner.test_loop)
        for loop in loops:
            assert isinstance(loop.dataloader, LaneDataLoader) == hook
    (score, weights), (other, others) = results
    assert score == other
    assert all(a.equal(b) for a, b in zip(weights, others))


def test_says_that_fewer_workers_read(tmp_path, folder, monkeypatch):
    runner = runner_of(tmp_path, folder, dict(TRAIN[0]), 5, hook=True)
    said = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *args: said.append(text))
    runner._test_loop = runner.build_test_loop(runner._test_loop)
    runner.call_hook('before_run')
    assert 'test_dataloader: 2 of num_workers=5 workers read videos, one for each ' in (
        ' '.join(said)
    )
    assert runner.test_dataloader.dataset.pipeline.transforms[0].lanes == 1
