"""Batches in which every row is a video that goes on where it stopped.

A model with memory needs each video's clips in time order. The sampler deals the
clips of a dataset to *lanes*, one lane per row of each rank's batch, and lets every
lane advance by one clip a step:

- training (``shuffle=True``): the videos, shuffled, laid end to end and cut into runs
  of equal length, one run per lane. All ranks take the same number of steps.
- testing (``shuffle=False``): whole videos per lane, lanes balanced. Every clip comes
  exactly once, on exactly one rank; batches shrink when lanes run dry.
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import NamedTuple, Optional

import numpy as np
from mmaction.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from memvit_mm.structures import ClipIndex

from .read_streams import ORDER_KEY, VIDEO_KEY, Key, read_streams


class Start(NamedTuple):
    """Where an epoch goes on that was broken off."""

    epoch: int
    played: list[list[int]]
    """[lanes, steps] of each part of the epoch that was played on other lanes."""
    first: int
    """Batches of the epoch that count as done when these lanes began."""
    done: int
    """Batches of the epoch that count as done now."""


@DATA_SAMPLERS.register_module()
class SequentialClipSampler(Sampler):
    """Batch sampler that plays every video in order, one video per batch row.

    In a dataloader config it stands beside the usual sampler, whose dataset, seed and
    epoch it uses and whose order it replaces::

        train_dataloader = dict(
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
            dataset=...)

    **Training** (``shuffle=True``). There are ``lanes = world_size * batch_size``
    lanes; lane ``rank * batch_size + row`` is always that row of that rank. Per epoch
    the videos are shuffled by (seed, epoch), laid end to end and cut into ``lanes``
    runs of equal length. At most ``lanes - 1`` clips are dropped, others each epoch.
    Indices are :class:`ClipIndex`.

    **Testing** (``shuffle=False``). The longest video not yet placed goes to the lane
    with the least to do, so that the ranks finish at about the same time. Nothing is
    padded or dropped: batches get smaller as lanes run dry, and a rank without a video
    has no batch. Indices are plain ``int``, and :class:`ClipIndex` for what is a second
    time in the dataset.

    **Resuming.** :meth:`position` says what is left of a training epoch after some
    batches, and :meth:`start_from` goes on there, on as many lanes as before clip for
    clip. On another number of lanes the clips that are left are dealt anew, so that
    each still comes once in the epoch. :class:`MemoryCheckpointHook` calls both.

    Args:
        sampler (Sampler): The sampler mmengine builds first; its ``dataset``, ``seed``
            and ``epoch`` are used (``DistSamplerSeedHook`` sets the epoch there). With
            one that has no epoch, each pass is the next one.
        batch_size (int): Clips per step on each rank, that is lanes per rank.
        shuffle (bool): Training or testing order, see above.
        seed (int, optional): Seed of the order, equal on all ranks. Defaults to the
            seed of ``sampler``, or else one that mmengine agrees on over all ranks.
        video_key (str or callable): Key of a sample's video, or a function that takes
            the sample's dict (as from ``get_data_info``) and returns the video.
        order_key (str or callable): The same for what orders the clips of a video: a
            number (seconds, frames) or anything that can be compared.
        drop_last (bool): Accepted since mmengine's batch samplers have it; has no
            effect. Training never has a smaller last batch, testing never drops one.

    A dataset is read once, when the sampler is built. It is one of: a dataset with
    ``stream_keys()`` that returns the videos and the orders of all samples (ours
    have that), any mmengine ``BaseDataset``, any dataset with ``get_data_info``,
    and ``ConcatDataset``, ``RepeatDataset`` or ``Subset`` of these, nested as you like.
    A video that occurs in two parts of these is laid out as two. Where it begins again,
    as in the copies of ``RepeatDataset``, these are two streams; where it goes on, they
    share a memory in testing, unless you give them video ids of their own.

    Raises:
        ValueError: If the dataset is empty, a sample has no video or no order, or there
            are fewer clips than lanes in training. TypeError for a dataset that cannot
            be read.

    Examples:
        >>> from mmengine.dataset import BaseDataset, DefaultSampler
        >>> class Clips(BaseDataset):
        ...     def load_data_list(self):
        ...         return [dict(video_id=v, timestamp=t) for v, t in
        ...                 [('a', 2), ('a', 1), ('b', 1), ('c', 1), ('a', 3)]]
        >>> sampler = DefaultSampler(Clips(), shuffle=False, seed=0)
        >>> list(SequentialClipSampler(sampler, batch_size=2, shuffle=False))
        [[1, 2], [0, 3], [4]]
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        shuffle: bool,
        seed: Optional[int] = None,
        video_key: Key = VIDEO_KEY,
        order_key: Key = ORDER_KEY,
        drop_last: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise ValueError(f'batch_size must be an integer, got {batch_size!r}.')
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
        dataset = getattr(sampler, 'dataset', getattr(sampler, 'data_source', None))
        if dataset is None:
            raise TypeError(
                f'SequentialClipSampler needs a sampler with a dataset, got '
                f'{type(sampler).__name__}: set '
                "sampler=dict(type='DefaultSampler', shuffle=True) in the dataloader."
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.shuffle = bool(shuffle)
        self.rank, self.world_size = get_dist_info()
        self.lanes = self.world_size * batch_size
        if seed is None:
            seed = getattr(sampler, 'seed', None)
        self.seed = int(sync_random_seed() if seed is None else seed)
        self._epoch = 0
        self._start: Optional[Start] = None

        self._streams = read_streams(dataset, video_key, order_key)
        self.num_clips = sum(len(stream.indices) for stream in self._streams)
        if self.num_clips == 0:
            raise ValueError(
                f'{type(dataset).__name__} has no samples: check its ann_file, '
                'exclude_file and filters.'
            )
        self._copies = 1 + max(stream.copy for stream in self._streams)
        self._copy_of = np.zeros(len(dataset), dtype=np.int32)
        for stream in self._streams:
            self._copy_of[stream.indices] = stream.copy
        if self.shuffle:
            self._steps = self.num_clips // self.lanes
            if self._steps == 0:
                raise ValueError(
                    f'{type(dataset).__name__} has {self.num_clips} clips, fewer than '
                    f'the {self.lanes} lanes of {self.world_size} ranks with '
                    f'batch_size={batch_size}: lower batch_size or use fewer ranks.'
                )
            self._rows: list[np.ndarray] = []
        else:
            self._rows = self._whole_videos()
            self._steps = max(map(len, self._rows))

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is for."""
        return int(getattr(self.sampler, 'epoch', self._epoch))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, as ``DistSamplerSeedHook`` does on the inner sampler."""
        self._epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """The number of batches on this rank."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield one batch of indices a step, one per lane that has a clip left."""
        for batch in self.rows():
            yield [index for _, index in batch]

    def rows(self) -> Iterator[list[tuple[int, int]]]:
        """As iterating, with the row that each index is in, a lane of this rank's.

        When lanes run dry in testing, the place in a batch is not the row any more.
        """
        if not self.shuffle:
            for step in range(self._steps):
                yield [
                    (number, self._test_index(int(row[step])))
                    for number, row in enumerate(self._rows)
                    if step < len(row)
                ]
            return
        start, self._start = self._start, None
        epoch, played, column = self.epoch, [], 0
        if start is not None:
            epoch, played, column = start.epoch, start.played, start.done - start.first
        clips, pieces = self._deal(epoch, played)
        lanes = [lane for lane in range(self.lanes) if self.is_ours(lane)]
        for step in range(column, clips.shape[1]):
            yield [
                (
                    row,
                    ClipIndex(
                        clips[lane, step],
                        self._run(
                            lane, int(pieces[lane, step]), int(clips[lane, step])
                        ),
                        epoch,
                        self.seed,
                    ),
                )
                for row, lane in enumerate(lanes)
            ]
        if not hasattr(self.sampler, 'epoch'):  # InfiniteSampler, for one
            self._epoch = epoch + 1

    def _test_index(self, clip: int) -> int:
        copy = self._copy_of[clip]
        return ClipIndex(clip, run=copy) if copy else clip

    def _run(self, lane: int, piece: int, clip: int) -> int:
        """A number for each lane, piece of the epoch and copy of a video."""
        copy = int(self._copy_of[clip])
        return lane + self.lanes * (piece * self._copies + copy)

    def is_ours(self, run: int) -> bool:
        """Whether a :class:`ClipIndex`'s run is played by this rank."""
        return run % self.lanes // self.batch_size == self.rank

    def position(self, done: int, epoch: int, start: Optional[Start] = None) -> dict:
        """What :meth:`start_from` needs, as plain numbers and lists.

        Args:
            done (int): Batches of the epoch that were trained on. The sampler cannot
                know: the dataloader's workers are ahead.
            epoch (int): The epoch.
            start (Start, optional): What ``start_from`` gave, if this is the epoch that
                was resumed.
        """
        played, first = (start.played, start.first) if start else ([], 0)
        return dict(
            seed=self.seed,
            num_clips=self.num_clips,
            epoch=epoch,
            played=[*played, [self.lanes, done - first]],
        )

    def start_from(self, position: dict) -> Start:
        """Let the next iteration go on from a saved position, with its seed.

        Args:
            position (dict): What :meth:`position` gave.

        Returns:
            Start: Where that is.

        Raises:
            ValueError: If the dataset is not the one the position is from, or the
                sampler is for testing.
        """
        if not self.shuffle:
            raise ValueError('Only a sampler with shuffle=True can be resumed.')
        if position['num_clips'] != self.num_clips:
            raise ValueError(
                f'the dataset has {self.num_clips} clips, and had '
                f'{position["num_clips"]} when the checkpoint was written'
            )
        self.seed = int(position['seed'])
        epoch = int(position['epoch'])
        *played, (lanes, steps) = [list(map(int, part)) for part in position['played']]
        if lanes != self.lanes and steps:
            played, steps = [*played, [lanes, steps]], 0
        left = self._deal(epoch, played)[0].shape[1]
        first = self._steps - left
        self._start = Start(epoch, played, first, first + steps)
        self.set_epoch(epoch)
        return self._start

    def _deal(
        self, epoch: int, played: list[list[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clips of all lanes, [lanes, steps], and the piece each of them is from.

        ``played`` lists the parts of the epoch that were played on other numbers of
        lanes; what they left is laid end to end again. Where a played clip is missing
        in between, another piece begins.
        """
        # RandomState, since its numbers never change with numpy's version
        random = np.random.RandomState([self.seed % 2**32, epoch])
        order = random.permutation(len(self._streams))
        clips = np.concatenate([self._streams[stream].indices for stream in order])
        pieces = np.zeros_like(clips)
        for lanes, steps in played:
            row = np.repeat(np.arange(lanes), len(clips) // lanes)
            row = np.append(row, np.full(len(clips) - len(row), lanes))
            # Clips that did not fill a step of all lanes were not played.
            column = np.arange(len(clips)) - row * (len(clips) // lanes)
            left = (column >= steps) | (row == lanes)
            pieces = (pieces * (lanes + 1) + row)[left]
            clips = clips[left]
        steps = len(clips) // self.lanes
        # [clips] -> [lanes, steps]
        return tuple(
            laid[: self.lanes * steps].reshape(self.lanes, steps)
            for laid in (clips, pieces)
        )

    def _whole_videos(self) -> list[np.ndarray]:
        """This rank's lanes when every lane plays whole videos."""
        # Equal ids are never on two lanes: the model could not tell them apart.
        videos: dict[Hashable, list[np.ndarray]] = {}
        for stream in self._streams:
            videos.setdefault(stream.video, []).append(stream.indices)
        blocks = [np.concatenate(parts) for parts in videos.values()]
        # Among equally busy lanes the first row of every rank comes first, so that few
        # videos spread over the ranks.
        queue = [
            (0, row, rank)
            for row in range(self.batch_size)
            for rank in range(self.world_size)
        ]
        rows: list[list[np.ndarray]] = [[] for _ in range(self.batch_size)]
        for block in sorted(blocks, key=len, reverse=True):
            load, row, rank = queue[0]
            heapq.heapreplace(queue, (load + len(block), row, rank))
            if rank == self.rank:
                rows[row].append(block)
        empty = np.zeros(0, dtype=np.int64)
        return [np.concatenate(row) if row else empty for row in rows]
