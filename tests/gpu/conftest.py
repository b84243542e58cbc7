"""These tests run on a GPU, and with ``--device cpu`` the very same on a CPU."""

import pytest
import torch


@pytest.fixture(scope='session')
def device(request) -> torch.device:
    """Where the tests run."""
    name = request.config.getoption('--device')
    if name.startswith('cuda') and not torch.cuda.is_available():
        pytest.skip('torch sees no GPU here (--device cpu runs this on the CPU)')
    return torch.device(name)


@pytest.fixture(autouse=True)
def float32_is_float32(device):
    """Products of float32 are not rounded to TF32, as a training may want it."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision('highest')
    cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32 = before[1]
