"""MemoryViT alone: MMAction2's VisionTransformer, and what memory adds to it."""

import copy

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.runner import save_checkpoint
from small_models import (
    DIMS,
    FRAMES,
    build,
    detector,
    randomize,
    recognizer,
    vit_cfg,
    vit_map_cfg,
)
from torch import nn

from memvit_mm.models import ClipMemory, MemoryViT, Stream
from memvit_mm.models.memory.layers import KeyValue, PastClips
from memvit_mm.models.memory.schedule import read_levels
from memvit_mm.models.vit_attention import ViTAttention

# Not imported: mmaction.models needs memvit_mm's repairs first.
VisionTransformer = MODELS.get('VisionTransformer')

KEYS = dict(img_size=32, embed_dims=24, depth=3, num_heads=2, num_frames=FRAMES)
# All types. The first two are of a clip as it is seen, the others of what the level
# before left of it.
LEVELS = [
    dict(type='kmeans', ages=(2, 4), tokens=3),
    dict(type='coreset', ages=(1,), tokens=4),
    dict(type='random', ages=(5,), tokens=3),
    dict(type='pool', ages=(6, 7), tokens=1),
]
READINGS = pytest.mark.parametrize('reading', ['gated', 'joint'])


def pair(**settings) -> tuple:
    """MMAction2's and ours with its weights, and with a gate as before training."""
    theirs = randomize(VisionTransformer(**{**KEYS, **settings})).eval()
    ours = MemoryViT(**{'memory_levels': LEVELS, **KEYS, **settings}).eval()
    for parameter in ours.parameters():
        parameter.data.normal_()
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    # Nothing of theirs, and only of the layers with memory.
    new = {n.rpartition('attn.') for n in loaded.missing_keys}
    assert {before for before, _, _ in new} == {'blocks.0.', 'blocks.2.'}
    starts = ('gate', 'rel_pos_age', 'compress', 'norm_compress')
    assert all(last.startswith(starts) for _, _, last in new)
    for layer in ours.memory_layers:
        ours.blocks[layer].attn.gate.data.zero_()
    return theirs, ours


def clips_of(rows: int, *size: int, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 3, frames, *size, generator=generator)


def full_memory(model, x, rows=slice(None)) -> dict:
    """A memory that is full, for some rows of a batch."""
    generator = torch.Generator().manual_seed(4)
    memory = model.empty_memory(x)
    for levels in memory.values():
        for past in levels:
            past.valid[rows] = True
            for tensor in (*past.recent, *past.older):
                values = torch.randn(tensor.shape, generator=generator)
                tensor[rows] = values.to(tensor)[rows]
    return memory


def new_parameters(model) -> dict:
    names = ('gate', 'rel_pos_age', 'compress')
    return {n: p for n, p in model.named_parameters() if any(k in n for k in names)}


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(use_mean_pooling=False),
        dict(return_feat_map=True),
        dict(return_feat_map=True, use_mean_pooling=False, init_values=0.3),
        dict(use_learnable_pos_emb=True, patch_size=8, tubelet_size=4),
        dict(qkv_bias=False, mlp_ratio=2.5),
        dict(qk_scale=0.5, in_channels=3, norm_cfg=dict(type='LN', eps=1e-3)),
        dict(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3),
    ],
    ids=str,
)
def test_as_mmaction2s_without_memory_and_with_a_full_one(settings):
    theirs, ours = pair(**settings)
    # The last is divided neither by patches of 16 nor by those of 8.
    for size in ((32, 32), (48, 32), (32, 64), (37, 54)):
        x = clips_of(2, *size)
        with torch.no_grad():
            expected = theirs(x)
            plain = ours(x)
            full, written = ours(x, memory=full_memory(ours, x))
        torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-5)
        assert list(written) == ['layer0', 'layer2']


@pytest.mark.parametrize(
    'settings', [dict(drop_rate=0.2, drop_path_rate=0.5), dict(attn_drop_rate=0.2)]
)
def test_drops_what_mmaction2s_drops(settings):
    theirs, ours = pair(**settings, memory_layers=(0, 2))
    plain = MemoryViT(**KEYS, **settings, memory_layers=())
    plain.load_state_dict(theirs.state_dict())
    x, found = clips_of(3, 32, 32), []
    for model in (theirs, plain):
        torch.manual_seed(0)
        found.append(model.train()(x))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    # And it is dropped from what is read of memory, too.
    ours.train()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(ours(x, memory=full_memory(ours, x))[0])
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_training_starts_as_mmaction2s():
    """The gradients of its weights, too, are as without memory."""
    theirs, ours = pair()
    x, found = clips_of(2, 32, 32), []
    theirs.train()(x).sin().sum().backward()
    ours.train()(x, memory=full_memory(ours, x))[0].sin().sum().backward()
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            found[name].grad, parameter.grad, atol=1e-5, rtol=1e-4
        )


