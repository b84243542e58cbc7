"""`memvit_demo_vit.py` with MeMViT's learned pooling in place of k-means."""

_base_ = './memvit_demo_vit.py'

level = dict(type='pool', ages=(2, 4), stride=(2, 1, 1), kernel=(3, 1, 1))
model = dict(backbone=dict(memory_levels=[level]))
