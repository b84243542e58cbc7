"""MeMViT-24, 32 frames x 3, for EPIC-KITCHENS-100; memory reaches 3 and 6 clips back.

Drop rates are those of MeMViT-16; the published ones were not at hand.
"""

_base_ = './memvit_16_epic.py'

model = dict(backbone=dict(arch='base', temporal_size=32, memory_gap=3))
