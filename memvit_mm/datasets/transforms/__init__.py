"""Transforms: frames of a clip, draws that hold along a stream, decoding, colours."""

from .clips import SampleClipFrames, StreamConsistent
from .picture import ClipColors, ResizeShortSide
from .video import VideoDecode, VideoInit

__all__ = [
    'ClipColors',
    'ResizeShortSide',
    'SampleClipFrames',
    'StreamConsistent',
    'VideoDecode',
    'VideoInit',
]
