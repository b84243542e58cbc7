"""The twin of `memvit_demo_epic_anticipation.py` without memory: all else is equal."""

_base_ = './memvit_demo_epic_anticipation.py'

model = dict(backbone=dict(memory_layers=()))
