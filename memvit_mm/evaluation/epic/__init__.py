"""EPIC-KITCHENS-100: official numbers, files of predictions, and submissions."""

from .labels import EpicLabels, read_labels
from .metric import EpicMetric
from .prediction_files import read_predictions
from .predictions import EpicPredictions
from .scores import EpicResult, epic_metrics
from .submission import read_submission, validate_submission, write_submission

__all__ = [
    'EpicLabels',
    'EpicMetric',
    'EpicPredictions',
    'EpicResult',
    'epic_metrics',
    'read_labels',
    'read_predictions',
    'read_submission',
    'validate_submission',
    'write_submission',
]
