"""The published model's numbers, on the device: float32, autocast, pure bfloat16."""

import pytest
import torch
from steps import need_roi_align_in
from test_parity import (
    check_gradients,
    close,
    compare_tokens,
    converted,  # noqa: F401 (a fixture)
    parity,  # noqa: F401 (a fixture)
    run_batch,
)

pytestmark = pytest.mark.gpu

# bfloat16 has 8 bits, 2**-9 = 0.002 of rounding at each of the some hundred operations
# in a row of these models: tokens, by their norm, and probabilities differ by so much.
# Measured on a CPU: at most 0.022 and 0.018.
TOKENS, OUTPUT = 0.04, 0.04


# On a CPU it is what test_parity.py does.
@pytest.mark.long
@pytest.mark.parametrize('batch', ['as published', 'of another size'])
def test_float32(parity, converted, device, batch):  # noqa: F811
    model, report = converted
    model.to(device)
    last = parity.meta['steps'] - 1
    for step, clip in enumerate(parity.clips()):
        with torch.set_grad_enabled(step == last):
            tokens, outputs = run_batch(parity, model, clip, step, batch)
        compare_tokens(tokens.cpu(), parity[f'tokens_{step}'], parity.meta.get('det'))
        for output, expected in zip(outputs, published(parity, step, outputs)):
            close(output.cpu(), expected)
    sum(output.square().sum() for output in outputs).backward()
    check_gradients(parity, model.cpu(), report)


@pytest.mark.parametrize('weights_too', [False, True], ids=['autocast', 'pure'])
def test_bfloat16(parity, converted, device, weights_too):  # noqa: F811
    model, _ = converted
    if weights_too and parity.meta.get('det'):
        need_roi_align_in(torch.bfloat16, device)
    exact = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.reset_memory()
        model.to(device, dtype if weights_too else torch.float32)
        low = dtype == torch.bfloat16
        for step, clip in enumerate(parity.clips()):
            with (
                torch.no_grad(),
                torch.autocast(device.type, dtype, enabled=low and not weights_too),
            ):
                tokens, outputs = run_batch(parity, model, clip, step, 'as published')
            if not low:
                exact[step] = tokens
                continue
            difference = (tokens.float() - exact[step]).norm() / exact[step].norm()
            assert difference < TOKENS
            for output, expected in zip(outputs, published(parity, step, outputs)):
                close(output.float().cpu(), expected, atol=OUTPUT)


def published(parity, step: int, outputs: list) -> list[torch.Tensor]:  # noqa: F811
    """What the published model gives at a step, one tensor per head."""
    keys = [f'output_{step}']
    if len(outputs) > 1:
        keys = [f'output_{step}_{head}' for head in range(len(outputs))]
    return [parity[key].reshape(out.shape) for key, out in zip(keys, outputs)]
