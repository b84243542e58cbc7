"""MemoryStep: one clip of each stream of a batch reads the memory and is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

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
)
from .table import EMPTY, Group, Place, Plan, Table, numbers


@dataclass
class LoadedLayer:
    """What a saved memory has of one clip at one layer."""

    forms: dict[int, KeyValue]
    """By the number of the form (:class:`LevelSpec`): keys and values, [tokens, C]
    each, the same tensor where a layer keeps one thing."""
    grid: tuple[int, ...] = ()
    """T, H, W of the keys as they were written; () where they have no place."""

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of all forms."""
        return [tensor for pair in self.forms.values() for tensor in pair]

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
    def of(cls, state: dict[str, Any]) -> 'LoadedLayer':
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

    def fits(self, spec: MemorySpec) -> bool:
        """Whether it has the grid and, by form, the shape that a layer keeps."""
        if self.grid != spec.grid:
            return False
        for form, pair in self.forms.items():
            if pair.key.shape != spec.shapes.get(form):
                return False
            # Learned compression makes two tensors, the others one.
            if form and (pair.key is pair.value) != spec.is_shared(form):
                return False
        return True


@dataclass
class KeptClip:
    """What is kept of one clip."""

    time: Union[int, float]
    """In the unit of ``metainfo['timestamp']``; only its order matters."""
    plan: Optional[Plan] = None
    """Where it is kept; None if nothing of it is."""
    places: dict[tuple[int, int], Place] = field(default_factory=dict)
    """By number of the plan's group and form."""
    loaded: dict[str, LoadedLayer] = field(default_factory=dict)
    """By layer, until a model reads it that says how it is kept."""

    @property
    def layers(self) -> dict[str, LoadedLayer]:
        """Copies of its keys and values."""
        layers = dict(self.loaded)
        for (number, form), place in self.places.items():
            for name, spec in self.plan.groups[number].specs.items():
                layer = layers.setdefault(name, LoadedLayer({}, spec.grid))
                layer.forms[form] = place.table.copy(name, place.row)
        return layers

    def kept_by(self, plan: Plan) -> Optional['KeptClip']:
        """The same, kept by a plan; None if it is of other sizes or another schedule.

        Where it was loaded, what the plan does not know is left out.
        """
        if not self.loaded:
            return self if self.plan is plan or not self.places else None
        for name, spec in plan.specs.items():
            if name in self.loaded and not self.loaded[name].fits(spec):
                return None
        clip = KeptClip(self.time, plan)
        for number, group in enumerate(plan.groups):
            for form, table in group.tables.items():
                found = {
                    name: self.loaded[name].forms[form]
                    for name in group.specs
                    if name in self.loaded and form in self.loaded[name].forms
                }
                if not found:
                    continue
                if len(found) < len(group.specs):
                    return None
                place = clip.places[number, form] = Place(table)
                rows = numbers([place.row], next(iter(found.values())).key.device)
                for name, (key, value) in found.items():
                    table.write(name, rows, KeyValue(key[None], value[None]))
        return clip


class Job(NamedTuple):
    """One form of one clip per row, to be kept by some layers."""

    group: int
    """Number of the plan's group."""
    form: int
    table: Table
    clips: list[Optional[KeptClip]]
    """Of which clips it is; None for a row that has none."""
    pairs: dict[str, KeyValue]
    """By layer, [B, tokens, C] each."""


