"""Predictions from Python: frames as they come, many streams, whole videos."""

from .inference import MemViTInferencer, inference_recognizer, init_recognizer
from .models.results import EpicPrediction, PeoplePrediction, Prediction, StreamCounts
from .people.boxes import PersonBoxes
from .people.detector import PersonDetector
from .people.tracking import IoUTracker
from .report.media import KeyFrame
from .report.page import write_report
from .stdet import inference_stdet, init_detector_model, iter_stdet
from .streams.memory_effect import ComparingPredictor
from .streams.multi_stream import MultiStream, StreamEnd
from .streams.sources import LiveCapture, VideoFile
from .streams.stream import VideoStream
from .visualization.annotate import Annotated, Interrupted, Outputs, annotate_video
from .visualization.draw import Look
from .visualization.prediction_lines import PredictionLines, read_lines

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
