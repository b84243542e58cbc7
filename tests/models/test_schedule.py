"""Schedules of levels: what a config may say, and which form of a clip is read."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from memvit_mm.models import ClipMemory, MemoryViT, MeMViT, Stream
from memvit_mm.models.heads.actor_memory import ActorMemoryHead
from memvit_mm.models.memory.layers import KeyValue
from memvit_mm.models.memory.schedule import published_levels, read_levels

FINE = dict(type='pool', ages=(2, 4), stride=(4, 2, 2))
# By what a level reads first: the clip as it was written, or what the finer one made.
SCHEDULES = dict(
    after_the_fine=[FINE, dict(type='pool', ages=range(5, 9), tokens=2)],
    between_the_fine=[FINE, dict(type='pool', ages=(1, 3, 5, 6), tokens=2)],
    three=[
        dict(type='pool', ages=(1, 2), stride=(2, 2, 2)),
        dict(type='pool', ages=(3, 4), stride=(2, 1, 1), kernel=(3, 3, 3)),
        dict(type='pool', ages=(5, 6, 7), tokens=1),
    ],
    one=[dict(type='pool', ages=range(1, 6), tokens=3)],
    uncompressed=[
        dict(type='keep', ages=(1,)),
        dict(type='pool', ages=(2, 3), tokens=2),
    ],
    kept_on=[
        dict(type='keep', ages=(1,)),
        dict(type='pool', ages=(2, 3), stride=(4, 2, 2)),
        dict(type='keep', ages=(4, 5)),
    ],
    # Consolidated when it is seen, and that once more when it is read.
    means=[
        dict(type='kmeans', ages=(1, 3), tokens=7),
        dict(type='coreset', ages=(4, 5), tokens=3),
    ],
    drawn_beside_learned=[
        dict(type='random', ages=(2, 3), tokens=5),
        dict(type='pool', ages=(1, 4, 6), tokens=2),
    ],
)
FRAMES = 8


def backbone(levels, **kwargs) -> MeMViT:
    torch.manual_seed(0)
    model = MeMViT(
        arch=dict(embed_dims=8, num_layers=3, num_heads=1, downscale_indices=[1]),
        spatial_size=32,
        temporal_size=FRAMES,
        adaptive_kv_stride=(1, 2, 2),
        memory_levels=levels,
        **kwargs,
    )
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


def vit(levels, pool_first: bool = True, **kwargs) -> MemoryViT:
    """As :func:`backbone`; its form with and without ``pool_first`` is its reading."""
    torch.manual_seed(0)
    model = MemoryViT(
        img_size=32,
        patch_size=8,
        embed_dims=8,
        depth=3,
        num_heads=2,
        num_frames=FRAMES,
        use_mean_pooling=False,
        return_feat_map=True,
        reading='gated' if pool_first else 'joint',
        memory_levels=levels,
        **kwargs,
    )
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


ALL = pytest.mark.parametrize(
    'name, backbone',
    [
        *((name, backbone) for name in SCHEDULES),
        *((n, vit) for n in ('kept_on', 'means', 'drawn_beside_learned')),
    ],
)


def play(model, memory, clips, stream='a'):
    """Feed clips; the features and what the first layer read, per clip."""
    outputs = []
    for time, clip in enumerate(clips):
        step = memory.step([Stream(stream)], [time])
        past = step.read(model.memory_specs(clip.shape[-3:]), clip)
        features, written = model(clip, memory=past)
        step.write(written)
        step.commit()
        outputs.append((tree_leaves(features)[0], past['layer0']))
    return outputs


def clips_of(count: int, size: int = 32) -> list:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, 3, FRAMES, size, size, generator=generator) for _ in range(count)
    ]


@ALL
def test_every_clip_of_the_schedule_is_read_and_no_other(name, backbone):
    levels = SCHEDULES[name]
    with torch.no_grad():
        plain = play(backbone(levels, memory_layers=[0]), ClipMemory(), clips_of(12))
        changed = clips_of(12)
        changed[0] = changed[0].flip(-1) + 1
        other = play(backbone(levels, memory_layers=[0]), ClipMemory(), changed)
    moved = [age for age in range(12) if not torch.equal(plain[age][0], other[age][0])]
    assert moved == [0, *sorted(age for level in levels for age in level['ages'])]


@ALL
def test_a_clip_is_kept_in_the_forms_that_will_be_read_and_no_longer(name, backbone):
    model, memory = backbone(SCHEDULES[name]), ClipMemory()
    with torch.no_grad():
        play(model, memory, clips_of(12))
    (spec, *_) = model.memory_specs((FRAMES, 32, 32)).values()
    (clips,) = memory._clips.values()
    assert len(clips) == spec.ages[-1]
    for age, clip in zip(range(len(clips), 0, -1), clips):
        kept = clip.layers['layer0'].forms
        assert all(len(pair.key) == spec.tokens_of(form) for form, pair in kept.items())
        for form in kept:
            # Somebody will read it, and nobody could have made it later.
            assert spec.last_age(form) >= age
        needed = {level.form for level in spec.levels if level.ages[-1] >= age}
        made = {level.form for level in spec.levels if level.ages[0] < age} | {0}
        assert needed & made <= set(kept)


@ALL
def test_what_is_kept_is_bounded_and_told_before(name, backbone):
    model, memory = backbone(SCHEDULES[name]), ClipMemory()
    specs = model.memory_specs((FRAMES, 32, 32)).values()
    with torch.no_grad():
        play(model, memory, clips_of(max(s.ages[-1] for s in specs) + 3))
    told = sum(4 * spec.kept_numbers for spec in specs)
    assert memory.num_bytes == told


@pytest.mark.parametrize('pool_first', [True, False])
def test_keys_that_start_as_queries(pool_first):
    model = backbone([FINE], pool_first=pool_first, keys_as_queries=True)
    model.init_weights()
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        if pool_first:
            q, k = attn.q.weight, attn.k.weight
        else:
            q, k, _ = attn.qkv.weight.chunk(3)
        assert torch.equal(q, k) == (layer in model.memory_layers)
        assert q.data_ptr() != k.data_ptr()


def test_actors_keys_that_start_as_queries():
    for same in (True, False):
        head = ActorMemoryHead(8, 2, keys_as_queries=same)
        head.init_weights()
        attn = head.blocks[0].attn
        assert torch.equal(attn['q'].weight, attn['k'].weight) == same


def test_print_says_the_schedule():
    text = str(backbone(SCHEDULES['between_the_fine']))
    assert 'memory level 0: pool, clips 2, 4 back, 5 keys a clip in each of 2' in text
    assert 'memory level 1: pool, clips 1, 3, 5, 6 back, 2 keys a clip' in text


def test_what_is_kept_by_hand():
    model = backbone(SCHEDULES['between_the_fine'])
    memory = ClipMemory()
    with torch.no_grad():
        play(model, memory, clips_of(8))
    (clips,) = memory._clips.values()
    kept = [sorted(clip.layers['layer0'].forms) for clip in clips]
    # Ages 6 to 1 at the next step: 0 as written, 1 the fine form, 2 the coarse one.
    assert kept == [[2], [2], [1, 2], [1, 2], [0, 2], [0]]
    # 4 x 4 x 4 keys, compressed to 1 x 2 x 2, a class token with each, and 2 tokens.
    tokens = 2 * (1 + 4 * 4 * 4) + 2 * (1 + 1 * 2 * 2) + 5 * 2
    # Keys and values in float32; 8 channels in layer 0, 16 in layer 2.
    assert memory.num_bytes == 2 * 4 * tokens * (8 + 16)


@ALL
@pytest.mark.parametrize('pool_first', [True, False])
def test_every_weight_has_a_gradient_and_none_reaches_the_past(
    name, backbone, pool_first
):
    model = backbone(SCHEDULES[name], pool_first=pool_first)
    memory, clips = ClipMemory(), clips_of(10)
    for clip in clips:
        clip.requires_grad_()
    features = play(model, memory, clips)[-1][0]
    features.square().sum().backward()
    without = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    assert without == []
    assert clips[-1].grad is not None and all(c.grad is None for c in clips[:-1])


@ALL
def test_empty_slots_change_nothing(name, backbone):
    model, clip = backbone(SCHEDULES[name]).eval(), clips_of(1)[0]
    with torch.no_grad():
        plain = model(clip)
        empty, _ = model(clip, memory=model.empty_memory(clip))
    torch.testing.assert_close(empty, plain, atol=1e-5, rtol=1e-5)


@ALL
def test_rows_of_a_batch_do_not_meet(name, backbone):
    model = backbone(SCHEDULES[name]).eval()
    clips = {s: [c + n for c in clips_of(9)] for n, s in enumerate('ab')}
    with torch.no_grad():
        alone = [play(model, ClipMemory(), clips[s])[-1][0] for s in 'ab']
        memory = ClipMemory()
        # The second stream begins two steps later.
        for time in range(11):
            rows = [s for s in 'ab' if 0 <= time - 2 * (s == 'b') < 9]
            batch = torch.cat([clips[s][time - 2 * (s == 'b')] for s in rows])
            step = memory.step([Stream(s) for s in rows], [time] * len(rows))
            specs = model.memory_specs(batch.shape[-3:])
            features, written = model(batch, memory=step.read(specs, batch))
            step.write(written)
            step.commit()
            found = tree_leaves(features)[0]
            if time == 8:
                torch.testing.assert_close(found[:1], alone[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, alone[1], atol=1e-4, rtol=1e-4)


def test_other_frame_sizes():
    model = backbone(SCHEDULES['between_the_fine']).eval()
    memory = ClipMemory()
    with torch.no_grad():
        play(model, memory, [torch.randn(1, 3, FRAMES, 48, 64) for _ in range(8)])
    (clips,) = memory._clips.values()
    assert len(clips[0].layers['layer0'].forms[2].key) == 2


def test_the_published_one_level_is_the_short_form():
    short = backbone(None)
    long = backbone([FINE])
    assert short.state_dict().keys() == long.state_dict().keys()
    clips = clips_of(6)
    with torch.no_grad():
        outputs = [play(model, ClipMemory(), clips)[-1][0] for model in (short, long)]
    assert torch.equal(*outputs)
    assert short.levels == published_levels(2, 2)


def test_memories_saved_before_there_were_levels():
    model = backbone(None).eval()
    memory, clips = ClipMemory(), clips_of(6)
    with torch.no_grad():
        play(model, memory, clips[:5])
    state = memory.state_dict()
    for stream in state['streams']:
        for clip in stream['clips']:
            for name, layer in clip['layers'].items():
                ((form, pair),) = layer['forms'].items()
                grid = layer['grid']
                clip['layers'][name] = dict(pair, compressed=form == 1, grid=grid)
    old = ClipMemory()
    old.load_state_dict(state)

    def next_of(memory) -> torch.Tensor:
        step = memory.step([Stream('a')], [5])
        past = step.read(model.memory_specs(clips[5].shape[-3:]), clips[5])
        with torch.no_grad():
            return model(clips[5], memory=past)[0][0][0]

    assert torch.equal(next_of(old), next_of(memory))
    # A longer schedule goes on with it: what it would have read is empty.
    longer = backbone(SCHEDULES['between_the_fine'])
    step = old.step([Stream('a')], [5])
    specs = longer.memory_specs(clips[5].shape[-3:])
    fine, coarse = step.read(specs, clips[5])['layer0']
    assert fine.valid.tolist() == [[True, True]]
    assert coarse.valid.tolist() == [[False, False, False, True]]


def test_actors_of_all_of_the_last_clips():
    torch.manual_seed(0)
    levels = [
        dict(type='keep', ages=(1, 2), tokens=3),
        dict(type='keep', ages=range(3, 9), tokens=2),
    ]
    head = ActorMemoryHead(8, 2, num_layers=2, max_actors=6, memory_levels=levels)
    memory = ClipMemory()
    rois = torch.tensor([[0, 1, 1, 9, 9], [0, 2, 2, 8, 8.0]])
    for time in range(10):
        step = memory.step([Stream('a')], [time])
        past = step.read(head.memory_specs(), rois)
        people = torch.randn(2, 8, 1, 7, 7)
        out, written = head(people, rois, img_metas=[{}], memory=past)
        step.write(written)
        step.commit()
    assert [level.older.key.shape[1] for level in past['actors0']] == [3, 10]
    assert all(level.valid.all() for level in past['actors1'])
    out.square().sum().backward()
    without = [n for n, p in head.named_parameters() if not p.grad.abs().sum() > 0]
    assert without == []
    (clips,) = memory._clips.values()
    newest = clips[-1].layers['actors0'].forms[0]
    assert newest.key is newest.value


def test_ages_of_actors_start_as_nothing():
    torch.manual_seed(0)
    rois = torch.tensor([[0, 1, 1, 9, 9], [0, 2, 2, 8, 8.0]])
    people = torch.randn(2, 8, 1, 7, 7)
    short = ActorMemoryHead(8, 2, memory_length=3, memory_gap=1)
    long = ActorMemoryHead(8, 2, memory_levels=[dict(type='keep', ages=(1, 2, 3))])
    long.load_state_dict(short.state_dict(), strict=False)
    clips = torch.randn(1, 300, 8)
    outputs = []
    for head in (short, long):
        step = ClipMemory().step([Stream('a')], [0])
        (level,) = step.read(head.memory_specs(), rois)['actors0']
        level = level._replace(
            recent=KeyValue(clips[:, 200:], clips[:, 200:]),
            older=KeyValue(clips[:, :200], clips[:, :200]),
            valid=torch.ones_like(level.valid),
        )
        outputs.append(head(people, rois, img_metas=[{}], memory={'actors0': (level,)}))
    torch.testing.assert_close(outputs[0][0], outputs[1][0])


@pytest.mark.parametrize(
    ('levels', 'message'),
    [
        ([], 'memory_levels is empty.*memory_layers=()'),
        (FINE, 'memory_levels=.* must be a list of dicts'),
        (5, 'memory_levels=5 must be a list of dicts'),
        (['pool'], r"\[0\]: 'pool' is no level: use dict"),
        ([dict(FINE, stride=4)], 'stride=4 must be three whole numbers'),
        ([dict(FINE, stride=(4.5, 2, 2))], 'stride=.* three whole numbers'),
        ([dict(FINE, kernel=3)], 'kernel=3 must be three whole numbers'),
        ([dict(type='pool', ages=(1,), tokens='2')], "tokens='2' must be a whole"),
        ([dict(type='keep', ages=(1,), tokens=2.5)], 'tokens=2.5 must be a whole'),
        ([dict(FINE, ages=[True, 2])], r'memory_levels\[0\]: .*ages'),
        (
            [dict(type='pool', ages=(1,), tokens=2, kernel=(3, 3, 3))],
            'kernel belongs to stride',
        ),
        ([dict(type='mean', ages=(1,))], r"\[0\]: type='mean' is not known.*'pool'"),
        ([dict(FINE, size=2)], r"\[0\]: type='pool' does not take \['size'\]"),
        ([dict(FINE, ages=())], r'\[0\]: ages=\(\) must be different numbers'),
        ([dict(FINE, ages=(0, 1))], 'ages=.* 1 or more'),
        ([dict(FINE, ages=(2, 2))], 'ages=.* different'),
        ([dict(FINE, ages='ab')], r'memory_levels\[0\]: .*ages'),
        ([dict(FINE, ages=2)], r'memory_levels\[0\]: .*ages'),
        ([dict(FINE, ages=(1.5,))], r'memory_levels\[0\]: .*ages'),
        ([dict(FINE, stride=(4, 2))], r'stride=\(4, 2\) must be three whole'),
        ([dict(FINE, kernel=(2, 3, 3))], r'kernel=\(2, 3, 3\) must be odd'),
        ([dict(FINE, tokens=2)], 'needs either stride.* or tokens'),
        ([dict(type='pool', ages=(1,))], 'needs either stride.* or tokens'),
        (
            [dict(type='pool', ages=(1,), tokens=0)],
            'tokens=0 must be a whole number, 1 or more',
        ),
        ([FINE, dict(FINE, ages=(4, 5))], r'\[1\]: ages has 4, which another level'),
        (
            [dict(FINE, type='kmeans')],
            r"type='kmeans' does not take \['stride'\], only .*'seed', 'tokens'",
        ),
        (
            [dict(type='random', ages=(1,), seed=-1)],
            'seed=-1 must be a whole number, 0',
        ),
        ([dict(type='coreset', ages=(1,), seed=0.5)], 'seed=0.5 must be a whole'),
        ([dict(type='coreset', ages=(1,), tokens=0)], 'tokens=0 must be a whole'),
        (
            [dict(type='kmeans', ages=(1,)), dict(FINE, ages=(2, 3))],
            r'\[1\]: a level with stride pools a grid.* tokens instead',
        ),
        (
            [
                dict(type='pool', ages=(1,), tokens=2),
                dict(FINE, ages=(2, 3)),
            ],
            r'\[1\]: a level with stride pools a grid.* tokens instead',
        ),
    ],
)
def test_schedules_that_cannot_be(levels, message):
    with pytest.raises(ValueError, match=message):
        read_levels(levels)
    with pytest.raises(ValueError, match=message):
        backbone(levels)


def test_people_are_not_pooled():
    with pytest.raises(ValueError, match="kept, not pooled: use dict.type='keep'"):
        ActorMemoryHead(8, 2, memory_levels=[FINE])


def test_people_without_memory():
    levels = [dict(type='keep', ages=(1, 2))]
    head = ActorMemoryHead(8, 2, memory_length=0, memory_levels=levels)
    assert head.memory_specs() == {}
    assert 'clips 1, 2 back, 100 keys' in str(
        ActorMemoryHead(8, 2, memory_levels=levels)
    )


def test_more_tokens_than_there_are():
    with pytest.raises(ValueError, match=r'\[1\]: tokens=9 is more than the 5 keys'):
        backbone([FINE, dict(type='pool', ages=(5,), tokens=9)])
