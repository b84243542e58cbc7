"""The baseline without memory for memvit_demo_epic_anticipation.py, else equal."""

_base_ = './memvit_demo_epic_anticipation.py'

model = dict(backbone=dict(memory_layers=()))
