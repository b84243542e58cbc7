"""Find what is wrong in the data that a config names."""

from .config import SPLITS, check_config
from .report import Finding, Report

__all__ = ['SPLITS', 'Finding', 'Report', 'check_config']
