"""EPIC-KITCHENS-100: the dataset, its transforms, and the readers of its files."""

from .dataset import EpicKitchensDataset
from .transforms import EpicFrameLabels, SampleEpicFrames

__all__ = ['EpicFrameLabels', 'EpicKitchensDataset', 'SampleEpicFrames']
