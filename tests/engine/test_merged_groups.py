"""MergedOptimWrapperConstructor: the groups of mmengine's, where alike, are one."""

import copy

import torch
from mmaction.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from small_runs import MODEL


def test_the_same_steps_in_few_groups():
    cfg = dict(
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01),
        paramwise_cfg=dict(
            flat_decay_mult=0.0,
            bias_decay_mult=0.0,
            custom_keys=dict(compress=dict(lr_mult=0.0)),
        ),
    )
    init_default_scope('mmaction')
    models, groups = [MODELS.build(MODEL)], []
    models.append(copy.deepcopy(models[0]))
    for model, kind in zip(models, ('Default', 'Merged')):
        wrapper = build_optim_wrapper(
            model, {**cfg, 'constructor': f'{kind}OptimWrapperConstructor'}
        )
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 * number)
        wrapper.step()
        wrapper.step()
        groups.append(wrapper.optimizer.param_groups)
    assert len(groups[0]) == len(list(models[0].parameters())) > 50
    settings = [(g['lr'], g['weight_decay']) for g in groups[1]]
    assert len(settings) == len(set(settings)) < 5
    for a, b in zip(*(m.state_dict().values() for m in models)):
        assert torch.equal(a, b)
