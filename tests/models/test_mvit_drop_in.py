"""MeMViT(pool_first=False) where a program or a config has MMAction2's MViT.

Most tests run on both, and what they expect is what MViT does; only the type of an
exception may differ. What MMAction2's own tests of MViT check, in
tests/models/backbones/test_mvit.py, is checked here, too.
"""

import inspect
import itertools
from functools import partial

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from small_models import randomize
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from memvit_mm.models import MeMViT

# Not imported: mmaction.models needs memvit_mm's repairs first.
MViT = MODELS.get('MViT')
OURS = partial(MeMViT, pool_first=False)
BOTH = pytest.mark.parametrize('build', [MViT, OURS])

SMALL = dict(embed_dims=8, num_layers=4, num_heads=1, downscale_indices=[1, 3])
KEYS = dict(arch=SMALL, spatial_size=32, temporal_size=8, adaptive_kv_stride=(1, 4, 4))


def test_arguments_and_attributes():
    theirs, ours = (inspect.signature(kind).parameters for kind in (MViT, MeMViT))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].kind is theirs[name].kind for name in theirs)
    other = {n for n in theirs if ours[n].default != theirs[n].default}
    assert other == {'arch'}
    # Ours are keywords, so that MViT's keep their places.
    new = list(ours.values())[len(theirs) :]
    assert all(argument.kind is argument.KEYWORD_ONLY for argument in new)
    theirs, ours = (vars(build(**KEYS)).keys() for build in (MViT, OURS))
    assert theirs <= ours


