"""The vocabulary that data sets and models share: streams, clips, skipped samples."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

IGNORE = -100
"""The label of a sample without one; cross entropy leaves it out by default."""


class Stream(NamedTuple):
    """What a memory belongs to: one video, camera, or crop of a video, in time order.

    Examples:
        >>> Stream('video_7')
        Stream(video='video_7', view=0, run=0, epoch=0)
    """

    video: Hashable
    """``metainfo['video_id']``."""
    view: int = 0
    """Which of several crops or views of the video."""
    run: int = 0
    """Which of several passages of the video that are read side by side."""
    epoch: int = 0
    """The pass over the data that it belongs to."""


class ClipIndex(int):
    """An index into the dataset that carries the run and the epoch it was drawn for.

    It is an ``int``, so datasets need not know about it. mmengine's ``BaseDataset``
    stores it as ``results['sample_idx']``; :func:`stream_of` makes a stream of it.

    Args:
        value: Index of the clip in the dataset.
        run: Number of the run of clips that the clip belongs to, which one batch row
            plays. A video that is cut between two batch rows is two streams to a
            memory, which the run tells apart; so are two copies of a video.
        epoch: Epoch the clip was drawn for. A clip of the next epoch does not continue
            the stream, even if it is the next clip of the same video in the same row.
        seed: The sampler's seed.

    Subtracting from it or taking it modulo a number keeps these, since that is how
    ``ConcatDataset`` and ``RepeatDataset`` find the sample in the dataset inside.

    Examples:
        >>> index = ClipIndex(7, run=3, epoch=1)
        >>> index == 7, (index - 5).run, index % 4
        (True, 3, ClipIndex(3, run=3, epoch=1, seed=0))
    """

    run: int
    epoch: int
    seed: int

    def __new__(
        cls, value: int, run: int = 0, epoch: int = 0, seed: int = 0
    ) -> 'ClipIndex':
        self = super().__new__(cls, value)
        self.run = int(run)
        self.epoch = int(epoch)
        self.seed = int(seed)
        return self

    def _like(self, value: int) -> 'ClipIndex':
        return type(self)(value, self.run, self.epoch, self.seed)

    def __add__(self, other: int) -> int:
        value = int.__add__(self, other)
        return value if value is NotImplemented else self._like(value)

    __radd__ = __add__

    def __sub__(self, other: int) -> int:
        value = int.__sub__(self, other)
        return value if value is NotImplemented else self._like(value)

    def __mod__(self, other: int) -> int:
        value = int.__mod__(self, other)
        return value if value is NotImplemented else self._like(value)

    def __reduce__(self) -> tuple:
        return type(self), (int(self), self.run, self.epoch, self.seed)

    def __repr__(self) -> str:
        return (
            f'ClipIndex({int(self)}, run={self.run}, epoch={self.epoch}, '
            f'seed={self.seed})'
        )

    __str__ = int.__repr__


def stream_of(info: Mapping[str, Any]) -> Stream:
    """The stream that a sample belongs to, from its dict or its ``metainfo``.

    Our datasets write ``stream``, a plain tuple ``(video, view, run, epoch)``, into
    every sample. With other datasets, ``SequentialClipSampler``'s :class:`ClipIndex`
    tells the run and the epoch, if ``sample_idx`` is among the ``meta_keys``.

    Args:
        info (dict): With ``video_id``, and ``stream`` or ``sample_idx`` if there are.

    Raises:
        ValueError: If ``stream`` is something else.

    Examples:
        >>> stream_of(dict(video_id='a', sample_idx=ClipIndex(7, run=3, epoch=1)))
        Stream(video='a', view=0, run=3, epoch=1)
        >>> stream_of(dict(video_id='a', stream=('a', 0, 3, 1)))
        Stream(video='a', view=0, run=3, epoch=1)
    """
    if 'stream' in info:
        stream = info['stream']
        if not isinstance(stream, (tuple, list)) or len(stream) != len(Stream._fields):
            raise ValueError(
                f'stream={stream!r} in the metainfo of a sample must be (video, view, '
                'run, epoch).'
            )
        return Stream(*stream)
    video, index = info.get('video_id'), info.get('sample_idx')
    if isinstance(index, ClipIndex):
        return Stream(video, run=index.run, epoch=index.epoch)
    return Stream(video)


class BadClipError(ValueError):
    """A clip cannot be read: its file does not open, does not decode or is too short.

    Transforms that read files raise it with a sentence that names the file. What a
    config or a program gets wrong are other errors, since no clip could be read then.
    """


class MissingClipError(BadClipError, FileNotFoundError):
    """A clip's file does not exist."""


def is_skipped(sample: Any) -> bool:
    """Whether a data sample stands in for a clip that could not be read.

    Its ``metainfo['skipped']`` says why.

    Examples:
        >>> from mmaction.structures import ActionDataSample
        >>> is_skipped(ActionDataSample())
        False
        >>> is_skipped(ActionDataSample(metainfo=dict(skipped='a.mp4 is damaged.')))
        True
    """
    return 'skipped' in getattr(sample, 'metainfo', ())


def samples_of(data_batch: Any) -> Sequence[Any]:
    """The data samples of a batch as the DataLoader delivers it, or none."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return samples if isinstance(samples, (list, tuple)) else ()


def skipped_samples(data_batch: Any) -> list[Any]:
    """Those of :func:`samples_of` that stand in for clips that could not be read.

    For metrics whose ground truth does not come with the predictions::

        def process(self, data_batch, data_samples):
            for sample in skipped_samples(data_batch):
                ...  # leave out the truth of sample.video_id at sample.timestamp
    """
    return [sample for sample in samples_of(data_batch) if is_skipped(sample)]
