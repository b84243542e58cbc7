"""Draws of a pipeline belong to the clip, not to the worker that happens to read it."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, DefaultSampler
from torch.utils.data import DataLoader

from memvit_mm.datasets import SequentialClipSampler
from memvit_mm.datasets.sampling.stream_keys import StreamKeysMixin


class Draws(StreamKeysMixin, BaseDataset):
    """Clips whose pipeline draws from all three generators."""

    def load_data_list(self):
        return [dict(video_id=f'v{i % 4}', timestamp=i) for i in range(24)]


def draw(results):
    numbers = [random.random(), np.random.rand(), torch.rand(1).item()]
    return int(results['sample_idx']), numbers


def epoch_of(workers, epoch=0, seed=0, skip=0):
    dataset = Draws(pipeline=[draw])
    sampler = SequentialClipSampler(
        DefaultSampler(dataset, seed=seed), batch_size=3, shuffle=True
    )
    sampler.start_from(sampler.position(skip, epoch))
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list
    )
    random.seed(workers), np.random.seed(workers), torch.manual_seed(workers)
    return [clip for batch in loader for clip in batch]


def test_any_number_of_workers_and_a_start_in_the_middle_draw_the_same():
    whole = epoch_of(0)
    assert len({tuple(numbers) for _, numbers in whole}) == 24  # no two alike
    assert epoch_of(1) == epoch_of(2) == whole
    assert epoch_of(2, skip=5) == whole[15:]


def test_epochs_and_seeds_draw_otherwise():
    first = dict(epoch_of(0))
    for other in (epoch_of(0, epoch=1), epoch_of(0, seed=1)):
        assert all(first[index] != numbers for index, numbers in other)


@pytest.mark.parametrize('index', [3, np.int64(3)])
def test_a_plain_index_draws_as_ever(index):
    dataset = Draws(pipeline=[draw])
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first, second = dataset[index], dataset[index]
    random.seed(0)
    assert first != second and first[1][0] == random.random()
