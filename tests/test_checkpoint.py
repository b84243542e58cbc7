"""Conversion of checkpoints: what is recognized, mapped, resized, refused, written."""

import os
import re
import resource
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData

import memvit_mm  # noqa: F401
from memvit_mm.demo.ava import DemoSettings, make_demo_dataset
from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint, read_checkpoint
from memvit_mm.models.checkpoints.key_map import (
    BLOCK,
    Kind,
    by_layer,
    convert_state,
    recognize,
    with_reserved_class,
)
from memvit_mm.models.checkpoints.memory_weights import MEMORY
from memvit_mm.models.memory.layers import KeyValue
from memvit_mm.paths import get_config_path, get_tool_path

ARCH = dict(embed_dims=8, num_layers=4, num_heads=1, downscale_indices=[1, 3])
DIMS = 32


def backbone_cfg(**kwargs) -> dict:
    return {
        'type': 'MeMViT',
        'arch': ARCH,
        'spatial_size': 32,
        'temporal_size': 8,
        'adaptive_kv_stride': (1, 4, 4),
        **kwargs,
    }


def classifier_cfg(classes: int = 7, **backbone) -> dict:
    return dict(
        type='MemoryRecognizer3D',
        backbone=backbone_cfg(**backbone),
        cls_head=dict(type='MViTHead', num_classes=classes, in_channels=DIMS),
    )


def detector_cfg(actors: bool = True, **backbone) -> dict:
    roi_head = dict(
        type='MemoryAVARoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
        ),
        bbox_head=dict(
            type='BBoxHeadAVA', background_class=True, in_channels=DIMS, num_classes=81
        ),
    )
    if actors:
        roi_head['shared_head'] = dict(
            type='ActorMemoryHead', in_channels=DIMS, num_heads=4
        )
    return dict(
        type='MemoryFastRCNN',
        _scope_='mmdet',
        backbone=backbone_cfg(output_cls_token=False, **backbone),
        roi_head=roi_head,
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
        ),
        train_cfg=None,
        test_cfg=dict(rcnn=None),
    )


def build(cfg: dict) -> torch.nn.Module:
    """A model with random weights, none of them at its start."""
    init_default_scope('mmaction')
    torch.manual_seed(0)
    model = MODELS.build(Config(dict(model=cfg)).model)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.eval()


def state_of(cfg: dict) -> dict:
    return build(cfg).state_dict()


def config_of(cfg: dict, folder: Path) -> Path:
    path = folder / 'config.py'
    path.write_text(f"default_scope = 'mmaction'\nmodel = {cfg!r}\n")
    return path


def published(model: torch.nn.Module) -> dict:
    """The published names of a model whose layers all have memory."""
    names = {
        'backbone.patch_embed.projection.': 'patch_embed.proj.',
        'backbone.cls_token': 'cls_token',
        'backbone.blocks.': 'blocks.',
        f'backbone.norm{model.backbone.num_scales - 1}.': 'norm.',
        'roi_head.shared_head.blocks.': 'box_blocks.',
        'roi_head.bbox_head.fc_cls.': 'head.projection.',
        'cls_head.fc_cls.': 'head.projection.',
        'backbone.pos_embed': 'pos_embed',
    }
    state = {}
    for name, value in model.state_dict().items():
        ours, theirs = next(item for item in names.items() if name.startswith(item[0]))
        if 'bbox_head' in name:
            value = value[1:]
        state[name.replace(ours, theirs, 1)] = value
    return state


ALL_LAYERS = dict(memory_layers=(0, 1, 2, 3))


# ------------------------------------------------------------------------ recognition


def test_recognized_by_content():
    detection = published(build(detector_cfg()))
    assert recognize(detection) is Kind.DETECTION
    classification = published(build(classifier_cfg()))
    assert recognize(classification) is Kind.CLASSIFICATION
    notes = 'DATA:\n  X: 1\nDETECTION:\n  ALIGNED: true\n  ENABLE: true\nMODEL: {}\n'
    assert recognize(classification, notes) is Kind.DETECTION
    notes = 'DETECTION:\n  ENABLE: false\nMIXUP:\n  ENABLE: true\n'
    assert recognize(classification, notes) is Kind.CLASSIFICATION
    mvit = classifier_cfg(pool_first=False, memory_layers=())
    assert recognize(state_of(mvit)) is Kind.MVIT
    assert recognize(state_of(classifier_cfg(pool_first=False))) is Kind.OURS
    assert recognize(state_of(classifier_cfg())) is Kind.OURS
    with pytest.raises(ValueError, match='belong to none of the models'):
        recognize({'backbone.conv1.conv.weight': torch.zeros(1)})


