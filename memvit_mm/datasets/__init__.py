"""Datasets of AVA and EPIC-KITCHENS, their transforms, and the sampler of clips."""

from memvit_mm.structures import BadClipError, ClipIndex
from memvit_mm.video import SequentialReader

from .ava import MemoryAVADataset
from .bad_clip_mixin import BadClipMixin
from .epic import EpicFrameLabels, EpicKitchensDataset, SampleEpicFrames
from .sampling import LaneDataLoader, SequentialClipSampler
from .transforms import (
    ClipColors,
    ResizeShortSide,
    SampleClipFrames,
    StreamConsistent,
    VideoDecode,
    VideoInit,
)

__all__ = [
    'BadClipError',
    'BadClipMixin',
    'ClipColors',
    'ClipIndex',
    'EpicFrameLabels',
    'EpicKitchensDataset',
    'LaneDataLoader',
    'MemoryAVADataset',
    'ResizeShortSide',
    'SampleClipFrames',
    'SampleEpicFrames',
    'SequentialClipSampler',
    'SequentialReader',
    'StreamConsistent',
    'VideoDecode',
    'VideoInit',
]
