"""Speed on a GPU: our backbones against MMAction2's, and against the card itself."""

import functools
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from mmengine.config import Config
from torch.profiler import ProfilerActivity, profile

from memvit_mm.paths import get_config_path

from .compare import BASELINE, OURS, THEIRS, backbones
from .complexity import backbone_cost, clip_shape
from .measure import Case, measure_here, prepare

# The goals: times the clips a second, times the peak memory, memory on / off.
FASTER, SMALLER, MEMORY_COSTS = 2.0, 0.5, 1.08
NAMES = {THEIRS: 'theirs', OURS: 'ours', BASELINE: 'no memory'}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    config: str
    kind: str
    """'training' (forward and backward) or 'inference'."""
    batch: int
    compiled: bool = False
    """Both through ``torch.compile``."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        words = f'{self.config}, {self.kind}, batch {self.batch}'
        return words + (', compiled' if self.compiled else '')


def plan(device: str) -> list[Row]:
    """What to compare, the most wanted first; a rehearsal of it on a CPU."""
    sizes = [('training', 8), ('training', 16)]
    sizes += [('inference', batch) for batch in (1, 8, 32)]
    if not device.startswith('cuda'):
        small = [('training', 2), ('inference', 1)]
        return [Row('memvit_demo', kind, batch) for kind, batch in small]
    rows = [Row('memvit_ava', kind, batch) for kind, batch in sizes]
    rows += [
        Row('memvit_ava', kind, 8, compiled=True) for kind in ('training', 'inference')
    ]
    for config in ('memvit_24_ava', 'videomae_memory_ava'):
        rows += [Row(config, kind, batch) for kind, batch in sizes]
    return rows


def measure_gpu(
    out: str, device: str = 'cuda', seconds: float = 200, repeats: int = 10
) -> None:
    """Measure all of :func:`plan`; whatever is done is in the file at any time.

    Args:
        out (str): A JSON file: ``card`` (:func:`measure_card`), ``rows`` (by name:
            :func:`compare_row`) and ``profile`` (by name: :func:`profile_run`). What
            could not be measured has ``error`` in its place.
        device (str): 'cuda', 'cuda:1' ... or 'cpu', for a rehearsal of small models.
        seconds (float): Nothing is begun later than this, and nothing compiled, which
            may take a minute, later than half of it.
        repeats (int): Measured runs of each.
    """
    begin = time.perf_counter()
    found: dict[str, Any] = dict(rows={}, profile={})

    def put(part: dict, key: str, function: Callable, *args: Any) -> None:
        spent = time.perf_counter() - begin
        if spent > (seconds / 2 if key.endswith('compiled') else seconds):
            part[key] = dict(error=f'left out: {spent:.0f} s are over')
        else:
            try:
                part[key] = function(*args)
            except Exception as error:  # one that fails leaves the others
                # The traceback would keep tensors alive.
                first = (str(error).strip() or '-').splitlines()[0]
                part[key] = dict(error=f'{type(error).__name__}: {first}')
            part[key]['took'] = time.perf_counter() - begin - spent
        # Compiled functions keep their models.
        torch.compiler.reset()
        gc.collect()
        if device.startswith('cuda'):
            torch.cuda.empty_cache()
        with open(out, 'w') as file:
            json.dump(found, file, indent=2)

    put(found, 'card', measure_card, device)
    rows = plan(device)
    for number, row in enumerate(rows):
        rate = found['card'].get('tflops')
        put(found['rows'], row.name, compare_row, row, device, rate, repeats)
        if number == 0:
            for name in (OURS, THEIRS):
                put(found['profile'], NAMES[name], profile_row, row, name, device)


def measure_card(device: str) -> dict[str, float]:
    """What the card does at best: a large product in bfloat16, and a large copy.

    Returns:
        dict: ``tflops`` of the product, ``copy_gb_s`` of a copy on the device, bytes
        read and bytes written counted.
    """
    cuda = device.startswith('cuda')
    side, count = (8192, 2**30) if cuda else (256, 2**20)
    a, b = (
        torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    product = _median_seconds(lambda: a @ b, device)
    source = torch.randint(0, 255, (count,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return dict(tflops=2 * side**3 / product / 1e12, copy_gb_s=2 * count / copy / 1e9)


def _median_seconds(run: Callable, device: str, repeats: int = 10) -> float:
    """Seconds of a call, on the device's own clock for a GPU."""
    for _ in range(3):
        run()
    found = []
    for _ in range(repeats):
        if device.startswith('cuda'):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            torch.cuda.synchronize(device)
            found.append(events[0].elapsed_time(events[1]) / 1000)
        else:
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
    return statistics.median(found)


def case_of(row: Row, name: str, device: str) -> Case:
    """What :mod:`.measure` runs for a row: bfloat16 autocast, memory full."""
    backbone = Config.fromfile(get_config_path(row.config)).model.backbone
    return Case(
        name,
        backbones(backbone)[name],
        batch=row.batch,
        training=row.kind == 'training',
        device=device,
        dtype='bfloat16',
        compiled=row.compiled,
    )


@functools.cache
def _macs(config: str, name: str) -> int:
    """Multiply-adds of one clip."""
    backbone = dict(case_of(Row(config, 'inference', 1), name, 'cpu').backbone)
    return backbone_cost(backbone, clip_shape(backbone)).macs


