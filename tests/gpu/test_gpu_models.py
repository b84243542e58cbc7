"""Small models on the device: precision, checkpoints, no box, memory, host syncs."""

import os
import traceback
import warnings
from collections import Counter
from functools import partial

import pytest
import small_models
import small_runs
import torch
from mmengine.optim import build_optim_wrapper
from small_models import (
    backbone_cfg,
    batch_for,
    detector,
    long_detector,
    recognizer,
    sample,
    vit_cfg,
    vit_detector,
    vit_map_cfg,
    vit_recognizer,
)
from steps import need_roi_align_in
from torch.utils._python_dispatch import TorchDispatchMode

import memvit_mm
from memvit_mm.models import Stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings('ignore:A clip is left out'),
]
KINDS = [recognizer, detector, vit_recognizer, vit_detector]
ALL = pytest.mark.parametrize('build', KINDS, ids=lambda build: build.__name__)
PACKAGE = os.path.dirname(memvit_mm.__file__)


def loss_of(model, *clips, dtype=torch.float32, people: int = 2) -> torch.Tensor:
    """The loss of a batch of (video, time) pairs, where the model is."""
    weight = next(model.parameters())
    inputs, samples = batch_for(model, *clips)
    if people != 2:
        samples = [sample(*one, people=people) for one in clips]
    if hasattr(getattr(model, 'cls_head', None), 'num_verbs'):
        for one in samples:
            one.set_gt_label([int(one.gt_label)] * 2)
    samples = [one.to(weight.device) for one in samples]
    losses = model(inputs.to(weight.device, dtype), samples, mode='loss')
    return sum(value for name, value in losses.items() if 'loss' in name)


def wrapper_of(model, device, dtype: str):
    """What ``tools/train.py --amp`` builds; its scale of float16 skips no step."""
    kind = 'AmpOptimWrapper' if device.type == 'cuda' else 'CPUAmpOptimWrapper'
    sgd = dict(type='SGD', lr=0.01)
    cfg = dict(type=kind, dtype=dtype, loss_scale=512.0, optimizer=sgd)
    return build_optim_wrapper(model, cfg)


# --------------------------------------------------------------------- low precision


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@ALL
def test_autocast_trains(build, dtype, device):
    """Losses of some steps under autocast are near those in float32."""
    found = []
    for precision in ('float32', dtype):
        model = build().to(device).train()
        low = precision != 'float32'
        wrapper = wrapper_of(model, device, dtype) if low else None
        losses = []
        for time in range(5):
            clips = [('a', time), ('b', time)]
            if low:
                with wrapper.optim_context(model):
                    loss = loss_of(model, *clips)
                wrapper.update_params(loss)
            else:
                loss = loss_of(model, *clips)
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * parameter.grad
                model.zero_grad()
            losses.append(loss.item())
        found.append(losses)
    # 8 bits: 0.004 of each of some dozen operations in a row.
    assert found[1] == pytest.approx(found[0], rel=0.05)


@ALL
def test_pure_bfloat16_trains_and_predicts(build, device):
    options = {}
    if 'detector' in build.__name__:
        need_roi_align_in(torch.bfloat16, device)
    else:
        # MMAction2's heads make numpy arrays of scores, which know no bfloat16.
        head = dict(type='EpicHead', num_verbs=6, num_nouns=6, in_channels=32)
        options = dict(cls_head=head)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(**options).to(device, dtype).train()
        losses = []
        for time in range(5):
            loss = loss_of(model, ('a', time), ('b', time), dtype=dtype)
            model.zero_grad()
            loss.backward()
            losses.append(loss.item())
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert {kept.dtype for kept in kept_tensors(model)} == {dtype}
        inputs, samples = batch_for(model, ('a', 5))
        samples = [one.to(device) for one in samples]
        with torch.no_grad():
            model.eval()(inputs.to(device, dtype), samples, mode='predict')
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'build, cfg',
    [
        (recognizer, backbone_cfg()),
        (detector, backbone_cfg(output_cls_token=False)),
        (recognizer, vit_cfg()),
        (detector, vit_map_cfg(reading='joint')),
    ],
)
def test_activation_checkpointing(build, cfg, dtype, device):
    results = []
    for with_cp in (False, True):
        model = build(dict(cfg, with_cp=with_cp, drop_path_rate=0.2)).to(device).train()
        torch.manual_seed(5)
        low = dtype != 'float32'
        for time in range(5):
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = loss_of(model, ('a', time), ('b', time))
            loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((loss, gradients, kept_tensors(model)))
    # The same kernels on the same numbers; some add up in any order.
    atol = 1e-3 if low else 1e-5
    torch.testing.assert_close(*results, atol=atol, rtol=1e-2 if low else 1e-4)


# ------------------------------------------------------------------------- no box


@pytest.mark.parametrize('build', [detector, long_detector, vit_detector])
def test_nobody_in_a_batch(build, device):
    """In training every parameter gets a gradient, at test results are empty."""
    model = build().to(device).train()
    for time, people in enumerate((2, 0, 2, 0)):
        model.zero_grad()
        loss = loss_of(model, ('a', time), ('b', time), people=people)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        assert people or loss == 0
    assert all(stream.video in 'ab' for stream in model.memory.streams)
    model.eval()
    for time in (4, 5):
        inputs, _ = batch_for(model, ('a', time), ('b', time))
        samples = [sample(name, time, people=0).to(device) for name in 'ab']
        with torch.no_grad():
            results = model(inputs.to(device), samples, mode='predict')
        assert [len(one.pred_instances.scores) for one in results] == [0, 0]


