"""One ONNX file that remembers: equal to PyTorch, without PyTorch, and in streams."""

import copy
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData

sys.path.insert(0, str(Path(__file__).resolve().parent / 'apis'))
sys.path.insert(0, str(Path(__file__).resolve().parent / 'models'))

import small_models
import stream_data as data
from parity import FILES, Parity

from memvit_mm.apis import ComparingPredictor, MultiStream, VideoStream
from memvit_mm.deploy import OnnxModel
from memvit_mm.deploy.export import export_onnx
from memvit_mm.deploy.graph import Graph
from memvit_mm.deploy.registers import registers_of
from memvit_mm.models import ClipMemory, Stream
from memvit_mm.models.checkpoints.checkpoint import convert_checkpoint
from memvit_mm.models.memory.layers import horizon_of
from memvit_mm.paths import get_tool_path

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

pytestmark = [
    pytest.mark.skipif(
        tuple(int(n) for n in torch.__version__.split('.')[:2]) < (2, 8),
        reason='exporting needs torch 2.8',
    ),
    pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning'),
]


def options():
    """One thread, as PyTorch in the tests."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def load(path) -> OnnxModel:
    return OnnxModel(path, options=options())


class Exported:
    """A model in PyTorch and in ONNX."""

    def __init__(self, model, folder: Path, size, **options) -> None:
        self.torch, self.path = model, folder / 'model.onnx'
        self.about = export_onnx(model, str(self.path), size, **options)
        self.onnx = load(self.path)

    @property
    def detects(self) -> bool:
        return self.onnx.detects

    def in_torch(self, streams, time, clips, boxes) -> list:
        """Scores of ``predict``."""
        samples = []
        for row, stream in enumerate(streams):
            sample = ActionDataSample()
            size = self.onnx.clip_shape[2:]
            sample.set_metainfo(dict(video_id=stream, timestamp=time, img_shape=size))
            if self.detects:
                sample.proposals = InstanceData(bboxes=torch.from_numpy(boxes[row]))
            samples.append(sample)
        clips = torch.from_numpy(np.stack(clips))
        clips = clips if self.detects else clips[:, None]
        with torch.no_grad():
            found = self.torch(clips, samples, mode='predict')
        if self.detects:
            return [sample.pred_instances.scores.numpy() for sample in found]
        return [sample.pred_score.numpy() for sample in found]


def model_of(parity: Parity, folder: Path) -> torch.nn.Module:
    """The model of a parity file, its weights through the converter."""
    config, source = folder / 'config.py', folder / 'published.pyth'
    config.write_text(f"default_scope = 'mmaction'\nmodel = {parity.model_cfg()!r}\n")
    torch.save(parity.published(), source)
    convert_checkpoint(source, folder / 'ours.pth', config)
    init_default_scope('mmaction')
    model = MODELS.build(ConfigDict(parity.model_cfg())).eval()
    load_checkpoint(model, str(folder / 'ours.pth'), 'cpu', strict=True)
    if not hasattr(model, 'roi_head'):
        model.cls_head.average_clips = 'prob'
    return model


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Models of parity files, and one that takes several streams; each made once."""
    made = {}

    def make(name: str, folder: Path) -> Exported:
        if name == 'several streams':
            arch = dict(embed_dims=small_models.DIMS, num_layers=1, num_heads=1)
            arch['downscale_indices'] = []
            backbone = small_models.backbone_cfg(arch=arch, output_cls_token=False)
            model = small_models.detector(backbone)
            return Exported(model, folder, (8, 32, 32), dynamic_batch=True)
        if name == 'absolute positions':
            backbone = small_models.backbone_cfg(
                use_abs_pos_embed=True,
                rel_pos_embed=False,
                residual_pooling=False,
                dim_mul_in_attention=False,
                pool_first=False,
            )
            # Of another size than the positions are learned for.
            model = small_models.recognizer(backbone)
            return Exported(model, folder, (8, 32, 48))
        if name == 'people apart':
            model = small_models.vit_detector(actors=None)
            return Exported(model, folder, (8, 32, 32), dynamic_batch=True)
        parity = Parity(name)
        size = (parity.meta['frames'], *parity.meta['input_hw'])
        return Exported(model_of(parity, folder), folder, size)

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp(name.replace(' ', '_')))
        model = made[name]
        model.onnx.reset()
        model.torch.reset_memory()
        return model

    return get


