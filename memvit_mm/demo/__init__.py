"""Two data sets that are drawn on the spot, on which a model needs memory."""

from .ava import DelayedDemoSettings, DemoSettings, make_demo_dataset
from .epic import EpicDemoSettings, make_epic_demo
from .files import write_error
from .preview import draw_preview

__all__ = [
    'DelayedDemoSettings',
    'DemoSettings',
    'EpicDemoSettings',
    'draw_preview',
    'make_demo_dataset',
    'make_epic_demo',
    'write_error',
]
