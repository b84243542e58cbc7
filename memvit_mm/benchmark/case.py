"""One thing to be measured: a backbone, its clips, and what is done with them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Optional

import torch
from mmaction.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from memvit_mm.models.layer_memory import LayerMemories

from .complexity import clip_shape

DTYPES = ('float32', 'bfloat16', 'float16')


@dataclass(frozen=True)
class Case:
    """What one process builds and runs."""

    name: str
    """As it is called in the table."""
    backbone: Mapping[str, Any]
    """Its config."""
    size: Optional[tuple[int, int, int]] = None
    """T, H, W of the clips, frames and pixels; None for what the backbone is made
    for."""
    batch: int = 1
    """Clips at once."""
    training: bool = False
    """Forward and backward; otherwise forward without gradient."""
    memory: bool = True
    """With all slots of its memory filled, where it has one."""
    device: str = 'cpu'
    dtype: str = 'float32'
    """Another than float32 runs in autocast, as ``tools/train.py --amp`` does."""
    threads: Optional[int] = None
    """Of torch; None leaves them."""
    compiled: bool = False
    """Through ``torch.compile``."""


def build_backbone(cfg: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A backbone with random weights.

    Raises:
        KeyError: If its type is not registered.
    """
    init_default_scope('mmaction')
    cfg = ConfigDict(cfg)
    for key in ('pretrained', 'init_cfg'):
        cfg.pop(key, None)
    torch.manual_seed(seed)
    return MODELS.build(cfg)


def full_memory(backbone: nn.Module, x: Tensor) -> LayerMemories:
    """A memory of noise in which every slot is filled, for clips [B, C, T, H, W]."""
    memory = backbone.empty_memory(x)
    for past in memory.values():
        past.valid.fill_(True)
        for pair in (past.recent, past.older):
            for tensor in {id(t): t for t in pair}.values():
                tensor.normal_()
    return memory


def remembers(backbone: nn.Module) -> bool:
    """Whether a backbone takes memory."""
    return bool(getattr(backbone, 'memory_layers', ()))


def autocast(case: Case) -> AbstractContextManager:
    """The context that a case's backbone runs in."""
    dtype, kind = getattr(torch, case.dtype), torch.device(case.device).type
    lower = dtype != torch.float32
    return torch.autocast(kind, dtype=dtype) if lower else nullcontext()


def prepare(case: Case) -> Callable[[], None]:
    """Build a case; the function that is returned runs it once."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    backbone = build_backbone(case.backbone).to(case.device)
    backbone.train(case.training)
    shape = clip_shape(case.backbone, case.size)
    x = torch.randn(case.batch, *shape, device=case.device)
    inputs: dict[str, Any] = {}
    if case.memory and remembers(backbone):
        inputs['memory'] = full_memory(backbone, x)
    model = torch.compile(backbone) if case.compiled else backbone
    kind = torch.device(case.device).type

    def forward() -> Tensor:
        with autocast(case):
            features = model(x, **inputs)
        features = features[0] if inputs else features
        last = features[-1]
        parts = last if isinstance(last, (list, tuple)) else [last]
        return sum(part.float().mean() for part in parts)

    def run() -> None:
        if case.training:
            backbone.zero_grad(set_to_none=True)
            forward().backward()
        else:
            with torch.no_grad():
                forward()
        if kind == 'cuda':
            torch.cuda.synchronize(case.device)

    return run
