"""Memory: what is kept of a clip, where, which clips are read, and on which path."""

from .clip_memory import ClipMemory
from .layers import KeyValue, LayerMemories, LayerWrites, MemorySpec, PastClips, Written
from .remember import MemoryOwner
from .step import MemoryStep

__all__ = [
    'ClipMemory',
    'KeyValue',
    'LayerMemories',
    'LayerWrites',
    'MemoryOwner',
    'MemorySpec',
    'MemoryStep',
    'PastClips',
    'Written',
]
