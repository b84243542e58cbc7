"""What SequentialClipSampler asks of a dataset, kept from the moment it is at hand."""

from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np
from mmengine.dataset import BaseDataset


class StreamKeysMixin:
    """Mixin of ``BaseDataset``: every sample's video and time, read once.

    Samples have ``video_id`` and ``timestamp`` as ``load_data_list`` made them.
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
