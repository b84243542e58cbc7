"""MeMViT-24, 32 frames x 3, for AVA; memory reaches the clips 3 and 6 back.

Drop rates are those of MeMViT-16, as published.
"""

_base_ = './memvit_16_ava.py'

model = dict(
    backbone=dict(arch='base', temporal_size=32, memory_gap=3),
    roi_head=dict(shared_head=dict(memory_gap=3)),
)