# ------------------------------------------------------------------------- memory


def kept_tensors(model) -> list[torch.Tensor]:
    """All that is remembered, streams, clips and layers in order."""
    state, found = model.memory.state_dict(), []

    def collect(tree):
        if isinstance(tree, torch.Tensor):
            found.append(tree)
        elif isinstance(tree, dict):
            for value in tree.values():
                collect(value)
        elif isinstance(tree, (list, tuple)):
            for value in tree:
                collect(value)

    collect(state)
    return found


class Copies(TorchDispatchMode):
    """Counts copies of floating-point tensors that leave the device."""

    def __init__(self, device) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            left = out.device.type != self.device.type == args[0].device.type
            self.count += left and out.is_floating_point()
        return out


@pytest.mark.parametrize(
    'cfg',
    [backbone_cfg(), vit_cfg(), vit_cfg(reading='joint')],
    ids=lambda c: c['type'],
)
def test_memory_stays_on_the_device(cfg, device):
    model = recognizer(cfg).to(device).train()
    with Copies(device) as copies:
        for time in range(6):
            upkeep_and_backbone(model, time, device)
    assert copies.count == 0
    kept = kept_tensors(model)
    assert kept and {tensor.device.type for tensor in kept} == {device.type}


def upkeep_and_backbone(model, time: int, device) -> torch.Tensor:
    """A training step of a backbone with its memory, without loader and head."""
    # Made on the device: copying from the host is the loader's part.
    x = torch.randn(2, 3, 8, 32, 32, device=device)
    step = model.memory.step([Stream('a'), Stream('b')], [time, time])
    past = step.read(model.memory_specs(x), like=x)
    features, written = model.backbone(x, memory=past)
    loss = sum(leaf.square().mean() for leaf in leaves(features))
    loss.backward()
    step.write(written)
    step.commit()
    return loss


def leaves(features) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(features)


@pytest.mark.long
@pytest.mark.parametrize('kind', ['MeMViT', 'MemoryViT'])
def test_no_growth_over_2000_steps(kind, device):
    cfg = small_runs.MODEL
    if kind == 'MemoryViT':
        head = dict(type='TimeSformerHead', num_classes=4, in_channels=32)
        backbone = vit_cfg(img_size=16, depth=1, num_frames=4)
        cfg = dict(type='MemoryRecognizer3D', backbone=backbone, cls_head=head)
    model = small_models.build(dict(cfg, memory=dict(type='ClipMemory', max_streams=4)))
    model.to(device).train()
    sizes = []
    for time in range(2000):
        # A video lasts 25 clips; two are read at a time.
        part, second = divmod(time, 25)
        samples = [sample(f'{row}{part}', second).to(device) for row in 'ab']
        for one in samples:
            one.set_gt_label(second % 4)
        x = torch.randn(2, 1, 3, 4, 16, 16, device=device)
        losses = model(x, [one.to(device) for one in samples], mode='loss')
        losses['loss_cls'].backward()
        model.zero_grad()
        if second == 24 and len(model.memory) == 4:
            size = model.memory.num_bytes
            if device.type == 'cuda':
                size = torch.cuda.memory_allocated(device)
            sizes.append(size)
    # What is full stays as it is, but for blocks that the allocator cuts otherwise.
    assert len(sizes) > 70 and max(sizes[5:]) <= sizes[5] + 2**16


# --------------------------------------------------------------------- host syncs


def syncs_of(step) -> Counter:
    """In which functions a step makes the host wait for the GPU, and how often."""
    found: Counter = Counter()

    def note(message, *_) -> None:
        if 'synchroniz' in str(message):
            found[place_of(traceback.extract_stack())] += 1

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('always')
            warnings.showwarning = note
            step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return found


def need_cuda(device) -> None:
    if device.type != 'cuda':
        pytest.skip('only CUDA says where it waits; see test_gpu_forms.py for a CPU')


def place_of(frames) -> str:
    """File and function of the innermost frame that is not torch's."""
    torchs = f'{os.sep}torch{os.sep}'
    passing = __file__, warnings.__file__
    known = [
        f for f in frames if torchs not in f.filename and f.filename not in passing
    ]
    frame = (known or frames)[-1]
    name = f'{os.path.basename(frame.filename)}:{frame.name}'
    return name if frame.filename.startswith(PACKAGE) else f'not ours, {name}'


@pytest.mark.parametrize(
    'cfg',
    [backbone_cfg(), vit_cfg(), vit_cfg(reading='joint')],
    ids=['MeMViT', 'gated', 'joint'],
)
def test_backbone_and_memory_never_wait(cfg, device):
    need_cuda(device)
    model = recognizer(cfg).to(device).train()
    for time in range(6):  # until the memory is full and what is cached is there
        step = partial(upkeep_and_backbone, model, time, device)
        found = syncs_of(step)
    assert not found, found


@ALL
def test_training_waits_for_mmaction2_alone(build, device):
    """MMAction2 and mmdet wait: for accuracies that are logged, in matching boxes."""
    need_cuda(device)
    model = build().to(device).train()
    for time in range(6):
        found = syncs_of(partial(train, model, time))
    ours = [name for name in found if not name.startswith('not ours')]
    assert ours == [], found


def train(model, time: int) -> None:
    loss_of(model, ('a', time), ('b', time)).backward()
