"""For runs of models with memory: hooks, optimizers, mixed precision on a CPU."""

from .bad_clip_hook import BadClipHook
from .checkpoint_hook import MemoryCheckpointHook
from .compile_hook import CompileHook
from .cpu_amp import CPUAmpOptimWrapper
from .finite_loss_hook import FiniteLossHook
from .lane_workers_hook import LaneWorkersHook
from .layer_decay import MemoryLearningRateDecayOptimizerConstructor
from .memory_reset_hook import MemoryResetHook
from .merged_groups import MergedOptimWrapperConstructor

__all__ = [
    'BadClipHook',
    'CPUAmpOptimWrapper',
    'CompileHook',
    'FiniteLossHook',
    'LaneWorkersHook',
    'MemoryCheckpointHook',
    'MemoryLearningRateDecayOptimizerConstructor',
    'MemoryResetHook',
    'MergedOptimWrapperConstructor',
]
