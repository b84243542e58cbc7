"""Heads and necks: what stands behind a backbone."""

from .actor_memory import ActorMemoryHead
from .bbox_head import MemoryBBoxHeadAVA
from .epic_head import EpicHead
from .mvit_neck import MViTNeck
from .roi_head import MemoryAVARoIHead

__all__ = [
    'ActorMemoryHead',
    'EpicHead',
    'MViTNeck',
    'MemoryAVARoIHead',
    'MemoryBBoxHeadAVA',
]
