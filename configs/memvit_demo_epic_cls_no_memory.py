"""The baseline without memory for `memvit_demo_epic_cls.py`: all else is equal."""

_base_ = './memvit_demo_epic_cls.py'

model = dict(backbone=dict(memory_layers=()))
