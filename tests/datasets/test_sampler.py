import copy
import os
import pickle
import socket
import time
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmaction.datasets.transforms import PackActionInputs
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    DefaultSampler,
    InfiniteSampler,
    RepeatDataset,
)
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, SequentialSampler, Subset

from memvit_mm.datasets import ClipIndex, SequentialClipSampler


class Clips(BaseDataset):
    """``videos`` is a string such as ``'aab'``: the video of each clip."""

    def __init__(self, videos, orders=None, **kwargs):
        self.videos = videos
        self.orders = orders or range(len(videos))
        super().__init__(**kwargs)

    def load_data_list(self):
        return [
            dict(video_id=video, timestamp=order)
            for video, order in zip(self.videos, self.orders)
        ]


class Pack:
    """Frames of size 2x2 that hold the index, packed as MMAction2 does."""

    pack = PackActionInputs(meta_keys=('video_id', 'timestamp', 'sample_idx'))

    def __call__(self, results):
        results['imgs'] = torch.full((1, 3, 1, 2, 2), float(results['sample_idx']))
        return self.pack(results)


def build(dataset, batch_size, shuffle, world=(0, 1), seed=0, **kwargs):
    with patch('memvit_mm.datasets.sampling.sampler.get_dist_info', return_value=world):
        return SequentialClipSampler(
            DefaultSampler(dataset, seed=seed), batch_size, shuffle, **kwargs
        )


def ranks(dataset, world_size, batch_size, shuffle, epoch=0, seed=0):
    """Every rank's batches."""
    batches = []
    for rank in range(world_size):
        sampler = build(dataset, batch_size, shuffle, (rank, world_size), seed)
        sampler.sampler.set_epoch(epoch)
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1])
    return batches


# Videos a (5 clips), b (3), c (2), d (1), mixed up and out of order.
MIXED = 'abacadbaabc'
A, B, C, D = [0, 2, 4, 7, 8], [1, 6, 9], [3, 10], [5]


@pytest.mark.parametrize(
    'world_size, batch_size, expected',
    [
        # fmt: off
        (1, 1, [[[0], [2], [4], [7], [8], [1], [6], [9], [3], [10], [5]]]),
        (1, 2, [[[0, 1], [2, 6], [4, 9], [7, 3], [8, 10], [5]]]),
        (2, 1, [[[0], [2], [4], [7], [8], [5]], [[1], [6], [9], [3], [10]]]),
        (1, 3, [[[0, 1, 3], [2, 6, 10], [4, 9, 5], [7], [8]]]),
        (3, 1, [[[0], [2], [4], [7], [8]], [[1], [6], [9]], [[3], [10], [5]]]),
        (2, 2, [[[0, 3], [2, 10], [4], [7], [8]], [[1, 5], [6], [9]]]),
        (2, 5, [[[0, 3], [2, 10], [4], [7], [8]], [[1, 5], [6], [9]]]),
        (
            6,
            2,
            [[[0], [2], [4], [7], [8]], [[1], [6], [9]], [[3], [10]], [[5]], [], []],
        ),
        # fmt: on
    ],
)
def test_testing_order(world_size, batch_size, expected):
    dataset = Clips(MIXED)
    assert ranks(dataset, world_size, batch_size, shuffle=False) == expected
    # the epoch and the seed make no difference
    assert ranks(dataset, world_size, batch_size, False, 3, 5) == expected
    for batches in expected:
        for batch in batches:
            assert all(type(index) is int for index in batch)


@pytest.mark.parametrize(
    'world_size, batch_size, epoch, expected',
    [
        # fmt: off
        # epoch 0 lays a c d b end to end, epoch 1 b c a d
        (1, 1, 0, [[[0], [2], [4], [7], [8], [3], [10], [5], [1], [6], [9]]]),
        (1, 1, 1, [[[1], [6], [9], [3], [10], [0], [2], [4], [7], [8], [5]]]),
        (1, 2, 0, [[[0, 3], [2, 10], [4, 5], [7, 1], [8, 6]]]),
        (2, 1, 0, [[[0], [2], [4], [7], [8]], [[3], [10], [5], [1], [6]]]),
        (1, 4, 0, [[[0, 4, 8, 10], [2, 7, 3, 5]]]),
        (2, 2, 0, [[[0, 4], [2, 7]], [[8, 10], [3, 5]]]),
        (2, 2, 1, [[[1, 9], [6, 3]], [[10, 2], [0, 4]]]),
        (3, 1, 1, [[[1], [6], [9]], [[3], [10], [0]], [[2], [4], [7]]]),
        (2, 5, 0, [[[0, 2, 4, 7, 8]], [[3, 10, 5, 1, 6]]]),
        # fmt: on
    ],
)
def test_training_order(world_size, batch_size, epoch, expected):
    found = ranks(Clips(MIXED), world_size, batch_size, shuffle=True, epoch=epoch)
    assert found == expected
    for rank, batches in enumerate(found):
        for batch in batches:
            for row, index in enumerate(batch):
                assert type(index) is ClipIndex
                assert index.run == rank * batch_size + row
                assert (index.epoch, index.seed) == (epoch, 0)


