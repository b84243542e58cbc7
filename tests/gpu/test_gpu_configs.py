"""The model of every config gives on the device what it gives on the CPU."""

import copy

import pytest
import torch
from mmengine.config import Config
from steps import batch_of, losses_of, model_of, to_device
from test_configs import CONFIGS

from memvit_mm.paths import get_config_path

pytestmark = pytest.mark.gpu

# float32 has 24 bits; sums in another order differ in the last of them, and several
# hundred operations in a row let some 100 times as much through.
LOSS, GRADIENT = 1e-4, 2e-3
PIXELS = 64
_compared: set = set()


@pytest.mark.long
@pytest.mark.parametrize('name', CONFIGS)
def test_a_training_step_is_the_cpus(name, device):
    """Loss and gradients of a step that reads memory, on small frames."""
    text = Config(dict(m=Config.fromfile(get_config_path(name)).model)).pretty_text
    if text in _compared:
        return  # the very model of another config
    compare(model_of(name), device, PIXELS)
    _compared.add(text)


@pytest.mark.long
def test_at_its_real_size(device):
    compare(model_of('memvit_ava.py'), device, 224)


def compare(model, device, pixels: int, clips: int = 4) -> None:
    """Compare a step whose memory is, on both, what the CPU remembers.

    Which tokens a memory keeps of a clip is a choice (the nearest, the largest), and
    two that are equal but for rounding may be chosen otherwise.
    """
    model.train()
    remembers = hasattr(model, 'memory')
    other = copy.deepcopy(model).to(device)
    with torch.no_grad():
        for time in range(clips if remembers else 0):
            losses_of(model, batch_of(model, time, pixels))
    if remembers and len(model.memory):
        state = to_device(model.memory.state_dict(), device)
        other.memory.load_state_dict(state)
    found = []
    for one in (model, other):
        loss = losses_of(one, batch_of(one, clips, pixels))
        loss.backward()
        found.append(loss.detach().cpu())
    torch.testing.assert_close(*found, rtol=LOSS, atol=0)
    gradients = dict(model.named_parameters())
    whole = torch.stack([p.grad.norm() for p in gradients.values()]).norm()
    # Everything takes part, memory too; a model without gradients would be equal.
    assert whole > 0
    for name, parameter in other.named_parameters():
        expected = gradients[name].grad
        difference = (parameter.grad.cpu() - expected).norm()
        # Those of key biases are rounding alone: all scores shift alike.
        assert difference <= GRADIENT * expected.norm() + 1e-5 * whole, name
