"""Predictions from Python: frames as they come, many streams, whole videos."""

from .multi_stream import MultiStream, StreamEnd
from .results import EpicPrediction, PeoplePrediction, Prediction
from .sources import LiveCapture, VideoFile
from .stream import StreamCounts, VideoStream

__all__ = [
    'EpicPrediction',
    'LiveCapture',
    'MultiStream',
    'PeoplePrediction',
    'Prediction',
    'StreamCounts',
    'StreamEnd',
    'VideoFile',
    'VideoStream',
]
