"""Rows of a batch: their streams and times, and which of them run together."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional

import torch
from mmaction.utils import SampleList
from torch import Tensor
from torch.utils import _pytree as pytree

from memvit_mm.models.kernels import to_device
from memvit_mm.structures import Stream, is_skipped, stream_of


class Rows(NamedTuple):
    """Streams and times of the rows of a batch."""

    streams: list[Stream]
    times: list[Any]


def rows_of(data_samples: SampleList, views: int = 1) -> Rows:
    """Read each sample's stream and time from its meta information.

    Args:
        data_samples (list[ActionDataSample]): With ``video_id`` and ``timestamp`` in
            their metainfo, and in training ``stream``, too: see :func:`stream_of`.
        views (int): Crops or views per sample, each of which is a stream.

    Returns:
        Rows: ``len(data_samples) * views`` of them, the views of a sample together.

    Raises:
        ValueError: If a sample does not say its video or its time, or not usefully.
    """
    streams, times = [], []
    for number, sample in enumerate(data_samples):
        meta = sample.metainfo
        for key in ('video_id', 'timestamp'):
            if key not in meta:
                raise ValueError(
                    f'Sample {number} of the batch has no {key!r} in its metainfo '
                    f'(it has {sorted(meta)}), so its memory cannot be found: add '
                    f'{key!r} to the meta_keys of PackActionInputs, and see that the '
                    'dataset provides it.'
                )
        video, time = (_plain(meta[key]) for key in ('video_id', 'timestamp'))
        try:
            hash(video), time < time
        except TypeError:
            raise ValueError(
                f'Sample {number} of the batch has video_id={video!r} and timestamp='
                f'{time!r}: the first must be a name or number, the second a number '
                'that tells the order.'
            ) from None
        stream = stream_of({**meta, 'video_id': video})
        for view in range(stream.view * views, (stream.view + 1) * views):
            streams.append(stream._replace(view=view))
            times.append(time)
    return Rows(streams, times)


def _plain(value: Any) -> Any:
    """A number out of a tensor or array that holds one."""
    return value.item() if hasattr(value, 'item') else value


def waves(rows: Rows, kinds: Optional[Sequence[Any]] = None) -> list[list[int]]:
    """Groups of rows that can run at once, in the order in which they must run.

    Two clips of one stream follow each other, earlier first, whatever the batch looks
    like. Rows of different ``kinds`` (frame sizes, say) run apart.

    Examples:
        >>> a, b = Stream('a'), Stream('b')
        >>> waves(Rows([a, b, a], [2.0, 1.0, 1.0]))
        [[1, 2], [0]]
    """
    turn: dict = {}
    groups: dict = {}
    for row in sorted(range(len(rows.streams)), key=lambda row: rows.times[row]):
        stream = rows.streams[row]
        turn[stream] = turn.get(stream, -1) + 1
        kind = kinds[row] if kinds is not None else None
        groups.setdefault((turn[stream], kind), []).append(row)
    # Sorting is stable: kinds stay in the order in which they were met.
    return [sorted(groups[key]) for key in sorted(groups, key=lambda key: key[0])]


def in_row_order(parts: Iterable[Any], groups: list[list[int]]) -> Any:
    """Put the outputs of :func:`waves` back in the order of the batch.

    Args:
        parts (iterable): Per group, a nest of tensors whose first axis is the rows.
        groups (list[list[int]]): The groups.

    Returns:
        The same nest, over all rows.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([row for group in groups for row in group]).argsort()

    def join(*tensors: Tensor) -> Tensor:
        joined = torch.cat(tensors)
        return joined[to_device(order, joined.device)]

    leaves = [pytree.tree_flatten(part)[0] for part in parts]
    spec = pytree.tree_flatten(parts[0])[1]
    return pytree.tree_unflatten([join(*row) for row in zip(*leaves)], spec)


def by_row(parts: Iterable[Sequence[Any]], groups: list[list[int]]) -> list[Any]:
    """As :func:`in_row_order`, of parts that hold one entry per row.

    Examples:
        >>> by_row([['b', 'c'], ['a']], [[1, 2], [0]])
        ['a', 'b', 'c']
    """
    pairs = zip(groups, parts)
    found = {row: one for group, part in pairs for row, one in zip(group, part)}
    return [found[row] for row in range(len(found))]


def padded_shapes(data_samples: SampleList) -> list[Optional[tuple[int, int]]]:
    """Height and width of each sample's frames, where the batch holds several sizes.

    Then the smaller ones were padded; else there was nothing to pad, and it is None.
    """
    shapes = [sample.metainfo.get('img_shape') for sample in data_samples]
    shapes = [None if shape is None else tuple(shape[:2]) for shape in shapes]
    return shapes if len(set(shapes)) > 1 else [None] * len(shapes)


def take_rows(inputs: Tensor, group: Sequence[int], shape: Any = None) -> Tensor:
    """Some rows of a batch, without the padding that a batch of sizes needs.

    Args:
        inputs (Tensor): [B, ..., H, W].
        group (sequence[int]): The rows.
        shape (tuple[int, int], optional): Height and width of their frames.

    Examples:
        >>> take_rows(torch.zeros(3, 3, 8, 32, 48), [0, 2], shape=(32, 40)).shape
        torch.Size([2, 3, 8, 32, 40])
    """
    if len(group) < len(inputs):
        inputs = inputs[to_device(torch.tensor(group), inputs.device)]
    if shape is not None:
        inputs = inputs[..., : shape[0], : shape[1]]
    return inputs


def rows_to_keep(data_samples: Optional[SampleList]) -> Optional[list[int]]:
    """The rows whose clips could be read, or None if all could."""
    samples = data_samples or []
    keep = [row for row, sample in enumerate(samples) if not is_skipped(sample)]
    return keep if len(keep) < len(samples) else None
