"""The one path on which a model remembers: read, run, write, commit."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from mmaction.utils import SampleList
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from memvit_mm.structures import Stream, is_skipped

from .clip_memory import ClipMemory
from .layers import LayerMemories, LayerWrites, MemorySpec
from .rows import Rows, rows_of, rows_to_keep, take_rows, waves

Run = Callable[[Tensor, LayerMemories, list[int]], tuple[Any, LayerWrites]]
"""``run(clips, past, group)``: clips [rows of the group, ..., H, W] and what their
layers may attend to of earlier clips -> an output, and what is to be remembered."""


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

    def remember(
        self,
        inputs: Tensor,
        rows: Optional[Rows],
        groups: Sequence[list[int]],
        run: Run,
        shapes: Optional[Sequence[Any]] = None,
    ) -> list[Any]:
        """Run clips with what their streams remember, and remember them.

        Where ``run`` fails, its clips leave no trace in the memory.

        Args:
            inputs (Tensor): Clips, [B, ..., T, H, W].
            rows (Rows, optional): Their streams and times; None for no memory.
            groups (sequence[list[int]]): Rows that run together, in the order in which
                they run; see :func:`waves`.
            run (callable): The model; see :data:`Run`.
            shapes (sequence, optional): Height and width of each row's frames, where
                the batch is padded.

        Returns:
            list: The outputs of ``run``, one per group.
        """
        outputs = []
        for group in groups:
            clips = take_rows(inputs, group, shapes[group[0]] if shapes else None)
            specs = self.memory_specs(clips) if rows is not None else {}
            if not specs:
                outputs.append(run(clips, {}, group)[0])
                continue
            step = self.memory.step(
                [rows.streams[row] for row in group], [rows.times[row] for row in group]
            )
            past = step.read(specs, like=clips)
            output, written = run(clips, past, group)
            step.write(written)
            step.commit()
            outputs.append(output)
        return outputs

    def memory_specs(self, clips: Tensor) -> dict[str, MemorySpec]:
        """What each layer with memory keeps of clips [B, C, T, H, W], by its name."""
        if not self.backbone_remembers:
            return {}
        return self.backbone.memory_specs(clips.shape[-3:])

    def run_backbone(self, clips: Tensor, past: LayerMemories) -> tuple:
        """The backbone's features of clips [B, C, T, H, W], and what it wrote.

        Args:
            clips (Tensor): [B, C, T, H, W].
            past (dict[str, tuple[PastClips, ...]]): What its layers may attend to; {}
                without memory.
        """
        if not past or not self.backbone_remembers:
            return self.backbone(clips), {}
        return self.backbone(clips, memory=past)

    @property
    def backbone_remembers(self) -> bool:
        """Whether the backbone takes memory. Any other backbone runs without."""
        return bool(getattr(self.backbone, 'memory_layers', ()))

    @property
    def remembers(self) -> bool:
        """Whether earlier clips change a result."""
        return self.backbone_remembers

    def reset_memory(self, stream: Any = None) -> None:
        """Forget everything, or one video id (all its views), or one stream."""
        self.memory.reset(stream)

    def batch_rows(self, data_samples: SampleList, views: int = 1) -> Rows:
        """Streams and times of a batch. Without memory, each row is a stream.

        Args:
            data_samples (list[ActionDataSample]): One per sample.
            views (int): Views per sample, each of which is a stream.

        Raises:
            ValueError: As :func:`memvit_mm.models.memory.rows.rows_of`.
        """
        if self.remembers:
            return rows_of(data_samples, views)
        count = range(len(data_samples) * views)
        return Rows([Stream(number) for number in count], list(count))

    def test_groups(
        self, rows: Rows, shapes: Sequence[Any], device: torch.device
    ) -> list[list[int]]:
        """Rows of a test batch that run together, in the order in which they run.

        Args:
            rows (Rows): Their streams and times.
            shapes (sequence): Frame sizes; only rows of one size run together.
            device (torch.device): Where they run.
        """
        one_by_one = (self.test_cfg or {}).get('one_by_one')
        if one_by_one is None:
            one_by_one = device.type == 'cpu'
        return waves(rows, range(len(shapes)) if one_by_one else shapes)

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


def nothing_read(model: nn.Module, mode: str) -> Any:
    """What a model returns for a batch of which no row could be read.

    Args:
        model (nn.Module): The model.
        mode (str): 'loss' or 'predict'.

    Returns:
        dict | list: A loss of zero that reaches every parameter, so that the step takes
        place on this rank as on the others; or no predictions.

    Raises:
        ValueError: If the other ranks would wait for this one in a SyncBatchNorm.
    """
    if mode == 'loss':
        if any(isinstance(part, nn.SyncBatchNorm) for part in model.modules()):
            raise ValueError(
                'No clip of this batch could be read, and other processes wait for its '
                'statistics in SyncBatchNorm: take the bad clips out of the '
                'annotations, or use another norm_cfg.'
            )
        trained = (p for p in model.parameters() if p.requires_grad)
        return dict(loss=sum(0 * p.flatten()[:1].sum() for p in trained))
    # mmengine's loops look at the last output; one that holds only a loss they take
    # away, and nothing is left.
    return [BaseDataElement(loss={})]