# --------------------------------------------------------------------------- mapping


def test_published_detector():
    model = build(detector_cfg(**ALL_LAYERS))
    target = state_of(detector_cfg())
    state, report = convert_state(published(model), target)
    assert set(state) == set(target) == set(report.used)
    ours = model.state_dict()
    for name, value in state.items():
        if 'fc_cls' in name:
            value, ours[name] = value[1:], ours[name][1:]
        torch.testing.assert_close(value, ours[name], atol=0, rtol=0)
    assert all(int(name.split('.')[1]) % 2 for name in report.left_out)
    assert len(report.left_out) == 2 * 9
    text = str(report)
    assert 'Recognized: published MeMViT for AVA.' in text
    assert 'reserved class 0' in text
    assert 'blocks.{1,3}.attn.compress_k.weight' in text
    assert 'Not checked' not in text


def test_without_a_config_names_are_mapped_as_for_even_layers():
    source = published(build(detector_cfg(**ALL_LAYERS)))
    state, report = convert_state(source)
    assert set(state) == set(state_of(detector_cfg()))
    assert state['roi_head.bbox_head.fc_cls.weight'].shape == (81, DIMS)
    assert 'Not checked against a model' in str(report)
    source = published(build(classifier_cfg(**ALL_LAYERS)))
    assert set(convert_state(source)[0]) == set(state_of(classifier_cfg()))


def test_kinetics_weights_for_a_detector():
    source = published(build(classifier_cfg(memory_layers=())))
    target = state_of(detector_cfg())
    state, report = convert_state(source, target)
    initial = set(report.initial)
    assert initial == set(target) - set(state)
    memory = {n for n in initial if 'compress' in n or 'rel_pos_mem' in n}
    assert initial - memory == {n for n in target if n.startswith('roi_head.')}
    assert len(memory) == 2 * 9
    assert report.left_out == dict.fromkeys(
        ('head.projection.weight', 'head.projection.bias'),
        'the checkpoint tells 7 classes apart, the model 80',
    )
    text = str(report)
    assert 'the checkpoint has no memory in this layer' in text
    assert 'the checkpoint has no attention among people' in text


def test_a_detectors_weights_for_a_recognizer_without_memory():
    source = published(build(detector_cfg(**ALL_LAYERS)))
    target = state_of(classifier_cfg(memory_layers=()))
    state, report = convert_state(source, target)
    assert set(report.initial) == {'cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'}
    reasons = set(report.left_out.values())
    assert 'the model has no ActorMemoryHead' in reasons
    assert 'the checkpoint tells 80 classes apart, the model 7' in reasons
    assert set(state) | set(report.initial) == set(target)


def test_mmaction2s_mvit_for_memory():
    source = state_of(
        dict(
            type='Recognizer3D',
            backbone=dict(backbone_cfg(), type='MViT'),
            cls_head=dict(type='MViTHead', num_classes=7, in_channels=DIMS),
        )
    )
    assert recognize(source) is Kind.MVIT
    target = state_of(detector_cfg(actors=False, pool_first=False))
    state, report = convert_state(source, target)
    assert set(state) == set(source) - set(report.left_out)
    assert set(report.left_out) == {'cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'}
    assert all(state[name].equal(source[name]) for name in state)
    assert convert_state(source)[0].keys() == source.keys()
    with pytest.raises(ValueError, match='projects, then pools .*pool_first=False'):
        convert_state(source, state_of(detector_cfg()))
    # And without a class token, which MViT keeps though it does not use it.
    plain = classifier_cfg(
        pool_first=False, with_cls_token=False, output_cls_token=False
    )
    report = convert_state(source, state_of(plain))[1]
    assert report.left_out == {'backbone.cls_token': 'the model has no class token'}


def test_our_own_checkpoint_is_checked_and_kept():
    source = state_of(detector_cfg())
    state, report = convert_state(source, state_of(detector_cfg()))
    assert report.kind is Kind.OURS and not report.left_out and not report.changed
    assert all(state[name].equal(source[name]) for name in source)
    source['neck.conv.weight'] = torch.zeros(1)
    with pytest.raises(
        ValueError, match='1 weights are only in .* namely neck.conv.weight: '
    ):
        convert_state(source, state_of(detector_cfg()))


