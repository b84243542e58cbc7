"""Workers that read lanes of their own: real workers, real videos."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    DefaultSampler,
    RepeatDataset,
    pseudo_collate,
)
from torch.utils.data import DataLoader, default_collate, get_worker_info

from memvit_mm.datasets import (
    LaneDataLoader,
    SampleClipFrames,
    SequentialClipSampler,
    VideoDecode,
    VideoInit,
)
from memvit_mm.datasets.sampling.lane_loader import by_lanes, video_steps

FPS, SECONDS = 10, {'a': 12, 'b': 9, 'c': 12, 'd': 4}


class Report:
    """What a sample is, by whom it was read, and how much was decoded until then."""

    def __init__(self, init):
        self.init = init

    def __call__(self, results):
        readers = self.init._readers.here()
        worker = get_worker_info()
        return dict(
            inputs=torch.from_numpy(np.stack(results['imgs']).astype(np.int64)).sum(),
            index=int(results['sample_idx']),
            run=getattr(results['sample_idx'], 'run', -1),
            worker=worker.id if worker else -1,
            decoded=json.dumps({key[0]: one.decoded for key, one in readers.items()}),
        )


class Videos(BaseDataset):
    """A clip of a second and a half, every second."""

    def load_data_list(self):
        return [
            dict(
                filename=f'{self.metainfo["folders"][0]}/{video}.mp4',
                video_id=video,
                timestamp=second,
                timestamp_start=0,
                fps=FPS,
            )
            for video, seconds in SECONDS.items()
            for second in range(1, seconds)
        ]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for number, (video, seconds) in enumerate(SECONDS.items()):
        writer = cv2.VideoWriter(
            str(folder / f'{video}.mp4'),
            cv2.CAP_FFMPEG,
            cv2.VideoWriter_fourcc(*'mp4v'),
            FPS,
            (32, 32),
        )
        random = np.random.RandomState(number)
        for _ in range(seconds * FPS):
            writer.write(random.randint(0, 255, (32, 32, 3), dtype=np.uint8))
        writer.release()
    return str(folder)


def dataset_of(folder, keep_open=None):
    init = VideoInit(keep_open=keep_open)
    sample = SampleClipFrames(clip_len=8, frame_interval=2, test_mode=True)
    return Videos(
        metainfo=dict(folders=[folder]),
        pipeline=[init, sample, VideoDecode(), Report(init)],
    )


def loader_of(dataset, num_workers, shuffle=True, batch_size=3, **options):
    sampler = DefaultSampler(dataset, shuffle=shuffle, seed=0)
    return DataLoader(
        dataset,
        batch_sampler=SequentialClipSampler(sampler, batch_size, shuffle),
        num_workers=num_workers,
        timeout=60 if num_workers else 0,
        **{'collate_fn': pseudo_collate, **options},
    )


@pytest.fixture(scope='module')
def expected(folder):
    """Batches of two training epochs, and of a test."""
    batches = []
    for shuffle in (True, False):
        loader = loader_of(dataset_of(folder), 0, shuffle)
        for epoch in range(2 if shuffle else 1):
            loader.batch_sampler.set_epoch(epoch)
            batches.append(list(loader))
    return batches


def content(batches):
    return [(batch['inputs'], batch['index'], batch['run']) for batch in batches]


def test_the_same_batches(folder, expected):
    for num_workers in (1, 2, 5):
        for shuffle, epochs in ((True, expected[:2]), (False, expected[2:])):
            loader = by_lanes(
                loader_of(
                    dataset_of(folder), num_workers, shuffle, persistent_workers=True
                )
            )
            assert isinstance(loader, LaneDataLoader)
            assert loader.num_workers == min(num_workers, 3)
            assert len(loader) == len(epochs[0])
            for epoch, batches in enumerate(epochs):
                loader.batch_sampler.set_epoch(epoch)
                found = list(loader)
                assert content(found) == content(batches)
                check_lanes(found, loader.num_workers, shuffle)


def check_lanes(batches, num_workers, shuffle):
    """Every lane stays with its worker, which decodes every frame about once."""
    if shuffle:
        for batch in batches:
            assert batch['worker'] == [run % num_workers for run in batch['run']]
        return
    workers, decoded = {}, {}
    videos = [v for v, seconds in SECONDS.items() for _ in range(1, seconds)]
    for batch in batches:
        for index, worker, counts in zip(
            batch['index'], batch['worker'], batch['decoded']
        ):
            workers.setdefault(videos[index], set()).add(worker)
            decoded.update(
                {key[-5]: count for key, count in json.loads(counts).items()}
            )
    assert all(len(of_video) == 1 for of_video in workers.values())
    for video, count in decoded.items():
        # and the first 16 for the comparison
        assert count <= FPS * SECONDS[video] + 2 * 16 + 1


def test_any_collate_function(folder, expected):
    loader = by_lanes(
        loader_of(
            dataset_of(folder),
            2,
            collate_fn=lambda x: default_collate([sample['inputs'] for sample in x]),
        )
    )
    for found, batch in zip(loader, expected[0]):
        assert found.tolist() == [int(value) for value in batch['inputs']]


def test_broken_off_and_begun_again(folder, expected):
    loader = by_lanes(loader_of(dataset_of(folder), 2, persistent_workers=True))
    for _ in range(2):
        found = [batch for _, batch in zip(range(3), loader)]
        assert content(found) == content(expected[0][:3])
    assert content(list(loader)) == content(expected[0])


def test_a_resumed_epoch(folder, expected):
    loader = by_lanes(loader_of(dataset_of(folder), 2))
    sampler = loader.batch_sampler
    sampler.start_from(sampler.position(done=4, epoch=1))
    assert content(list(loader)) == content(expected[1][4:])


def test_an_error_in_a_worker(folder):
    dataset = dataset_of(folder)
    dataset.full_init()
    loader = by_lanes(loader_of(dataset, 2, shuffle=False))
    dataset.pipeline.transforms.append(fail_late)
    with pytest.raises(RuntimeError, match='no more than this'):
        list(loader)


def fail_late(results):
    if results['index'] == 5:
        raise RuntimeError('no more than this')
    return results


def test_as_much_is_under_way_as_before(folder):
    dataset = dataset_of(folder)
    loader = by_lanes(loader_of(dataset, 4, batch_size=2, prefetch_factor=1))
    assert loader.num_workers == 2
    iterator = iter(loader)
    next(iterator)
    # One batch is out, and torch has dealt a part of the fifth that is under way.
    assert len(loader._tasks.steps) <= 1 * 4 + 1
    list(iterator)


def test_one_video_stays_open_per_lane(folder):
    for num_workers, batch_size, lanes in ((0, 3, 3), (1, 3, 3), (2, 3, 2), (8, 3, 1)):
        dataset = dataset_of(folder)
        by_lanes(loader_of(dataset, num_workers, batch_size=batch_size))
        assert dataset.pipeline.transforms[0].lanes == lanes


def test_who_is_left_alone(folder):
    loader = loader_of(dataset_of(folder, keep_open=0), 2)
    assert by_lanes(loader) is loader
    dataset = dataset_of(folder)
    dataset.pipeline.transforms.pop(0)
    loader = loader_of(dataset, 2)
    assert by_lanes(loader) is loader
    dataset = dataset_of(folder)
    loader = DataLoader(dataset, batch_size=2, num_workers=2)
    assert by_lanes(loader) is loader and dataset.pipeline.transforms[0].lanes == 0
    with pytest.raises(TypeError, match='SequentialClipSampler .*, got BatchSampler'):
        LaneDataLoader(loader)
    loader = loader_of(dataset, 0)
    assert by_lanes(loader) is loader and dataset.pipeline.transforms[0].lanes == 3
    again = by_lanes(by_lanes(loader_of(dataset, 2)))
    assert again.num_workers == 2 and by_lanes(again) is again


def test_finds_videos_in_datasets_inside(folder):
    both = ConcatDataset([dataset_of(folder), dataset_of(folder)])
    assert len(video_steps(both)) == 2
    assert len(video_steps(RepeatDataset(dataset_of(folder), times=2))) == 1
    assert video_steps([1, 2]) == []
