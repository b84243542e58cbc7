"""MemoryStep: one clip of each stream of a batch reads the memory and is written."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import Tensor

from memvit_mm.models.kernels import is_transforming
from memvit_mm.structures import Stream

from .layers import (
    KeyValue,
    LayerMemories,
    LayerWrites,
    LevelSpec,
    MemorySpec,
    PastClips,
    zero_clips,
)


@dataclass
class KeptLayer:
    """What is kept of one clip at one layer, without gradient."""

    forms: dict[int, KeyValue]
    """By the number of the form (:class:`LevelSpec`): keys and values, [tokens, C]
    each, the same tensor where a layer keeps one thing."""
    grid: tuple[int, ...] = ()
    """T, H, W of the keys as they were written; () where they have no place."""

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of all forms."""
        return [tensor for pair in self.forms.values() for tensor in pair]

    def without(self, forms: Collection[int]) -> 'KeptLayer':
        """The same, some forms forgotten."""
        left = {f: pair for f, pair in self.forms.items() if f not in forms}
        return KeptLayer(left, self.grid)

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors; ``value`` is None where it is the key."""
        return dict(
            grid=self.grid,
            forms={
                form: dict(key=key, value=None if value is key else value)
                for form, (key, value) in self.forms.items()
            },
        )

    @classmethod
    def of(cls, state: dict[str, Any]) -> 'KeptLayer':
        """From what :meth:`state_dict` gave."""
        # Before there were levels, a clip was kept in one form, compressed or not.
        forms = state.get('forms')
        if forms is None:
            forms = {int(state['compressed']): state}
        pairs = {
            form: KeyValue(
                pair['key'], pair['key'] if pair['value'] is None else pair['value']
            )
            for form, pair in forms.items()
        }
        return cls(pairs, tuple(state['grid']))


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
        self._compressed: list[tuple[int, str, LevelSpec, KeyValue]] = []
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
            dict[str, tuple[PastClips, ...]]: By layer and level, one row per stream of
            this step.
        """
        for row in range(len(self)):
            if not self._fits(row, specs):
                self._warn_once(
                    'size',
                    f'The frames of {self.streams[row].video!r} changed their size at '
                    f'{self.times[row]}, or its memory is of a model with another '
                    'schedule: it starts afresh. (Said once.)',
                )
                self._pasts[row] = []
        self._specs = specs
        return {
            name: tuple(self._past(name, spec, level, like) for level in spec.levels)
            for name, spec in specs.items()
        }

    def _fits(self, row: int, specs: dict[str, MemorySpec]) -> bool:
        """Whether what is kept has the grid and, by form, the shape of each layer."""
        for clip in self._pasts[row]:
            for name, kept in clip.layers.items():
                if name not in specs:
                    continue
                spec = specs[name]
                if kept.grid != spec.grid:
                    return False
                for form, pair in kept.forms.items():
                    if pair.key.shape != spec.shapes.get(form):
                        return False
                    # Learned compression makes two tensors, the others one.
                    if form and (pair.key is pair.value) != spec.is_shared(form):
                        return False
        return True

    def _kept(self, row: int, name: str, age: int, form: int) -> Optional[KeyValue]:
        """A form of what a row's layer kept of the clip ``age`` clips back."""
        past = self._pasts[row]
        layer = past[-age].layers.get(name) if age <= len(past) else None
        return layer.forms.get(form) if layer else None

    def _past(
        self, name: str, spec: MemorySpec, level: LevelSpec, like: Tensor
    ) -> PastClips:
        first, *others = level.ages
        rows = range(len(self))
        recent = [[self._kept(row, name, first, level.source)] for row in rows]
        older = [
            [self._kept(row, name, age, level.form) for age in reversed(others)]
            for row in rows
        ]
        filled = tuple(
            tuple(kept is not None for kept in (*before, *newest))
            for before, newest in zip(older, recent)
        )
        return PastClips(
            self._joined(recent, spec, level.source, like),
            self._joined(older, spec, level.form, like),
            self._filled(level.ages, filled, like.device),
        )

    def _filled(self, ages: tuple, filled: tuple, device: torch.device) -> Tensor:
        """Which slots hold a clip: bool, [B, slots]; one tensor for alike layers.

        Levels have one each, for torch.compile tells apart whether two tensors are one.
        """
        if (ages, filled, device) not in self._valid:
            # Copying it to a GPU waits for the GPU: once, not once a layer.
            self._valid[ages, filled, device] = torch.tensor(filled, device=device)
        return self._valid[ages, filled, device]

    def _joined(
        self,
        slots: list[list[Optional[KeyValue]]],
        spec: MemorySpec,
        form: int,
        like: Tensor,
    ) -> KeyValue:
        """The slots of each row: [B, slots * tokens, C], zeros where one is empty."""
        clips = [kept for row in slots for kept in row]
        tokens, shared = spec.tokens_of(form), spec.is_shared(form)
        if not any(clips):
            size = (len(slots), len(slots[0]) * tokens, spec.channels)
            return zero_clips(like, size, shared)
        zeros = None if all(clips) else like.new_zeros(tokens, spec.channels)
        parts = [
            # (B * slots, tokens, C) -> (B, slots * tokens, C)
            torch.cat(
                [zeros if k is None else k[part].to(like) for k in clips]
            ).unflatten(0, (len(slots), -1))
            for part in ((0,) if shared else (0, 1))
        ]
        return KeyValue(parts[0], parts[-1])

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
            spec = self._specs[name]
            made = dict(enumerate([new.current, *new.consolidated]))
            for form in spec.written_forms:
                for row, kept in enumerate(self._rows(made[form])):
                    layers = self._new[row].layers
                    layer = layers.setdefault(name, KeptLayer({}, spec.grid))
                    layer.forms[form] = kept
            for level, pair in zip(spec.levels, new.compressed):
                if pair is None:
                    continue
                for row, kept in enumerate(self._rows(pair)):
                    if self._kept(row, name, level.ages[0], level.source) is not None:
                        self._compressed.append((row, name, level, kept))

    def _rows(self, pair: KeyValue) -> list[KeyValue]:
        # Each row owns its storage: a view would keep the whole batch alive.
        keys = [key.clone() for key in pair.key.detach()]
        if pair.value is pair.key:
            return [KeyValue(key, key) for key in keys]
        return list(map(KeyValue, keys, [v.clone() for v in pair.value.detach()]))

    def commit(self) -> None:
        """Make this step part of the memory."""
        for row, name, level, kept in self._compressed:
            past, age = self._pasts[row], level.ages[0]
            layer = past[-age].layers[name]
            layer = KeptLayer({**layer.forms, level.form: kept}, layer.grid)
            past[-age] = KeptClip(past[-age].time, {**past[-age].layers, name: layer})
        horizon = max((spec.ages[-1] for spec in self._specs.values()), default=0)
        for stream, past, new in zip(self.streams, self._pasts, self._new):
            clips = [*past, new][-horizon:] if horizon else []
            self._put(stream, self._needed(clips))

    def _needed(self, clips: list[KeptClip]) -> list[KeptClip]:
        """The clips without the forms that have been read for the last time."""
        last = {
            name: {form: spec.last_age(form) for form in spec.forms}
            for name, spec in self._specs.items()
        }
        needed = []
        for age, clip in zip(range(len(clips), 0, -1), clips):
            layers = {}
            for name, layer in clip.layers.items():
                ages = last.get(name, {})
                gone = [form for form in layer.forms if ages.get(form, age) < age]
                layer = layer.without(gone) if gone else layer
                if layer.forms:
                    layers[name] = layer
            needed.append(KeptClip(clip.time, layers))
        return needed
