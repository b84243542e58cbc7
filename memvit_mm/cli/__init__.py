"""What the commands of ``python -m memvit_mm`` do."""

from .demo import show_demo
from .info import show_info

__all__ = ['show_demo', 'show_info']
