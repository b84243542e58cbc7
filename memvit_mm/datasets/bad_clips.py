"""Clips that cannot be read: their errors, and the samples that stand in for them."""

from collections.abc import Sequence
from typing import Any


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
