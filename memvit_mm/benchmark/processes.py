"""Cases in processes of their own, run in turn, so that a slow minute hits them all."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from .case import Case


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
    operators: Optional[dict[str, Any]] = None
    """Where the time goes, see :func:`profile_operators`."""

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
        """For JSON."""
        return dict(
            asdict(self), median=self.median, clips_per_second=self.clips_per_second
        )


def measure(
    cases: Sequence[Case], repeats: int = 5, profile: bool = False
) -> list[Result]:
    """Run cases in turn, each in a process of its own.

    Each runs once before anything is measured. Processes are started one after the
    other and stay until the end.

    Args:
        cases (sequence[Case]): What to run.
        repeats (int): Measured runs of each.
        profile (bool): At last, profile a run of each.

    Raises:
        ValueError: If a case fails; the message says which and why.
    """
    workers, results = [], [Result(case) for case in cases]
    try:
        for case in cases:
            workers.append(_Worker(case))
        for _ in range(repeats):
            for worker, result in zip(workers, results):
                seconds, cpu_seconds = worker.ask('run')
                result.seconds.append(seconds)
                result.cpu_seconds.append(cpu_seconds)
        for worker, result in zip(workers, results):
            # Before the profiler, which takes memory, too.
            result.peak_bytes = worker.ask('peak')
            if profile:
                result.operators = worker.ask('profile')
    finally:
        for worker in workers:
            worker.end()
    return results


class _Worker:
    """The parent's side of a process that runs one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        context = multiprocessing.get_context('spawn')
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, case), daemon=True)
        self.process.start()
        other.close()
        self.ask('start')

    def ask(self, what: str) -> Any:
        try:
            self.pipe.send(what)
            failed, answer = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionError):
            self.process.join(5)
            raise ValueError(
                f'{self.case.name}: its process ended with exit code '
                f'{self.process.exitcode} (a negative one is a signal; -9 is mostly '
                'too little memory): use a smaller batch or smaller clips.'
            ) from None
        if failed:
            raise ValueError(f'{self.case.name}: {answer}')
        return answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


def serve(pipe: Any, case: Case) -> None:
    """In the process: answer until the other end closes."""
    run = None
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            if what == 'start':
                from .case import prepare

                run = prepare(case)
                run()
                answer = None
            elif what == 'run':
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                answer = time.perf_counter() - wall, time.process_time() - cpu
            elif what == 'peak':
                answer = peak_bytes(case.device)
            else:
                from .operators import profile_operators

                answer = profile_operators(run, case.device)
            pipe.send((False, answer))
        except Exception as error:
            first = str(error).strip().split('\n', 1)[0]
            pipe.send((True, f'{type(error).__name__}: {first}'))


def peak_bytes(device: str) -> int:
    """The most memory that this process held: on the GPU for one, else resident."""
    if device.startswith('cuda'):
        import torch

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
