"""Clips that cannot be read: real files, damaged, and what the dataset makes of it."""

import random

import damaged
import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, TRANSFORMS
from mmcv.transforms import BaseTransform
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from memvit_mm.datasets import BadClipError
from memvit_mm.structures import skipped_samples

# In the middle of demo_va_001; this much of the file are seconds 907 to 909.
BAD = (0.4, 0.5)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return damaged.make(tmp_path_factory.mktemp('demo') / 'set')


@pytest.fixture(scope='module')
def broken(demo, tmp_path_factory):
    """The set with a video that fails in the middle, one that does not open, and a
    frame that is missing, one that is empty."""
    broken = damaged.copy_of(demo, tmp_path_factory.mktemp('broken') / 'set')
    damaged.overwrite(broken / 'videos' / 'demo_va_001.mp4', *BAD)
    cut = broken / 'videos' / 'demo_va_002.mp4'
    cut.write_bytes(cut.read_bytes()[:-20000])
    frames = broken / 'rawframes'
    (frames / 'demo_va_000' / 'img_00100.jpg').unlink()
    (frames / 'demo_va_001' / 'img_00100.jpg').write_bytes(b'')
    return broken


@pytest.fixture(scope='module')
def stopped(broken):
    """All samples of it, errors among them."""
    init_default_scope('mmaction')
    return read(dataset_of(broken))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmaction')


def dataset_of(demo, pipeline=None, **options):
    cfg = damaged.config(demo, **options).test_dataloader.dataset
    if pipeline is not None:
        cfg.pipeline = pipeline(cfg.pipeline)
    return DATASETS.build(cfg)


def read(dataset) -> dict:
    """Every sample, or the error it raised, by video and second."""
    videos, seconds = dataset.stream_keys()
    results = {}
    for index, key in enumerate(zip(videos, seconds)):
        try:
            results[key] = dataset[index]
        except BadClipError as error:
            results[key] = error
    return results


def bad_of(results: dict) -> dict:
    """Those that could not be read, as errors or as stand-ins."""
    return {
        key: result
        for key, result in results.items()
        if isinstance(result, Exception) or skipped_samples(_batch(result))
    }


def _batch(result: dict) -> dict:
    return dict(data_samples=[result['data_samples']])


class TestStop:
    def test_videos(self, demo, broken, stopped):
        assert not bad_of(read(dataset_of(demo)))
        bad = bad_of(stopped)
        middle = {second for video, second in bad if video == 'demo_va_001'}
        assert {908, 909} <= middle <= set(range(905, 912))
        assert {video for video, _ in bad} == {'demo_va_001', 'demo_va_002'}
        # The second one does not even open.
        keys = list(stopped)
        assert sum(v == 'demo_va_002' for v, _ in bad) == (
            sum(v == 'demo_va_002' for v, _ in keys)
        )
        index = keys.index(('demo_va_001', 908))
        text = str(bad['demo_va_001', 908])
        path = broken / 'videos' / 'demo_va_001.mp4'
        assert text.startswith(f'Video {path} cannot be decoded at second 908, frames')
        assert text.endswith(
            f"(sample {index}, video 'demo_va_001', second 908; on_bad_clip='skip' in "
            'the dataset goes on without it).'
        )
        assert str(bad['demo_va_002', 908]).startswith(
            f'Video {broken / "videos" / "demo_va_002.mp4"} cannot be opened ('
        )

    def test_frames(self, broken):
        bad = bad_of(read(dataset_of(broken, rawframes=True)))
        # Frame 99 counted from 0: second 908 has the frames 92 to 99.
        assert {key for key in bad} == {('demo_va_000', 908), ('demo_va_001', 908)}
        missing = bad['demo_va_000', 908]
        assert isinstance(missing, FileNotFoundError)
        folder = broken / 'rawframes'
        assert str(missing).startswith(
            f'Frame {folder / "demo_va_000" / "img_00100.jpg"} of second 908 does not '
            'exist'
        )
        assert "video 'demo_va_000', second 908; on_bad_clip" in str(missing)
        assert str(bad['demo_va_001', 908]).startswith(
            f'{folder / "demo_va_001" / "img_00100.jpg"} cannot be decoded at second '
            '908 ('
        )

    def test_mmactions_own_readers(self, broken):
        def theirs(pipeline):
            _, sampling, _, *rest = pipeline
            return [dict(type='DecordInit'), sampling, dict(type='DecordDecode'), *rest]

        bad = bad_of(read(dataset_of(broken, theirs)))
        text = str(bad['demo_va_001', 909])
        assert text.startswith(f'{broken / "videos" / "demo_va_001.mp4"} cannot be dec')
        assert 'at second 909 (DECORDError: ' in text
        assert "video 'demo_va_001', second 909; on_bad_clip" in text
        assert ('demo_va_002', 908) in bad

    def test_a_video_that_vanished(self, broken):
        dataset = dataset_of(broken, check_files=False, video_ext='.gone')
        with pytest.raises(
            FileNotFoundError, match=r"exist: .*\(sample 3, video 'demo"
        ):
            dataset[3]

    def test_option(self, demo):
        with pytest.raises(ValueError, match="must be 'stop' or 'skip', got 'go on'"):
            dataset_of(demo, on_bad_clip='go on')