def test_training_order_depends_on_epoch_and_seed_alone():
    dataset = Clips('aabbccddee')

    def order(seed, epoch):
        return ranks(dataset, 1, 2, True, epoch, seed)

    assert order(0, 0) == order(0, 0)
    assert order(-1, 0) == order(-1, 0)  # any integer will do
    others = [order(0, 1), order(1, 0), order(1, 1)]
    assert all(other != order(0, 0) for other in others)


@pytest.mark.parametrize('world_size', [1, 2, 3, 8])
@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_nothing_lost_nothing_twice(world_size, batch_size):
    random = np.random.RandomState(world_size * 10 + batch_size)
    lengths = [1, 1, 2, 90, 3, 40, 17]
    videos = np.repeat(list('abcdefg'), lengths)
    random.shuffle(videos)
    dataset = Clips(videos.tolist(), orders=random.permutation(len(videos)).tolist())
    clips = list(range(len(videos)))

    tested = ranks(dataset, world_size, batch_size, shuffle=False)
    flat = [index for batches in tested for batch in batches for index in batch]
    assert sorted(flat) == clips

    trained = ranks(dataset, world_size, batch_size, shuffle=True, epoch=7)
    assert len({len(batches) for batches in trained}) == 1
    flat = [index for batches in trained for batch in batches for index in batch]
    assert len(set(flat)) == len(flat) > len(clips) - world_size * batch_size

    # within a run or a row, a video's clips come in time order without a hole
    for batches in trained:
        for row in range(batch_size):
            run = [batch[row] for batch in batches]
            for clip, following in zip(run, run[1:]):
                if videos[clip] == videos[following]:
                    assert dataset.orders[clip] < dataset.orders[following]
            for clip, following in zip(run, run[1:]):
                if videos[clip] != videos[following]:
                    first = min(
                        np.flatnonzero(videos == videos[following]),
                        key=dataset.orders.__getitem__,
                    )
                    assert following == first


def test_concat_repeat_and_subset():
    first, second = Clips('aab'), Clips('bba')
    concat = ConcatDataset(
        [first, dict(type=ConcatDataset, datasets=[second, Clips('c')])]
    )
    # Equal ids stay on one lane, dataset by dataset.
    assert ranks(concat, 1, 2, shuffle=False) == [[[0, 2], [1, 3], [5, 4], [6]]]
    for batch in build(concat, 2, True):
        for index in batch:
            info = concat.get_data_info(index)
            assert info['sample_idx'].run == index.run
    repeat = RepeatDataset(Clips('aab'), times=2)
    assert ranks(repeat, 1, 2, shuffle=False) == [[[0, 2], [1, 5], [3], [4]]]
    assert repeat.get_data_info(ClipIndex(4, run=1))['sample_idx'].run == 1
    # A copy is a stream of its own, on whichever lane it is.
    runs = [[getattr(i, 'run', 0) for i in batch] for batch in build(repeat, 2, False)]
    assert runs == [[0, 0], [0, 1], [1], [1]]
    ours = {
        (repeat.get_data_info(index)['video_id'], index // 3, index.run)
        for batch in build(repeat, 1, True)
        for index in batch
    }
    assert ours == {('a', 0, 0), ('b', 0, 0), ('a', 1, 1), ('b', 1, 1)}
    # What goes on in another dataset is no copy.
    parts = ConcatDataset([Clips('aa'), Clips('aa', orders=[2, 3])])
    assert ranks(parts, 1, 1, shuffle=False) == [[[0], [1], [2], [3]]]
    assert not any(hasattr(i, 'run') for batch in build(parts, 1, False) for i in batch)
    subset = Subset(Clips('abab'), [3, 0, 2])
    assert ranks(subset, 1, 2, shuffle=False) == [[[1, 0], [2]]]


@pytest.mark.parametrize(
    'wrap', [lambda d: d, lambda d: ConcatDataset([Clips('c'), d])]
)
def test_num_batch_per_epoch(wrap):
    cfg = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_sampler=dict(type='mmaction.SequentialClipSampler', shuffle=True),
        dataset=wrap(Clips('aabbcc', pipeline=[Pack()])),
        num_batch_per_epoch=2,
        collate_fn=dict(type='pseudo_collate'),
    )
    loader = Runner.build_dataloader(cfg, seed=0)
    drawn = [index for batch in loader.batch_sampler for index in batch]
    assert sorted(drawn) == [0, 1, 2, 3] and len(loader) == 2


