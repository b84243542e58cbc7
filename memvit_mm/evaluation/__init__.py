from .ava_metric import MemoryAVAMetric, ava_map
from .epic.labels import EpicLabels, read_labels
from .epic.metric import EpicMetric
from .epic.prediction_files import read_predictions
from .epic.predictions import EpicPredictions
from .epic.scores import EpicResult, epic_metrics
from .epic.submission import read_submission, validate_submission, write_submission

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