class TestSkip:
    def test_the_same_clips_in_any_order(self, broken, stopped):
        """Damage further on is not blamed on a clip before it."""
        for keep_open in (0, 8):

            def keep(pipeline, keep_open=keep_open):
                return [dict(type='VideoInit', keep_open=keep_open), *pipeline[1:]]

            dataset = dataset_of(broken, keep, on_bad_clip='skip')
            results = read(dataset)
            assert bad_of(results).keys() == bad_of(stopped).keys()
            for key, result in stopped.items():
                if not isinstance(result, Exception):
                    assert torch.equal(results[key]['inputs'], result['inputs'])

    def test_what_stands_in(self, broken, stopped):
        dataset = dataset_of(broken, on_bad_clip='skip')
        index = list(zip(*dataset.stream_keys())).index(('demo_va_001', 908))
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.rand(())
        torch.manual_seed(0)
        expected = torch.rand(())
        torch.manual_seed(0)
        packed = dataset[index]
        assert torch.rand(()) == expected
        assert states[0] == random.getstate()
        assert states[1] == np.random.get_state()[1].tolist()
        sample = packed['data_samples']
        assert (sample.video_id, sample.timestamp) == ('demo_va_001', 908)
        assert sample.sample_idx == index and sample.img_key == 'demo_va_001,0908'
        assert sample.skipped.endswith(
            f"(sample {index}, video 'demo_va_001', second 908)."
        )
        assert sample.skipped_file == str(broken / 'videos' / 'demo_va_001.mp4')
        assert len(sample.gt_instances) == len(sample.proposals) == 0
        assert 'gt_label' not in sample
        # One pixel: it makes no other row of its batch larger.
        other = stopped['demo_va_000', 905]['inputs']
        assert packed['inputs'].shape == (*other.shape[:-2], 1, 1)
        assert packed['inputs'].dtype == other.dtype

    @pytest.mark.parametrize('place', [0, -1], ids=['before', 'after reading'])
    def test_other_errors_stop(self, broken, place):
        @TRANSFORMS.register_module(force=True)
        class Wrong(BaseTransform):
            def transform(self, results):
                raise OSError('no such augmentation')

        def wrong(pipeline):
            return [*pipeline[:place], dict(type='Wrong'), *pipeline[place:]]

        dataset = dataset_of(broken, wrong, on_bad_clip='skip')
        with pytest.raises(OSError, match='no such augmentation'):
            dataset[0]

    def test_a_wrong_pipeline_stops(self, broken):
        dataset = dataset_of(
            broken, lambda pipeline: pipeline[1:], rawframes=True, on_bad_clip='skip'
        )
        with pytest.raises(KeyError, match='frame_inds'):
            dataset[0]

    def test_no_clip_can_be_read(self, broken):
        def too_long(pipeline):
            frames = dict(type='SampleClipFrames', clip_len=500, frame_interval=1)
            return [pipeline[0], frames, *pipeline[2:]]

        dataset = dataset_of(broken, too_long, on_bad_clip='skip')
        with pytest.raises(
            ValueError, match='None of 44 clips could be .* fewer than the 500'
        ) as caught:
            dataset[0]
        assert not isinstance(caught.value, BadClipError)

    def test_videos_missing_at_the_start_are_told(self, demo, tmp_path, monkeypatch):
        broken = damaged.copy_of(demo, tmp_path / 'set')
        (broken / 'videos' / 'demo_va_001.mp4').unlink()
        with pytest.raises(FileNotFoundError, match='1 of 3 videos do not exist'):
            dataset_of(broken)
        said = []
        monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', said.append)
        dataset = dataset_of(broken, on_bad_clip='skip')
        assert len(said) == 1 and said[0].startswith('1 of 3 videos do not exist')
        assert {video for video, _ in bad_of(read(dataset))} == {'demo_va_001'}
        for path in (broken / 'videos').glob('demo_va_*'):
            path.unlink()
        with pytest.raises(FileNotFoundError, match='3 of 3 videos do not exist'):
            dataset_of(broken, on_bad_clip='skip')


def test_a_missing_frame_is_not_the_end_of_its_video(demo, tmp_path):
    broken = damaged.copy_of(demo, tmp_path / 'set')
    frames = damaged.SECONDS * 12
    dataset = dataset_of(broken, rawframes=True, timestamp_end=900 + 2 * frames // 12)
    folder = broken / 'rawframes' / 'demo_va_000'
    # The first frame that is looked up, halfway through what could be there.
    for frame in (1, frames // 2, frames):
        path = folder / f'img_{frame:05d}.jpg'
        kept = path.read_bytes()
        path.unlink()
        expected = frames - 1 if frame == frames else frames
        assert dataset._num_frames(str(folder)) == expected
        path.write_bytes(kept)