def test_fast_enough_for_ava():
    class Large(list):
        def stream_keys(self):
            return [f'v{i}' for i in range(235) for _ in range(783)], list(
                range(184005)
            )

    start = time.perf_counter()
    sampler = build(Large(range(184005)), 2, True, (5, 8))
    built = time.perf_counter()
    assert sampler._deal(1, [])[0].shape == (16, 11500)
    ordered = time.perf_counter()
    assert built - start < 5 and ordered - built < 1
    build(Large(range(184005)), 2, False, (5, 8))
    assert time.perf_counter() - ordered < 5


def test_keys_of_the_users_own():
    class Own(Clips):
        def load_data_list(self):
            infos = super().load_data_list()
            return [dict(name=f'{i["video_id"]}_{i["timestamp"]:02d}') for i in infos]

    sampler = build(
        Own('abab', [3, 2, 1, 0]),
        1,
        False,
        video_key=lambda info: info['name'][0],
        order_key='name',
    )
    assert list(sampler) == [[2], [0], [3], [1]]
    # anything that sorts is an order
    times = [('00:02', 1), ('00:01', 7), ('00:01', 3)]
    assert list(build(Clips('aaa', times), 1, False)) == [[2], [1], [0]]


def test_reads_stream_keys_rather_than_samples():
    class Fast(Clips):
        def stream_keys(self):
            return list('bab'), [1, 0, 0]

        def get_data_info(self, idx):
            raise RuntimeError('slow')

    assert list(build(Fast('bab'), 1, False)) == [[2], [0], [1]]


def test_reads_what_a_subclass_adds():
    class Adds(Clips):
        def load_data_list(self):
            return [dict(path=f'{video}') for video in self.videos]

        def get_data_info(self, idx):
            info = super().get_data_info(idx)
            return dict(info, video_id=info['path'], timestamp=-idx)

    assert list(build(Adds('aab', serialize_data=False), 2, False)) == [[1, 2], [0]]


def test_seed_and_epoch_come_from_the_inner_sampler():
    inner = DefaultSampler(Clips('aabbccdd'), seed=3)
    sampler = SequentialClipSampler(inner, 2, True)
    assert sampler.seed == 3
    inner.set_epoch(5)  # what DistSamplerSeedHook does
    assert sampler.epoch == 5
    assert next(iter(sampler))[0].epoch == 5
    sampler.set_epoch(6)
    assert (inner.epoch, sampler.epoch) == (6, 6)
    assert SequentialClipSampler(inner, 2, True, seed=4).seed == 4
    plain = SequentialClipSampler(SequentialSampler(inner.dataset), 2, True, seed=1)
    plain.set_epoch(2)
    assert next(iter(plain))[0].epoch == 2


def test_a_sampler_without_epochs_goes_on_to_the_next():
    clips = Clips('aabbccdd')
    endless = SequentialClipSampler(InfiniteSampler(clips, seed=0), 2, True)
    usual = build(clips, 2, True)
    for epoch in range(3):
        usual.set_epoch(epoch)
        assert list(endless) == list(usual)
        assert endless.epoch == epoch + 1


def test_clip_index_is_an_int_that_remembers():
    index = ClipIndex(7, run=3, epoch=2, seed=11)
    assert index == 7 and hash(index) == hash(7) and f'{index}' == str(index) == '7'
    assert np.arange(10)[index] == 7 and list(range(10))[index] == 7
    for other in (
        index - 5,
        index % 4,
        index + 0,
        0 + index,
        copy.deepcopy(index),
        copy.copy(index),
        pickle.loads(pickle.dumps(index)),
    ):
        assert (other.run, other.epoch, other.seed) == (3, 2, 11)
    assert (index - 5, index % 4, 1 + index) == (2, 3, 8)
    assert index - 0.5 == 6.5 and index + 0.5 == 7.5
    with pytest.raises(TypeError):
        index - 'a'


