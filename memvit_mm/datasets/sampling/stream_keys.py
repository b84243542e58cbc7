"""StreamKeysMixin: a dataset's videos and times, and the stream of each sample."""

from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np
from mmengine.dataset import BaseDataset

from memvit_mm.datasets.transforms.clips import seeded, stable_seed
from memvit_mm.structures import ClipIndex, stream_of


class StreamKeysMixin:
    """Mixin of ``BaseDataset``: every sample's video and time, read once.

    ``SequentialClipSampler`` asks for them, and the model for each sample's stream,
    which :meth:`get_data_info` writes into it. Samples have ``video_id`` and
    ``timestamp`` as ``load_data_list`` made them.

    Whatever a pipeline draws (from ``random``, ``numpy.random`` or torch's CPU
    generator) for an index of the sampler depends on its seed, its epoch and the
    index alone: not on the worker, the number of workers, or what was read before. A
    resumed run draws what it would have drawn.
    """

    _keys: Optional[tuple[list[str], np.ndarray]] = None

    def stream_keys(self) -> tuple[list[str], np.ndarray]:
        """Every sample's video and its timestamp, for ``SequentialClipSampler``."""
        self.full_init()
        if self._keys is None:
            infos: Any
            if self.serialize_data:
                read = BaseDataset.get_data_info
                infos = (read(self, index) for index in range(len(self)))
            else:
                infos = self.data_list
            self._keys = _keys_of(infos)
        return self._keys

    def get_data_info(self, idx: int) -> dict:
        """As in mmengine, with the sample's ``stream``; see :func:`stream_of`."""
        return with_stream(super().get_data_info(idx))

    def prepare_data(self, idx: int) -> Any:
        """As in mmengine, with the draws of this index."""
        if not isinstance(idx, ClipIndex):
            return super().prepare_data(idx)
        with seeded(stable_seed('clip', idx.seed, idx.epoch, int(idx))):
            return super().prepare_data(idx)

    def get_subset_(self, indices: Union[Sequence[int], int]) -> None:
        """As in mmengine."""
        super().get_subset_(indices)
        self._keys = None

    def get_subset(self, indices: Union[Sequence[int], int]) -> BaseDataset:
        """As in mmengine."""
        subset = super().get_subset(indices)
        subset._keys = None
        return subset

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        # the last moment at which the records are at hand
        self._keys = _keys_of(self.data_list)
        return super()._serialize_data()


def _keys_of(infos: Iterable[dict]) -> tuple[list[str], np.ndarray]:
    pairs = [(info['video_id'], info['timestamp']) for info in infos]
    return [video for video, _ in pairs], np.array([second for _, second in pairs])


def with_stream(info: dict) -> dict:
    """Write into a sample which stream it belongs to.

    It is a plain tuple, which can be unpickled without this package.
    """
    info['stream'] = tuple(stream_of(info))
    return info
