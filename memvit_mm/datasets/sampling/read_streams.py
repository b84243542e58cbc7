"""The streams of a dataset: which samples belong to a video, in which order."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

Key = Union[str, Callable[[dict], Any]]

VIDEO_KEY = 'video_id'
ORDER_KEY = 'timestamp'


class Clips(NamedTuple):
    """A stream of a dataset."""

    video: Hashable
    indices: np.ndarray
    """Its clips in the dataset, in time order."""
    copy: int
    """How often the video began again before, in another part of the dataset."""


def read_streams(dataset: Any, video_key: Key, order_key: Key) -> list[Clips]:
    """Every stream of a dataset.

    Streams come in the order of their first sample, clips of equal order as in the
    dataset.
    """
    streams: list[Clips] = []
    last: dict[Hashable, tuple[Any, int]] = {}
    for offset, videos, orders in _read_parts(dataset, 0, video_key, order_key):
        # mmengine's num_batch_per_epoch hides the end of a dataset
        visible = max(len(dataset) - offset, 0)
        videos, orders = videos[:visible], orders[:visible]
        clips: dict[Hashable, list[int]] = {}
        for index, (video, order) in enumerate(zip(videos, orders)):
            if order != order:
                raise ValueError(
                    f'Sample {index + offset} has the order nan: give every clip a '
                    'number that can be sorted.'
                )
            clips.setdefault(video, []).append(index)
        for video, part in clips.items():
            part.sort(key=orders.__getitem__)
            before, copy = last.get(video, (None, 0))
            copy += video in last and not orders[part[0]] > before
            last[video] = orders[part[-1]], copy
            streams.append(Clips(video, np.array(part) + offset, copy))
    return streams


def _read_parts(
    dataset: Any, offset: int, video_key: Key, order_key: Key
) -> Iterator[tuple[int, Sequence[Hashable], Sequence[Any]]]:
    """Videos and orders of the datasets inside, each with its first index."""
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    if hasattr(dataset, 'datasets'):  # ConcatDataset
        for inner in dataset.datasets:
            yield from _read_parts(inner, offset, video_key, order_key)
            offset += len(inner)
    elif hasattr(dataset, 'times') and hasattr(dataset, 'dataset'):  # RepeatDataset
        parts = list(_read_parts(dataset.dataset, 0, video_key, order_key))
        for copy in range(dataset.times):
            start = offset + copy * len(dataset.dataset)
            for inner, videos, orders in parts:
                yield start + inner, videos, orders
    elif hasattr(dataset, 'indices') and hasattr(dataset, 'dataset'):  # Subset
        inside = list(_read_parts(dataset.dataset, 0, video_key, order_key))
        videos = [video for _, part, _ in inside for video in part]
        orders = [order for _, _, part in inside for order in part]
        chosen = list(dataset.indices)
        yield offset, [videos[i] for i in chosen], [orders[i] for i in chosen]
    elif (
        hasattr(dataset, 'stream_keys')
        and video_key == VIDEO_KEY
        and order_key == ORDER_KEY
    ):
        videos, orders = dataset.stream_keys()
        yield offset, videos, orders
    else:
        yield offset, *_read_infos(dataset, video_key, order_key)


def _read_infos(
    dataset: Any, video_key: Key, order_key: Key
) -> tuple[list[Hashable], list[Any]]:
    """Videos and orders, read from every sample's dict."""
    if not hasattr(dataset, 'get_data_info'):
        raise TypeError(
            f'SequentialClipSampler cannot read {type(dataset).__name__}: give it a '
            'method stream_keys() that returns the video ids and the timestamps of '
            'all samples.'
        )
    videos, orders = [], []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        videos.append(_value(info, video_key, 'video_key', index, dataset))
        orders.append(_value(info, order_key, 'order_key', index, dataset))
    return videos, orders


def _value(info: dict, key: Key, argument: str, index: int, dataset: Any) -> Any:
    value = info.get(key) if isinstance(key, str) else key(info)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        name = repr(key) if isinstance(key, str) else getattr(key, '__name__', key)
        raise ValueError(
            f'Sample {index} of {type(dataset).__name__} has no {name} (its keys: '
            f'{", ".join(sorted(map(str, info)))}): add it in load_data_list, or name '
            f'the right one with SequentialClipSampler({argument}=...).'
        )
    return value
