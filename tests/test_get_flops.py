"""Parameters and multiply-adds: against the papers, torch's counter, and by hand."""

import os
import runpy
import sys

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from memvit_mm.benchmark.complexity import (
    MacCounter,
    actors_cost,
    backbone_cost,
    clip_shape,
    model_costs,
)
from memvit_mm.models import ActorMemoryHead, MeMViT
from memvit_mm.paths import get_config_path, get_tool_path

ARCH = dict(embed_dims=8, num_layers=3, num_heads=1, downscale_indices=[1])
SMALL = dict(arch=ARCH, spatial_size=32, temporal_size=8, adaptive_kv_stride=(1, 4, 4))


VIT = dict(img_size=32, num_frames=8, embed_dims=8, depth=3, num_heads=2, mlp_ratio=2)


def test_vit_b_has_the_published_figures():
    """VideoMAE (arXiv 2203.12602): 87 M parameters with a classifier, 180 G."""
    init_default_scope('mmaction')
    cfg = Config.fromfile(get_config_path('videomae_memory_ava.py'))
    costs = model_costs(cfg.model)
    assert costs.without_memory.macs == pytest.approx(180e9, rel=3e-3)
    assert costs.without_memory.parameters == pytest.approx(87e6, abs=1e6)
    # In 6 layers 128 tokens of 16 clips, of which every other one is read.
    assert costs.backbone.stream_bytes == 6 * 16 * 128 * 768 * 4
    assert clip_shape(cfg.model.backbone) == (3, 16, 224, 224)


@pytest.mark.parametrize(
    'name, parameters, macs',
    [('memvit_ava.py', 35.4e6, 58.7e9), ('memvit_24_ava.py', 52.6e6, 211.7e9)],
)
def test_the_published_figures(name, parameters, macs):
    init_default_scope('mmaction')
    cfg = Config.fromfile(get_config_path(name))
    costs = model_costs(cfg.model)
    assert costs.backbone.macs == pytest.approx(macs, rel=4e-3)
    # Published: memory parameters in every layer, and a classifier of 400 classes.
    classifier = 400 * (768 + 1)
    assert costs.memory_everywhere + classifier == pytest.approx(parameters, abs=5e4)
    memory = costs.backbone.macs / costs.without_memory.macs - 1
    assert 0 < memory < 0.045
    model = MODELS.build(cfg.model)
    total = sum(p.numel() for p in model.parameters())
    assert costs.backbone.parameters + costs.actors.parameters + costs.rest == total


@pytest.mark.parametrize('cls_token', [True, False])
def test_as_torchs_counter_on_mmaction2s_mvit(cls_token):
    # It counts explicit matrix products: MViT's attention has them, ours does not.
    flop_counter = pytest.importorskip('torch.utils.flop_counter')
    tokens = dict(with_cls_token=cls_token, output_cls_token=cls_token)
    model = MODELS.get('MViT')(**SMALL, **tokens).eval()
    x = torch.zeros(1, 3, 8, 32, 32)
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as theirs:
        model(x)
    with torch.no_grad(), MacCounter() as ours:
        model(x)
    assert ours.total == theirs.get_total_flops() / 2
    twin = dict(SMALL, **tokens, type='MeMViT', pool_first=False, memory_layers=())
    assert backbone_cost(twin, (3, 8, 32, 32)).macs == ours.total


def test_as_torchs_counter_on_mmaction2s_videomae():
    flop_counter = pytest.importorskip('torch.utils.flop_counter')
    model = MODELS.get('VisionTransformer')(**VIT).eval()
    with flop_counter.FlopCounterMode(display=False) as theirs, torch.no_grad():
        model(torch.zeros(1, 3, 8, 32, 32))
    plain = dict(VIT, type='MemoryViT', memory_layers=())
    cost = backbone_cost(plain, (3, 8, 32, 32))
    assert cost.macs == theirs.get_total_flops() / 2
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.stream_bytes == 0


