"""MeMViT alone: a plain MViT without memory, and what its settings must refuse."""

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from small_models import (
    ARCH,
    DIMS,
    FRAMES,
    backbone_cfg,
    build,
    randomize,
    vit_cfg,
    vit_map_cfg,
)
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from memvit_mm.models import MeMViT

# Not imported: mmaction.models needs memvit_mm's repairs first.
MViT = MODELS.get('MViT')

KEYS = dict(
    arch=ARCH, spatial_size=32, temporal_size=FRAMES, adaptive_kv_stride=(1, 4, 4)
)


@pytest.mark.parametrize('size', [(32, 32), (32, 48), (48, 32), (64, 64)])
@pytest.mark.parametrize('cls_token', [True, False])
@pytest.mark.parametrize('in_attention', [True, False])
def test_pool_last_without_memory_is_mmaction2s_mvit(size, cls_token, in_attention):
    keys = dict(
        KEYS,
        with_cls_token=cls_token,
        output_cls_token=cls_token,
        dim_mul_in_attention=in_attention,
        out_scales=[0, 1, 2],
    )
    theirs = randomize(MViT(**keys)).eval()
    ours = MeMViT(**keys, pool_first=False, memory_layers=()).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    # MMAction2 keeps a class token that it does not use.
    assert unexpected == ([] if cls_token else ['cls_token'])
    x = torch.randn(2, 3, FRAMES, *size)
    with torch.no_grad():
        expected, outputs = theirs(x), ours(x)
    assert len(expected) == len(outputs) == 3
    for a, b in zip(expected, outputs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def fill(model: nn.Module, trained: bool) -> None:
    """Weights as at the start, or of the size that they have after training."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        mean, std = 0.0, 0.02
        if trained and 'norm' in name:
            mean, std = float(name.endswith('weight')), 0.2
        elif 'norm' in name:
            mean = float(name.endswith('weight'))
        elif trained and 'rel_pos' in name:
            std = 0.3
        elif trained:
            std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(mean, std, generator=generator)


@pytest.mark.parametrize(
    'arch, cls_token',
    [('small', True), ('small', False), ('base', False), ('large', True)],
)
def test_mmaction2s_real_models_with_its_weights(arch, cls_token):
    keys = dict(
        arch=arch,
        spatial_size=64,
        temporal_size=8,
        with_cls_token=cls_token,
        output_cls_token=cls_token,
        out_scales=[0, 1, 2, 3],
    )
    with torch.device('meta'):
        theirs = MViT(**keys).eval()
        ours = MeMViT(**keys, pool_first=False, memory_layers=()).eval()
    theirs.to_empty(device='cpu')
    # All sizes on the smallest; the largest are slow.
    sizes = [(64, 96) if cls_token else (96, 64)]
    if arch == 'small':
        sizes = [(64, 64), (64, 96), (96, 64)]
    for trained in (False, True):
        fill(theirs, trained)
        ours.load_state_dict(theirs.state_dict(), strict=False, assign=True)
        for size in sizes:
            x = torch.randn(1, 3, 8, *size)
            with torch.no_grad():
                pairs = zip(leaves(theirs(x)), leaves(ours(x)))
            for expected, output in pairs:
                # Trained values reach 7, where one step of a float is 5e-7.
                scale = expected.abs().max().clamp(min=1)
                assert (output - expected).abs().max() <= 1e-5 * scale
    if arch == 'small':
        # In double precision only rounding that much smaller is left.
        theirs.double(), ours.double()
        with torch.no_grad():
            for a, b in zip(leaves(theirs(x.double())), leaves(ours(x.double()))):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def leaves(features) -> list[torch.Tensor]:
    return tree_flatten(features)[0]


@pytest.mark.parametrize('pool_first', [True, False])
@pytest.mark.parametrize('cls_token', [True, False])
def test_empty_memory_gives_the_numbers_of_no_memory(pool_first, cls_token):
    model = MeMViT(
        **KEYS,
        pool_first=pool_first,
        with_cls_token=cls_token,
        output_cls_token=cls_token,
    )
    randomize(model).eval()
    x = torch.randn(2, 3, FRAMES, 32, 32)
    with torch.no_grad():
        plain = model(x)
        features, written = model(x, memory=model.empty_memory(x))
        model.train()
        in_training = model(x)
    torch.testing.assert_close(features, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_training, plain, atol=1e-5, rtol=1e-5)
    assert list(written) == ['layer0', 'layer2']


def test_output_is_that_of_mmaction2s_mvit():
    for keys in (dict(), dict(output_cls_token=False), dict(out_scales=[0, -1])):
        ours, theirs = (
            MeMViT(**KEYS, **keys)(torch.zeros(1, 3, FRAMES, 32, 32)),
            MViT(**KEYS, **keys)(torch.zeros(1, 3, FRAMES, 32, 32)),
        )
        (ours, shape), (theirs, expected) = tree_flatten(ours), tree_flatten(theirs)
        assert shape == expected
        assert [t.shape for t in ours] == [t.shape for t in theirs]


def classifier(head: dict, recognizer: str = 'Recognizer3D', neck=None, **backbone):
    return build(
        dict(
            type=recognizer,
            backbone=backbone_cfg(**backbone),
            neck=neck,
            cls_head=dict(
                dict(num_classes=4, in_channels=DIMS, average_clips='prob'), **head
            ),
        )
    )


def test_mmaction2s_recognizer_and_heads_take_it():
    check_training(classifier(dict(type='MViTHead'), memory_layers=()))
    patches = dict(memory_layers=(), output_cls_token=False)
    check_training(classifier(dict(type='MViTHead', with_cls_token=False), **patches))
    check_training(
        classifier(dict(type='I3DHead'), neck=dict(type='MViTNeck'), **patches)
    )
    check_training(
        classifier(
            dict(type='SlowFastHead', in_channels=16 + DIMS),
            out_scales=[1, 2],
            **patches,
        )
    )
    # MMAction2's Recognizer3D never tells a head the number of segments.
    check_training(
        classifier(
            dict(type='TSNHead'),
            'MemoryRecognizer3D',
            neck=dict(type='MViTNeck', temporal_pool=True),
            **patches,
        )
    )


def test_mmaction2s_necks_take_it():
    neck = dict(
        type='TPN',
        in_channels=(16, 32),
        out_channels=32,
        spatial_modulation_cfg=dict(in_channels=(16, 32), out_channels=32),
        temporal_modulation_cfg=dict(downsample_scales=(2, 2)),
        upsample_cfg=dict(scale_factor=(1, 1, 1)),
        downsample_cfg=dict(downsample_scale=(1, 1, 1)),
        level_fusion_cfg=dict(
            in_channels=(32, 32),
            mid_channels=(32, 32),
            out_channels=DIMS,
            downsample_scales=((1, 1, 1), (1, 1, 1)),
        ),
    )
    check_training(
        classifier(
            dict(type='TPNHead', in_channels=2048),
            neck=neck,
            out_scales=[1, 2],
            output_cls_token=False,
            memory_layers=(),
        )
    )


def check_training(model: nn.Module) -> None:
    """One training step gives every parameter a gradient; prediction works."""
    samples = [ActionDataSample().set_gt_label(i) for i in range(2)]
    inputs = torch.randn(2, 1, 3, FRAMES, 32, 32)
    losses = model(inputs, samples, mode='loss')
    losses['loss_cls'].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    model.eval()
    assert model(inputs, samples, mode='predict')[0].pred_score.shape == (4,)


def test_memory_parameters_get_gradient_in_a_plain_recognizer():
    # With its memory layers on but no memory: DistributedDataParallel wants a gradient
    # for every parameter.
    check_training(classifier(dict(type='MViTHead')))


def test_causal_features_do_not_see_later_frames():
    model = randomize(MeMViT(**KEYS, causal=True, output_cls_token=False)).eval()
    x = torch.randn(1, 3, FRAMES, 32, 32)
    # The patch embedding sees one frame ahead: 3 frames around every second one.
    for step in range(FRAMES // 2 - 1):
        later = x.clone()
        later[:, :, 2 * step + 2 :] += 1.0
        with torch.no_grad():
            change = (model(later)[0] - model(x)[0]).abs().amax(dim=(0, 1, 3, 4))
        assert change[: step + 1].max() < 1e-5
        assert change[step + 1 :].min() > 1e-3


@pytest.mark.parametrize('cls_token', [True, False])
def test_activation_checkpointing_changes_nothing(cls_token):
    keys = dict(KEYS, with_cls_token=cls_token, output_cls_token=False)
    plain = randomize(MeMViT(**keys, drop_path_rate=0.3)).train()
    saving = MeMViT(**keys, drop_path_rate=0.3, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, FRAMES, 32, 32)
    results = []
    for model in (plain, saving):
        torch.manual_seed(3)
        features, written = model(x, memory=model.empty_memory(x))
        features[0].square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        kept = {n: w.current.key.detach() for n, w in written.items()}
        results.append((features[0].detach(), grads, kept))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'cfg',
    [backbone_cfg(), vit_cfg(), vit_cfg(reading='joint')],
    ids=['MeMViT', 'gated', 'joint'],
)
@pytest.mark.parametrize('weights_too', [False, True])
def test_low_precision(cfg, dtype, weights_too):
    """Autocast, and weights of that type: with a memory that is empty for one row."""
    model = randomize(MODELS.build(cfg)).train()
    x = torch.randn(2, 3, FRAMES, 32, 32)
    memory = model.empty_memory(x)
    for (past,) in memory.values():
        past.valid[1] = True
        for tensor in (*past.recent, *past.older):
            tensor[1].normal_()
    exact = leaves(model(x, memory=memory)[0])[-1].detach()
    if weights_too:
        model, x = model.to(dtype), x.to(dtype)
        memory = tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, memory)
    with torch.autocast('cpu', dtype=dtype, enabled=not weights_too):
        features = leaves(model(x, memory=memory)[0])[-1]
    features.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (features.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    'keys, message',
    [
        (dict(memory_gap=0), 'memory_gap=0 must be at least 1'),
        (dict(memory_length=0), r'memory_length=0 .* memory_layers=\(\)'),
        (dict(memory_layers=(0, 4)), 'memory_layers has 4, but there are 4 layers'),
        (dict(compress_stride=(4, 0, 2)), 'compress_stride=.4, 0, 2. at least 1'),
        (dict(compress_kernel=(4, 3, 3)), 'compress_kernel=.4, 3, 3. must be odd'),
        (dict(arch='huge'), "arch='huge' is not known: use one of"),
        (dict(arch=dict(embed_dims=8)), 'arch as a dict lacks'),
        (dict(arch=dict(ARCH, depth=3)), r"unknown \['depth'\]"),
        (dict(out_scales=[3]), 'out_scales has 3, but there are 3 scales'),
        (dict(with_cls_token=False), 'output_cls_token=True needs with_cls_token'),
        (dict(causal=True), 'causal=True needs output_cls_token=False'),
        (
            dict(patch_cfg=dict(kernel_size=(16, 7, 7), stride=(2, 4, 4), padding=0)),
            'Layer 0: tokens .* leave .* for the queries: use a smaller stride',
        ),
    ],
)
def test_settings_that_contradict_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        MeMViT(**{**KEYS, **keys})


def test_no_memory_layers_means_no_memory_parameters():
    names = [n for n, _ in MeMViT(**KEYS, memory_layers=()).named_parameters()]
    assert not [n for n in names if 'compress' in n or 'mem' in n]
    names = [n for n, _ in MeMViT(**KEYS, memory_layers=(1,)).named_parameters()]
    assert {n.split('.')[1] for n in names if 'compress' in n or 'mem' in n} == {'1'}


def test_memvit_16_and_24_are_built_from_their_names():
    for arch, frames, layers in (('small', 16, 16), ('base', 32, 24)):
        with torch.device('meta'):
            model = MeMViT(arch=arch, temporal_size=frames, memory_gap=2)
        assert len(model.blocks) == layers
        specs = model.memory_specs((frames, 224, 224))
        assert len(specs) == layers // 2
        # 8 (16) x 7 x 7 keys and the class token; compressed 2 (4) x 4 x 4.
        steps = frames // 2
        assert specs['layer0'].tokens == steps * 49 + 1
        assert specs['layer0'].levels[0].tokens == steps // 4 * 16 + 1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'cfg',
    [backbone_cfg(), vit_cfg(), vit_map_cfg()],
    ids=['MeMViT', 'ViT', 'ViT, its map'],
)
def test_features_are_float32_under_autocast(cfg, dtype):
    """As on GPUs: RoIAlign on a CPU has no bfloat16, and mixes no types."""
    model = MODELS.build(cfg).eval()
    video = torch.randn(1, 3, FRAMES, 32, 32)
    with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
        features = leaves(model(video))
    assert {feature.dtype for feature in features} == {torch.float32}