def compare_row(
    row: Row, device: str, rate: Optional[float] = None, repeats: int = 10
) -> dict[str, Any]:
    """Ours, ours without memory and MMAction2's backbone, in turn on the same input.

    Args:
        row (Row): What to compare.
        device (str): Where.
        rate (float, optional): TFLOP/s of the card's matrix product.
        repeats (int): Measured runs of each.

    Returns:
        dict: By 'ours', 'theirs' and 'no memory': ``clips_per_second``, ``seconds`` (of
        a batch, the median), ``peak_bytes``, ``tflops`` (twice the multiply-adds of
        :mod:`.complexity`, three times that in training) and ``share`` of ``rate``;
        and ``ratios``, a dict of 'speed' and 'peak memory' (ours by theirs) and
        'memory on / off' (in time). If MMAction2's fails, for memory say, its
        ``error``, and ours alone.
    """
    names, failed = [THEIRS, OURS, BASELINE], None
    if row.compiled:
        names = [THEIRS, OURS]
    cases = [case_of(row, name, device) for name in names]
    try:
        results = measure_here(cases, repeats)
    except RuntimeError as error:
        failed = str(error).splitlines()[0]
    if failed is not None:
        gc.collect()
        if device.startswith('cuda'):
            torch.cuda.empty_cache()
        cases = [case for case in cases if case.name != THEIRS]
        results = measure_here(cases, repeats)
    found: dict[str, Any] = {}
    for case, result in zip(cases, results):
        macs = _macs(row.config, case.name)
        flops = 2 * macs * (3 if case.training else 1)
        tflops = flops * result.clips_per_second / 1e12
        found[NAMES[case.name]] = dict(
            clips_per_second=result.clips_per_second,
            seconds=result.median,
            peak_bytes=result.peak_bytes,
            tflops=tflops,
            share=tflops / rate if rate else None,
        )
    if failed is not None:
        found['theirs'] = dict(error=failed)
    found['ratios'] = ratios_of(found)
    return found


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """How a row's figures compare; see :func:`compare_row`.

    Examples:
        >>> theirs = dict(clips_per_second=1.0, seconds=8.0, peak_bytes=10)
        >>> ours = dict(clips_per_second=4.0, seconds=2.0, peak_bytes=4)
        >>> ratios_of(dict(theirs=theirs, ours=ours))
        {'speed': 4.0, 'peak memory': 0.4}
    """
    ours, theirs, without = (found.get(k) for k in ('ours', 'theirs', 'no memory'))
    ratios = {}
    if theirs and 'error' not in theirs:
        ratios['speed'] = ours['clips_per_second'] / theirs['clips_per_second']
        if theirs['peak_bytes']:
            ratios['peak memory'] = ours['peak_bytes'] / theirs['peak_bytes']
    if without:
        ratios['memory on / off'] = ours['seconds'] / without['seconds']
    return ratios


def goals_of(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal of each row: ``name``, ``value``, ``goal`` and whether it is ``met``.

    Examples:
        >>> goals_of({'a': dict(ratios={'speed': 2.5})})
        [{'name': 'a: speed', 'value': 2.5, 'goal': '>= 2.0', 'met': True}]
    """
    found = []
    for name, row in rows.items():
        for ratio, value in row.get('ratios', {}).items():
            limit = {'speed': FASTER, 'peak memory': SMALLER}.get(ratio, MEMORY_COSTS)
            more = ratio == 'speed'
            found.append(
                dict(
                    name=f'{name}: {ratio}',
                    value=value,
                    goal=f'{">=" if more else "<="} {limit}',
                    met=value >= limit if more else value <= limit,
                )
            )
    return found


def profile_row(row: Row, name: str, device: str) -> dict[str, Any]:
    """:func:`profile_run` of a warm run of a row's backbone."""
    run = prepare(case_of(row, name, device))
    for _ in range(3):
        run()
    return dict(profile_run(run, device), row=row.name)


def profile_run(
    run: Callable[[], None], device: str, slowest: int = 10
) -> dict[str, Any]:
    """Where the time of a run goes.

    Args:
        run (callable): What to run; warm.
        device (str): Where it runs.
        slowest (int): How many kernels to name.

    Returns:
        dict: ``kernels``, the slowest by their sums, each with ``name``, ``seconds``
        and ``calls``; ``launches``, all kernels and copies on the device; ``busy``,
        their seconds together; ``seconds`` on the wall. On a CPU, operators are the
        kernels.
    """
    # Else it says on the terminal that it starts and stops.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    cuda = device.startswith('cuda')
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    begin = time.perf_counter()
    with profile(activities=activities) as profiler:
        run()
    seconds = time.perf_counter() - begin
    kind = 'CUDA' if cuda else 'CPU'
    entries: Sequence[tuple[str, float, int]] = [
        (
            event.key,
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6,
            event.count,
        )
        for event in profiler.key_averages()
        if event.device_type.name == kind
        and not getattr(event, 'is_user_annotation', False)
    ]
    entries = sorted(entries, key=lambda entry: -entry[1])
    return dict(
        kernels=[
            dict(name=name[:120], seconds=spent, calls=calls)
            for name, spent, calls in entries[:slowest]
        ],
        launches=sum(calls for _, _, calls in entries),
        busy=sum(spent for _, spent, _ in entries),
        seconds=seconds,
    )