def test_our_own_weights_for_other_classes():
    small = detector_cfg()
    small['roi_head']['bbox_head']['num_classes'] = 15
    state, report = convert_state(state_of(detector_cfg()), state_of(small))
    names = {f'roi_head.bbox_head.fc_cls.{part}' for part in ('weight', 'bias')}
    reason = 'the checkpoint tells 80 classes apart, the model 14'
    assert report.left_out == dict.fromkeys(names, reason)
    assert set(report.initial) == names and not names & set(state)


def test_published_mvitv2_has_the_same_names():
    """SlowFast's checkpoints of MViTv2: one projection for q, k and v."""
    cfg = classifier_cfg(pool_first=False, memory_layers=())
    model = build(cfg)
    state, report = convert_state(published(model), state_of(cfg))
    assert report.kind is Kind.CLASSIFICATION and not report.left_out
    assert all(state[name].equal(v) for name, v in model.state_dict().items())


def test_absolute_positions():
    """Of SlowFast's checkpoints, MMAction2's and ours."""
    keys = dict(pool_first=False, use_abs_pos_embed=True)
    cfg = classifier_cfg(**keys, memory_layers=())
    model = build(cfg)
    name = 'backbone.pos_embed'
    positions = model.backbone.pos_embed.data
    mvit = dict(cfg, type='Recognizer3D', backbone=dict(cfg['backbone'], type='MViT'))
    for key in ('pool_first', 'memory_layers'):
        del mvit['backbone'][key]
    mvit = {**state_of(mvit), name: positions}
    target = state_of(classifier_cfg(**keys))
    for source, kind in (
        (published(model), Kind.CLASSIFICATION),
        (mvit, Kind.MVIT),
        (target | {name: positions}, Kind.OURS),
    ):
        state, report = convert_state(source, target)
        assert report.kind is kind and state[name].equal(positions)
        assert convert_state(source)[0][name].equal(positions)
        with pytest.raises(ValueError, match='has no absolute .*abs_pos_embed=False'):
            convert_state(
                {n: v for n, v in source.items() if 'pos_embed' not in n}, target
            )
        plain = state_of(classifier_cfg(pool_first=False))
        with pytest.raises(ValueError, match='has absolute .* no .*pos_embed=True'):
            convert_state(source, plain)
        # They are not resized here: the model does so for clips of another size.
        larger = state_of(classifier_cfg(**keys, spatial_size=64))
        with pytest.raises(ValueError, match=r'pos_embed .1, 257, 8. for .1, 1025, 8'):
            convert_state(source, larger)


def test_norms_of_further_scales_stay_initial():
    target = state_of(classifier_cfg(out_scales=[0, 1, 2]))
    report = convert_state(published(build(classifier_cfg())), target)[1]
    norms = {f'backbone.norm{n}.{part}' for n in (0, 1) for part in ('weight', 'bias')}
    reason = 'the checkpoint was trained without features of this scale'
    assert report.initial == dict.fromkeys(norms, reason)


def test_a_class_that_is_reserved_changes_no_score():
    rows, bias = torch.randn(80, DIMS), torch.randn(80)
    fc_cls = torch.nn.Linear(DIMS, 81)
    fc_cls.weight.data = with_reserved_class(rows)
    fc_cls.bias.data = with_reserved_class(bias)
    x = 10 * torch.randn(5, DIMS)
    logits = x @ rows.t() + bias
    for scores in (torch.sigmoid, lambda z: z.softmax(-1)):
        ours, theirs = scores(fc_cls(x)), scores(logits)
        torch.testing.assert_close(ours[:, 1:], theirs, atol=1e-6, rtol=1e-5)
        assert ours[:, 0].max() < 1e-20
    assert fc_cls.half().bias[0].isfinite()


# ------------------------------------------------------------------------ other sizes


@pytest.mark.parametrize('change', [dict(spatial_size=64), dict(temporal_size=16)])
def test_resized_tables_are_what_the_model_would_use(change):
    source = build(classifier_cfg(memory_length=1))
    state, report = convert_state(
        source.state_dict(), state_of(classifier_cfg(memory_length=1, **change))
    )
    other = build(classifier_cfg(memory_length=1, **change))
    other.load_state_dict(state)
    size = change.get('spatial_size', 32)
    clip = torch.randn(1, 3, change.get('temporal_size', 8), size, size)
    outputs = []
    for model in (source, other):
        with torch.no_grad():
            past = model.backbone.empty_memory(clip)
            for (kept,) in past.values():
                generator = torch.Generator().manual_seed(3)
                for value in (kept.recent.key, kept.recent.value):
                    value.normal_(generator=generator)
                kept.valid.fill_(True)
            outputs.append(model.backbone(clip, memory=past)[0][0])
    for ours, theirs in zip(*outputs):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert report.changed and all('interpolated' in c for c in report.changed.values())
    assert 'distances' in str(report)