def test_clip_index_reaches_the_model_from_persistent_workers():
    dataset = ConcatDataset(
        [Clips('aabbb', pipeline=[Pack()]), Clips('ccdd', pipeline=[Pack()])]
    )
    sampler = SequentialClipSampler(DefaultSampler(dataset, seed=0), 2, True)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=2,
        persistent_workers=True,
        collate_fn=list,
    )
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)
        expected, batches = list(sampler), list(loader)
        assert len(batches) == len(expected) == len(loader) == 4
        for indices, batch in zip(expected, batches):
            for index, sample in zip(indices, batch):
                found = sample['data_samples'].metainfo['sample_idx']
                assert found == index - (5 if index >= 5 else 0)
                assert (found.run, found.epoch) == (index.run, epoch)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: build(Clips(''.join('a' * 3)), 4, True),
         r'Clips has 3 clips, fewer than the 4 lanes of 1 ranks with batch_size=4: '
         'lower batch_size or use fewer ranks'),
        (lambda: build(Clips('', serialize_data=False), 1, False),
         'Clips has no samples: check its ann_file'),
        (lambda: build(Clips('aa'), 0, False), 'batch_size must be at least 1, got 0'),
        (lambda: build(Clips('aa'), 2.0, False), 'batch_size must be an integer'),
        (lambda: build(Clips(['a', None]), 1, False),
         r"Sample 1 of Clips has no 'video_id' \(its keys: sample_idx, timestamp, "
         r"video_id\): add it in load_data_list, or name the right one with "
         r'SequentialClipSampler\(video_key=...\)'),
        (lambda: build(Clips('aa'), 1, False, order_key='second'),
         r"has no 'second' .*SequentialClipSampler\(order_key=...\)"),
        (lambda: build(Clips('aa', [0, float('nan')]), 1, False),
         "Sample 1 of Clips has no 'timestamp'"),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_errors_of_type():
    with pytest.raises(TypeError, match=r'cannot read list: give it a method stream_k'):
        build([1, 2], 1, False)
    with pytest.raises(TypeError, match=r'needs a sampler with a dataset, got object'):
        SequentialClipSampler(object(), 1, False)


# --- in a Runner, in real processes


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        if mode == 'loss':
            for sample in data_samples:
                index = sample.sample_idx
                self.seen.append((int(index), index.run, index.epoch))
            return dict(loss=self.weight * 1.0)
        return data_samples


class Indices(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(int(sample['sample_idx']) for sample in data_samples)

    def compute_metrics(self, results):
        return dict(order=list(results))


class Recorder(Hook):
    def __init__(self):
        self.epochs = []

    def after_train_epoch(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        self.epochs.append(list(model.seen))
        model.seen.clear()


ONE_VIDEO = 'aaaaa'  # leaves the second rank nothing to test


def run_in_process(rank, world_size, port, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank),
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    os.chdir(folder)
    torch.distributed.init_process_group('gloo')

    def loader(videos, shuffle):
        return dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle),
            collate_fn=dict(type='pseudo_collate'),
            dataset=Clips(videos, pipeline=[Pack()]),
        )

    recorder = Recorder()
    runner = Runner(
        model=Toy(),
        work_dir=folder,
        train_dataloader=loader(MIXED, True),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=loader(MIXED, False),
        val_cfg=dict(),
        val_evaluator=[Indices(prefix='val')],
        test_dataloader=loader(ONE_VIDEO, False),
        test_cfg=dict(),
        test_evaluator=[Indices(prefix='test')],
        # mmengine would name GPUs
        cfg=dict(
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)
        ),
        custom_hooks=[recorder],
        default_hooks=dict(checkpoint=None),
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        randomness=dict(seed=0),
        default_scope='mmaction',
        log_level='ERROR',
    )
    runner.train()
    orders = [runner.val()['val/order'], runner.test()['test/order']]
    steps = [len(runner.val_dataloader), len(runner.test_dataloader)]
    with open(os.path.join(folder, f'{rank}.pkl'), 'wb') as file:
        pickle.dump((recorder.epochs, orders, steps), file)
    torch.distributed.destroy_process_group()


def test_two_processes_train_and_test(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        run_in_process,
        args=(2, port, str(tmp_path)),
        nprocs=2,
        start_method='fork',  # spares the imports
    )
    results = [pickle.loads((tmp_path / f'{rank}.pkl').read_bytes()) for rank in (0, 1)]
    for rank, (epochs, orders, steps) in enumerate(results):
        assert orders == results[0][1]
        for videos, order, count in zip((MIXED, ONE_VIDEO), orders, steps):
            assert sorted(order) == list(range(len(videos)))
            assert count == len(build(Clips(videos), 2, False, (rank, 2)))
        assert len(epochs) == 2
        for epoch, seen in enumerate(epochs):
            sampler = build(Clips(MIXED), 2, True, (rank, 2))
            sampler.set_epoch(epoch)
            assert seen == [(i, i.run, epoch) for batch in sampler for i in batch]
    assert [steps for _, _, steps in results] == [[5, 5], [3, 0]]
