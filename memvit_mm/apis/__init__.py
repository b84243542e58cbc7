"""Predictions from Python: frames as they come, many streams, whole videos."""

from .boxes import PersonBoxes
from .inference import MemViTInferencer, inference_recognizer, init_recognizer
from .multi_stream import MultiStream, StreamEnd
from .persons import PersonDetector
from .report import write_report
from .report_media import KeyFrame
from .results import EpicPrediction, PeoplePrediction, Prediction
from .sources import LiveCapture, VideoFile
from .stdet import inference_stdet, init_detector_model, iter_stdet
from .stream import StreamCounts, VideoStream
from .tracking import IoUTracker

__all__ = [
    'EpicPrediction',
    'IoUTracker',
    'KeyFrame',
    'LiveCapture',
    'MemViTInferencer',
    'MultiStream',
    'PeoplePrediction',
    'PersonBoxes',
    'PersonDetector',
    'Prediction',
    'StreamCounts',
    'StreamEnd',
    'VideoFile',
    'VideoStream',
    'inference_recognizer',
    'inference_stdet',
    'init_detector_model',
    'init_recognizer',
    'iter_stdet',
    'write_report',
]
