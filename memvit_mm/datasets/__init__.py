from .ava import MemoryAVADataset
from .bad_clip_mixin import BadClipMixin
from .bad_clips import BadClipError
from .epic_kitchens import EpicKitchensDataset
from .epic_transforms import EpicFrameLabels, SampleEpicFrames
from .lane_loader import LaneDataLoader
from .picture_transforms import ClipColors, ResizeShortSide
from .sampler import ClipIndex, SequentialClipSampler
from .sequential_reader import SequentialReader
from .transforms import SampleClipFrames, StreamConsistent
from .video_transforms import VideoDecode, VideoInit

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
