"""Clips in time order: the sampler, and a data loader whose workers follow it."""

from .lane_loader import LaneDataLoader
from .sampler import SequentialClipSampler

__all__ = ['LaneDataLoader', 'SequentialClipSampler']