def test_more_or_fewer_memories():
    two = state_of(classifier_cfg(memory_length=2))
    name = 'backbone.blocks.0.attn.rel_pos_mem_t'
    longer, report = convert_state(two, state_of(classifier_cfg(memory_length=4)))
    known = len(two[name])
    assert longer[name][:known].equal(two[name])
    assert longer[name][known:].equal(two[name][-1:].expand(2 * 4, -1))
    assert report.changed[name] == '11 -> 19 distances back, the farthest one repeated'
    shorter, report = convert_state(two, state_of(classifier_cfg(memory_length=1)))
    assert shorter[name].equal(two[name][: len(shorter[name])])
    assert report.changed[name] == '11 -> 7 distances back, the farthest left out'
    assert set(report.changed) == {name, name.replace('.0.', '.2.')}


LONG = [
    dict(type='pool', ages=(2, 4), stride=(4, 2, 2)),
    dict(type='pool', ages=(1, 3, *range(5, 9)), tokens=2),
]


def test_a_long_schedule_starts_from_the_published_one():
    source = build(classifier_cfg())
    cfg = classifier_cfg(memory_levels=LONG)
    state, report = convert_state(source.state_dict(), state_of(cfg))
    other = build(cfg)
    other.load_state_dict(state)
    told = str(report)
    assert 'starts at zero: the mean over a clip' in told
    assert "starts as the first level's" in told
    assert 'starts at the farthest distance of the first level' in told
    attn = other.backbone.blocks[0].attn
    assert attn.rel_pos_age1.equal(attn.rel_pos_mem_t[-1:].expand(6, -1))

    # The fine level is as it was: with none of the further clips, the same features.
    clip = torch.randn(1, 3, 8, 32, 32)
    past = source.backbone.empty_memory(clip)
    generator = torch.Generator().manual_seed(3)
    for (level,) in past.values():
        for value in (*level.recent, *level.older):
            value.normal_(generator=generator)
        level.valid.fill_(True)
    longer = other.backbone.empty_memory(clip)
    longer = {name: (past[name][0], levels[1]) for name, levels in longer.items()}
    with torch.no_grad():
        (before,), _ = source.backbone(clip, memory=past)
        (after,), written = other.backbone(clip, memory=longer)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)

    # The coarse one is an average, by halves of the clip, the class token in both.
    key = torch.randn(1, 1 + 4 * 2 * 2, attn.memory_dims)
    halves = [key[:, [0, *range(n, n + 8)]].mean(dim=1) for n in (1, 9)]
    made = attn.compress(1, KeyValue(key, key), (4, 2, 2))
    expected = attn.norm_compress_k(torch.stack(halves, dim=1))
    torch.testing.assert_close(made.key, expected, atol=1e-5, rtol=1e-5)

    back, report = convert_state(state, source.state_dict())
    assert all(back[name].equal(value) for name, value in source.state_dict().items())
    assert set(report.left_out.values()) == {'the model has no such level of memory'}


def test_half_a_level_is_refused():
    state = state_of(classifier_cfg(memory_levels=LONG))
    for name in ('compress1_query', 'norm_compress1_k.weight', 'rel_pos_age1'):
        half = {k: v for k, v in state.items() if not k.endswith(f'0.attn.{name}')}
        assert len(half) == len(state) - 1
        with pytest.raises(ValueError, match=f'only in the model, namely .*{name}'):
            convert_state(half, state)


