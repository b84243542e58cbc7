"""Layer-wise learning rates: MMAction2's, and what memory adds at rates of its own."""

import copy
import json
import re

import pytest
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from small_runs import VIDEOS, runner_of

from memvit_mm.paths import get_config_path

BACKBONE = dict(img_size=16, embed_dims=16, depth=4, num_heads=2, num_frames=4)
LEVELS = [
    dict(type='kmeans', ages=(1, 2), tokens=2),
    dict(type='pool', ages=(3,), tokens=1),
]


def config(name: str) -> Config:
    """A config with a small backbone, of which two layers have memory."""
    cfg = Config.fromfile(get_config_path(f'{name}.py'))
    cfg.model.backbone.update(**BACKBONE, memory_levels=LEVELS)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.in_channels = 16
    else:
        cfg.model.cls_head.in_channels = 16
    cfg.optim_wrapper.paramwise_cfg.num_layers = 4
    return cfg


def groups_of(cfg: Config) -> dict:
    """Learning rate and weight decay of each parameter, by its name."""
    init_default_scope('mmaction')
    model = MODELS.build(copy.deepcopy(cfg.model))
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    found, of = {}, {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for name, parameter in zip(group['param_names'], group['params']):
            assert of.pop(id(parameter)) == name
            found[name] = group['lr'], group['weight_decay']
    assert not of
    return found


@pytest.mark.parametrize('name', ['videomae_memory_ava', 'videomae_memory_epic_cls'])
def test_rates_of_a_model(name):
    cfg = config(name)
    lr, decay = (cfg.optim_wrapper.optimizer[key] for key in ('lr', 'weight_decay'))
    rates = groups_of(cfg)
    new = {n for n in rates if 'gate' in n or 'rel_pos_age' in n or 'compress' in n}
    assert len(new) == 2 * (1 + 2 + 5)
    # All else is as MMAction2 has it.
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimizerConstructor'
    theirs = groups_of(cfg)
    assert theirs.keys() == rates.keys()
    assert all(rates[n] == theirs[n] for n in rates if n not in new)
    attn = 'backbone.blocks.0.attn.'
    assert theirs[f'{attn}gate'] == (pytest.approx(lr * 0.75**4), 0.0)
    assert rates[f'{attn}gate'] == (pytest.approx(10 * lr), 0.0)
    for level in (0, 1):
        assert theirs[f'{attn}rel_pos_age{level}'][1] == decay
        assert rates[f'{attn}rel_pos_age{level}'] == (lr, 0.0)
    assert rates[f'{attn}compress1_query'] == (lr, decay)
    assert rates[f'{attn}norm_compress1_k.weight'] == (lr, 0.0)


def test_custom_keys_as_mmengine_has_them():
    cfg = config('videomae_memory_ava')
    lr = cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.paramwise_cfg.custom_keys = {
        'attn': dict(lr_mult=2.0),
        'blocks.0.attn.qkv': dict(lr_mult=3.0, decay_mult=0.5),
        'mlp': dict(decay_mult=0.0),
    }
    rates = groups_of(cfg)
    # The longest key.
    assert rates['backbone.blocks.0.attn.qkv.weight'] == (3 * lr, 0.025)
    assert rates['backbone.blocks.2.attn.qkv.weight'] == (2 * lr, 0.05)
    assert rates['backbone.blocks.2.attn.proj.bias'] == (2 * lr, 0.0)
    # Without lr_mult, the layer's factor.
    mlp = 'backbone.blocks.2.mlp.layers.1.weight'
    assert rates[mlp] == (pytest.approx(lr * 0.75**2), 0.0)
    del cfg.optim_wrapper.paramwise_cfg['custom_keys']
    rates = groups_of(cfg)
    assert rates['backbone.blocks.2.attn.gate'] == (pytest.approx(lr * 0.75**2), 0.0)
    assert rates['backbone.blocks.2.attn.rel_pos_age0'][1] == 0.0


def test_another_number_of_layers_is_refused():
    cfg = config('videomae_memory_ava')
    cfg.optim_wrapper.paramwise_cfg.num_layers = 12
    with pytest.raises(
        ValueError, match='num_layers=12, but the backbone has 4 layers: set num_lay'
    ):
        groups_of(cfg)


@pytest.mark.parametrize('settings', [10.0, dict(lr_mul=10.0)])
def test_settings_of_another_form_are_refused(settings):
    cfg = config('videomae_memory_ava')
    cfg.optim_wrapper.paramwise_cfg.custom_keys.gate = settings
    sentence = "custom_keys has 'gate': .*: each takes a dict of lr_mult and decay_mult"
    with pytest.raises(ValueError, match=sentence):
        groups_of(cfg)


def test_the_log_has_the_rates_of_what_is_new(monkeypatch):
    told, cfg = [], config('videomae_memory_ava')
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'info', told.append)
    lr = cfg.optim_wrapper.optimizer.lr
    rates = groups_of(cfg)
    title, _, groups = told[-1].partition(' = ')
    assert title.startswith('Param groups of custom_keys and ages')
    groups = json.loads(groups)
    assert groups['layer_1_no_decay_gate']['lr'] == pytest.approx(10 * lr)
    logged = {
        name: (group['lr'], group['weight_decay'])
        for group in groups.values()
        for name in group['param_names']
    }
    # What memory adds, and nothing that MMAction2 has logged as it is.
    assert logged == {name: rates[name] for name in logged}
    assert all(re.search('gate|rel_pos_age|compress', name) for name in logged)
    assert len(logged) == 2 * (1 + 2 + 5)


class Rates(Hook):
    """The learning rates of every iteration, by the name of their group."""

    def __init__(self):
        self.rates = []

    def after_train_iter(self, runner, *args, **kwargs):
        groups = runner.optim_wrapper.optimizer.param_groups
        self.rates.append({group['group_name']: group['lr'] for group in groups})


def test_schedulers_and_auto_scale_lr_keep_the_factors(tmp_path):
    cfg = config('videomae_memory_epic_cls')
    head = dict(type='TimeSformerHead', num_classes=VIDEOS, in_channels=16)
    backbone = dict(cfg.model.backbone, drop_path_rate=0.0)
    warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)
    runner = runner_of(
        tmp_path,
        dict(type='EpochBasedTrainLoop', max_epochs=1),
        model=dict(type='MemoryRecognizer3D', backbone=backbone, cls_head=head),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=[warm_up],
        auto_scale_lr=dict(enable=True, base_batch_size=32),
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
    )
    blocks = runner.model.backbone.blocks
    gates = [blocks[layer].attn.gate for layer in (0, 2)]
    rates = Rates()
    runner.register_hook(rates)
    runner.train()
    # Two clips a step.
    lr = cfg.optim_wrapper.optimizer.lr * 2 / 32
    for factor, found in ((0.1, rates.rates[0]), (1.0, rates.rates[-1])):
        assert found['layer_5_decay'] == pytest.approx(factor * lr)
        assert found['layer_1_decay'] == pytest.approx(factor * lr * 0.75**4)
        assert found['layer_1_no_decay_gate'] == pytest.approx(10 * factor * lr)
    # At its own rate a gate moves: with Adam by about the rate in a step.
    assert all(gate.abs().max() > 2 * lr for gate in gates)
