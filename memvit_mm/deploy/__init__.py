"""Deployment: a model and its memory as one ONNX file, and running it.

:class:`OnnxModel` needs numpy and onnxruntime only. What makes the file is in
:mod:`.export`, which needs everything else.
"""

from .model import OnnxModel

__all__ = ['OnnxModel']