def test_the_type_of_a_level_may_change():
    """Grids have relative positions of their own, k-means has them by age."""
    kmeans = [dict(type='kmeans', ages=level['ages'], tokens=2) for level in LONG]
    kept, pooled = (state_of(classifier_cfg(memory_levels=s)) for s in (kmeans, LONG))
    state, report = convert_state(kept, pooled)
    assert len(report.initial) == 2 * (6 + 3 + 5) and len(report.left_out) == 2
    told = str(report)
    assert "14: the checkpoint's memory has no learned compression; train" not in told
    assert "22: the checkpoint's memory has no learned compression; train" in told
    assert "6: the checkpoint's memory has relative positions by age, not on" in told
    assert "2: the model's level of memory has relative positions on a grid" in told
    assert set(state) | set(report.initial) == set(pooled)
    state, report = convert_state(pooled, kept)
    told = str(report)
    assert "22: the model's level of memory keeps clips without parameters" in told
    assert "6: the model's level of memory has relative positions by age" in told
    assert "2: the checkpoint's memory has relative positions on a grid, not" in told
    assert set(state) | set(report.initial) == set(kept)
    # A part of the compression, all of it, or all positions are missing.
    for missing in ('norm_compress_k.weight', '.*compress_.*', 'rel_pos_mem_.'):
        half = {
            k: v for k, v in pooled.items() if not re.search(rf'0.attn.{missing}', k)
        }
        with pytest.raises(
            ValueError, match='only in the model, namely backbone.blocks.0'
        ):
            convert_state(half, pooled)


def test_schedules_of_other_lengths():
    cfgs = [
        classifier_cfg(memory_levels=[*LONG[:1], dict(LONG[1], ages=range(5, last))])
        for last in (8, 12)
    ]
    short, long = map(state_of, cfgs)
    name = 'backbone.blocks.0.attn.rel_pos_age1'
    longer, report = convert_state(short, long)
    assert longer[name][:3].equal(short[name])
    assert longer[name][3:].equal(short[name][-1:].expand(4, -1))
    assert report.changed[name] == '3 -> 7 ages, newest first, the oldest repeated'
    assert convert_state(long, short)[0][name].equal(long[name][:3])


def test_actors_levels_start_as_if_all_clips_were_alike():
    source = state_of(detector_cfg())
    cfg = detector_cfg()
    cfg['roi_head']['shared_head']['memory_levels'] = [
        dict(type='keep', ages=range(1, 5), tokens=4)
    ]
    state, report = convert_state(source, state_of(cfg))
    name = 'roi_head.shared_head.blocks.0.rel_pos_age0'
    assert 'no such level' in report.initial[name] and name not in state
    assert state.keys() == source.keys()


# --------------------------------------------------------------------------- bad input


def saved(content, folder: Path, name: str = 'source.pth') -> Path:
    torch.save(content, folder / name)
    return folder / name


class Evil:
    def __reduce__(self):
        return os.mkdir, ('/tmp/memvit_mm_evil',)


def test_bad_sources_are_refused_with_one_sentence(tmp_path):
    good = published(build(detector_cfg(**ALL_LAYERS)))
    whole = saved(dict(model_state=good, cfg=''), tmp_path).read_bytes()
    incomplete = {k: v for k, v in good.items() if k != 'blocks.2.attn.q.weight'}
    half = {**good, 'head.projection.extra': torch.zeros(1)}
    sources = dict(
        missing=None,
        truncated=whole[: len(whole) // 2],
        text=b'no checkpoint at all, ' * 10,
        empty_file=b'',
        code=dict(model_state=good, cfg=Evil()),
        empty=dict(model_state={}, cfg=''),
        plain_tensor=torch.zeros(3),
        not_tensors=dict(state_dict=dict(good, epoch=3)),
        resnet={'state_dict': {'backbone.conv1.weight': torch.zeros(1)}},
        incomplete=dict(model_state=incomplete),
        gap=dict(model_state={k: v for k, v in good.items() if 'blocks.1.' not in k}),
        half=dict(model_state=half),
    )
    expected = dict(
        missing='There is no checkpoint file ',
        truncated='no readable checkpoint .damaged, incomplete',
        text='no readable checkpoint',
        empty_file='no readable checkpoint',
        code='holds more than weights .* could run code',
        empty='holds no weights: its state is empty',
        plain_tensor='holds a Tensor, no checkpoint',
        not_tensors='is damaged: epoch is a int, no tensor',
        resnet='belong to none of the models that can be converted',
        incomplete='is incomplete: blocks.2.attn.q.weight missing; fetch',
        gap='is incomplete: blocks.1.attn.k.bias, .* missing; fetch',
        half='1 weights .* only in the model, namely head.projection.extra: the',
    )
    for name, content in sources.items():
        path = tmp_path / f'{name}.pth'
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        message = expected[name].replace('.damaged', '.it is damaged')
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            convert_checkpoint(path, tmp_path / 'dst.pth')
        assert str(path) in str(error.value) and '\n' not in str(error.value)
        assert not (tmp_path / 'dst.pth').exists(), name
    assert not os.path.exists('/tmp/memvit_mm_evil')
    assert not list(tmp_path.glob('.*'))


def test_another_depth_width_or_attention_is_refused(tmp_path):
    deep = dict(ARCH, num_layers=5)
    wide = dict(ARCH, embed_dims=16)
    source = saved(dict(model_state=published(build(classifier_cfg()))), tmp_path)
    for cfg, message in (
        (
            classifier_cfg(arch=deep),
            r'the checkpoint has 4 layers that begin with 8 channels, .*model 5 layers '
            r'that begin with 8: use the config .* .model.backbone.arch.',
        ),
        (dict(classifier_cfg(arch=wide)), 'with 8 channels, .* 4 layers .* with 16'),
        (
            classifier_cfg(pool_first=False),
            'pools, then projects .MeMViT.*model.backbone.pool_first=True',
        ),
        (
            classifier_cfg(pool_kernel=(3, 5, 5)),
            '12 weights have another shape than in the model: .* must have the s',
        ),
        (
            dict(type='Recognizer3D', backbone=dict(type='ResNet3d', depth=18)),
            'has no MeMViT, MViT or MemoryViT backbone',
        ),
    ):
        if 'arch' in cfg['backbone'] and cfg['backbone']['arch'] is wide:
            cfg['cls_head']['in_channels'] = 64
        config = config_of(cfg, tmp_path)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, tmp_path / 'dst.pth', config)
    with pytest.raises(FileNotFoundError, match='There is no config file nowhere.py'):
        convert_checkpoint(source, tmp_path / 'dst.pth', 'nowhere.py')
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ValueError, match="empty.py has no 'model'"):
        convert_checkpoint(source, tmp_path / 'dst.pth', tmp_path / 'empty.py')
    assert not (tmp_path / 'dst.pth').exists()


