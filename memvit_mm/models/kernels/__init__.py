"""What is made for a processor, each function beside its plain form; see choice.py."""

from .attention import attend, hidden_keys, padded
from .choice import is_transforming, to_device
from .drop_path import run_drop_path
from .mlp import LeanFFN, LeanMLP
from .onednn import linear, run_linear
from .pooling import Size, depthwise_pool, max_pool, shared_planes

__all__ = [
    'LeanFFN',
    'LeanMLP',
    'Size',
    'attend',
    'depthwise_pool',
    'hidden_keys',
    'is_transforming',
    'linear',
    'max_pool',
    'padded',
    'run_drop_path',
    'run_linear',
    'shared_planes',
    'to_device',
]
