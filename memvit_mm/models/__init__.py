"""Models: the backbone, its memory, recognizer, detector and heads."""

from memvit_mm.structures import Stream

from .detector import MemoryFastRCNN
from .heads import (
    ActorMemoryHead,
    EpicHead,
    MemoryAVARoIHead,
    MemoryBBoxHeadAVA,
    MViTNeck,
)
from .memory import ClipMemory
from .memvit import MeMViT
from .recognizer import MemoryRecognizer3D
from .vit import MemoryViT

__all__ = [
    'ActorMemoryHead',
    'ClipMemory',
    'EpicHead',
    'MViTNeck',
    'MeMViT',
    'MemoryAVARoIHead',
    'MemoryBBoxHeadAVA',
    'MemoryFastRCNN',
    'MemoryRecognizer3D',
    'MemoryViT',
    'Stream',
]
