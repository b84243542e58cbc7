"""torch.compile of the backbone on the device: one graph, equal numbers."""

import pytest
import torch
from test_compile import MEANS, build, dynamo, fresh, memvit, play, vit  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.long,
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


@pytest.mark.parametrize('with_memory', [True, False], ids=['memory', 'no memory'])
@pytest.mark.parametrize('base', [memvit, vit])
def test_one_graph_and_equal_numbers(base, with_memory, device):
    from torch._dynamo.utils import counters

    options = dict(memory_levels=MEANS) if base is vit else {}
    if not with_memory:
        options = dict(memory_layers=())
    model = build(base(**options)).to(device).train()
    # On a CPU inductor would need a C++ compiler.
    backend = 'inductor' if device.type == 'cuda' else 'aot_eager'
    counters.clear()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    found = []
    for backbone in (compiled, model):
        model.zero_grad()
        if with_memory:
            outputs = list(play(model, backbone, 6))
        else:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(1, 3, 8, 32, 32, generator=generator).to(device)
            outputs = [torch.utils._pytree.tree_leaves(backbone(x))[-1]]
        outputs[-1].square().sum().backward()
        found.append((outputs, {n: p.grad for n, p in model.named_parameters()}))
    assert counters['stats']['unique_graphs'] == 1
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-3)
