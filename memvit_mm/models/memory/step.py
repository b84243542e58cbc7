"""MemoryStep: one clip of each stream of a batch reads the memory and is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import Tensor

from memvit_mm.models.kernels import is_transforming
from memvit_mm.structures import Stream

from .layers import KeyValue, LayerMemories, LayerWrites, MemorySpec, PastClips


@dataclass
class KeptLayer:
    """What is kept of one clip at one layer, without gradient."""

    key: Tensor
    """[tokens, C]."""
    value: Tensor
    """[tokens, C]; the same tensor as ``key`` where a layer keeps one thing."""
    compressed: bool = False
    grid: tuple[int, ...] = ()
    """T, H, W of the keys before compression; () where they have no place."""

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors; ``value`` is None where it is the key."""
        value = None if self.value is self.key else self.value
        return dict(
            key=self.key, value=value, compressed=self.compressed, grid=self.grid
        )

    @classmethod
    def of(cls, state: dict[str, Any]) -> 'KeptLayer':
        """From what :meth:`state_dict` gave."""
        value = state['key'] if state['value'] is None else state['value']
        return cls(state['key'], value, state['compressed'], tuple(state['grid']))


@dataclass
class KeptClip:
    """What is kept of one clip."""

    time: Union[int, float]
    """In the unit of ``metainfo['timestamp']``; only its order matters."""
    layers: dict[str, KeptLayer] = field(default_factory=dict)


