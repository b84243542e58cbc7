"""Layer-wise learning rates for models with memory."""

import json
from collections.abc import Mapping
from typing import Any

from mmaction.engine import LearningRateDecayOptimizerConstructor
from mmaction.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.logging import MMLogger
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MemoryLearningRateDecayOptimizerConstructor(
    LearningRateDecayOptimizerConstructor
):
    """MMAction2's ``LearningRateDecayOptimizerConstructor`` with ``custom_keys``.

    MMAction2's gives early layers small rates, since they were trained before. What
    memory adds to them was not: a gate that starts at 0 would stay near it.

    Beside ``decay_rate``, ``decay_type`` and ``num_layers``, ``paramwise_cfg`` takes
    ``custom_keys`` as mmengine's ``DefaultOptimWrapperConstructor``: the settings of
    the longest key that a parameter's name contains, where ``lr_mult`` stands in place
    of its layer's factor, and ``decay_mult`` multiplies the weight decay. Gates and
    vectors of ages have no weight decay otherwise.

    Raises:
        ValueError: If the backbone has another number of layers than ``num_layers``,
            or a key's settings are no dict.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1.25e-4, weight_decay=0.05),
        ...     constructor='MemoryLearningRateDecayOptimizerConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.75, num_layers=12,
        ...                        custom_keys=dict(gate=dict(lr_mult=10.0))))
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Add the parameters of a model to a list of groups.

        Args:
            params (list[dict]): The groups.
            module (nn.Module): The model, with a ``backbone``.
        """
        given = self.paramwise_cfg.get('num_layers')
        layers = len(getattr(module.backbone, 'blocks', ()))
        if layers and given != layers:
            raise ValueError(
                f'paramwise_cfg.num_layers={given}, but the backbone has {layers} '
                f'layers: set num_layers={layers}.'
            )
        theirs: list[dict] = []
        super().add_params(theirs, module, **kwargs)
        groups: dict[str, dict] = {}
        for before in theirs:
            for name, param in zip(before['param_names'], before['params']):
                settings = self._settings(name, before)
                group = groups.setdefault(
                    settings['group_name'], dict(settings, params=[], param_names=[])
                )
                group['params'].append(param)
                group['param_names'].append(name)
        params.extend(groups.values())
        # MMAction2 has logged its own groups.
        kept = {group['group_name'] for group in theirs}
        changed = {
            name: {key: value for key, value in group.items() if key != 'params'}
            for name, group in groups.items()
            if name not in kept
        }
        if changed:
            MMLogger.get_current_instance().info(
                'Param groups of custom_keys and ages, in place of what is said of '
                f'their parameters above = {json.dumps(changed, indent=2)}'
            )

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for key, settings in self.paramwise_cfg.get('custom_keys', {}).items():
            known = {'lr_mult', 'decay_mult'}
            if not isinstance(settings, Mapping) or set(settings) - known:
                raise ValueError(
                    f'paramwise_cfg.custom_keys has {key!r}: {settings!r}: each takes '
                    'a dict of lr_mult and decay_mult, such as dict(lr_mult=10.0).'
                )

    def _settings(self, name: str, group: dict) -> dict:
        """The settings of a parameter that MMAction2's would put into this group."""
        custom = self.paramwise_cfg.get('custom_keys', {})
        settings = dict(group)
        if 'rel_pos_age' in name:
            settings.update(weight_decay=0.0, group_name=f'{group["group_name"]}_ages')
        for key in sorted(sorted(custom), key=len, reverse=True):
            if key in name:
                lr_scale = custom[key].get('lr_mult', group['lr_scale'])
                settings.update(lr_scale=lr_scale, lr=lr_scale * self.base_lr)
                if 'decay_mult' in custom[key]:
                    settings['weight_decay'] = self.base_wd * custom[key]['decay_mult']
                settings['group_name'] += f'_{key}'
                break
        return settings
