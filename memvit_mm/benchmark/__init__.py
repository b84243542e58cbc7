"""Measuring: cost against MMAction2's backbones, and how far memory reaches.

``benchmark.py``, ``get_flops.py`` and ``measure_recall.py`` of ``tools/analysis_tools``
are the command lines.
"""

from .compare import Comparison, compare
from .measure import Case, Result, Table, full_memory, measure
from .receptive_field import ReceptiveField, receptive_field

__all__ = [
    'Case',
    'Comparison',
    'ReceptiveField',
    'Result',
    'Table',
    'compare',
    'full_memory',
    'measure',
    'receptive_field',
]
