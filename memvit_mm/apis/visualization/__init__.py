"""Predictions as an annotated video, a timeline picture and JSON lines."""

from .annotate import Annotated, Interrupted, Outputs, annotate_video
from .draw import Look
from .prediction_lines import PredictionLines, read_lines

__all__ = [
    'Annotated',
    'Interrupted',
    'Look',
    'Outputs',
    'PredictionLines',
    'annotate_video',
    'read_lines',
]