def test_weights_that_nothing_explains_are_all_listed():
    source = published(build(detector_cfg(**ALL_LAYERS)))
    target = state_of(detector_cfg())
    for layer in (0, 2):
        del source[f'blocks.{layer}.attn.norm_compress_v.bias']
    source['blocks.1.attn.gate'] = source['pos_class'] = torch.zeros(1)
    del source['head.projection.bias']
    with pytest.raises(ValueError, match='5 weights are only in the') as error:
        convert_state(source, target)
    names = 'blocks.1.attn.gate, pos_class, backbone.blocks.{0,2}.attn.norm_compress_v'
    assert names in str(error.value)
    assert 'roi_head.bbox_head.fc_cls.bias (of the model)' in str(error.value)


def test_every_name_of_our_blocks_is_in_the_tables():
    for pool_first in (True, False):
        for name in build(classifier_cfg(pool_first=pool_first)).state_dict():
            match = re.fullmatch(r'backbone\.blocks\.\d+\.(.*)', name)
            assert match is None or re.fullmatch(f'{BLOCK}|{MEMORY}', match[1])


def test_names_by_layer():
    assert by_layer(['blocks.0.a', 'b', 'blocks.2.a', 'x.blocks.10.a']) == [
        'blocks.{0,2}.a',
        'b',
        'x.blocks.10.a',
    ]


# --------------------------------------------------------------------------- writing


