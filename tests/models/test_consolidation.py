"""What is kept of a clip without parameters, against the same by brute force."""

import pytest
import torch
from mmaction.registry import MODELS
from small_models import FRAMES, backbone_cfg, randomize, vit_cfg

from memvit_mm.models import ClipMemory, Stream
from memvit_mm.models.memory.consolidation import consolidate, draw
from memvit_mm.models.memory.layers import KeyValue

KINDS = ('kmeans', 'coreset', 'random')
ALL = pytest.mark.parametrize('kind', KINDS)
BOTH = pytest.mark.parametrize('cfg', [backbone_cfg, vit_cfg])


def clip_of(rows: int = 3, count: int = 40, shared: bool = False, seed: int = 0):
    """Keys and values, in groups as tokens of pictures are: [B, N, C]."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(rows, count, 6, generator=generator).double()
    key[:, ::3] *= 3
    value = torch.randn(rows, count, 4, generator=generator).double()
    return KeyValue(key, key if shared else value)


def kmeans_by_hand(key, value, first) -> tuple:
    """Five rounds on one clip: [N, C] each -> [tokens, C] each."""
    means = [(key[n].clone(), value[n].clone()) for n in first]
    for _ in range(5):
        members: list = [[] for _ in first]
        for n in range(len(key)):
            distances = [(key[n] - center).norm().item() for center, _ in means]
            members[distances.index(min(distances))].append(n)
        # The center of a cluster that has lost its points stays.
        means = [
            (key[of].mean(0), value[of].mean(0)) if of else old
            for of, old in zip(members, means)
        ]
    return tuple(torch.stack(part) for part in zip(*means))


def coreset_by_hand(key, first: int, tokens: int) -> list:
    """The tokens of one clip, each the farthest from those before it."""
    chosen = [first]
    while len(chosen) < tokens:
        left = [n for n in range(len(key)) if n not in chosen]
        nearest = [min((key[n] - key[c]).norm().item() for c in chosen) for n in left]
        chosen.append(left[nearest.index(max(nearest))])
    return sorted(chosen)


def by_hand(kind: str, clip: KeyValue, tokens: int, seed: int) -> tuple:
    count = clip.key.shape[1]
    drawn = draw(count, tokens, seed)
    found = []
    for key, value in zip(*clip):
        if kind == 'kmeans':
            found.append(kmeans_by_hand(key, value, drawn))
            continue
        chosen = sorted(drawn)
        if kind == 'coreset':
            chosen = coreset_by_hand(key, drawn[0], tokens)
        found.append((key[chosen], value[chosen]))
    return tuple(torch.stack(part) for part in zip(*found))


@ALL
@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('tokens', [1, 2, 9, 39])
def test_as_by_brute_force(kind, shared, tokens):
    clip = clip_of(shared=shared)
    found = consolidate(kind, clip, tokens, seed=5)
    # Values, where they are others than keys, follow them.
    expected = by_hand(kind, clip, tokens, seed=5)
    torch.testing.assert_close(tuple(found), expected, atol=1e-10, rtol=0)
    assert (found.key is found.value) == shared


@ALL
@pytest.mark.parametrize('different', [1, 3])
def test_tokens_that_are_the_same(kind, different):
    clip = clip_of(rows=2, count=8 * different)
    key = clip.key[:, ::8].repeat_interleave(8, dim=1)
    found = consolidate(kind, KeyValue(key, clip.value), 7, seed=0)
    expected = by_hand(kind, KeyValue(key, clip.value), 7, seed=0)
    torch.testing.assert_close(found.key, expected[0], atol=1e-10, rtol=0)
    if kind == 'coreset':
        # Every one of them is there, and no token twice.
        assert all(len(row.unique(dim=0)) == different for row in found.key)
        assert all(len(row.unique(dim=0)) == 7 for row in found.value)
    else:
        torch.testing.assert_close(found.value, expected[1], atol=1e-10, rtol=0)


@ALL
def test_a_row_is_as_alone_in_any_batch(kind):
    clip = clip_of(rows=5)
    alone = [
        consolidate(kind, KeyValue(*(part[n : n + 1] for part in clip)), 9, seed=2)
        for n in range(5)
    ]
    for rows in ([4, 0, 2], [1, 1], [3]):
        found = consolidate(kind, KeyValue(*(part[rows] for part in clip)), 9, seed=2)
        for place, row in enumerate(rows):
            for part in (0, 1):
                torch.testing.assert_close(
                    found[part][place], alone[row][part][0], atol=1e-12, rtol=0
                )


@ALL
def test_the_seed_decides_and_nothing_else(kind):
    clip = clip_of()
    before = torch.get_rng_state()
    first, other = (consolidate(kind, clip, 9, seed).key for seed in (0, 1))
    torch.manual_seed(77)
    assert torch.equal(consolidate(kind, clip, 9, seed=0).key, first)
    assert not torch.allclose(first, other)
    torch.set_rng_state(before)
    consolidate(kind, clip, 9, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn():
    """The same on every machine: predictions depend on it."""
    assert draw(10, 4, 0) == (2, 8, 4, 9)
    assert sorted(draw(10, 10, 2**32 + 1)) == list(range(10))


@ALL
def test_no_gradient_and_the_type_of_the_clip(kind):
    clip = clip_of(count=200, shared=True).key
    exact = consolidate(kind, KeyValue(clip, clip), 9, seed=0).key
    low = clip.bfloat16().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = consolidate(kind, KeyValue(low, low), 9, seed=0).key
    assert not found.requires_grad and found.dtype == torch.bfloat16
    if kind == 'random':
        assert torch.equal(found, exact.bfloat16())
    # Sums and distances are not bfloat16's: as of the rounded clip, rounded once.
    rounded = low.detach().double()
    expected = consolidate(kind, KeyValue(rounded, rounded), 9, seed=0).key
    torch.testing.assert_close(found, expected.bfloat16(), atol=0, rtol=2**-7)
    single = KeyValue(clip.float(), clip.float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = consolidate(kind, single, 9, seed=0).key
    assert torch.equal(found, consolidate(kind, single, 9, seed=0).key)


def play(model, memory: ClipMemory, clips: int) -> list:
    """What the first layer wrote of each clip of a stream."""
    generator, written = torch.Generator().manual_seed(0), []
    for time in range(clips):
        x = torch.randn(1, 3, FRAMES, 32, 32, generator=generator)
        step = memory.step([Stream('a')], [time])
        past = step.read(model.memory_specs(x.shape[-3:]), like=x)
        with torch.no_grad():
            _, wrote = model(x, memory=past)
        step.write(wrote)
        step.commit()
        written.append(wrote)
    return written


def build(cfg, **level):
    return randomize(MODELS.build(cfg(memory_levels=[level]))).eval()


def kept_of(memory: ClipMemory, layer: str) -> list:
    """The keys and values of a layer, oldest first."""
    (clips,) = memory._clips.values()
    forms = [clip.layers[layer].forms for clip in clips]
    assert all(len(of_clip) == 1 for of_clip in forms)
    return [next(iter(of_clip.values())) for of_clip in forms]


@ALL
@BOTH
def test_a_clip_is_consolidated_when_it_is_seen(kind, cfg):
    model, memory = build(cfg, type=kind, ages=(1, 3), tokens=6), ClipMemory()
    written = play(model, memory, 5)
    for number, layer in enumerate(('layer0', 'layer2')):
        wrote = [of_clip[layer].current for of_clip in written[-3:]]
        # Each layer draws other tokens.
        expected = [consolidate(kind, clip, 6, seed=2 * number) for clip in wrote]
        for kept, wanted in zip(kept_of(memory, layer), expected):
            assert all(torch.equal(k, w[0]) for k, w in zip(kept, wanted))


@ALL
@BOTH
def test_bytes_of_a_stream(kind, cfg):
    model, memory = build(cfg, type=kind, ages=(1, 3), tokens=6), ClipMemory()
    play(model, memory, 7)
    # Three clips of 6 tokens, in float32. MeMViT keeps keys and values of 8 and of 16
    # channels; MemoryViT one tensor of 32 in each of two layers.
    numbers = 3 * 6 * (2 * 32 if cfg is vit_cfg else 2 * (8 + 16))
    assert memory.num_bytes == 4 * numbers
    specs = model.memory_specs((FRAMES, 32, 32)).values()
    assert sum(spec.kept_numbers for spec in specs) == numbers
    other = ClipMemory()
    other.load_state_dict(memory.state_dict())
    assert other.num_bytes == memory.num_bytes


@ALL
@BOTH
@pytest.mark.parametrize('more', [0, 99])
def test_clips_of_no_more_tokens_than_asked_are_kept_as_they_are(kind, cfg, more):
    tokens = build(cfg, type='keep', ages=(1,)).memory_specs((FRAMES, 32, 32))
    # Another layer of MeMViT may have fewer.
    count = max(spec.tokens for spec in tokens.values())
    model = build(cfg, type=kind, ages=(1, 2), tokens=count + more)
    memory = ClipMemory()
    written = play(model, memory, 4)
    for layer in ('layer0', 'layer2'):
        wrote = [of_clip[layer].current for of_clip in written[-2:]]
        for kept, clip in zip(kept_of(memory, layer), wrote):
            assert all(torch.equal(k, c[0]) for k, c in zip(kept, clip))
        told = model.memory_specs((FRAMES, 32, 32))[layer].levels[0]
        assert told.tokens == len(kept.key)