@pytest.mark.parametrize('name', FILES)
def test_published_numbers_at_every_step(exported, name):
    model, parity = exported(name), Parity(name)
    meta = parity.meta
    for step, clips in enumerate(parity.clips()):
        streams = [str(video) for video in meta['videos'][step]]
        boxes = None
        if model.detects:
            boxes = [rows.numpy() for rows in parity.boxes(step)]
        times = [step] * len(streams)
        found = model.onnx.run(streams, times, list(clips.numpy()), boxes)
        if model.detects:
            # The published head has no reserved class.
            expected = parity[f'output_{step}'].numpy()
            found = np.concatenate(found)[:, 1:]
        elif meta.get('frame_level'):
            # All time steps of the published heads; ours answers with the last.
            expected = np.concatenate(
                [
                    parity[f'output_{step}_{head}'].reshape(len(clips), -1, size)[:, -1]
                    for head, size in enumerate(meta['classes'])
                ],
                axis=1,
            )
        else:
            expected = parity[f'output_{step}'].numpy().reshape(len(clips), -1)
        np.testing.assert_allclose(np.stack(found), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize(
    'name',
    [
        'det_gap2_nonsquare',
        'cls_gap2_batch2',
        'several streams',
        'people apart',
        'absolute positions',
    ],
)
def test_equal_to_pytorch(exported, name, batch):
    model, rng = exported(name), np.random.default_rng(batch)
    shape = model.onnx.clip_shape
    crowd = [0, 40, 1, 17, 120]
    for time in range(12):
        if time == 7:
            model.torch.reset_memory('a')
            model.onnx.reset('a')
        # Two interleaved streams and, in a batch of 4, two that come and go.
        streams = ['a', 'b', f'c{time // 5}', f'd{time // 3}'][: max(batch, 2)]
        groups = [streams] if batch > 1 else [[stream] for stream in streams]
        for group in groups:
            clips = rng.standard_normal((len(group), *shape), dtype=np.float32)
            boxes = None
            if model.detects:
                counts = [crowd[(time + n) % 5] for n in range(len(group))]
                boxes = [rng.random((n, 4), dtype=np.float32) * 30 for n in counts]
                boxes = [np.hstack([b[:, :2], b[:, :2] + b[:, 2:] + 2]) for b in boxes]
            expected = model.in_torch(group, time, list(clips), boxes)
            found = model.onnx.run(group, [time] * len(group), list(clips), boxes)
            for ours, theirs in zip(found, expected):
                assert ours.shape == theirs.shape and ours.dtype == np.float32
                np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


class TestMemory:
    def test_a_batch_changes_nothing(self, exported):
        model, rng = exported('several streams').onnx, np.random.default_rng(0)
        clips = rng.standard_normal((6, 2, *model.clip_shape), dtype=np.float32)
        boxes = np.float32([[1, 2, 20, 30], [5, 5, 9, 9]])
        together = [
            model.run('ab', [n, n], list(pair), [boxes, boxes])
            for n, pair in enumerate(clips)
        ]
        model.reset()
        alone = [
            [model(name, n, one, boxes) for name, one in zip('ab', pair)]
            for n, pair in enumerate(clips)
        ]
        np.testing.assert_allclose(together, alone, atol=1e-5)
        model.reset('a')
        assert model.streams == ['b']

    def test_saved_and_loaded(self, exported):
        model, rng = exported('cls_gap2_batch2').onnx, np.random.default_rng(1)
        clips = rng.standard_normal((7, *model.clip_shape), dtype=np.float32)
        for time in range(4):
            model('a', time, clips[time])
        state = model.state_dict()
        expected = [model('a', time, clips[time]) for time in range(4, 7)]
        other = load(model.path)
        other.load_state_dict(state)
        found = [other('a', time, clips[time]) for time in range(4, 7)]
        np.testing.assert_array_equal(found, expected)
        with pytest.raises(ValueError, match=r"no 'streams': give what state_dict\(\)"):
            other.load_state_dict({})
        assert other.streams == ['a']
        (entry,) = state['streams']
        entry['memory'].popitem()
        with pytest.raises(ValueError, match='saved is of another model than .*onnx'):
            other.load_state_dict(state)

    def test_what_is_saved_is_a_copy(self, exported):
        model, rng = exported('several streams').onnx, np.random.default_rng(1)
        clips = rng.standard_normal((9, 2, *model.clip_shape), dtype=np.float32)
        nobody = [np.zeros((0, 4), dtype=np.float32)] * 2
        for time in range(4):
            model.run('ab', [time] * 2, list(clips[time]), nobody)
        state = model.state_dict()
        copied = copy.deepcopy(state)
        for time in range(4, 9):
            model.run('ab', [time] * 2, list(clips[time]), nobody)
        for entry, before in zip(state['streams'], copied['streams']):
            for name, kept in entry['memory'].items():
                np.testing.assert_array_equal(kept, before['memory'][name])

    def test_set_aside(self, exported):
        model, rng = exported('cls_gap2_batch2').onnx, np.random.default_rng(2)
        clip = rng.standard_normal(model.clip_shape, dtype=np.float32)
        first = model('a', 0, clip)
        for time in range(1, 4):
            model('a', time, clip)
        model.set_aside()
        np.testing.assert_array_equal(model('a', 4, clip), first)
        model.restore()
        assert model.snapshot()['a'].time == 3
        with pytest.raises(RuntimeError, match='call set_aside'):
            model.restore()

    def test_a_clip_that_is_not_later_begins_anew(self, exported):
        model = exported('cls_gap2_batch2').onnx
        clip = np.ones(model.clip_shape, dtype=np.float32)
        first = model('a', 5, clip)
        for time in (6, 7, 8):
            model('a', time, clip)
        with pytest.warns(UserWarning, match="of 'a' at 8 is not later than .* at 8: "):
            again = model('a', 8, clip)
        np.testing.assert_array_equal(again, first)

    def test_a_run_that_fails_leaves_no_trace(self, exported):
        model = exported('cls_gap2_batch2').onnx
        clip = np.ones(model.clip_shape, dtype=np.float32)
        with pytest.raises(ValueError, match='two clips of one stream'):
            model.run(['a', 'a'], [0, 1], [clip, clip])
        with pytest.raises(ValueError, match='resize it, or export the model with'):
            model.run(['a', 'b'], [0, 0], [clip, clip[:, 1:]])
        assert not model.streams


SCHEDULES = [
    [
        dict(type='keep', ages=(2,)),
        dict(type='kmeans', ages=(3, 5), tokens=2),
        dict(type='pool', ages=(1, 8), tokens=1),
    ],
    [
        dict(type='pool', ages=(2, 4), stride=(4, 2, 2)),
        dict(type='pool', ages=(1, 3, *range(5, 9)), tokens=2),
    ],
]


def random_schedule(rng: np.random.Generator) -> list[dict]:
    """One to three levels over some of the last eight clips."""
    kinds = [
        lambda: dict(type='pool', tokens=int(rng.integers(1, 4))),
        lambda: dict(type='pool', stride=(2, 1, 1)),
        lambda: dict(type='keep'),
        lambda: dict(type='keep', tokens=int(rng.integers(4, 60))),
        lambda: dict(type='kmeans', tokens=int(rng.integers(4, 12))),
        lambda: dict(type='coreset', tokens=int(rng.integers(4, 12))),
        lambda: dict(type='random', tokens=int(rng.integers(4, 12))),
    ]
    ages = rng.permutation(8)[: rng.integers(1, 9)] + 1
    parts = np.array_split(ages, min(len(ages), rng.integers(1, 4)))
    return [
        dict(kinds[rng.integers(len(kinds))](), ages=tuple(sorted(part.tolist())))
        for part in parts
    ]


def schedules() -> list:
    rng = np.random.default_rng(0)
    return [*SCHEDULES, *(random_schedule(rng) for _ in range(20))]


def test_registers_hold_what_the_memory_holds():
    checked = 0
    for number, levels in enumerate(schedules()):
        joint = dict(reading=('gated', 'joint')[number % 2])
        cfg = (small_models.vit_cfg, small_models.backbone_cfg)[number % 2]
        options = dict(depth=1, **joint) if cfg is small_models.vit_cfg else {}
        try:
            model = small_models.recognizer(cfg(memory_levels=levels, **options))
        except ValueError:
            # Two levels that do not follow each other.
            continue
        check_registers(model, levels)
        checked += 1
    assert checked >= 12


def check_registers(model, levels) -> None:
    """The graph, not exported, against ClipMemory."""
    clip = torch.zeros(2, 3, small_models.FRAMES, 32, 32)
    graph, memory = Graph(model, clip), ClipMemory()
    specs = model.memory_specs(clip)
    assert (
        graph.horizon == horizon_of(specs) == max(a for n in levels for a in n['ages'])
    )
    # As much is kept, to the number.
    numbers = sum(np.prod(register.shape) for register in registers_of(specs))
    assert numbers == sum(spec.kept_numbers for spec in specs.values())
    valid = torch.zeros(2, graph.horizon, dtype=torch.bool)
    contents = [torch.zeros(2, *register.shape) for register in graph.registers]
    streams = [Stream('a'), Stream('b')]
    with torch.no_grad():
        for time in range(11):
            clip = torch.stack([small_models.clip(s.video, time) for s in streams])
            if time == 4:
                # The second stream begins anew.
                memory.reset('b')
                valid[1] = False
            step = memory.step(streams, [time, time])
            past = step.read(specs, like=clip)
            features, written = model.run_backbone(clip, past)
            expected = model.cls_head(features).softmax(dim=-1)
            step.write(written)
            step.commit()
            scores, valid, *contents = graph(clip, None, None, valid, contents)
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ the tool, streams

LEVELS = [
    dict(type='kmeans', ages=(1, 3), tokens=6),
    dict(type='pool', ages=(2, 4), tokens=2),
]


@pytest.fixture(scope='module')
def kitchen(tmp_path_factory):
    """A model of verbs and nouns, its config, checkpoint and ONNX file by the tool."""
    folder = tmp_path_factory.mktemp('kitchen')
    backbone = small_models.vit_cfg(depth=1, memory_levels=LEVELS)
    model = data.epic_model(backbone=backbone)
    pipeline = data.epic_pipeline()
    cfg = dict(
        default_scope='mmaction',
        model=dict(
            type='MemoryRecognizer3D',
            backbone=backbone,
            cls_head=dict(
                type='EpicHead',
                in_channels=small_models.DIMS,
                num_verbs=4,
                num_nouns=6,
            ),
            data_preprocessor=data.PREPROCESSOR,
        ),
        test_dataloader=dict(dataset=dict(pipeline=pipeline, context_stride=1.0)),
    )
    Config(cfg).dump(folder / 'kitchen.py')
    torch.save(dict(state_dict=model.state_dict()), folder / 'kitchen.pth')
    (folder / 'verbs.txt').write_text('take\nput\nwash\ncut\n')
    (folder / 'nouns.txt').write_text('\n'.join(f'noun {n}' for n in range(6)))
    data.write_video(folder / 'kitchen.mp4', data.pictures(data.FPS * 6))
    code, said, error = run_tool(
        'export_onnx.py',
        folder / 'kitchen.py',
        folder / 'kitchen.pth',
        '--out',
        folder / 'kitchen.onnx',
        '--label-map',
        folder / 'verbs.txt',
        folder / 'nouns.txt',
    )
    assert code == 0, error
    assert said.startswith(f'Wrote {folder}/kitchen.onnx: 0.') and (
        'MB, clips [3, 8, 32, 32] (channels, frames, height, width), a memory of 4 '
        'clips in 3 tensors.' in said
    )
    return folder, model


def run_tool(name, *line):
    """A tool in this process: exit code, and what it prints."""
    path = get_tool_path(name)
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter('default')
        patch.syspath_prepend(str(Path(path).parent))
        patch.setattr(sys, 'argv', [path, *map(str, line)])
        patch.setattr(warnings, 'showwarning', warnings.showwarning)
        patch.setattr('signal.signal', lambda *_: None)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(path, run_name='__main__')
            except SystemExit as exit:
                code = exit.code
    return code, out.getvalue(), err.getvalue()


def test_metadata_says_all(kitchen):
    folder, model = kitchen
    found = load(folder / 'kitchen.onnx')
    about = found.about
    assert about['clip']['mean'] == [114.75] * 3
    assert about['clip']['shape'] == [3, 8, 32, 32]
    assert [kind['kind'] for kind in about['classes']] == ['verbs', 'nouns']
    assert about['classes'][0]['names'] == ['take', 'put', 'wash', 'cut']
    assert about['memory']['horizon'] == found.horizon == 4
    schedule = about['memory']['schedule']['layer0']
    assert [level['ages'] for level in schedule] == [[1, 3], [2, 4]]
    inputs = {node.name: node.shape for node in found.session.get_inputs()}
    for one in about['memory']['inputs']:
        assert inputs[one['name']] == [1, *one['shape']]
    assert 'horizon' not in json.dumps(about['clip']) and '[3, 8' in repr(found)


def test_streams_take_it(kitchen):
    folder, model = kitchen
    exported = load(folder / 'kitchen.onnx')
    cfg, video = str(folder / 'kitchen.py'), str(folder / 'kitchen.mp4')
    expected = list(VideoStream(model).run(video))
    stream = VideoStream(exported, cfg=cfg, name='one')
    found = list(stream.run(video))
    data.assert_same(found, expected)
    assert found[0].top_verbs(1)[0][0] in ('take', 'put', 'wash', 'cut')
    assert not exported.streams
    one, other = found[-1].data_sample, expected[-1].data_sample
    for name in ('verb_logits', 'noun_logits'):
        ours, theirs = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

    # With memory and without, and several side by side.
    compared = VideoStream(ComparingPredictor(exported, cfg))
    *_, last = compared.run(video)
    *_, theirs = VideoStream(ComparingPredictor(model)).run(video)
    data.assert_same([last.without_memory], [theirs.without_memory])
    many = list(MultiStream(exported, dict(a=video, b=video), cfg=cfg))
    for name in 'ab':
        data.assert_same([p for p in many if p.stream == name], expected)

    # Two that read in turn, and somebody who calls the model.
    first = VideoStream(exported, cfg=cfg, name='first')
    clips = first.run(video)
    some = list(itertools.islice(clips, 3))
    exported('door', 0, np.zeros(exported.clip_shape, dtype=np.uint8))
    second = VideoStream(exported, cfg=cfg, name='second')
    assert next(run := second.run(video))
    run.close()
    data.assert_same(some + list(clips), expected)
    assert 'door' in exported.streams
    other = VideoStream(exported, cfg=cfg, name='second')
    with pytest.raises(ValueError, match='Another stream of the name'):
        list(second.run(video))
    other.reset()

    # Left in the middle, saved, and gone on with elsewhere.
    stream.reset()
    some = list(itertools.islice(stream.run(video), 3))
    torch.save(stream.state_dict(), folder / 'state.pth')
    state = torch.load(folder / 'state.pth', weights_only=True)
    again = VideoStream(load(folder / 'kitchen.onnx'), cfg=cfg, name='two')
    again.load_state_dict(state)
    data.assert_same(some + list(again.run(video)), expected)
    with pytest.raises(ValueError, match='model of another kind, PyTorch or ONNX'):
        VideoStream(model).load_state_dict(state)


def test_the_streams_tool_takes_it(kitchen, tmp_path):
    folder, _ = kitchen
    line = [folder / 'kitchen.mp4', '--config', folder / 'kitchen.py']
    line += ['--device', 'cpu']
    files = {}
    for kind, option, file in (
        ('torch', '--checkpoint', 'kitchen.pth'),
        ('onnx', '--onnx', 'kitchen.onnx'),
    ):
        out = tmp_path / kind
        code, said, error = run_tool(
            'stream_video.py',
            *(*line, option, folder / file, '--json', out / 'o.jsonl'),
            *('--label-map', folder / 'verbs.txt', folder / 'nouns.txt'),
        )
        assert code == 0, error
        lines = [json.loads(one) for one in (out / 'o.jsonl').read_text().splitlines()]
        assert lines[0].pop('checkpoint') == str(folder / file)
        files[kind] = lines
    assert len(files['torch']) == len(files['onnx']) > 6
    for ours, theirs in zip(files['onnx'], files['torch']):
        assert_close(ours, theirs)


def assert_close(ours, theirs) -> None:
    """The same plain values, numbers to 1e-4."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs):
            assert_close(*pair)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-4) if theirs is not None else None)


def test_half(kitchen, tmp_path):
    folder, model = kitchen
    about = export_onnx(model, str(tmp_path / 'half.onnx'), half=True)
    assert about['clip']['dtype'] == 'float16'
    half, full = load(tmp_path / 'half.onnx'), load(folder / 'kitchen.onnx')
    assert half.path.endswith('half.onnx')
    size = [Path(one.path).stat().st_size for one in (half, full)]
    assert size[0] < 0.8 * size[1]
    rng = np.random.default_rng(0)
    for time in range(6):
        clip = rng.integers(0, 256, half.clip_shape).astype(np.uint8)
        np.testing.assert_allclose(
            half('a', time, clip), full('a', time, clip), atol=1e-2
        )


def test_runs_where_torch_is_not(kitchen, tmp_path):
    folder, _ = kitchen
    import memvit_mm

    for module in (np, ort):
        source = Path(module.__file__).parent
        (tmp_path / source.name).symlink_to(source)
        for libraries in source.parent.glob(f'{source.name}.libs'):
            (tmp_path / libraries.name).symlink_to(libraries)
    (tmp_path / 'memvit_mm').symlink_to(Path(memvit_mm.__file__).parent)
    exported = load(folder / 'kitchen.onnx')
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (4, *exported.clip_shape)).astype(np.uint8)
    np.save(tmp_path / 'clips.npy', clips)
    code = """
import sys
sys.path[:0] = [sys.argv[1]]
import numpy as np
from memvit_mm.deploy import OnnxModel
model = OnnxModel(sys.argv[2])
clips = np.load(sys.argv[1] + '/clips.npy')
np.save(sys.argv[1] + '/scores.npy', [model('a', n, c) for n, c in enumerate(clips)])
missing = []
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmaction'):
    try:
        __import__(name)
    except ModuleNotFoundError:
        missing.append(name)
assert len(missing) == 5, missing
import memvit_mm
try:
    memvit_mm.models
except ModuleNotFoundError as error:
    print(error)
"""
    # -S: no site-packages, so that only what is linked above can be imported.
    line = [sys.executable, '-IS', '-c', code, tmp_path, folder / 'kitchen.onnx']
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        'memvit_mm.models needs torch, mmengine, mmcv, mmdet, mmaction' in done.stdout
    )
    expected = [exported('a', n, clip) for n, clip in enumerate(clips)]
    np.testing.assert_allclose(np.load(tmp_path / 'scores.npy'), expected, atol=1e-6)


def test_python_in_the_docs_runs(exported, checkout, tmp_path, monkeypatch):
    shutil.copy(exported('several streams').path, tmp_path / 'demo.onnx')
    monkeypatch.chdir(tmp_path)
    text = (checkout / 'docs' / 'deploy.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        exec(compile(block, 'docs/deploy.md', 'exec'), names)
    assert names['stream'].predictor.detects


# ---------------------------------------------------------------------------- mistakes


class TestMistakes:
    def test_no_file(self):
        with pytest.raises(FileNotFoundError, match='There is no file nowhere.onnx'):
            OnnxModel('nowhere.onnx')

    def test_no_metadata(self, kitchen, tmp_path):
        model = onnx.load(kitchen[0] / 'kitchen.onnx')
        del model.metadata_props[:]
        onnx.save(model, tmp_path / 'bare.onnx')
        with pytest.raises(ValueError, match='bare.onnx has no metadata of memvit_mm'):
            OnnxModel(tmp_path / 'bare.onnx')

    def test_newer_format(self, kitchen, tmp_path):
        model = onnx.load(kitchen[0] / 'kitchen.onnx')
        (entry,) = (e for e in model.metadata_props if e.key == 'memvit_mm')
        entry.value = json.dumps(
            dict(json.loads(entry.value), format=99, version='9.9')
        )
        onnx.save(model, tmp_path / 'newer.onnx')
        with pytest.raises(ValueError, match='made by memvit_mm 9.9, and this one'):
            OnnxModel(tmp_path / 'newer.onnx')

    def test_another_opset(self, kitchen, tmp_path):
        model = onnx.load(kitchen[0] / 'kitchen.onnx')
        for entry in model.opset_import:
            entry.version = 99
        onnx.save(model, tmp_path / 'opset.onnx')
        with pytest.raises(ValueError, match='(?i)opset.*install a newer onnxruntime'):
            OnnxModel(tmp_path / 'opset.onnx')

    def test_no_model_at_all(self, tmp_path):
        (tmp_path / 'text.onnx').write_text('text')
        with pytest.raises(ValueError, match='text.onnx cannot be run by onnxruntime'):
            OnnxModel(tmp_path / 'text.onnx')

    def test_a_provider_that_is_not_there(self, kitchen):
        with pytest.raises(ValueError, match="'Toaster', which this onnxruntime lacks"):
            OnnxModel(kitchen[0] / 'kitchen.onnx', ['Toaster'])

    def test_boxes(self, exported):
        whole = exported('cls_gap2_batch2').onnx
        clip = np.zeros(whole.clip_shape, dtype=np.uint8)
        with pytest.raises(ValueError, match='scores whole clips: leave boxes out'):
            whole('a', 0, clip, np.zeros((1, 4)))
        people = exported('det_gap2_nonsquare').onnx
        clip = np.zeros(people.clip_shape, dtype=np.uint8)
        for boxes in (None, np.zeros((2, 3))):
            with pytest.raises(ValueError, match=r'give boxes \[people, 4\]'):
                people('a', 0, clip, boxes)
        assert people('a', 0, clip, []).shape == (0, 81)

    def test_what_does_not_fit_together(self, exported):
        model = exported('several streams').onnx
        clip, nobody = np.zeros(model.clip_shape, np.uint8), np.zeros((0, 4))
        with pytest.raises(ValueError, match='1 streams, 1 times and 2 clips: give as'):
            model.run(['a'], [0], [clip, clip], [nobody] * 2)
        for time in (None, float('nan'), 'noon'):
            with pytest.raises(ValueError, match='time of a clip of .a. is .*: give a'):
                model('a', time, clip, nobody)
        with pytest.raises(ValueError, match='a box with a number that is not finite'):
            model('a', 0, clip, [[0, 0, float('nan'), 9]])
        assert model.run([], [], [], []) == [] and not model.streams

    def test_streams(self, kitchen, exported):
        model = load(kitchen[0] / 'kitchen.onnx')
        with pytest.raises(ValueError, match='has no config'):
            VideoStream(model)
        code, _, said = run_tool(
            'stream_video.py',
            *(kitchen[0] / 'kitchen.mp4', '--config', 'memvit_demo.py'),
            *('--onnx', model.path, '--boxes', kitchen[0] / 'kitchen.py'),
            *('--json', kitchen[0] / 'never.jsonl'),
        )
        assert code == 1 and 'kitchen.onnx is no model of memvit_demo.py' in said
        with pytest.raises(
            ValueError, match='labels has names of actions, but the model'
        ):
            cfg = str(kitchen[0] / 'kitchen.py')
            VideoStream(model, cfg=cfg, labels=['sit', 'stand'])

    def test_the_tool(self, kitchen, tmp_path):
        folder, _ = kitchen
        line = [folder / 'kitchen.py', folder / 'kitchen.pth', '--out']
        code, _, said = run_tool('export_onnx.py', *line, tmp_path / 'model.pt')
        assert code == 1 and 'model.pt must end in .onnx' in said
        line[1] = folder / 'nowhere.pth'
        code, _, said = run_tool('export_onnx.py', *line, tmp_path / 'model.onnx')
        assert code == 1 and 'There is no checkpoint file' in said

    def test_without_the_exporter(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, 'onnxscript', None)
        with pytest.raises(
            ImportError, match=r"needs onnxscript .*'memvit_mm\[export\]'"
        ):
            export_onnx(small_models.recognizer(), str(tmp_path / 'model.onnx'))

    def test_three_label_maps(self, kitchen, tmp_path):
        folder, _ = kitchen
        line = [folder / 'kitchen.py', folder / 'kitchen.pth', '--out', 'model.onnx']
        code, _, said = run_tool('export_onnx.py', *line, '--label-map', *'abc')
        assert code == 2 and '--label-map takes one file, or two: of verbs' in said

    def test_models_that_cannot_be_exported(self, tmp_path):
        path = str(tmp_path / 'model.onnx')
        with pytest.raises(ValueError, match=r'model \(Linear\): only MemoryRecogn'):
            export_onnx(torch.nn.Linear(1, 1), path)
        model = small_models.detector()
        model.roi_head.bbox_roi_extractor.roi_layer.pool_mode = 'max'
        with pytest.raises(
            ValueError, match=r'roi_layer \(RoIAlign\): of the RoI layer'
        ):
            export_onnx(model, path)
        model = small_models.detector()
        model.roi_head.shared_head = torch.nn.Identity()
        with pytest.raises(
            ValueError, match=r'shared_head \(Identity\): of the shared'
        ):
            export_onnx(model, path)
        model = small_models.recognizer()
        model.cls_head = None
        with pytest.raises(ValueError, match='has no cls_head, and so no scores'):
            export_onnx(model, path)
        with pytest.raises(ValueError, match=r'shape=\(8, 0, 32\) must be frames'):
            export_onnx(small_models.recognizer(), path, shape=(8, 0, 32))
        assert not Path(path).exists()

    def test_a_module_that_cannot_be_traced(self, tmp_path):
        model = small_models.recognizer()
        model.backbone.blocks[1].norm2 = Looking()
        told = r'backbone.blocks.1.norm2 \(Looking\): '
        with pytest.raises(ValueError, match=told):
            export_onnx(model, str(tmp_path / 'model.onnx'))

    def test_an_operator_that_onnx_lacks(self, tmp_path):
        model = small_models.recognizer(small_models.vit_cfg(depth=1))
        model.backbone.blocks[0].mlp = Rare()
        told = r'blocks.0.mlp \(Rare\): ONNX has no operator for .*lgamma'
        with pytest.raises(ValueError, match=told):
            export_onnx(model, str(tmp_path / 'model.onnx'))


class Looking(torch.nn.Module):
    """Looks at values, which a graph cannot."""

    def forward(self, x):
        return x if float(x.sum()) > 0 else -x


class Rare(torch.nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x):
        return torch.lgamma(x)
