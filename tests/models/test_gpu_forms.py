"""What runs on a GPU, on a CPU: the same numbers, no waiting, few operators."""

import traceback
from collections import Counter

import pytest
import torch
from mmaction.registry import MODELS
from small_models import (
    FRAMES,
    backbone_cfg,
    batch,
    detector,
    randomize,
    vit_cfg,
    vit_detector,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memvit_mm.models import ClipMemory, Stream
from memvit_mm.models.kernels import choice, onednn
from memvit_mm.models.memory import consolidation

# Operators that launch no kernel.
VIEWS = set(
    """view _unsafe_view t transpose permute expand unsqueeze squeeze slice select split
    split_with_sizes unsafe_split unbind detach alias as_strided unfold diagonal empty
    empty_like empty_strided new_empty new_empty_strided""".split()
)


# Those whose results the host looks at.
WAITING = (
    """_local_scalar_dense nonzero masked_select equal _unique2 bincount""".split()
)
TO_THE_HOST = ('tolist', 'numpy', 'cpu')


def sent_on() -> bool:
    """Whether Python's numbers are copied without waiting: those of `to_device`, of
    constants, and in MMAction2's `bbox_target` a number that fills a part; or a CPU
    looks, where RoIAlign without compiled operators asks for the device itself."""
    calls = {frame.name for frame in traceback.extract_stack(limit=12)}
    return bool(calls & {'numbers', 'kept', 'draw', 'bbox_target', '_axis_weights'})


class Operators(TorchDispatchMode):
    """Counts operators, and notes those for which the host waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits = Counter(), Counter()
        self._plain = {name: getattr(torch.Tensor, name) for name in TO_THE_HOST}

    def __enter__(self):
        for name, plain in self._plain.items():

            def called(*args, name=name, plain=plain, **kwargs):
                self.waits[name] += 1
                return plain(*args, **kwargs)

            setattr(torch.Tensor, name, called)
        return super().__enter__()

    def __exit__(self, *error):
        for name, plain in self._plain.items():
            setattr(torch.Tensor, name, plain)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count[name] += name not in VIEWS
        masks = [
            x
            for x in tree_leaves(args)
            if isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
        ]
        by_mask = name in ('index', 'index_put', 'index_put_') and masks
        waiting = name in (*WAITING, 'lift_fresh') and not sent_on()
        self.waits[name] += bool(by_mask or waiting)
        return func(*args, **(kwargs or {}))

    @property
    def waited_in(self) -> list[str]:
        return [name for name, count in self.waits.items() if count]


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Choose the forms that a GPU takes, and run them here."""

    def choose():
        monkeypatch.setattr(choice, 'kind_of_device', lambda x: 'cuda')
        monkeypatch.setattr(consolidation, 'kind_of_device', lambda x: 'cuda')
        monkeypatch.setattr(onednn, '_onednn', None)

    return choose


BACKBONES = {
    'MeMViT': backbone_cfg(),
    'with_cp': backbone_cfg(with_cp=True),
    'projected first': backbone_cfg(pool_first=False),
    'levels': backbone_cfg(
        memory_levels=[
            dict(type='pool', ages=(2,), stride=(4, 2, 2)),
            dict(type='pool', ages=(1, 3), tokens=2),
        ]
    ),
    'causal': backbone_cfg(causal=True, output_cls_token=False),
    'ViT': vit_cfg(),
    'ViT joint': vit_cfg(reading='joint'),
}


def play(model, memory: ClipMemory, count: int, training: bool = True) -> list:
    """Features of clips of two streams, and the gradients of the last ones."""
    found = []
    for time in range(count):
        torch.manual_seed(time)
        x = torch.randn(2, 3, FRAMES, 32, 32)
        step = memory.step([Stream('a'), Stream('b')], [time, time])
        past = step.read(model.memory_specs(x.shape[-3:]), like=x)
        out, written = model(x, memory=past)
        step.write(written)
        step.commit()
        found.append(tree_leaves(out)[-1])
    found[-1].square().sum().backward()
    return [*found, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize('name', BACKBONES)
def test_the_same_numbers(name, as_on_gpu):
    model = randomize(MODELS.build(BACKBONES[name])).train()
    expected = play(model, ClipMemory(), 6)
    model.zero_grad()
    as_on_gpu()
    found = play(model, ClipMemory(), 6)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('name', BACKBONES)
def test_a_step_of_a_backbone_waits_for_nothing(name, as_on_gpu):
    as_on_gpu()
    model, memory = randomize(MODELS.build(BACKBONES[name])).train(), ClipMemory()
    play(model, memory, 5)
    memory.reset()
    with Operators() as operators:
        play(model, memory, 5)
    assert operators.waited_in == []


@pytest.mark.parametrize('make', [detector, vit_detector])
def test_a_step_of_a_detector_waits_for_nothing(make, as_on_gpu):
    """Beyond mmdet's matching of boxes, which comes before the clip is looked at."""
    as_on_gpu()
    model = randomize(make(negatives=True, actors=dict(max_actors=20))).train()
    for time in range(5):
        inputs, samples = batch(('a', time), ('b', time))
        proposals = [sample.proposals for sample in samples]
        sampled = model.roi_head.sample(proposals, samples)
        score = model._scorer(samples, [result.priors for result in sampled])
        rows = model.batch_rows(samples)
        with Operators() as operators:
            ((_, scores),) = model.remember(inputs.squeeze(1), rows, [[0, 1]], score)
            losses = model.roi_head.loss_of(torch.cat(scores), sampled)
            sum(v for k, v in losses.items() if 'loss' in k).backward()
        # The first time constants are made.
        assert time == 0 or operators.waited_in == []
    assert sum(len(result.pos_priors) for result in sampled) > 0


def training_step(model, **kwargs) -> Operators:
    """The operators of a step under autocast, once all constants are there."""
    x = torch.randn(1, 3, 16, 64, 64)
    for _ in range(2):
        with Operators() as operators:
            with torch.autocast('cpu', dtype=torch.bfloat16):
                out = model(x, **{k: make(x) for k, make in kwargs.items()})
            leaves = tree_leaves(out[0] if kwargs else out)
            sum(leaf.float().sum() for leaf in leaves).backward()
    return operators


def test_no_more_operators_than_without_memory_in_mmaction2(as_on_gpu):
    as_on_gpu()
    sizes = dict(spatial_size=64, temporal_size=16, drop_path_rate=0.1)
    theirs = training_step(
        MODELS.build(dict(type='MViT', arch='small', **sizes)).train()
    )
    memvit = MODELS.build(dict(type='MeMViT', arch='small', **sizes)).train()
    ours = training_step(memvit, memory=memvit.empty_memory)
    assert ours.count.total() < 0.95 * theirs.count.total()
