from .ava import MemoryAVADataset
from .sampler import ClipIndex, SequentialClipSampler
from .transforms import SampleClipFrames, StreamConsistent, VideoDecode, VideoInit

__all__ = [
    'ClipIndex',
    'MemoryAVADataset',
    'SampleClipFrames',
    'SequentialClipSampler',
    'StreamConsistent',
    'VideoDecode',
    'VideoInit',
]
