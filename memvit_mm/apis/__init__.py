"""Predictions from Python: frames as they come, many streams, whole videos."""

from .boxes import PersonBoxes
from .draw import Look
from .inference import MemViTInferencer, inference_recognizer, init_recognizer
from .memory_effect import ComparingPredictor
from .multi_stream import MultiStream, StreamEnd
from .persons import PersonDetector
from .prediction_lines import PredictionLines, read_lines
from .report import write_report
from .report_media import KeyFrame
from .results import EpicPrediction, PeoplePrediction, Prediction, StreamCounts
from .sources import LiveCapture, VideoFile
from .stdet import inference_stdet, init_detector_model, iter_stdet
from .stream import VideoStream
from .tracking import IoUTracker
from .visualize import Annotated, Interrupted, Outputs, annotate_video

__all__ = [
    'Annotated',
    'ComparingPredictor',
    'EpicPrediction',
    'Interrupted',
    'IoUTracker',
    'KeyFrame',
    'LiveCapture',
    'Look',
    'MemViTInferencer',
    'MultiStream',
    'Outputs',
    'PeoplePrediction',
    'PersonBoxes',
    'PersonDetector',
    'Prediction',
    'PredictionLines',
    'StreamCounts',
    'StreamEnd',
    'VideoFile',
    'VideoStream',
    'annotate_video',
    'inference_recognizer',
    'inference_stdet',
    'init_detector_model',
    'init_recognizer',
    'iter_stdet',
    'read_lines',
    'write_report',
]
