"""What every config of memvit_mm has: the package, and the hooks of memory and data."""

_base_ = 'mmaction::_base_/default_runtime.py'

default_hooks = dict(
    # --resume goes on in the middle of an epoch; see the hook's docstring for
    # by_epoch=False (a checkpoint every so many iterations) and save_memory.
    checkpoint=dict(type='MemoryCheckpointHook'),
)
custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)
# A config that sets custom_hooks replaces this list: keep MemoryResetHook in it.
custom_hooks = [
    dict(type='MemoryResetHook'),
    # Stops at a loss that is nan or infinite, and says in which clips.
    dict(type='FiniteLossHook'),
    # Names the clips left out under on_bad_clip='skip' in the dataset.
    dict(type='BadClipHook'),
    # Videos are decoded once, whatever the number of workers.
    dict(type='LaneWorkersHook'),
]
