"""Hooks that a run with memory needs."""

from .bad_clip_hook import BadClipHook
from .checkpoint_hook import MemoryCheckpointHook
from .finite_loss_hook import FiniteLossHook
from .memory_reset_hook import MemoryResetHook

__all__ = [
    'BadClipHook',
    'FiniteLossHook',
    'MemoryCheckpointHook',
    'MemoryResetHook',
]
