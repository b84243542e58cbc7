"""torch.func's transforms of a backbone with memory: as without them."""

import pytest
import torch
from mmaction.registry import MODELS
from small_models import FRAMES, backbone_cfg, batch, randomize, recognizer, vit_cfg
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

from memvit_mm.models.kernels import onednn

BACKBONES = {
    'pool first': backbone_cfg(),
    'project first': backbone_cfg(pool_first=False),
    'gated': vit_cfg(memory_levels=[dict(type='kmeans', ages=(2, 4), tokens=3)]),
    'joint': vit_cfg(
        reading='joint', memory_levels=[dict(type='coreset', ages=(1,), tokens=3)]
    ),
}


@pytest.fixture(params=list(BACKBONES))
def model(request, monkeypatch):
    # Small products, too, go the way of large ones.
    monkeypatch.setattr(onednn, 'SMALLEST', 1)
    model = MODELS.build(BACKBONES[request.param])
    return randomize(model).train().double()


def clips(model, batch: int) -> tuple:
    """Clips, and a memory that is full for all rows but the first."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 3, FRAMES, 32, 32, generator=generator).double()
    memory = model.empty_memory(x)
    for (past,) in memory.values():
        past.valid[1:] = True
        for tensor in (*past.recent, *past.older):
            tensor.normal_(generator=generator)
    return x, memory


def loss(parameters, model, x, memory) -> torch.Tensor:
    """Of a batch."""
    features, _ = functional_call(model, parameters, (x,), dict(memory=memory))
    # Patches and class token, or what both would be.
    leaves = pytree.tree_leaves(features)
    return leaves[0].square().mean() + leaves[-1].sin().mean()


def split(model) -> dict:
    return {name: p.detach() for name, p in model.named_parameters()}


def plain_gradients(model, x, memory) -> dict:
    model.zero_grad()
    loss(dict(model.named_parameters()), model, x, memory).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def row(nest, number: int):
    return pytree.tree_map(lambda tensor: tensor[number : number + 1], nest)


def test_grad(model):
    x, memory = clips(model, 2)
    found = grad(loss)(split(model), model, x, memory)
    torch.testing.assert_close(found, plain_gradients(model, x, memory))


def test_borrowed_weights(model):
    """Weights of a call are those of its backward pass, too."""
    x, memory = clips(model, 2)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    borrowed = {name: (1.3 * p).requires_grad_() for name, p in own.items()}
    found = torch.autograd.grad(loss(borrowed, model, x, memory), borrowed.values())
    model.load_state_dict({name: p.detach() for name, p in borrowed.items()}, False)
    wanted = plain_gradients(model, x, memory)
    torch.testing.assert_close(dict(zip(borrowed, found)), wanted)


def test_gradients_of_each_sample(model):
    """As differential privacy takes them: every row with its own memory."""
    x, memory = clips(model, 3)

    def of_one(parameters, x, memory):
        alone = pytree.tree_map(lambda tensor: tensor[None], (x, memory))
        return grad(loss)(parameters, model, *alone)

    found = vmap(of_one, in_dims=(None, 0, 0))(split(model), x, memory)
    for number in range(3):
        wanted = plain_gradients(model, *row((x, memory), number))
        torch.testing.assert_close({k: v[number] for k, v in found.items()}, wanted)


def test_vmap_over_models(model):
    """An ensemble: weights with an axis of their own."""
    x, memory = clips(model, 2)
    members = [split(model), {k: 1.1 * v for k, v in split(model).items()}]
    stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
    found = vmap(loss, in_dims=(0, None, None, None))(stacked, model, x, memory)
    wanted = torch.stack([loss(m, model, x, memory) for m in members])
    torch.testing.assert_close(found, wanted)


def test_jvp(model):
    x, memory = clips(model, 2)
    parameters = split(model)
    along = {k: torch.randn_like(v) for k, v in parameters.items()}
    wanted = plain_gradients(model, x, memory)
    wanted = sum((wanted[k] * along[k]).sum() for k in along)

    def of_parameters(parameters):
        return loss(parameters, model, x, memory)

    out, slope = jvp(of_parameters, (parameters,), (along,))
    torch.testing.assert_close(out, of_parameters(parameters))
    torch.testing.assert_close(slope, wanted)
    # The same without torch.func.
    with forward_ad.dual_level():
        dual = {k: forward_ad.make_dual(v, along[k]) for k, v in parameters.items()}
        slope = forward_ad.unpack_dual(of_parameters(dual)).tangent
    torch.testing.assert_close(slope, wanted)


def test_second_derivatives(model):
    """A gradient along which the gradient changes, by torch.func in two ways."""
    x, memory = clips(model, 1)
    parameters = split(model)
    name = 'blocks.0.norm1.weight'

    def of_one(weight):
        return loss({**parameters, name: weight}, model, x, memory)

    weight = parameters[name]
    along = torch.randn_like(weight)
    _, forward = jvp(grad(of_one), (weight,), (along,))
    backward = jacrev(grad(of_one))(weight) @ along
    torch.testing.assert_close(forward, backward)


def test_a_memory_is_not_written_inside():
    """Its tensors would be those of a transform that is over."""
    model = recognizer()
    inputs, samples = batch(('a', 0))

    def features(x, samples=None):
        (_, cls_token), *_ = model(x, samples, mode='tensor')
        return cls_token.square().sum()

    with pytest.raises(RuntimeError, match='cannot be written inside torch.func'):
        grad(features)(inputs, samples)
    assert len(model.memory) == 0
    inputs.requires_grad_()
    (wanted,) = torch.autograd.grad(features(inputs), inputs)
    torch.testing.assert_close(grad(features)(inputs), wanted, atol=1e-6, rtol=1e-4)
