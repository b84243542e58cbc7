"""Models: backbone, memory, recognizer, detector and heads."""

from memvit_mm.structures import Stream

from .actor_memory import ActorMemoryHead
from .bbox_head import MemoryBBoxHeadAVA
from .detector import MemoryFastRCNN
from .epic_head import EpicHead
from .memory import ClipMemory
from .memvit import MeMViT
from .mvit_neck import MViTNeck
from .recognizer import MemoryRecognizer3D
from .roi_head import MemoryAVARoIHead

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
    'Stream',
]
