"""torch.compile of the backbone: whole graphs, and one for a memory however full."""

import pytest
import torch
from small_models import FRAMES, randomize

from memvit_mm.models import ClipMemory, MeMViT, Stream

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


def build(**kwargs) -> MeMViT:
    model = MeMViT(
        arch=dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
        spatial_size=32,
        temporal_size=FRAMES,
        adaptive_kv_stride=(1, 4, 4),
        **kwargs,
    )
    return randomize(model)


def play(model, backbone, clips: int):
    """Features of one clip after the other of one stream, with its memory."""
    memory, generator = ClipMemory(), torch.Generator().manual_seed(0)
    for number in range(clips):
        x = torch.randn(1, 3, FRAMES, 32, 32, generator=generator)
        step = memory.step([Stream('video')], [number])
        past = step.read(model.memory_specs(x.shape[-3:]), like=x)
        features, written = backbone(x, memory=past)
        yield features[-1][1]
        step.write(written)
        step.commit()


LONG = [
    dict(type='pool', ages=(2,), stride=(4, 2, 2)),
    dict(type='pool', ages=(1, 3, 4), tokens=2),
]


@pytest.mark.parametrize(
    'training, settings',
    [
        (False, dict()),
        (True, dict(pool_first=False)),
        (True, dict(memory_levels=LONG)),
    ],
)
def test_one_graph_however_full_the_memory_is(training, settings):
    model = build(**settings).train(training)
    counter = testing.CompileCounter()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(training):
        # The memory is full from the fifth clip on.
        outputs = list(play(model, compiled, 6))
        expected = list(play(model, model, 6))
    assert counter.frame_count == 1
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_the_compiled_backbone():
    model = build().train()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    found = []
    for backbone in (compiled, model):
        model.zero_grad()
        *_, last = play(model, backbone, 3)
        last.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
