from .ava_metric import MemoryAVAMetric, ava_map

__all__ = ['MemoryAVAMetric', 'ava_map']
