"""What every config of memvit_mm has: the package, and a memory that is reset."""

_base_ = 'mmaction::_base_/default_runtime.py'

custom_imports = dict(imports=['memvit_mm'], allow_failed_imports=False)
# A config that sets custom_hooks replaces this list: keep MemoryResetHook in it.
custom_hooks = [dict(type='MemoryResetHook')]