class MemoryStep:
    """One clip of each of some streams: read the past, write the present, commit.

    :meth:`ClipMemory.step` makes it. Until :meth:`commit` the memory is as it was, so
    that a forward pass that fails leaves no trace.

    Args:
        put (callable): ``ClipMemory.put``, which replaces what is kept of a stream.
        warn_once (callable): ``ClipMemory.warn_once``.
        streams (list[Stream]): One per row of the batch.
        times (list[int | float]): When each row's clip is.
        pasts (list[list[KeptClip]]): What the memory has of each row's stream.
    """

    def __init__(
        self,
        put: Callable[[Stream, list[KeptClip]], None],
        warn_once: Callable[[str, str], None],
        streams: list[Stream],
        times: list,
        pasts: list[list[KeptClip]],
    ) -> None:
        self._put = put
        self._warn_once = warn_once
        self.streams = streams
        self.times = times
        self._pasts = pasts
        self._new = [KeptClip(time) for time in times]
        self._compressed: list = []
        self._specs: dict[str, MemorySpec] = {}
        self._valid: dict = {}

    def __len__(self) -> int:
        return len(self.streams)

    def read(self, specs: dict[str, MemorySpec], like: Tensor) -> LayerMemories:
        """What each layer may attend to.

        Args:
            specs (dict[str, MemorySpec]): What the layers keep and read.
            like (Tensor): Gives device and dtype.

        Returns:
            dict[str, PastClips]: By layer, one row per stream of this step.
        """
        for row in range(len(self)):
            if not self._fits(row, specs):
                self._warn_once(
                    'size',
                    f'The frames of {self.streams[row].video!r} changed their size at '
                    f'{self.times[row]}: its memory starts afresh. (Said once.)',
                )
                self._pasts[row] = []
        self._specs = specs
        return {name: self._past(name, spec, like) for name, spec in specs.items()}

    def _fits(self, row: int, specs: dict[str, MemorySpec]) -> bool:
        for clip in self._pasts[row]:
            for name, kept in clip.layers.items():
                if name in specs:
                    spec = specs[name]
                    size = spec.compressed_tokens if kept.compressed else spec.tokens
                    if kept.key.shape != (size, spec.channels):
                        return False
                    if kept.grid != spec.grid:
                        return False
        return True

    def _slot(self, row: int, name: str, age: int) -> Optional[KeptLayer]:
        """What a row's layer kept of the clip ``age`` clips before this one."""
        past = self._pasts[row]
        return past[-age].layers.get(name) if age <= len(past) else None

    def _past(self, name: str, spec: MemorySpec, like: Tensor) -> PastClips:
        slots = [
            [self._slot(row, name, age) for row in range(len(self))]
            for age in reversed(spec.ages)
        ]
        *older, recent = [
            self._stack(slot, tokens, spec.channels, like)
            for slot, tokens in zip(
                slots, [spec.compressed_tokens] * (len(spec.ages) - 1) + [spec.tokens]
            )
        ]
        if len(older) == 1:
            (joined,) = older
        elif older:
            # slots x [B, tokens, C] -> [B, slots*tokens, C]
            joined = KeyValue(*(torch.cat(part, dim=1) for part in zip(*older)))
        else:
            joined = self._stack([None] * len(self), 0, spec.channels, like)
        return PastClips(recent, joined, self._filled(slots, like.device))

    def _filled(self, slots: list[list], device: torch.device) -> Tensor:
        """Which slots hold a clip: bool, [B, length]; one tensor for alike layers."""
        filled = tuple(tuple(kept is not None for kept in row) for row in zip(*slots))
        if (filled, device) not in self._valid:
            # Copying it to a GPU waits for the GPU: once, not once a layer.
            self._valid[filled, device] = torch.tensor(filled, device=device)
        return self._valid[filled, device]

    def _stack(
        self, slot: list[Optional[KeptLayer]], tokens: int, channels: int, like: Tensor
    ) -> KeyValue:
        """Rows of one slot: [B, tokens, C], zeros where there is nothing."""
        if not any(slot):
            # Two tensors, as when they are filled: torch.compile tells that apart.
            size = (len(slot), tokens, channels)
            return KeyValue(like.new_zeros(size), like.new_zeros(size))
        zeros = None if all(slot) else like.new_zeros(tokens, channels)

        def rows(part: str) -> Tensor:
            return torch.stack(
                [zeros if k is None else getattr(k, part).to(like) for k in slot]
            )

        key = rows('key')
        shared = all(kept is None or kept.key is kept.value for kept in slot)
        return KeyValue(key, key if shared else rows('value'))

    def write(self, written: LayerWrites) -> None:
        """Take what the layers hand over. The one place where gradient ends.

        Args:
            written (dict[str, Written]): By layer, rows as in this step.

        Raises:
            RuntimeError: Inside a transform of torch.func, whose tensors mean nothing
                outside of it.
        """
        if is_transforming():
            raise RuntimeError(
                'A memory cannot be written inside torch.func (grad, vmap, jvp, ...): '
                'give the backbone the earlier clips, backbone(x, memory=...), or call '
                'the model without data samples.'
            )
        for name, new in written.items():
            grid = self._specs[name].grid
            for row, kept in enumerate(self._rows(new.current, False, grid)):
                self._new[row].layers[name] = kept
            if new.compressed is not None:
                age = self._specs[name].ages[0]
                for row, kept in enumerate(self._rows(new.compressed, True, grid)):
                    if self._slot(row, name, age) is not None:
                        self._compressed.append((row, age, name, kept))

    def _rows(
        self, pair: KeyValue, compressed: bool, grid: tuple[int, ...]
    ) -> list[KeptLayer]:
        # Each row owns its storage: a view would keep the whole batch alive.
        keys = [key.clone() for key in pair.key.detach()]
        if pair.value is pair.key:
            return [KeptLayer(key, key, compressed, grid) for key in keys]
        values = [value.clone() for value in pair.value.detach()]
        return [KeptLayer(k, v, compressed, grid) for k, v in zip(keys, values)]

    def commit(self) -> None:
        """Make this step part of the memory."""
        for row, age, name, kept in self._compressed:
            past = self._pasts[row]
            clip = past[-age]
            past[-age] = KeptClip(clip.time, {**clip.layers, name: kept})
        horizon = max((max(spec.ages) for spec in self._specs.values()), default=0)
        for stream, past, new in zip(self.streams, self._pasts, self._new):
            clips = [*past, new]
            self._put(stream, clips[-horizon:] if horizon else [])
