"""Video files: readers by decord and OpenCV, and a writer."""

from .open_video import open_video
from .sequential_reader import SequentialReader
from .writer import VideoWriter

__all__ = ['SequentialReader', 'VideoWriter', 'open_video']
