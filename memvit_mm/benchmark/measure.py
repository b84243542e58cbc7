"""Time and memory that backbones take, each in a process of its own."""

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import torch
from mmaction.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from memvit_mm.models.memory.layers import LayerMemories

from .complexity import clip_shape


@dataclass(frozen=True)
class Case:
    """What one process builds and runs."""

    name: str
    """As it is called in error messages."""
    backbone: Mapping[str, Any]
    """Its config."""
    size: Optional[tuple[int, int, int]] = None
    """T, H, W of the clips, frames and pixels; None for what the backbone is made
    for."""
    batch: int = 1
    """Clips at once."""
    training: bool = False
    """Forward and backward; otherwise forward without gradient."""
    device: str = 'cpu'
    dtype: str = 'float32'
    """Another than float32 runs in autocast, as ``tools/train.py --amp`` does."""
    threads: Optional[int] = None
    """Of torch; None leaves them."""
    compiled: bool = False
    """Through ``torch.compile``."""

    def autocast(self) -> AbstractContextManager:
        """The context that the backbone runs in."""
        dtype = getattr(torch, self.dtype)
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=dtype)


@dataclass
class Result:
    """What was measured of one case."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    """Wall time of each run."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Time on all cores together: barely moved by what else the machine does."""
    peak_bytes: int = 0
    """Resident memory of the process at its highest; on a GPU, what torch had
    allocated there."""

    @property
    def median(self) -> float:
        """Seconds of wall time."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds on all cores together."""
        return statistics.median(self.cpu_seconds)

    @property
    def clips_per_second(self) -> float:
        """Throughput by the median."""
        return self.case.batch / self.median

    def to_dict(self) -> dict[str, Any]:
        """The figures as numbers, lists and dicts."""
        return dict(
            asdict(self), median=self.median, clips_per_second=self.clips_per_second
        )


@dataclass
class Table:
    """Results of some cases, each a row; ratios are to the first of them."""

    title: str
    rows: dict[str, Result]

    def to_dict(self) -> dict[str, Any]:
        """The figures as numbers, lists and dicts."""
        rows = {name: result.to_dict() for name, result in self.rows.items()}
        return dict(axis=self.title, results=rows)

    def __str__(self) -> str:
        lines = [
            f'{self.title:32}{"s / clip":>9}{"ratio":>7}{"CPU s":>9}{"ratio":>7}'
            f'{"clips/s":>9}{"peak MB":>9}{"ratio":>7}'
        ]
        first: list[float] = []
        for name, result in self.rows.items():
            batch = result.case.batch
            values = [
                result.median / batch,
                result.cpu_median / batch,
                result.peak_bytes / 2**20,
            ]
            first = first or values
            time, cpu, peak = (v / (base or 1) for v, base in zip(values, first))
            lines.append(
                f'  {name:30}{values[0]:9.3f}{time:7.2f}{values[1]:9.3f}{cpu:7.2f}'
                f'{result.clips_per_second:9.2f}{values[2]:9.0f}{peak:7.2f}'
            )
        return '\n'.join(lines)


def measure(cases: Sequence[Case], repeats: int = 5) -> list[Result]:
    """Run cases in turn, so that a slow minute of the machine hits them all.

    Each has a process of its own and runs once before anything is measured. Processes
    are started one after the other and stay until the end.

    Args:
        cases (sequence[Case]): What to run.
        repeats (int): Measured runs of each.

    Raises:
        ValueError: If a case fails; the message says which and why.
        KeyboardInterrupt: At Ctrl-C, at once: nobody waits for the runs to end.
    """
    spawn = multiprocessing.get_context('spawn')
    results = [Result(case) for case in cases]
    others = set(multiprocessing.active_children())
    with ExitStack() as stack:
        processes = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in cases
        ]
        stack.enter_context(_ended_at_ctrl_c(others))
        for process, case in zip(processes, cases):
            _launch(process)
            _ask(process, case, _start, case)
        for _ in range(repeats):
            for process, result in zip(processes, results):
                seconds, cpu_seconds = _ask(process, result.case, _run)
                result.seconds.append(seconds)
                result.cpu_seconds.append(cpu_seconds)
        for process, result in zip(processes, results):
            case = result.case
            result.peak_bytes = _ask(process, case, peak_bytes, case.device)
    return results