@BOTH
@pytest.mark.parametrize(
    'keys, message',
    [
        (dict(arch='unknown'), 'Arch unknown is not in default archs'),
        (dict(arch=dict(num_layers=3, num_heads=2)), 'Custom arch needs'),
        (dict(arch=('tiny',)), 'Custom arch needs'),
        (dict(out_scales={0: 0}), "get <class 'dict'>"),
        (dict(out_scales=[0, 9]), 'Invalid out_scales 9'),
        (dict(with_cls_token=False), 'with_cls_token must be True'),
    ],
)
def test_refused(build, keys, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        build(**{**KEYS, **keys})


@BOTH
@pytest.mark.parametrize('out_scales', [-1, [0, 2], [-1, 0], range(3)])
def test_structure(build, out_scales):
    model = build(**{**KEYS, 'out_scales': out_scales, 'drop_path_rate': 0.3})
    assert (model.embed_dims, model.num_layers, model.num_heads) == (8, 4, 1)
    assert (model.num_scales, model.downscale_indices) == (3, [1, 3])
    assert [block.in_dims for block in model.blocks] == [8, 8, 16, 16]
    assert [block.out_dims for block in model.blocks] == [8, 16, 16, 32]
    assert [block.attn.num_heads for block in model.blocks] == [1, 2, 2, 4]
    assert isinstance(model.blocks[0].drop_path, nn.Identity)
    for number in (1, 2, 3):
        assert model.blocks[number].drop_path.drop_prob == pytest.approx(0.1 * number)
    given = [out_scales] if out_scales == -1 else out_scales
    assert model.out_scales == sorted(scale % 3 for scale in given)


@BOTH
def test_dims_that_change_elsewhere(build):
    arch = dict(SMALL, dim_mul_indices=[2])
    model = build(**{**KEYS, 'arch': arch, 'dim_mul_in_attention': False})
    assert list(model.dim_mul_indices) == [2]
    assert [block.out_dims for block in model.blocks] == [8, 16, 16, 16]
    assert [block.attn.num_heads for block in model.blocks] == [1, 2, 4, 8]


@BOTH
def test_positions_of_another_size_are_interpolated_as_asked(build):
    keys = dict(KEYS, use_abs_pos_embed=True, interpolate_mode='nearest')
    clip = torch.randn(1, 3, 8, 32, 48)
    with pytest.raises(ValueError, match='align_corners'):
        build(**keys)(clip)
    build(**dict(keys, interpolate_mode='trilinear'))(clip)


@BOTH
def test_an_architecture_of_ones_own(build):
    arch = dict(SMALL, num_layers=6, downscale_indices=[2, 5])
    model = build(arch)
    assert (model.num_layers, model.downscale_indices) == (6, [2, 5])
    assert [block.out_dims for block in model.blocks] == [8, 8, 16, 16, 16, 32]


@BOTH
@pytest.mark.parametrize('arch', ['tiny', 'Small', 'base', 'large'])
def test_architectures(build, arch):
    with torch.device('meta'):
        model = build(arch)
    zoo = model.arch_zoo[arch.lower()]
    assert len(model.blocks) == zoo['num_layers']
    assert model.blocks[-1].out_dims == 8 * zoo['embed_dims']


@BOTH
@pytest.mark.parametrize('with_cls_token', [True, False])
@pytest.mark.parametrize('use_abs_pos_embed', [True, False])
@pytest.mark.parametrize(
    'size', [(8, 32, 32), (2, 32, 32), (2, 48, 48), (6, 48, 64), (3, 40, 72)]
)
def test_forward(build, with_cls_token, use_abs_pos_embed, size):
    model = build(
        **KEYS,
        out_scales=(0, 1, 2),
        with_cls_token=with_cls_token,
        output_cls_token=with_cls_token,
        use_abs_pos_embed=use_abs_pos_embed,
    )
    outs = model(torch.randn(1, 3, *size))
    assert isinstance(outs, tuple) and len(outs) == 3
    for stage, out in enumerate(outs):
        patches, cls_token = out if with_cls_token else (out, None)
        stride = 2**stage
        grid = [-(-size[0] // 2), *(-(-n // (4 * stride)) for n in size[1:])]
        assert patches.shape == (1, 8 * stride, *grid)
        assert cls_token is None or cls_token.shape == (1, 8 * stride)


@BOTH
def test_tiny(build):
    """The architecture by its name, and clips of other sizes than it is made for."""
    model = build('tiny', drop_path_rate=0.1, out_scales=(0, 1, 2, 3))
    rates = [block.drop_path.drop_prob for block in model.blocks[1:]]
    assert rates == pytest.approx([0.1 * n / 9 for n in range(1, 10)])
    heads = [block.attn.num_heads for block in model.blocks]
    assert heads == [1, 2, 2, 4, 4, 4, 4, 4, 8, 8]
    for size in ((6, 64, 64), (2, 96, 128)):
        with torch.no_grad():
            outs = model(torch.randn(1, 3, *size))
        for stage, (patches, cls_token) in enumerate(outs):
            grid = [size[0] // 2, *(n // (4 * 2**stage) for n in size[1:])]
            assert patches.shape == (1, 96 * 2**stage, *grid)
            assert cls_token.shape == (1, 96 * 2**stage)


@BOTH
def test_init_weights(build):
    kaiming = dict(type='Kaiming', layer='Conv3d', mode='fan_in', nonlinearity='linear')
    model = build(**KEYS, use_abs_pos_embed=True, init_cfg=[kaiming])
    # [1, class token + T * H * W, C]
    assert model.pos_embed.shape == (1, 1 + 4 * 8 * 8, 8)
    before = model.patch_embed.projection.weight.clone()
    assert not model.pos_embed.any()
    model.init_weights()
    assert not torch.allclose(model.patch_embed.projection.weight, before)
    assert 0 < model.pos_embed.std() < 0.03
    zero = build(**KEYS, rel_pos_zero_init=True)
    zero.init_weights()
    for attn in (model.blocks[0].attn, zero.blocks[0].attn):
        drawn = attn is model.blocks[0].attn
        assert [bool(p.any()) for n, p in attn.named_parameters() if 'rel_pos' in n and
                'mem' not in n] == [drawn] * 3  # fmt: skip


@BOTH
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained(build, prefix, tmp_path):
    source = randomize(build(**KEYS, use_abs_pos_embed=True))
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = str(tmp_path / 'weights.pth')
    save_checkpoint(dict(state_dict=state), path)
    if not prefix:
        for model in (
            build(**KEYS, use_abs_pos_embed=True, pretrained=path),
            build(**KEYS, use_abs_pos_embed=True),
        ):
            model.init_weights()
            load_checkpoint(model, path, strict=True)
            assert_same_state(model, source)
        model = build(**KEYS, use_abs_pos_embed=True, pretrained=path)
        model.init_weights()
        assert_same_state(model, source)
        return
    # MaskFeat's are of another size: their relative positions are interpolated.
    larger = {**KEYS, 'spatial_size': 64}
    model = build(**larger, pretrained=path, pretrained_type='maskfeat')
    model.init_weights()
    for name, value in source.blocks.state_dict().items():
        found = model.blocks.state_dict()[name]
        if found.shape == value.shape:
            torch.testing.assert_close(found, value)
        else:
            assert 'rel_pos' in name
            torch.testing.assert_close(found[[0, -1]], value[[0, -1]], atol=0.1, rtol=0)


def assert_same_state(model, source):
    torch.testing.assert_close(model.state_dict(), source.state_dict())


def test_a_pretrained_type_that_loads_nothing_is_refused():
    with pytest.raises(ValueError, match="pretrained_type='imagenet' loads nothing"):
        OURS(**KEYS, pretrained_type='imagenet')
    # As configs are built whose weights come from a checkpoint of all.
    model = OURS(**KEYS, pretrained_type='maskfeat')
    with pytest.raises(ValueError, match="pretrained_type='maskfeat' needs pretrained"):
        model.init_weights()


# In MViT's order, none of them its default.
ARGUMENTS = (
    SMALL, 24, 6, 4, None, None, [0, 1, 2], 0.2, True, 'nearest', (3, 1, 1), 3, 3,
    (1, 2, 2), True, False, False, True, False, True, 2.0, False,
    dict(type='LN', eps=1e-3), dict(kernel_size=3, stride=(2, 2, 2), padding=1),
    dict(type='Constant', layer='Linear', val=0.5),
)  # fmt: skip


def test_every_argument_in_its_place():
    theirs = randomize(MViT(*ARGUMENTS)).eval()
    ours = OURS(*ARGUMENTS, memory_layers=()).eval()
    ours.load_state_dict(theirs.state_dict())
    compare(theirs, ours, torch.randn(2, 4, 6, 24, 24))
    assert ours.init_cfg == theirs.init_cfg
    assert ours.interpolate_mode == theirs.interpolate_mode == 'nearest'


@pytest.mark.parametrize('with_cls_token', [True, False])
@pytest.mark.parametrize('spatial_size', [32, 40, 60])
@pytest.mark.parametrize('size', [(8, 32, 32), (6, 48, 40)])
def test_same_numbers(with_cls_token, spatial_size, size):
    """MViT's tables are shorter than their layers for sizes such as 40 and 312."""
    keys = dict(
        KEYS,
        spatial_size=spatial_size,
        with_cls_token=with_cls_token,
        output_cls_token=with_cls_token,
        use_abs_pos_embed=True,
    )
    theirs = randomize(MViT(**keys)).eval()
    ours = OURS(**keys, memory_layers=()).eval()
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    # MMAction2 keeps a class token that it does not use.
    assert loaded.unexpected_keys == ([] if with_cls_token else ['cls_token'])
    assert not loaded.missing_keys
    compare(theirs, ours, torch.randn(1, 3, *size))


def compare(theirs, ours, clip):
    with torch.no_grad():
        pairs = zip(tree_flatten(theirs(clip))[0], tree_flatten(ours(clip))[0])
    for expected, output in pairs:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


FLAGS = (
    'use_abs_pos_embed',
    'rel_pos_embed',
    'residual_pooling',
    'dim_mul_in_attention',
    'with_cls_token',
)
EACH_WAY = pytest.mark.parametrize(
    'flags', list(itertools.product([True, False], repeat=len(FLAGS)))
)


def settings(flags) -> dict:
    keys = dict(KEYS, **dict(zip(FLAGS, flags)), out_scales=[0, 1, 2])
    return dict(keys, output_cls_token=keys['with_cls_token'])


@EACH_WAY
def test_same_numbers_whatever_is_on(flags):
    keys = settings(flags)
    theirs = randomize(MViT(**keys)).eval()
    ours = OURS(**keys, memory_layers=()).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and set(unexpected) <= {'cls_token'}
    for size in ((8, 32, 32), (4, 32, 48)):
        compare(theirs, ours, torch.randn(2, 3, *size))


@EACH_WAY
@pytest.mark.parametrize('pool_first', [True, False])
def test_memory_whatever_is_on(flags, pool_first):
    """With a full memory of random numbers: each weight is used and trained."""
    model = MeMViT(**settings(flags), pool_first=pool_first)
    model.init_weights()
    randomize(model).train()
    clip = torch.randn(2, 3, 8, 32, 32)
    memory = model.empty_memory(clip)
    for (past,) in memory.values():
        past.valid.fill_(True)
        for tensor in (*past.recent, *past.older):
            tensor.normal_()
    features, written = model(clip, memory=memory)
    assert list(written) == ['layer0', 'layer2']
    sum(x.square().mean() for x in tree_leaves(features)).backward()
    # None is without a gradient, and none has zeros alone.
    zero = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not zero


def test_positions_are_trained_and_remembered_with():
    model = randomize(OURS(**KEYS, use_abs_pos_embed=True))
    clip = torch.randn(1, 3, 8, 32, 32)
    features, _ = model(clip, memory=model.empty_memory(clip))
    features[0][0].square().mean().backward()
    assert model.pos_embed.grad.abs().min() > 0
