"""torch.compile of the backbone: whole graphs, and one for a memory however full."""

import pytest
import torch
from mmaction.registry import MODELS
from small_models import FRAMES, backbone_cfg, randomize, vit_cfg
from torch.utils._pytree import tree_leaves

from memvit_mm.models import ClipMemory, Stream

dynamo = pytest.importorskip('torch._dynamo')
testing = pytest.importorskip('torch._dynamo.testing')

pytestmark = [
    pytest.mark.skipif(
        tuple(int(n) for n in torch.__version__.split('.')[:2]) < (2, 4),
        reason='torch.compile traces our autograd functions since torch 2.4',
    ),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


@pytest.fixture(autouse=True)
def fresh():
    dynamo.reset()
    yield
    dynamo.reset()


def memvit(**kwargs) -> dict:
    arch = dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1])
    return backbone_cfg(arch=arch, **kwargs)


def vit(**kwargs) -> dict:
    # One layer, which has memory.
    return vit_cfg(depth=1, **kwargs)


def build(cfg: dict):
    return randomize(MODELS.build(cfg))


def play(model, backbone, clips: int):
    """Features of one clip after the other of one stream, with its memory."""
    memory, generator = ClipMemory(), torch.Generator().manual_seed(0)
    for number in range(clips):
        x = torch.randn(1, 3, FRAMES, 32, 32, generator=generator)
        x = x.to(next(model.parameters()))
        step = memory.step([Stream('video')], [number])
        past = step.read(model.memory_specs(x.shape[-3:]), like=x)
        features, written = backbone(x, memory=past)
        yield tree_leaves(features)[-1]
        step.write(written)
        step.commit()


LONG = [
    dict(type='pool', ages=(2,), stride=(4, 2, 2)),
    dict(type='pool', ages=(1, 3, 4), tokens=2),
]
# The coreset is one of the means.
MEANS = [
    dict(type='kmeans', ages=(1, 2), tokens=4),
    dict(type='coreset', ages=(3,), tokens=2),
]
DRAWN = [
    dict(type='random', ages=(1, 4), tokens=4),
    dict(type='coreset', ages=(3,), tokens=3),
    dict(type='pool', ages=(2,), tokens=2),
]


@pytest.mark.parametrize(
    'training, cfg',
    [
        (False, memvit()),
        (True, memvit(pool_first=False)),
        (True, memvit(memory_levels=LONG)),
        (True, vit(memory_levels=MEANS)),
        (False, vit(memory_levels=DRAWN, reading='joint')),
    ],
)
def test_one_graph_however_full_the_memory_is(training, cfg):
    model = build(cfg).train(training)
    counter = testing.CompileCounter()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(training):
        # The memory is full from the fifth clip on.
        outputs = list(play(model, compiled, 6))
        expected = list(play(model, model, 6))
    assert counter.frame_count == 1
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('cfg', [memvit(), vit(memory_levels=MEANS)])
def test_gradients_of_the_compiled_backbone(cfg):
    model = build(cfg).train()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    found = []
    for backbone in (compiled, model):
        model.zero_grad()
        *_, last = play(model, backbone, 3)
        last.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
