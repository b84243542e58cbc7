"""tools/analysis_tools/benchmark.py and what it measures, on small models."""

import inspect
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from fork_server import python
from measure_growth import with_length
from measure_parts import measure_parts, profile_operators
from mmaction.registry import MODELS
from mmengine.config import Config

from memvit_mm.benchmark import (
    Case,
    Comparison,
    Result,
    Table,
    full_memory,
    receptive_field,
)
from memvit_mm.benchmark.compare import (
    BASELINE,
    COUNTERPARTS,
    OURS,
    PUBLISHED,
    SAVING,
    THEIRS,
    backbones,
)
from memvit_mm.benchmark.complexity import Cost
from memvit_mm.benchmark.measure import _ask, _run, _start, build_backbone, peak_bytes
from memvit_mm.paths import get_tool_path

BACKBONE = dict(
    type='MeMViT',
    arch=dict(embed_dims=8, num_layers=4, num_heads=1, downscale_indices=[1, 3]),
    spatial_size=32,
    temporal_size=8,
    adaptive_kv_stride=(1, 4, 4),
)
HEAD = dict(type='MViTHead', num_classes=3, in_channels=32)
VIT = dict(
    type='MemoryViT',
    img_size=32,
    num_frames=8,
    embed_dims=32,
    depth=4,
    num_heads=2,
    memory_levels=[dict(type='kmeans', ages=(1, 2), tokens=4)],
)
THEIR_TYPE = {'MeMViT': 'MViT', 'MemoryViT': 'VisionTransformer'}
both_backbones = pytest.mark.parametrize('base', [BACKBONE, VIT], ids=THEIR_TYPE)


def config(base: dict = BACKBONE, **backbone) -> dict:
    head = HEAD if base is BACKBONE else dict(HEAD, type='TimeSformerHead')
    return dict(
        model=dict(
            type='MemoryRecognizer3D',
            backbone=dict(base, **backbone),
            cls_head=head,
        )
    )


def write_config(folder, base: dict = BACKBONE):
    path = folder / 'small.py'
    model = config(base)['model']
    path.write_text(f"default_scope = 'mmaction'\nmodel = {model!r}\n")
    return path


@pytest.fixture
def config_file(tmp_path):
    return write_config(tmp_path)


def tool(*args, **kwargs) -> subprocess.CompletedProcess:
    env = dict(os.environ, OMP_NUM_THREADS='1')
    command = [python(), str(get_tool_path('benchmark.py')), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, **kwargs)


def test_one_command_against_mmaction2(tmp_path):
    base, file = VIT, tmp_path / 'found.json'
    done = tool(
        write_config(tmp_path, base),
        *('--repeats', 2, '--only', 'MMAction2', 'memory', '--training-batch'),
        *('--threads', 1, '--json', file),
    )
    assert done.returncode == 0, done.stderr
    assert f"MMAction2's {THEIR_TYPE[base['type']]}" in done.stdout
    assert f'{base["type"]}, memory full' in done.stdout
    assert 'forward, no gradient' in done.stdout
    found = json.loads(file.read_text())
    assert found['environment']['torch'] == torch.__version__
    assert found['environment']['dtype'] == 'float32'
    table = found['compare']['batch 1']
    assert set(table['forward']) == {THEIRS, OURS} and not table['training']
    for result in table['forward'].values():
        assert len(result['seconds']) == 2 and min(result['seconds']) > 0
        assert result['peak_bytes'] > 2**26
    medians = [table['forward'][name]['median'] for name in (OURS, THEIRS)]
    assert table['ratios']['forward against MMAction2'] == medians[0] / medians[1]