class MemoryStep:
    """One clip of each of some streams: read the past, write the present, commit.

    :meth:`ClipMemory.step` makes it. Until :meth:`commit` the memory is as it was, so
    that a forward pass that fails leaves no trace.

    Args:
        put (callable): ``ClipMemory.put``, which replaces what is kept of a stream.
        plan_of (callable): ``ClipMemory.plan_of``.
        warn_once (callable): ``ClipMemory.warn_once``.
        streams (list[Stream]): One per row of the batch.
        times (list[int | float]): When each row's clip is.
        pasts (list[list[KeptClip]]): What the memory has of each row's stream.
    """

    def __init__(
        self,
        put: Callable[[Stream, list[KeptClip]], None],
        plan_of: Callable[[dict[str, MemorySpec]], Plan],
        warn_once: Callable[[str, str], None],
        streams: list[Stream],
        times: list,
        pasts: list[list[KeptClip]],
    ) -> None:
        self._put = put
        self._plan_of = plan_of
        self._warn_once = warn_once
        self.streams = streams
        self.times = times
        self._pasts = pasts
        self._plan: Optional[Plan] = None
        self._written: LayerWrites = {}

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
        self._plan = self._plan_of(specs)
        for row, past in enumerate(self._pasts):
            clips = [clip.kept_by(self._plan) for clip in past]
            if not all(clips):
                self._warn_once(
                    'size',
                    f'The frames of {self.streams[row].video!r} changed their size at '
                    f'{self.times[row]}, or its memory is of a model with another '
                    'schedule: it starts afresh. (Said once.)',
                )
                clips = []
            self._pasts[row] = clips
        found: dict[str, list[PastClips]] = {name: [] for name in specs}
        for group, level, rows in self._slots(like.device):
            # One tensor for alike layers; levels have one each, for torch.compile
            # tells apart whether two tensors are one.
            valid = rows != EMPTY
            recent, older = rows[:, -1:].contiguous(), rows[:, :-1].contiguous()
            source, form = group.tables[level.source], group.tables[level.form]
            for name in group.specs:
                past = PastClips(
                    source.read(name, recent, like), form.read(name, older, like), valid
                )
                found[name].append(past)
        return {name: tuple(levels) for name, levels in found.items()}

    def _slots(self, device: torch.device) -> list[tuple[Group, LevelSpec, Tensor]]:
        """Rows of the tables by group and level, oldest first: int64, [B, slots]."""
        levels = [
            (number, group, level)
            for number, group in enumerate(self._plan.groups)
            for level in group.spec.levels
        ]
        rows = [
            [
                self._row(past, number, age, level)
                for number, _, level in levels
                for age in reversed(level.ages)
            ]
            for past in self._pasts
        ]
        parts = numbers(rows, device).split([len(n.ages) for *_, n in levels], dim=1)
        return [(group, n, part) for (_, group, n), part in zip(levels, parts)]

    def _row(self, past: list[KeptClip], group: int, age: int, level: LevelSpec) -> int:
        """Where what a level reads of the clip ``age`` clips back is; or EMPTY."""
        if age > len(past):
            return EMPTY
        form = level.source if age == level.ages[0] else level.form
        place = past[-age].places.get((group, form))
        return EMPTY if place is None else place.row

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
        if self._plan is None:
            raise RuntimeError('Call read() before write().')
        self._written.update(written)

    def commit(self) -> None:
        """Make this step part of the memory."""
        new = [KeptClip(time, self._plan) for time in self.times]
        groups = self._plan.groups if self._plan and self._written else []
        # Whose clip is compressed now: looked up before its older form is forgotten.
        older = {
            (number, i): [self._newest(past, number, level) for past in self._pasts]
            for number, group in enumerate(groups)
            for i, level in enumerate(group.spec.levels)
        }
        jobs = self._jobs(new, older) if groups else []
        self._advance(new)
        # Rows that nobody remembers are free from here on, for what is written.
        self._place(jobs)
        self._written = {}

    def _advance(self, new: list[KeptClip]) -> None:
        """Put each stream's clips where they are remembered, this one at the end."""
        horizon = self._plan.horizon if self._plan else 0
        for stream, past, clip in zip(self.streams, self._pasts, new):
            clips = [*past, clip][-horizon:] if horizon else []
            self._forget(clips)
            self._put(stream, clips)
        self._pasts = []

    def _newest(
        self, past: list[KeptClip], group: int, level: LevelSpec
    ) -> Optional[KeptClip]:
        """The newest clip that a level has read, if there was one."""
        age = level.ages[0]
        return None if self._row(past, group, age, level) == EMPTY else past[-age]

    def _jobs(self, new: list[KeptClip], older: dict[tuple, list]) -> list[Job]:
        """What is to be kept of what the layers handed over.

        Args:
            new (list[KeptClip]): The clips of this step.
            older (dict): By number of the group and of the level, the clip of each row
                that was compressed; None where there is none.
        """
        jobs = []
        for number, group in enumerate(self._plan.groups):
            written = {name: self._written[name] for name in group.specs}
            for form in sorted(group.spec.written_forms):
                pairs = {
                    name: [made.current, *made.consolidated][form]
                    for name, made in written.items()
                }
                jobs.append(Job(number, form, group.tables[form], new, pairs))
            for i, level in enumerate(group.spec.levels):
                if group.spec.last_age(level.form) <= level.ages[0]:
                    # Nobody will read it again.
                    continue
                pairs = {
                    name: made.compressed[i] if made.compressed else None
                    for name, made in written.items()
                }
                if None not in pairs.values():
                    table = group.tables[level.form]
                    jobs.append(Job(number, level.form, table, older[number, i], pairs))
        return jobs

    def _place(self, jobs: list[Job]) -> None:
        """Find places in the tables, and copy there what is to be kept."""
        rows: list[list[int]] = []
        for job in jobs:
            rows.append([])
            for clip in job.clips:
                place = None if clip is None else Place(job.table)
                rows[-1].append(EMPTY if place is None else place.row)
                if place is not None:
                    clip.places[job.group, job.form] = place
        if not any(map(any, rows)):
            return
        device = next(iter(jobs[0].pairs.values())).key.device
        for job, own, there in zip(jobs, rows, numbers(rows, device)):
            pairs = job.pairs
            some = [row for row, place in enumerate(own) if place != EMPTY]
            if len(some) < len(own):
                # A clip that has not been before is not kept.
                chosen = numbers(some, device)
                there = there[chosen]
                pairs = {
                    name: KeyValue(*(x[chosen] for x in pair))
                    for name, pair in pairs.items()
                }
            if some:
                for name, pair in pairs.items():
                    job.table.write(name, there, pair)

    def _forget(self, clips: list[KeptClip]) -> None:
        """Give up the forms that have been read for the last time."""
        for number, group in enumerate(self._plan.groups if clips else []):
            for form in group.tables:
                age = group.spec.last_age(form) + 1
                if age <= len(clips):
                    clips[-age].places.pop((number, form), None)