def test_the_gate_opens_and_then_all_of_memory_is_trained():
    _, ours = pair()
    x = clips_of(2, 32, 32)
    for gate in (0.0, 0.5):
        for layer in ours.memory_layers:
            ours.blocks[layer].attn.gate.data.fill_(gate)
        ours.zero_grad()
        ours(x, memory=full_memory(ours, x))[0].sin().sum().backward()
        moved = {n for n, p in new_parameters(ours).items() if p.grad.abs().max() > 0}
        if gate:
            assert moved == set(new_parameters(ours))
        else:
            assert moved == {f'blocks.{n}.attn.gate' for n in (0, 2)}
            # A gradient of zero, not none: DistributedDataParallel waits for it.
            assert all(p.grad is not None for p in ours.parameters())


@READINGS
def test_as_it_is_built_ages_and_gates_are_zero(reading):
    model = MemoryViT(**KEYS, memory_levels=LEVELS, reading=reading)
    model.init_weights()
    started = {n: p for n, p in new_parameters(model).items() if 'compress' not in n}
    assert len(started) == 2 * (len(LEVELS) + (reading == 'gated'))
    assert not any(p.any() for p in started.values())
    assert model.patch_embed.projection.weight.any()


def past_of(levels, dims: int) -> list:
    """Memory of three streams: one that begins, one that has seen two clips, and one
    that has seen all."""
    past = []
    for level in levels:
        recent = torch.randn(3, 8, dims)
        older = [torch.randn(3, (len(level.ages) - 1) * level.tokens, dims)] * 2
        if level.type == 'pool':
            older[1] = torch.randn_like(older[0])
        else:
            recent = recent[:, : level.tokens]
        seen = torch.tensor([0, 2, 99])
        # Oldest first.
        valid = torch.stack([seen >= age for age in level.ages[::-1]], dim=1)
        past.append(PastClips(KeyValue(recent, recent), KeyValue(*older), valid))
    return past


def by_hand(attn, x, past, row: int) -> torch.Tensor:
    """What a row attends to, each head by itself: [N, C]."""
    queries, keys, values = attn.qkv.weight.chunk(3)
    width, heads = attn.embed_dims // attn.num_heads, []
    tokens, ages = [[], []], []
    for number, (level, kept) in enumerate(zip(attn.levels, past)):
        newest = attn.compress(number, kept.recent, None)
        table = getattr(attn, f'rel_pos_age{number}')
        for place, age in enumerate(reversed(level.ages)):
            if kept.valid[row, place]:
                for found, old, new in zip(tokens, kept.older, newest):
                    # (slots * tokens, C) -> (slots, tokens, C)
                    clips = torch.cat([old, new], dim=1)[row]
                    found.append(clips.unflatten(0, (len(level.ages), -1))[place])
                vector = table[level.ages.index(age)]
                ages.append(vector.expand(level.tokens, -1))
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        q = x[row] @ queries[part].t()
        k, v = x[row] @ keys[part].t(), x[row] @ values[part].t()
        if hasattr(attn, 'q_bias'):
            q, v = q + attn.q_bias[part], v + attn.v_bias[part]
        own = q @ k.t() * attn.scale
        if not ages:
            heads.append(own.softmax(-1) @ v)
            continue
        seen, seen_values = (torch.cat(found) for found in tokens)
        past_v = seen_values @ values[part].t()
        if hasattr(attn, 'v_bias'):
            past_v = past_v + attn.v_bias[part]
        # Ages are relative positions: their products are not scaled.
        scores = q @ (seen @ keys[part].t()).t() * attn.scale
        scores = scores + q @ torch.cat(ages).t() * (attn.scale * width**0.5)
        if attn.reading == 'joint':
            weights = torch.cat([scores, own], dim=1).softmax(-1)
            heads.append(weights @ torch.cat([past_v, v]))
        else:
            read = scores.softmax(-1) @ past_v
            heads.append(own.softmax(-1) @ v + attn.gate[head].tanh() * read)
    return torch.cat(heads, dim=-1) @ attn.proj.weight.t() + attn.proj.bias


