from .ava import MemoryAVADataset
from .bad_clip_mixin import BadClipMixin
from .bad_clips import BadClipError
from .sampler import ClipIndex, SequentialClipSampler
from .transforms import SampleClipFrames, StreamConsistent, VideoDecode, VideoInit

__all__ = [
    'BadClipError',
    'BadClipMixin',
    'ClipIndex',
    'MemoryAVADataset',
    'SampleClipFrames',
    'SequentialClipSampler',
    'StreamConsistent',
    'VideoDecode',
    'VideoInit',
]
