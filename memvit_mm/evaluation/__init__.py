from .ava_metric import MemoryAVAMetric, ava_map
from .epic_labels import EpicLabels, read_labels
from .epic_metric import EpicMetric
from .epic_prediction_files import read_predictions
from .epic_predictions import EpicPredictions
from .epic_scores import EpicResult, epic_metrics
from .epic_submission import read_submission, validate_submission, write_submission

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
