"""The twin of `memvit_demo_epic_cls.py` without memory: all else is equal."""

_base_ = './memvit_demo_epic_cls.py'

model = dict(backbone=dict(memory_layers=()))
