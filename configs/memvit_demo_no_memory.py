"""The baseline without memory for `memvit_demo.py`: all else is equal."""

_base_ = './memvit_demo.py'

model = dict(
    backbone=dict(memory_layers=()),
    roi_head=dict(shared_head=dict(memory_length=0)),
)