@READINGS
@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('settings', [dict(), dict(qkv_bias=False), dict(qk_scale=0.7)])
def test_reading_is_the_plain_formula(reading, settings, learned):
    torch.manual_seed(0)
    # 32 or 40 keys: numbers to which no hidden ones are added; those hide mistakes.
    levels = [
        dict(type='kmeans', ages=(2, 3), tokens=4),
        dict(type='random', ages=(1, 4, 5), tokens=8),
        dict(type='pool', ages=(6, 7), tokens=4),
    ]
    levels = read_levels(levels if learned else levels[:2])
    attn = ViTAttention(12, 2, levels=levels, reading=reading, **settings)
    for parameter in attn.parameters():
        parameter.data.normal_(std=0.5)
    x, past = torch.randn(3, 8, 12), past_of(levels, 12)
    expected = torch.stack([by_hand(attn, x, past, row) for row in range(3)])
    out, written = attn(x, (2, 2, 2), past)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    along = torch.randn_like(out)
    names = [n for n, _ in attn.named_parameters()]
    gradients = [
        torch.autograd.grad((result * along).sum(), list(attn.parameters()))
        for result in (out, expected)
    ]
    for name, found, wanted in zip(names, *gradients):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=name)
    # What is kept of the clip are its normed inputs.
    assert written.current.key is x and written.current.value is x


