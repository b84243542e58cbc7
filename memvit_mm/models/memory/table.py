"""Tables: what is kept of many clips, one tensor for each layer's keys or values.

Reading and writing the rows of a batch is one operator for each of these tensors,
however many streams and clips there are.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from memvit_mm.models.kernels import to_device

from .layers import KeyValue, MemorySpec, horizon_of

# The row of zeros, for slots without a clip.
EMPTY = 0


class Table:
    """One form of the clips of some layers.

    Args:
        specs (dict[str, MemorySpec]): The layers.
        form (int): The form in which they keep clips here.
        dtype (torch.dtype, optional): Of what is kept; None for that of what is
            written.
    """

    def __init__(
        self, specs: dict[str, MemorySpec], form: int, dtype: Optional[torch.dtype]
    ) -> None:
        self.dtype = dtype
        self._names = {name: 2 * number for number, name in enumerate(specs)}
        self._shared = {name: spec.is_shared(form) for name, spec in specs.items()}
        self._shapes = [
            spec.shapes[form] for spec in specs.values() for _ in ('key', 'value')
        ]
        self._tensors: dict[int, Tensor] = {}
        self._rows = EMPTY + 1
        self._free: list[int] = []

    def __len__(self) -> int:
        """Rows in use."""
        return self._rows - EMPTY - 1 - len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows in use."""
        return len(self) * sum(x[EMPTY].nbytes for x in self._tensors.values())

    def take(self) -> int:
        """A row that is not in use; :class:`Place` gives it back."""
        if self._free:
            return self._free.pop()
        # Tensors grow when they are written next.
        self._rows += 1
        return self._rows - 1

    def give(self, row: int) -> None:
        """Take a row back. Without any row in use, no tensor is kept."""
        self._free.append(row)
        if len(self) == 0:
            self._tensors, self._rows, self._free = {}, EMPTY + 1, []

    def write(self, name: str, rows: Tensor, clips: KeyValue) -> None:
        """Replace rows.

        Args:
            name (str): The layer.
            rows (Tensor): int64, [B].
            clips (KeyValue): [B, tokens, C] each.
        """
        first = self._names[name]
        for number, clip in enumerate(clips[:1] if self._shared[name] else clips):
            clip = clip.detach()
            known = self._tensors.get(first + number)
            device = clip.device if known is None else known.device
            tensor = self._ready(first + number, device, clip.dtype)
            tensor.index_copy_(0, rows.to(device), clip.to(tensor))

    def read(self, name: str, rows: Tensor, like: Tensor) -> KeyValue:
        """Rows of a layer.

        Args:
            name (str): The layer.
            rows (Tensor): int64, [B, slots].
            like (Tensor): Gives device and dtype.

        Returns:
            KeyValue: [B, slots * tokens, C] each, the same tensor where a layer keeps
            one thing.
        """
        first = self._names[name]
        pair = [
            self._read(first + number, rows, like)
            for number in range(1 if self._shared[name] else 2)
        ]
        return KeyValue(pair[0], pair[-1])

    def copy(self, name: str, row: int) -> KeyValue:
        """A row of a layer: [tokens, C] each."""
        first, count = self._names[name], 1 if self._shared[name] else 2
        pair = [self._tensors[first + number][row].clone() for number in range(count)]
        return KeyValue(pair[0], pair[-1])

    def _read(self, number: int, rows: Tensor, like: Tensor) -> Tensor:
        (batch, slots), (tokens, channels) = rows.shape, self._shapes[number]
        size = batch, slots * tokens, channels
        if number not in self._tensors or slots == 0:
            return like.new_zeros(size)
        tensor = self._ready(number, like.device, self._tensors[number].dtype)
        return tensor.index_select(0, rows.flatten()).view(size).to(like.dtype)

    def _ready(self, number: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A tensor with all rows, on this device, which can hold what is of a dtype."""
        tensor, shape = self._tensors.get(number), self._shapes[number]
        # What is made in inference mode could not be written in training.
        with torch.inference_mode(False):
            if tensor is None:
                tensor = torch.zeros(
                    0, *shape, device=device, dtype=self.dtype or dtype
                )
            tensor = tensor.to(
                device, self.dtype or torch.promote_types(tensor.dtype, dtype)
            )
            if len(tensor) < self._rows:
                more = tensor.new_zeros(self._rows - len(tensor), *shape)
                tensor = torch.cat([tensor, more])
        self._tensors[number] = tensor
        return tensor


class Place:
    """A row of a table, which is free again when nobody has the place any more."""

    __slots__ = ('row', 'table')

    def __init__(self, table: Table) -> None:
        self.table = table
        self.row = table.take()

    def __del__(self) -> None:
        self.table.give(self.row)


class Group(NamedTuple):
    """Layers of one schedule, whose clips therefore have their rows in common."""

    specs: dict[str, MemorySpec]
    """By layer."""
    tables: dict[int, Table]
    """By form."""

    @property
    def spec(self) -> MemorySpec:
        """Of the first layer: ages and forms are the same in all."""
        return next(iter(self.specs.values()))


class Plan:
    """Where the clips of a model for one size of frames are kept.

    Args:
        specs (dict[str, MemorySpec]): By layer.
        dtype (torch.dtype, optional): Of what is kept.
    """

    def __init__(
        self, specs: dict[str, MemorySpec], dtype: Optional[torch.dtype]
    ) -> None:
        alike: dict[tuple, dict[str, MemorySpec]] = {}
        for name, spec in specs.items():
            key = tuple((n.ages, n.source, n.form) for n in spec.levels)
            alike.setdefault(key, {})[name] = spec
        self.specs = specs
        self.key = tuple(specs.items())
        self.groups = []
        for layers in alike.values():
            forms = next(iter(layers.values())).made_at
            tables = {form: Table(layers, form, dtype) for form in forms}
            self.groups.append(Group(layers, tables))
        self.horizon = horizon_of(specs)

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept."""
        tables = (table for group in self.groups for table in group.tables.values())
        return sum(table.num_bytes for table in tables)


def numbers(rows: Sequence, device: torch.device) -> Tensor:
    """Rows of numbers as int64, on a device."""
    return to_device(torch.tensor(rows, dtype=torch.long), device)
