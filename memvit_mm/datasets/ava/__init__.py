"""AVA and data in its format: the dataset, and the readers of its files."""

from .dataset import MemoryAVADataset

__all__ = ['MemoryAVADataset']
