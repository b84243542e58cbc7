"""Rows of a batch that stand in for clips that could not be read."""

from typing import Any, Optional

from mmaction.utils import SampleList
from mmengine.structures import BaseDataElement
from torch import nn

from memvit_mm.structures import is_skipped


def rows_to_keep(data_samples: Optional[SampleList]) -> Optional[list[int]]:
    """The rows that were read, or None where all of them were."""
    samples = data_samples or []
    keep = [row for row, sample in enumerate(samples) if not is_skipped(sample)]
    return keep if len(keep) < len(samples) else None


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