@pytest.mark.parametrize('reading', ['gated', 'joint'])
@pytest.mark.parametrize('kind', ['kmeans', 'coreset', 'random'])
def test_what_memory_without_parameters_adds_by_hand(kind, reading):
    levels = [dict(type=kind, ages=(1, 2, 3), tokens=4)]
    cfg = dict(
        VIT, type='MemoryViT', memory_layers=(1,), memory_levels=levels, reading=reading
    )
    clip = (3, 8, 32, 32)
    extra = backbone_cost(cfg, clip).macs
    extra -= backbone_cost(dict(cfg, memory_layers=()), clip).macs
    tokens, channels, keys = 4 * 2 * 2, 8, 3 * 4
    # The clip against the centers, in five rounds; or against each token but the last.
    consolidation = dict(kmeans=5 * tokens * 4, coreset=tokens * 3, random=0)[kind]
    projections = 2 * keys * channels * channels
    products = 2 * tokens * keys * channels
    assert extra == consolidation * channels + projections + products


def test_what_memory_adds_by_hand():
    cfg = dict(SMALL, type='MeMViT', memory_layers=(0,), memory_length=3)
    clip = (3, 8, 32, 32)
    extra = backbone_cost(cfg, clip).macs
    extra -= backbone_cost(dict(cfg, memory_layers=()), clip).macs
    # Layer 0: 4 x 8 x 8 queries, 4 x 2 x 2 keys, compressed to 1 x 1 x 1; 8 channels,
    # and a class token with each.
    queries, channels, memories = 4 * 8 * 8, 8, 3
    compress = 2 * (1 * 1 * 1) * channels * (7 * 3 * 3)
    keys = memories * (1 * 1 * 1 + 1)
    projections = 2 * keys * channels * channels
    products = 2 * (queries + 1) * keys * channels
    positions = queries * (memories + 1 + 1) * channels
    assert extra == compress + projections + products + positions


def test_attention_among_people_by_hand():
    head = ActorMemoryHead(
        in_channels=8, num_heads=2, num_layers=2, max_actors=5, memory_length=2
    )
    linear = 5 * (8 * 8 * 2 + 2 * 8 * 32) + 2 * (15 * 8 * 8)
    assert actors_cost(head).macs == 2 * (linear + 2 * 5 * 15 * 8)


def test_counting_leaves_results_and_models_as_they_are():
    model = MeMViT(**SMALL).eval()
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        before = model(x)[0]
        with MacCounter():
            model(x)
        after = model(x)[0]
    torch.testing.assert_close(before, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_other_functions():
    with MacCounter() as counter:
        torch.einsum('ij,jk->ik', torch.rand(2, 3), torch.rand(3, 5))
        torch.rand(4, 2, 3) @ torch.rand(4, 3, 5)
        nn.Conv2d(4, 6, 3, groups=2, bias=False)(torch.rand(1, 4, 5, 5))
    assert counter.total == 30 + 120 + 6 * 9 * 2 * 9


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r'size \(8, 0, 32\) must be T, H, W'):
        clip_shape(SMALL, (8, 0, 32))
    with pytest.raises(ValueError, match=r'8 x 2 x 2 .* do not fit .*: use larger'):
        patch = dict(kernel_size=(3, 7, 7), stride=(2, 4, 4), padding=0)
        backbone_cost(dict(SMALL, type='MeMViT', patch_cfg=patch), (3, 8, 2, 2))
    with pytest.raises(ValueError, match='no model.backbone to count'):
        model_costs(dict(type='Recognizer3D'))


def test_the_command(capsys):
    def tool(*args: str) -> None:
        path = get_tool_path('get_flops.py')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', [path, *args])
            patch.syspath_prepend(os.path.dirname(path))
            runpy.run_path(path, run_name='__main__')

    tool(get_config_path('memvit_demo.py'), '--shape', '8', '96', '128')
    out = capsys.readouterr().out
    assert 'One clip of 8 frames of 96 x 128 pixels' in out
    assert 'memory adds' in out
    # Its parameters are few, and not none.
    tool(get_config_path('videomae_memory_ava.py'))
    (line,) = [n for n in capsys.readouterr().out.splitlines() if 'memory adds' in n]
    assert line.split()[2:-1] == ['<', '0.1%']
    with pytest.raises(SystemExit, match='1'):
        tool('nowhere.py')
    error = capsys.readouterr().err
    assert error.startswith('Error: There is no config file nowhere.py.')
