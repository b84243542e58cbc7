"""LaneDataLoader: a data loader whose workers each read batch rows of their own.

A *lane* is one row of the batch of one process, through all steps of an epoch: under
``SequentialClipSampler`` the videos of a lane follow one another.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Optional

from torch.utils.data import DataLoader

from memvit_mm.datasets.transforms.video import VideoInit

from .sampler import SequentialClipSampler


class LaneDataLoader(DataLoader):
    """A ``DataLoader`` in which a lane of ``SequentialClipSampler`` keeps its worker.

    Torch gives each worker whole batches in turn, so that of every video each of ``W``
    workers sees one clip in ``W``, and all of them decode all of it. Here worker ``w``
    reads the lanes ``w``, ``w + W``, ... of every batch, and the main process puts the
    batch together. Batches, their order and what ``collate_fn`` gets are the same.

    There are at most as many workers as lanes. As many clips are under way as before:
    ``prefetch_factor * num_workers`` batches.

    Args:
        loader (DataLoader): With a ``SequentialClipSampler``, and with workers. Its
            settings are taken over; it is not used itself.

    Raises:
        TypeError: If it has another batch sampler.
    """

    def __init__(self, loader: DataLoader) -> None:
        sampler = loader.batch_sampler
        if not isinstance(sampler, SequentialClipSampler):
            raise TypeError(
                'LaneDataLoader needs a SequentialClipSampler as batch_sampler, got '
                f'{type(sampler).__name__}.'
            )
        settings = dict(
            num_workers=min(loader.num_workers, sampler.batch_size),
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            # A worker's tasks are parts of batches.
            prefetch_factor=loader.prefetch_factor * loader.num_workers,
            persistent_workers=loader.persistent_workers,
        )
        super().__init__(
            loader.dataset,
            batch_sampler=sampler,
            collate_fn=loader.collate_fn,
            **settings,
        )
        self._tasks = _LaneTasks(sampler, self.num_workers)
        self._parts = DataLoader(
            loader.dataset,
            batch_sampler=self._tasks,
            collate_fn=_as_it_is,
            **settings,
        )

    def __iter__(self) -> Iterator[Any]:
        """The batches; workers begin at once."""
        self._parts.generator = self.generator
        parts = iter(self._parts)
        return self._batches(parts, self._tasks.steps)

    def _batches(self, parts: Iterator[list], steps: deque) -> Iterator[Any]:
        while True:
            of_batch = list(islice(parts, self.num_workers))
            if not of_batch:
                return
            places = steps.popleft()
            samples = [None] * sum(map(len, places))
            for part, its_places in zip(of_batch, places):
                for sample, place in zip(part, its_places):
                    samples[place] = sample
            yield self.collate_fn(samples)


class _LaneTasks:
    """What each worker reads of each batch, as a batch sampler of parts.

    A ``DataLoader`` hands tasks to its workers in turn, so every worker gets one of
    every batch, be it empty.
    """

    def __init__(self, sampler: SequentialClipSampler, num_workers: int) -> None:
        self.sampler = sampler
        self.num_workers = num_workers
        self.steps: deque[list[list[int]]] = deque()
        """Places in the batch of each worker's samples, for each batch under way."""

    def __len__(self) -> int:
        return len(self.sampler) * self.num_workers

    def __iter__(self) -> Iterator[list[int]]:
        self.steps = deque()
        return self._deal(self.steps)

    def _deal(self, steps: deque) -> Iterator[list[int]]:
        for batch in self.sampler.rows():
            places: list[list[int]] = [[] for _ in range(self.num_workers)]
            for place, (row, _) in enumerate(batch):
                places[row % self.num_workers].append(place)
            steps.append(places)
            for its_places in places:
                yield [batch[place][1] for place in its_places]


def _as_it_is(samples: list) -> list:
    return samples


def by_lanes(loader: DataLoader) -> DataLoader:
    """Let a loader of videos read each of them in order.

    Does nothing to one without ``SequentialClipSampler``, or whose datasets have no
    :class:`VideoInit`, or one with ``keep_open=0``.

    Args:
        loader (DataLoader): As mmengine builds it.

    Returns:
        DataLoader: A :class:`LaneDataLoader` if it has workers, else the same one. The
        ``VideoInit`` of its datasets keep a video open for each lane of a process.
    """
    sampler = getattr(loader, 'batch_sampler', None)
    if not isinstance(sampler, SequentialClipSampler):
        return loader
    steps = [step for step in video_steps(loader.dataset) if step.keep_open != 0]
    if not steps:
        return loader
    readers = max(min(loader.num_workers, sampler.batch_size), 1)
    for step in steps:
        step.lanes = -(-sampler.batch_size // readers)
    if loader.num_workers and not isinstance(loader, LaneDataLoader):
        return LaneDataLoader(loader)
    return loader


def video_steps(dataset: Any) -> list[VideoInit]:
    """The :class:`VideoInit` in the pipelines of a dataset and of those inside it."""
    found: list[VideoInit] = []
    inside: list[Optional[Any]] = [dataset]
    while inside:
        dataset = inside.pop()
        pipeline = getattr(dataset, 'pipeline', None)
        found += [
            step
            for step in getattr(pipeline, 'transforms', None) or ()
            if isinstance(step, VideoInit)
        ]
        inside += getattr(dataset, 'datasets', None) or ()
        inside += [d for d in [getattr(dataset, 'dataset', None)] if d is not None]
    return found