def measure_here(cases: Sequence[Case], repeats: int = 10) -> list[Result]:
    """Run cases in turn, all in this process: for GPUs, whose memory torch counts.

    Each runs three times before anything is measured. A case's peak is what was
    allocated at its highest less what belongs to the others; 0 on a CPU.

    Args:
        cases (sequence[Case]): What to run.
        repeats (int): Measured runs of each.

    Raises:
        RuntimeError: If a case fails, as torch says it.
    """
    results, own, runs = [Result(case) for case in cases], [], []
    for case in cases:
        before = _allocated(case.device)
        runs.append(prepare(case))
        for _ in range(3):
            runs[-1]()
        own.append(_allocated(case.device) - before)
    for _ in range(repeats):
        for result, run, bytes_of_it in zip(results, runs, own):
            device = result.case.device
            others = _allocated(device) - bytes_of_it
            cuda = device.startswith('cuda')
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            result.seconds.append(time.perf_counter() - wall)
            result.cpu_seconds.append(time.process_time() - cpu)
            if cuda:
                peak = torch.cuda.max_memory_allocated(device) - others
                result.peak_bytes = max(result.peak_bytes, peak)
    return results


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated(device) if device.startswith('cuda') else 0


def _launch(process: ProcessPoolExecutor) -> None:
    """Start a process that leaves Ctrl-C to this one: it would show a traceback."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.submit(int)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _ended_at_ctrl_c(others: set) -> Iterator[None]:
    """End this process's children but ``others`` where it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise


def _ask(process: ProcessPoolExecutor, case: Case, what: Callable, *args: Any) -> Any:
    """What a function returns in the process of a case."""
    try:
        return process.submit(what, *args).result()
    except BrokenProcessPool:
        raise ValueError(
            f'{case.name}: its process was killed, probably for lack of memory: use '
            'a smaller batch or smaller clips.'
        ) from None
    except Exception as error:
        first = str(error).strip().split('\n', 1)[0]
        raise ValueError(f'{case.name}: {type(error).__name__}: {first}') from error


# In a process of a case: runs it once.
_prepared: Callable[[], None]


def _start(case: Case) -> None:
    global _prepared
    _prepared = prepare(case)
    _prepared()


def _run() -> tuple[float, float]:
    """Seconds of a run, on the wall and of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    _prepared()
    return time.perf_counter() - wall, time.process_time() - cpu


def prepare(case: Case) -> Callable[[], None]:
    """Build a case, memory full; the function that is returned runs it once."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    backbone = build_backbone(case.backbone).to(case.device)
    backbone.train(case.training)
    shape = clip_shape(case.backbone, case.size)
    x = torch.randn(case.batch, *shape, device=case.device)
    inputs: dict[str, Any] = {}
    if getattr(backbone, 'memory_layers', ()):
        inputs['memory'] = full_memory(backbone, x)
    model = torch.compile(backbone) if case.compiled else backbone

    def run() -> None:
        backbone.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(case.training):
            with case.autocast():
                features = model(x, **inputs)
            features = features[0] if inputs else features
            last = features if isinstance(features, Tensor) else features[-1]
            parts = last if isinstance(last, (list, tuple)) else [last]
            loss = sum(part.float().mean() for part in parts)
        if case.training:
            loss.backward()
        if x.is_cuda:
            torch.cuda.synchronize(case.device)

    return run


def build_backbone(cfg: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A backbone with random weights.

    Raises:
        KeyError: If its type is not registered.
    """
    init_default_scope('mmaction')
    cfg = ConfigDict(cfg)
    for key in ('pretrained', 'init_cfg'):
        cfg.pop(key, None)
    torch.manual_seed(seed)
    return MODELS.build(cfg)


def full_memory(backbone: nn.Module, x: Tensor) -> LayerMemories:
    """A memory of noise in which every slot is filled, for clips [B, C, T, H, W]."""
    memory = backbone.empty_memory(x)
    for past in (level for levels in memory.values() for level in levels):
        past.valid.fill_(True)
        for pair in (past.recent, past.older):
            for tensor in {id(t): t for t in pair}.values():
                tensor.normal_()
    return memory


def peak_bytes(device: str) -> int:
    """The most memory that this process held: on the GPU for one, else resident."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    try:
        with open('/proc/self/status') as file:
            line = next(line for line in file if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else peak * 1024
