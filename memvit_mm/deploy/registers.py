"""Registers: the memory of one stream as tensors of one shape, in a graph.

:class:`ClipMemory` looks clips up by their age. A graph cannot: it gets, for each form
in which a layer keeps clips, one tensor with the clips of all ages at which the form is
kept, oldest first. It reads those that its schedule names, drops the oldest and appends
the newest; what comes out is what goes in with the next clip.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from memvit_mm.models.memory.layers import (
    KeyValue,
    LayerMemories,
    LayerWrites,
    MemorySpec,
    PastClips,
)


class Register(NamedTuple):
    """Clips of one form of one layer."""

    layer: str
    form: int
    """See :class:`.LevelSpec`."""
    part: str
    """'key', 'value', or 'both' where keys and values are one tensor."""
    newest: int
    """Age of its last clip, in clips before the present one."""
    oldest: int
    """Age of its first clip."""
    tokens: int
    """Keys of a clip."""
    channels: int

    @property
    def name(self) -> str:
        """As an input of the graph."""
        return f'{self.layer}.form{self.form}.{self.part}'

    @property
    def shape(self) -> tuple[int, int]:
        """Without the batch: [clips * tokens, C]."""
        return (self.oldest - self.newest + 1) * self.tokens, self.channels

    def at(self, held: Tensor, age: int) -> Tensor:
        """The clip of an age: [B, clips * tokens, C] -> [B, tokens, C]."""
        first = (self.oldest - age) * self.tokens
        return held[:, first : first + self.tokens]

    def shifted(self, held: Tensor, new: Tensor) -> Tensor:
        """Without the oldest clip, and with a new one [B, tokens, C]."""
        return torch.cat([held[:, self.tokens :], new.to(held)], dim=1)


def registers_of(specs: dict[str, MemorySpec]) -> list[Register]:
    """The registers of a model's memory layers."""
    registers = []
    for layer, spec in specs.items():
        for form, age in spec.made_at.items():
            last = spec.last_age(form)
            if last > age:
                parts = ('both',) if spec.is_shared(form) else ('key', 'value')
                registers += [
                    Register(
                        *(layer, form, part, age + 1, last),
                        *(spec.tokens_of(form), spec.channels),
                    )
                    for part in parts
                ]
    return registers


class Held:
    """The registers' contents while a graph is traced.

    Args:
        specs (dict[str, MemorySpec]): What the layers keep and read.
        registers (list[Register]): Of these.
        contents (list[Tensor]): Of each register, [B, clips * tokens, C].
        valid (Tensor): Which clips there are, by age, from 1: bool, [B, horizon].
    """

    def __init__(
        self,
        specs: dict[str, MemorySpec],
        registers: list[Register],
        contents: list[Tensor],
        valid: Tensor,
    ) -> None:
        self.specs = specs
        self.valid = valid
        self.registers = registers
        self._contents = dict(zip(registers, contents))

    def _at(self, layer: str, form: int, age: int) -> KeyValue:
        parts = [
            register.at(held, age)
            for register, held in self._contents.items()
            if (register.layer, register.form) == (layer, form)
        ]
        return KeyValue(parts[0], parts[-1])

    def read(self) -> LayerMemories:
        """What the layers may attend to; as :meth:`MemoryStep.read`."""
        past = {}
        for layer, spec in self.specs.items():
            levels = []
            for level in spec.levels:
                first, *others = level.ages
                recent = self._at(layer, level.source, first)
                older = [self._at(layer, level.form, n) for n in reversed(others)]
                key = [pair.key for pair in older] or [recent.key[:, :0]]
                value = [pair.value for pair in older] or [recent.value[:, :0]]
                keys = torch.cat(key, dim=1)
                levels.append(
                    PastClips(
                        recent,
                        KeyValue(
                            keys, keys if level.shared else torch.cat(value, dim=1)
                        ),
                        self.valid[:, [age - 1 for age in reversed(level.ages)]],
                    )
                )
            past[layer] = tuple(levels)
        return past

    def write(self, written: LayerWrites) -> list[Tensor]:
        """The registers' contents for the next clip; as :meth:`MemoryStep.write`."""
        contents = []
        for register, held in self._contents.items():
            new, spec = written[register.layer], self.specs[register.layer]
            made = dict(enumerate([new.current, *new.consolidated]))
            for level, pair in zip(spec.levels, new.compressed):
                if pair is not None:
                    made[level.form] = pair
            pair = made[register.form]
            new = pair.value if register.part == 'value' else pair.key
            contents.append(register.shifted(held, new))
        return contents
