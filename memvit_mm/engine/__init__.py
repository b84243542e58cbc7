"""Hooks."""

from .memory_reset_hook import MemoryResetHook

__all__ = ['MemoryResetHook']
