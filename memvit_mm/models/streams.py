"""Which stream and time each row of a batch belongs to, and which rows run together."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional

import torch
from mmaction.utils import SampleList
from torch import Tensor
from torch.utils import _pytree as pytree

from memvit_mm.structures import Stream, is_skipped

from .memory import ClipMemory
from .skipped_rows import nothing_read, rows_to_keep


class Rows(NamedTuple):
    """Streams and times of the rows of a batch."""

    streams: list[Stream]
    times: list[Any]


def rows_of(data_samples: SampleList, views: int = 1) -> Rows:
    """Read each sample's stream and time from its meta information.

    Args:
        data_samples (list[ActionDataSample]): With ``video_id`` and ``timestamp`` in
            their metainfo; in training ``sample_idx``, too, as
            :class:`SequentialClipSampler` gives it.
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
        index = meta.get('sample_idx')
        run, epoch = getattr(index, 'run', 0), getattr(index, 'epoch', 0)
        for view in range(views):
            streams.append(Stream(video, view, run, epoch))
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
        return joined[order.to(joined.device)]

    leaves = [pytree.tree_flatten(part)[0] for part in parts]
    spec = pytree.tree_flatten(parts[0])[1]
    return pytree.tree_unflatten([join(*row) for row in zip(*leaves)], spec)


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
        inputs = inputs[torch.tensor(group)]
    if shape is not None:
        inputs = inputs[..., : shape[0], : shape[1]]
    return inputs


class MemoryOwner:
    """Mixin of models that own one :class:`ClipMemory`, at ``self.memory``.

    **Which rows of a test batch run together.** Those of one frame size, so that
    padding reaches no result. Even so, the last bits of a matrix product depend on its
    number of rows, since the libraries choose their kernel by it. Where a prediction
    must not depend, to the last bit, on what else is in its batch,
    ``test_cfg=dict(one_by_one=True)`` runs each sample by itself. By default that is
    done on the CPU, where it costs nothing, and not on a GPU.

    **Rows that could not be read** (``on_bad_clip='skip'`` in the dataset) are left out
    before anything else: no memory, no loss, no prediction.
    """

    memory: ClipMemory

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[SampleList] = None,
        mode: str = 'tensor',
        **kwargs: Any,
    ) -> Any:
        """As the model's, on the rows that were read."""
        keep = rows_to_keep(data_samples) if mode in ('loss', 'predict') else None
        if keep is not None:
            first = next(filter(is_skipped, data_samples)).metainfo['skipped']
            self.memory.warn_once(
                'skipped',
                f'A clip is left out: {first} (Said once; BadClipHook names all of '
                'them at the end of the epoch.)',
            )
            if not keep:
                return nothing_read(self, mode)
            inputs = take_rows(inputs, keep)
            data_samples = [data_samples[row] for row in keep]
        return super().forward(inputs, data_samples, mode, **kwargs)

    def test_groups(
        self, rows: Rows, kinds: Sequence[Any], device: torch.device
    ) -> list[list[int]]:
        """Rows of a test batch that run together, in the order in which they run.

        Args:
            rows (Rows): Their streams and times.
            kinds (sequence): What must be equal to run together: frame sizes.
            device (torch.device): Where they run.
        """
        one_by_one = (self.test_cfg or {}).get('one_by_one')
        if one_by_one is None:
            one_by_one = device.type == 'cpu'
        return waves(rows, range(len(kinds)) if one_by_one else kinds)

    def reset_memory(self, stream: Any = None) -> None:
        """Forget everything, or one video id (all its views), or one stream."""
        self.memory.reset(stream)

    @property
    def backbone_remembers(self) -> bool:
        """Whether the backbone takes memory. Others just get none."""
        return bool(getattr(self.backbone, 'memory_layers', ()))

    @property
    def remembers(self) -> bool:
        """Whether earlier clips change a result."""
        return self.backbone_remembers

    def run_backbone(self, inputs: Tensor, step: Any) -> Any:
        """Features of clips [B, C, T, H, W], with memory where the backbone has it.

        Args:
            inputs (Tensor): Clips, [B, C, T, H, W].
            step (MemoryStep, optional): The memory step of these rows.
        """
        if step is None or not self.backbone_remembers:
            return self.backbone(inputs)
        past = step.past(self.backbone.memory_specs(inputs.shape[-3:]), like=inputs)
        features, written = self.backbone(inputs, memory=past)
        step.keep(written)
        return features
