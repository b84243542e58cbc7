from memvit_mm.structures import BadClipError, ClipIndex
from memvit_mm.video.sequential_reader import SequentialReader

from .ava.dataset import MemoryAVADataset
from .bad_clip_mixin import BadClipMixin
from .epic.dataset import EpicKitchensDataset
from .epic.transforms import EpicFrameLabels, SampleEpicFrames
from .sampling.lane_loader import LaneDataLoader
from .sampling.sampler import SequentialClipSampler
from .transforms.clips import SampleClipFrames, StreamConsistent
from .transforms.picture import ClipColors, ResizeShortSide
from .transforms.video import VideoDecode, VideoInit

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