def test_ctrl_c_ends_it_at_once(config_file):
    command = [python(), '-u', str(get_tool_path('benchmark.py')), str(config_file)]
    process = subprocess.Popen(
        [*command, '--repeats', '100000'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # What the figures depend on: measuring begins.
    assert any('threads' in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == 'Interrupted.' and 'Traceback' not in error


@pytest.mark.parametrize(
    'args, message',
    [
        (['missing.py'], 'There is no config file missing.py'),
        (['{config}', '--repeats', '0'], '--repeats must be at least 1, got 0'),
        (
            ['{config}', '--forward-batch', '0'],
            '--training-batch must be at least 1, got 0',
        ),
        (
            ['{config}', '--forward-batch', '--training-batch'],
            'compare has nothing to measure: give --forward-batch',
        ),
        (
            ['{config}', '--json', 'missing/found.json'],
            '--json missing/found.json: there is no folder',
        ),
        (['{config}', '--device', 'cuda'], 'finds no GPU here: use --device cpu'),
        (
            ['{config}', '--cfg-options', 'model.backbone.type=MViT'],
            "the backbone is of type 'MViT': only configs of MeMViT and MemoryViT can",
        ),
        (
            ['{vit}', '--only', 'published'],
            'only=published (--only): there is no such case for a MemoryViT; choose '
            'from MMAction2, memory, no-memory, with-cp.',
        ),
        (
            ['{config}', '--only', 'memory']
            + ['--cfg-options', 'model.backbone.memory_layers=()'],
            'there is no such case for a MeMViT; choose from MMAction2, no-memory.',
        ),
    ],
)
def test_options_that_cannot_be(args, message, config_file, monkeypatch, capsys):
    if 'cuda' in args and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    import runpy

    files = dict(config=config_file, vit=config_file)
    if '{vit}' in args:
        files.update(vit=write_config(config_file.parent, VIT))
    args = [arg.format(**files) for arg in args]
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
    monkeypatch.syspath_prepend(os.path.dirname(get_tool_path('benchmark.py')))
    with pytest.raises(SystemExit):
        runpy.run_path(str(get_tool_path('benchmark.py')), run_name='__main__')
    assert message in capsys.readouterr().err


@both_backbones
def test_a_training_step(base):
    case = Case('ours', base, training=True, batch=2)
    # As in a process of its own.
    with ThreadPoolExecutor(1) as process:
        _ask(process, case, _start, case)
        wall, cpu = _ask(process, case, _run)
    assert wall > 0 and cpu > 0
    result = Result(case, [2.0], [2.0])
    assert result.clips_per_second == 1.0 and result.to_dict()['median'] == 2.0


def test_a_case_that_fails_says_why():
    small = Case('too small', BACKBONE, size=(8, 0, 32))
    sentence = r'^too small: ValueError: a clip of size \(8, 0, 32\)'
    with ThreadPoolExecutor(1) as process, pytest.raises(ValueError, match=sentence):
        _ask(process, small, _start, small)


def test_a_case_that_is_killed():
    case = Case('ours', BACKBONE)
    sentence = '^ours: its process was killed, probably for lack of memory: use a small'
    with ProcessPoolExecutor(1) as process, pytest.raises(ValueError, match=sentence):
        _ask(process, case, os._exit, 9)


def test_backbones_that_are_compared():
    chosen = backbones(dict(BACKBONE, memory_gap=3, drop_path_rate=0.1))
    assert chosen[THEIRS]['type'] == 'MViT' and 'memory_gap' not in chosen[THEIRS]
    assert chosen[THEIRS]['drop_path_rate'] == 0.1
    assert chosen[BASELINE] == dict(chosen[OURS], memory_layers=())
    assert chosen[SAVING] == dict(chosen[OURS], with_cp=True)
    assert PUBLISHED not in chosen
    levels = [dict(type='pool', ages=(1, 2), tokens=2)]
    chosen = backbones(dict(BACKBONE, memory_levels=levels))
    assert chosen[PUBLISHED] == dict(chosen[OURS], memory_levels=None)
    chosen = backbones(dict(VIT, reading='joint', mlp_ratio=3))
    assert chosen[THEIRS] == dict(
        type='VisionTransformer',
        mlp_ratio=3,
        **{k: VIT[k] for k in VIT if k not in ('type', 'memory_levels')},
    )
    assert set(chosen) == {THEIRS, OURS, BASELINE, SAVING}


@both_backbones
def test_every_argument_that_both_have_is_compared(base):
    theirs, shared = COUNTERPARTS[base['type']]
    ours, theirs = (
        set(inspect.signature(MODELS.get(name).__init__).parameters)
        for name in (base['type'], theirs)
    )
    ignored = {'self', 'kwargs', 'pretrained', 'pretrained_type', 'init_cfg'}
    assert (ours & theirs) - ignored == set(shared.split())


def test_ratios():
    def result(name, seconds, peak):
        return Result(Case(name, BACKBONE), seconds, seconds, peak)

    forward = {
        THEIRS: result(THEIRS, [2.0, 9.0, 2.0], 10),
        OURS: result(OURS, [1.0, 1.0, 8.0], 5),
        BASELINE: result(BASELINE, [0.5, 0.5, 0.5], 5),
    }
    costs = {OURS: Cost(1, 21, 30), BASELINE: Cost(1, 20), PUBLISHED: Cost(1, 20, 20)}
    ratios = Comparison(forward, {}, costs).ratios()
    assert ratios['forward against MMAction2'] == 0.5
    assert ratios['forward peak memory against MMAction2'] == 0.5
    assert ratios['forward, memory on / off'] == 2.0
    assert ratios['multiply-adds, memory on / off'] == 1.05
    assert ratios['kept of a stream against two clips'] == 1.5


@both_backbones
def test_a_full_memory_is_full(base):
    backbone = build_backbone(base)
    memory = full_memory(backbone, torch.zeros(2, 3, 8, 32, 32))
    assert all(past.valid.all() for (past,) in memory.values())
    assert all(past.recent.key.std() > 0.5 for (past,) in memory.values())


def test_streams_cost_the_same_along_their_length():
    found = with_length(config(), Case('template', BACKBONE), clips=8, parts=4)
    assert list(found.rows) == ['0 to 1', '2 to 3', '4 to 5', '6 to 7']
    assert all(len(row.seconds) == 2 for row in found.rows.values())
    assert '6 to 7' in str(found)
    assert peak_bytes('cpu') >= found.rows['6 to 7'].peak_bytes


def test_a_stream_shorter_than_its_parts():
    case = Case('template', BACKBONE, dtype='bfloat16')
    found = with_length(config(), case, clips=2, parts=4)
    assert list(found.rows) == ['0 to 0', '1 to 1']


def test_a_table():
    cases = [Case('template', BACKBONE, batch=batch) for batch in (1, 4)]
    results = [Result(case, [1.0], [1.0], 2**20) for case in cases]
    lines = str(Table('streams', dict(zip(('one', 'four'), results)))).splitlines()
    assert lines[2].split() == 'four 0.250 0.25 0.250 0.25 4.00 1 1.00'.split()


@pytest.mark.parametrize('pool_first', [True, False])
def test_parts_against_the_plain_way(pool_first):
    cfg = dict(BACKBONE, pool_first=pool_first)
    found = measure_parts(cfg, Case('template', cfg), repeats=1)
    names = [part.name for part in found.parts]
    assert 'pooling, channels last' in names and len(names) == 5
    assert set(found.parts[0].seconds) == {'forward', 'training'}
    assert found.to_dict()['parts'][0]['forward']['ratio'] > 0
    assert 'attention without scores' in str(found)


def test_products_are_told_from_the_rest():
    backbone = build_backbone(BACKBONE).eval()
    x = torch.zeros(1, 3, 8, 32, 32)

    def run() -> None:
        with torch.no_grad():
            backbone(x)

    found = profile_operators(run)
    assert found['ratio'] == found['seconds'] / found['products'] > 1
    assert 0 < found['attention'] < found['products']
    assert found['slowest'][0][1] == max(s for _, s, _ in found['slowest'])


@pytest.mark.parametrize(
    'settings, reach',
    [
        (dict(), [0, 2, 4, 6, 8]),
        (dict(memory_gap=3, memory_length=1), [0, 3, 6]),
        (dict(memory_layers=(2,)), [0, 2, 4]),
        (
            dict(
                memory_layers=(0,),
                memory_levels=[
                    dict(type='pool', ages=(2,), stride=(2, 2, 2)),
                    dict(type='pool', ages=(1, 5, 6, 7), tokens=2),
                ],
            ),
            [0, 1, 2, 5, 6, 7],
        ),
        (VIT, [0, 1, 2, 3, 4]),
        (dict(VIT, reading='joint', memory_layers=(1,)), [0, 1, 2]),
    ],
)
def test_how_far_back_features_reach(settings, reach):
    base = VIT if 'type' in settings else BACKBONE
    field = receptive_field(Config(config(base, **settings)))
    assert field.features == reach and field.actors is None
    assert field.span(reach) is None


def test_the_actor_head_reaches_further_and_spans_are_in_seconds():
    actors = dict(type='ActorMemoryHead', in_channels=32, num_heads=4, max_actors=6)
    detector = dict(
        type='MemoryFastRCNN',
        _scope_='mmdet',
        backbone=dict(BACKBONE, output_cls_token=False),
        roi_head=dict(
            type='MemoryAVARoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor3D', output_size=7, featmap_stride=16
            ),
            shared_head=actors,
            bbox_head=dict(
                type='BBoxHeadAVA',
                background_class=True,
                in_channels=32,
                num_classes=4,
                topk=(2,),
            ),
        ),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', format_shape='NCTHW'
        ),
        train_cfg=None,
        test_cfg=dict(rcnn=None),
    )
    pipeline = [
        dict(type='SampleClipFrames', clip_len=8, frame_interval=3, test_mode=True),
        dict(type='RawFrameDecode'),
        dict(type='PackActionInputs'),
    ]
    field = receptive_field(dict(model=detector, test_pipeline=pipeline))
    assert field.features == [0, 2, 4, 6, 8]
    assert field.actors == [0, 2, 4, 6, 8, 10, 12]
    assert field.clip_seconds == pytest.approx(0.8) and field.stride_seconds == 1.0
    assert field.span(field.actors) == pytest.approx(12.8)
    assert [level[:2] for level in field.levels] == [
        ('features', (2, 4)),
        ('people', (2, 4)),
    ]
    assert 'people            2, 4                  6' in str(field)
    assert str(field).endswith('2.0 to 4.0')
    assert '12.8 s, 16.0 x the 0.8 s of the clip itself' in str(field)


def test_without_memory_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match='the model has no memory'):
        receptive_field(config(memory_layers=()))