def test_an_existing_destination_is_kept(tmp_path):
    source = saved(dict(model_state=published(build(classifier_cfg()))), tmp_path)
    dst = tmp_path / 'dst.pth'
    dst.write_bytes(b'precious')
    with pytest.raises(ValueError, match='dst.pth exists and was kept: choose another'):
        convert_checkpoint(source, dst)
    assert dst.read_bytes() == b'precious'
    # Also if the conversion fails.
    with pytest.raises(ValueError, match='pool_first'):
        config = config_of(classifier_cfg(pool_first=False), tmp_path)
        convert_checkpoint(source, dst, config, overwrite=True)
    assert dst.read_bytes() == b'precious'
    convert_checkpoint(source, dst, overwrite=True)
    assert recognize(read_checkpoint(dst)[0]) is Kind.OURS
    for destination, message in (
        (source, 'is the source itself'),
        (tmp_path, 'is a folder: name a file in it'),
        (tmp_path / 'none' / 'dst.pth', 'There is no folder .*none for dst.pth'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            convert_checkpoint(source, destination, overwrite=True)


@pytest.mark.parametrize('limit', [0, 1000, 100_000])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    """A limit on the size of files stands for a disk that runs full."""
    source = saved(dict(model_state=published(build(classifier_cfg()))), tmp_path)
    dst = tmp_path / 'dst.pth'
    dst.write_bytes(b'precious')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ValueError, match='dst.pth cannot be written .* make room'):
            convert_checkpoint(source, dst, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert dst.read_bytes() == b'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['dst.pth', 'source.pth']


def test_what_is_written_is_weights_alone(tmp_path):
    model = build(classifier_cfg())
    # As DistributedDataParallel names them, views of one large tensor.
    large = torch.zeros(10_000_000)
    state = {f'module.{n}': v for n, v in published(model).items()}
    state['module.cls_token'] = large[:8].view(1, 1, 8)
    source = saved(dict(model_state=state, optimizer_state={}, epoch=3), tmp_path)
    dst = tmp_path / 'dst.pth'
    convert_checkpoint(source, dst, config_of(classifier_cfg(), tmp_path))
    assert dst.stat().st_size < 1e6 < source.stat().st_size
    content = torch.load(dst, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['converted_from'] == 'source.pth'
    # With the usual rights, not those of a temporary file.
    assert dst.stat().st_mode == source.stat().st_mode


# ------------------------------------------------------------------------- being used


def test_load_from_pretrained_and_resuming_from_our_own(tmp_path):
    model = build(classifier_cfg(**ALL_LAYERS))
    source = saved(dict(model_state=published(model), cfg=''), tmp_path)
    dst = tmp_path / 'dst.pth'
    convert_checkpoint(source, dst, config_of(classifier_cfg(), tmp_path))
    loaded = build(classifier_cfg())
    load_checkpoint(loaded, str(dst), map_location='cpu', strict=True)
    init_cfg = dict(type='Pretrained', checkpoint=str(dst), prefix='backbone.')
    backbone = build(backbone_cfg(init_cfg=init_cfg))
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert value.equal(model.state_dict()[f'backbone.{name}'])
    # Once more, from our own.
    again = tmp_path / 'again.pth'
    report = convert_checkpoint(dst, again, config_of(classifier_cfg(), tmp_path))
    assert report.kind is Kind.OURS
    assert all(
        value.equal(loaded.state_dict()[name])
        for name, value in read_checkpoint(again)[0].items()
    )


def run_tool(name: str, *args: str) -> None:
    """Run a tool as from the command line, without another Python."""
    tool = get_tool_path(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *map(str, args)])
        patch.syspath_prepend(os.path.dirname(tool))
        runpy.run_path(tool, run_name='__main__')


def test_the_command(tmp_path, capsys):
    source = saved(
        dict(model_state=published(build(detector_cfg(**ALL_LAYERS)))), tmp_path
    )
    dst, config = tmp_path / 'dst.pth', config_of(detector_cfg(), tmp_path)
    run_tool('convert_checkpoint.py', source, dst, '--config', config)
    out = capsys.readouterr().out
    assert 'Recognized: published MeMViT for AVA.' in out
    assert f'Written: {dst}' in out
    with pytest.raises(SystemExit, match='1'):
        run_tool('convert_checkpoint.py', source, dst)
    assert capsys.readouterr().err.startswith(
        f'Error: {dst} exists and was kept: choose another name, or replace '
        'it with overwrite=True (--overwrite).'
    )
    run_tool('convert_checkpoint.py', source, dst, '--overwrite')
    assert 'Not checked against a model' in capsys.readouterr().out


def test_memory_on_mmaction2s_weights_trains(tmp_path):
    """`mvitv2_memory_ava.py`, made small."""
    cfg = Config.fromfile(get_config_path('mvitv2_memory_ava.py'))
    cfg.model.backbone.update(drop_path_rate=0.0, **backbone_cfg(pool_first=False))
    cfg.model.roi_head.bbox_roi_extractor.featmap_stride = 16
    cfg.model.roi_head.shared_head.update(in_channels=DIMS, num_heads=4)
    cfg.model.roi_head.bbox_head.in_channels = DIMS
    mvit = dict(
        type='Recognizer3D',
        backbone=dict(backbone_cfg(), type='MViT'),
        cls_head=dict(type='MViTHead', num_classes=7, in_channels=DIMS),
    )
    source = saved(dict(state_dict=state_of(mvit), meta=dict()), tmp_path)
    convert_checkpoint(source, tmp_path / 'dst.pth', cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    load_checkpoint(model, str(tmp_path / 'dst.pth'), map_location='cpu')
    model.train()
    for time in range(3):
        model.zero_grad()
        loss = model.loss(torch.randn(1, 3, 8, 32, 32), [train_sample(time)])
        loss['loss_action_cls'].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    compress = [p for n, p in model.named_parameters() if 'compress' in n]
    assert compress and all(p.grad.norm() > 0 for p in compress)


def train_sample(time: int) -> ActionDataSample:
    boxes = torch.tensor([[2.0, 2.0, 20.0, 30.0]])
    labels = torch.zeros(1, 81)
    labels[0, 5] = 1
    sample = ActionDataSample()
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    sample.proposals = InstanceData(bboxes=boxes.clone())
    sample.set_metainfo(dict(video_id='a', timestamp=time, img_shape=(32, 32)))
    return sample


# -------------------------------------------------------------------------- full size


@pytest.fixture(scope='module')
def random_published() -> dict:
    """Random values of the names and shapes of the published MeMViT-16 for AVA."""
    cfg = Config.fromfile(get_config_path('memvit_ava.py'))
    init_default_scope('mmaction')
    cfg.model.backbone.memory_layers = range(16)
    state = published(MODELS.build(cfg.model))
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        value.normal_(std=0.02, generator=generator)
    return state


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    """Two short demo videos, as videos and as frames."""
    folder = tmp_path_factory.mktemp('demo') / 'set'
    settings = DemoSettings(num_train=1, num_val=1, seconds=17)
    make_demo_dataset(folder, settings, rawframes=True, workers=1)
    return folder


def test_full_size_ava_through_the_test_tool(random_published, demo, tmp_path):
    config, dst = get_config_path('memvit_ava.py'), tmp_path / 'ava.pth'
    source = saved(dict(model_state=random_published, cfg=''), tmp_path)
    convert_checkpoint(source, dst, config)
    notes = f'{demo}/annotations'
    loader, metric = 'test_dataloader', 'test_evaluator'
    options = {
        f'{loader}.num_workers': 0,
        f'{loader}.persistent_workers': False,
        f'{loader}.dataset.ann_file': f'{notes}/val.csv',
        f'{loader}.dataset.proposal_file': f'{notes}/proposals_val.pkl',
        f'{loader}.dataset.label_file': f'{notes}/action_list.pbtxt',
        f'{loader}.dataset.exclude_file': None,
        f'{loader}.dataset.data_prefix.img': f'{demo}/rawframes',
        f'{loader}.dataset.fps': 12,
        f'{loader}.dataset.indices': 2,
        f'{metric}.ann_file': f'{notes}/val.csv',
        f'{metric}.label_file': f'{notes}/action_list.pbtxt',
        f'{metric}.exclude_file': None,
    }
    options = [f'{key}={value}' for key, value in options.items()]
    work = ['--work-dir', tmp_path / 'work', '--dump', tmp_path / 'out.pkl']
    run_tool('test.py', config, dst, *work, '--cfg-options', *options)
    assert (tmp_path / 'out.pkl').exists()
    (metrics,) = (tmp_path / 'work').glob('*/*.json')
    assert 'mAP/overall' in metrics.read_text()


def test_full_size_kinetics_through_inference(random_published, demo, tmp_path):
    from mmaction.apis import inference_recognizer, init_recognizer

    config, dst = get_config_path('memvit_16_k400.py'), tmp_path / 'k400.pth'
    head = dict(weight=torch.randn(400, 768), bias=torch.randn(400))
    state = {
        name: value
        for name, value in random_published.items()
        if not name.startswith(('box_blocks.', 'head.'))
    }
    state.update({f'head.projection.{name}': value for name, value in head.items()})
    source = saved(dict(model_state=state, cfg='', epoch=200), tmp_path)
    report = convert_checkpoint(source, dst, config)
    assert not report.initial and not report.changed
    # The published checkpoint for Kinetics may have memory weights or none.
    assert all(re.search(MEMORY, name) for name in report.left_out)
    model = init_recognizer(config, str(dst), device='cpu')
    assert model.backbone.norm3.weight.equal(state['norm.weight'])
    assert model.cls_head.fc_cls.weight.equal(head['weight'])
    # One clip instead of five, and smaller: the same path in less time.
    steps = model.cfg.test_pipeline
    steps[1].num_clips, steps[3].scale, steps[4].crop_size = 1, (-1, 96), 96
    video = str(next((demo / 'videos').iterdir()))
    scores = inference_recognizer(model, video).pred_score
    assert scores.shape == (400,) and scores.sum() == pytest.approx(1, abs=1e-4)