@READINGS
@pytest.mark.parametrize('training', [True, False])
def test_a_new_stream_beside_one_with_a_full_memory(reading, training):
    model = randomize(MemoryViT(**KEYS, memory_levels=LEVELS, reading=reading))
    model.train(training)
    x = clips_of(2, 32, 32)
    memory = full_memory(model, x, rows=slice(1, 2))
    together, _ = model(x, memory=memory)
    with torch.no_grad():
        fresh = model(x[:1], memory=model.empty_memory(x[:1]))[0]
        alone = copy.deepcopy(model).eval()(x[:1])
        row = {
            name: tuple(
                PastClips(
                    *(KeyValue(*(t[1:] for t in kept)) for kept in past[:2]),
                    past.valid[1:],
                )
                for past in levels
            )
            for name, levels in memory.items()
        }
        full = model(x[1:], memory=row)[0]
    torch.testing.assert_close(together, torch.cat([fresh, full]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fresh, alone, atol=1e-5, rtol=1e-5)
    assert (full - model(x[1:])).abs().max() > 1e-3


class Adapter(nn.Module):
    """As LoRA: the layer as it was, and a product of two narrow ones."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


@READINGS
@pytest.mark.parametrize('how', ['adapter', 'hook'])
def test_what_somebody_made_of_a_layer_runs(reading, how):
    model = randomize(MemoryViT(**KEYS, memory_levels=LEVELS, reading=reading)).eval()
    merged = copy.deepcopy(model)
    for block, same in zip(model.blocks, merged.blocks):
        if how == 'adapter':
            block.attn.qkv = Adapter(block.attn.qkv)
            more = block.attn.qkv.up.weight @ block.attn.qkv.down.weight
            same.attn.qkv.weight.data += more
        else:
            block.attn.qkv.register_forward_hook(lambda layer, args, out: 1.5 * out)
            same.attn.qkv.weight.data *= 1.5
    x = clips_of(2, 32, 32)
    memory = full_memory(model, x)
    with torch.no_grad():
        found, expected = (m(x, memory=memory)[0] for m in (model, merged))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_pretrained_is_loaded(tmp_path):
    theirs = randomize(VisionTransformer(**KEYS)).eval()
    path = str(tmp_path / 'weights.pth')
    save_checkpoint(dict(state_dict=theirs.state_dict()), path)
    ours = MemoryViT(**KEYS, memory_levels=LEVELS, pretrained=path).eval()
    ours.init_weights()
    x = clips_of(1, 32, 32)
    with torch.no_grad():
        full, _ = ours(x, memory=full_memory(ours, x))
        torch.testing.assert_close(full, theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('build, cfg', [(recognizer, vit_cfg), (detector, vit_map_cfg)])
def test_layer_wise_decay_takes_memory_with_its_layer(build, cfg):
    model = build(cfg(memory_levels=LEVELS))
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(
                decay_rate=0.5,
                decay_type='layer_wise',
                num_layers=len(model.backbone.blocks),
            ),
            optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1),
        ),
    )
    groups = {
        name: group
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }
    assert set(groups) == {n for n, _ in model.named_parameters()}
    ours = [f'backbone.{n}' for n in new_parameters(model.backbone)]
    assert {n.split('.')[2] for n in ours} == {'0', '2'}
    for name in ours:
        layer = int(name.split('.')[2])
        # Three layers, then the head, which has the whole rate.
        assert groups[name]['lr'] == 0.5 ** (3 - layer)
        assert (
            groups[name]['lr']
            == groups[f'backbone.blocks.{layer}.attn.qkv.weight']['lr']
        )
    assert groups['backbone.blocks.0.attn.gate']['weight_decay'] == 0


@pytest.mark.parametrize(
    'settings, sentence',
    [
        (dict(reading='both'), r"reading='both' must be one of \('gated', 'joint'\)"),
        (dict(memory_layers=(0, 3)), 'memory_layers has 3, but there are 3 layers'),
        (dict(memory_levels=[]), 'memory_levels is empty: name a level'),
        (
            dict(memory_levels=[dict(type='pool', ages=(1,), tokens=17)]),
            r'memory_levels\[0\]: tokens=17 is more than the 16 keys that',
        ),
        (dict(memory_layers=0), 'memory_layers=0 must be a list of numbers'),
        (dict(memory_layers=[1.0]), r'memory_layers=\[1.0\] must be a list of numbers'),
        (dict(memory_levels=[dict(type=['kmeans'], ages=(1,))]), 'is not known: use'),
        (dict(img_size=8), 'img_size=8 at least patch_size='),
        (dict(num_heads=5), 'must be a multiple of num_heads=5'),
    ],
)
def test_settings_that_contradict_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MemoryViT(**{**KEYS, **settings})


def test_clips_of_another_length_are_refused():
    model = MemoryViT(**KEYS, memory_levels=LEVELS)
    sentence = 'clips of 4 frames for a MemoryViT with num_frames=8: set num_frames'
    with pytest.raises(ValueError, match=sentence):
        model(clips_of(1, 32, 32, frames=4))


def test_no_memory_layers_means_no_memory_parameters():
    model = MemoryViT(**KEYS, memory_layers=())
    assert not new_parameters(model) and model.levels == ()
    theirs = VisionTransformer(**KEYS)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    # By default, every second layer reads the last eight clips.
    model = MemoryViT(**KEYS)
    assert model.memory_layers == (0, 2)
    (level,) = model.levels
    assert level.ages == tuple(range(1, 9)) and level.tokens == 128


@pytest.mark.parametrize(
    'keys',
    [
        dict(embed_dims=384, num_heads=6, depth=12),
        dict(depth=12),
        dict(embed_dims=1024, num_heads=16, depth=24),
        dict(embed_dims=1280, num_heads=16, depth=32),
    ],
    ids=['S', 'B', 'L', 'H'],
)
def test_names_and_shapes_of_all_sizes(keys):
    with torch.device('meta'):
        ours = MemoryViT(**keys)
    # MMAction2's is not built without numbers: one layer of it.
    theirs = VisionTransformer(**{**keys, 'depth': 1})
    shapes = {n: t.shape for n, t in theirs.state_dict().items()}
    found = {n: t.shape for n, t in ours.state_dict().items()}
    assert {n: found.get(n) for n in shapes} == shapes
    assert len(ours.blocks) == keys['depth']
    specs = ours.memory_specs((16, 224, 224))
    assert len(specs) == keys['depth'] // 2
    assert specs['layer0'].tokens == 1568 and specs['layer0'].levels[0].tokens == 128


def test_mmaction2s_recognizer_takes_it():
    """With its memory layers on but no memory, every parameter takes part."""
    model = build(
        dict(
            type='Recognizer3D',
            backbone=vit_cfg(memory_levels=LEVELS),
            cls_head=dict(
                type='TimeSformerHead',
                num_classes=4,
                in_channels=DIMS,
                average_clips='prob',
            ),
        )
    )
    samples = [ActionDataSample().set_gt_label(i) for i in range(2)]
    inputs = clips_of(2, 32, 32)[:, None]
    model.train()(inputs, samples, mode='loss')['loss_cls'].backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert model(inputs, samples, mode='predict')[0].pred_score.shape == (4,)


def test_smaller_frames_may_have_fewer_tokens_than_are_kept():
    level = dict(type='pool', ages=(1, 2), tokens=12)
    model = MemoryViT(**KEYS, memory_levels=[level]).eval()
    x = clips_of(1, 16, 32)
    features, _ = model(x, memory=model.empty_memory(x))
    assert features.isfinite().all()


def test_a_memory_of_another_type_starts_afresh():
    """Though its shapes are the same."""
    memory, past = ClipMemory(), []
    for kind in ('kmeans', 'pool'):
        level = dict(type=kind, ages=(1, 2), tokens=6)
        model = MemoryViT(**KEYS, memory_levels=[level]).eval()
        x = clips_of(1, 32, 32)
        for _ in range(2):
            step = memory.step([Stream('a')], [len(past)])
            past.append(step.read(model.memory_specs(x.shape[-3:]), like=x)['layer0'])
            with torch.no_grad():
                step.write(model(x, memory=model.empty_memory(x))[1])
            step.commit()
    assert [bool(levels[0].valid.any()) for levels in past] == [False, True] * 2
