"""Metrics: AVA's mean average precision and EPIC-KITCHENS-100's official numbers."""

from .ava_metric import MemoryAVAMetric, ava_map
from .epic import (
    EpicLabels,
    EpicMetric,
    EpicPredictions,
    EpicResult,
    epic_metrics,
    read_labels,
    read_predictions,
    read_submission,
    validate_submission,
    write_submission,
)

__all__ = [
    'EpicLabels',
    'EpicMetric',
    'EpicPredictions',
    'EpicResult',
    'MemoryAVAMetric',
    'ava_map',
    'epic_metrics',
    'read_labels',
    'read_predictions',
    'read_submission',
    'validate_submission',
    'write_submission',
]
