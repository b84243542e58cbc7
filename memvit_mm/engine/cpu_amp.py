"""CPUAmpOptimWrapper: mixed precision on a CPU, which mmengine does not offer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Union

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` on a CPU.

    ``tools/train.py --amp`` takes it where there is no GPU.

    Args:
        loss_scale (str | float | dict): For float16: 'dynamic', a constant factor, or
            options of torch's ``GradScaler``. bfloat16 has the range of float32 and
            needs none. Defaults to 'dynamic'.
        dtype (str | torch.dtype, optional): 'bfloat16' (the default) or 'float16'.
        use_fsdp (bool): False, since FSDP's scaler needs a GPU.
        **kwargs: As ``OptimWrapper``.

    Raises:
        ValueError: For another dtype.
    """

    def __init__(
        self,
        loss_scale: Union[str, float, dict] = 'dynamic',
        dtype: Union[str, torch.dtype, None] = None,
        use_fsdp: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_fsdp:
            raise ValueError(
                'optim_wrapper.use_fsdp=True needs a GPU: leave it out on a CPU.'
            )
        # AmpOptimWrapper's refuses to be without a GPU.
        OptimWrapper.__init__(self, **kwargs)
        dtype = dtype or torch.bfloat16
        dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(
                f'optim_wrapper.dtype is {dtype}: mixed precision takes bfloat16 or '
                'float16.'
            )
        options, self._scale_update_param = {}, None
        if isinstance(loss_scale, dict):
            options = loss_scale
        elif isinstance(loss_scale, (int, float)):
            self._scale_update_param = options['init_scale'] = float(loss_scale)
        elif loss_scale != 'dynamic':
            raise ValueError(
                f"optim_wrapper.loss_scale is {loss_scale!r}: it takes 'dynamic', a "
                "number, or a dict of GradScaler's options."
            )
        half = dtype == torch.float16
        self.loss_scaler = torch.amp.GradScaler('cpu', **{'enabled': half, **options})
        self.cast_dtype = dtype

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient averaging within an accumulation."""
        autocast = torch.autocast('cpu', dtype=self.cast_dtype)
        with OptimWrapper.optim_context(self, model), autocast:
            yield
