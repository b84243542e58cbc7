"""Predictions as one page of HTML."""

from .media import KeyFrame
from .page import write_report

__all__ = ['KeyFrame', 'write_report']
