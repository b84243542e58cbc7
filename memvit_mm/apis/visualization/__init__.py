"""Predictions as an annotated video, a timeline picture and JSON lines."""

from .annotate import Annotated, Interrupted, Outputs, annotate_video
from .draw import Look, Painter
from .prediction_lines import PredictionLines, read_lines
from .timeline import draw_timeline

__all__ = [
    'Annotated',
    'Interrupted',
    'Look',
    'Outputs',
    'Painter',
    'PredictionLines',
    'annotate_video',
    'draw_timeline',
    'read_lines',
]
