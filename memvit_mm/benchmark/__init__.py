"""Measuring: against MMAction2's MViT, how cost grows, and how far back memory reaches.

``tools/analysis_tools/benchmark.py`` is its command line.
"""

from .case import Case, full_memory
from .compare import Comparison, compare
from .growth import with_frame_size, with_length, with_memories, with_streams
from .operators import profile_operators
from .parts import measure_parts
from .processes import Result, measure
from .receptive_field import ReceptiveField, receptive_field

__all__ = [
    'Case',
    'Comparison',
    'ReceptiveField',
    'Result',
    'compare',
    'full_memory',
    'measure',
    'measure_parts',
    'profile_operators',
    'receptive_field',
    'with_frame_size',
    'with_length',
    'with_memories',
    'with_streams',
]
