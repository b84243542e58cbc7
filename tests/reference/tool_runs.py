"""Real test runs of the command lines, and how the results of two of them differ."""

import json
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Union

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
# Largest difference of a score, and of a metric.
SCORE_LIMIT, METRIC_LIMIT = 1e-5, 1e-6
# What a dumped sample holds besides its prediction, and a result besides its metrics.
GIVEN = ('gt_', 'proposals')
TIMES = ('data_time', 'time')

PathLike = Union[str, Path]


class Result(NamedTuple):
    """What one test run gave."""

    samples: Counter
    """How often each (video, time) came."""
    predictions: dict
    """(video, time) -> name -> array."""
    metrics: dict
    """As logged at the end."""


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def environment(**variables: str) -> dict[str, str]:
    """The variables of a run: one thread unless the user says otherwise."""
    return {
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        **os.environ,
        **variables,
    }


def test_run(
    config: PathLike,
    checkpoint: PathLike,
    out: Path,
    world: int = 1,
    batch: int = 1,
    workers: int = 0,
) -> Result:
    """Run a test as a user would, and read what it wrote.

    Args:
        config, checkpoint (str | Path): What ``tools/test.py`` takes.
        out (Path): A folder for what it writes: logs, dump, ``output.txt``.
        world (int): Processes. For more than one, ``tools/dist_test.sh`` runs.
        batch (int): Clips per step of each process.
        workers (int): Loader processes of each process.

    Raises:
        ValueError: If the run fails; its output is kept in ``out``.
    """
    dump = out / 'predictions.pkl'
    options = ['--work-dir', out, '--dump', dump, '--cfg-options']
    for setting in (
        f'batch_size={batch}',
        f'num_workers={workers}',
        f'persistent_workers={workers > 0}',
    ):
        options.append(f'test_dataloader.{setting}')
    if world == 1:
        python = environment()['PYTHON']
        command = [python, TOOLS / 'test.py', config, checkpoint, *options]
    else:
        command = ['bash', TOOLS / 'dist_test.sh', config, checkpoint, world, *options]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=environment(PORT=str(free_port())),
    )
    (out / 'output.txt').write_text(done.stdout + done.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith('Error: ')]
        raise ValueError(
            f'The test with world size {world}, batch size {batch} and {workers} '
            f'workers failed, see {out / "output.txt"}. {" ".join(said[:1])}'.rstrip()
        )
    # mmengine lets every process write this file, one over the other: of a longer text
    # an end may be left.
    text = next(out.glob('*/*.json')).read_text()
    metrics, _ = json.JSONDecoder().raw_decode(text)
    return read_result(dump, metrics)


def read_result(dump: Path, metrics: dict) -> Result:
    """Sort a dump of ``tools/test.py`` by sample.

    Raises:
        ValueError: If the samples do not say their video and time.
    """
    samples = pickle.loads(dump.read_bytes())
    keys = []
    for sample in samples:
        if 'video_id' not in sample or 'timestamp' not in sample:
            raise ValueError(
                f"The samples in {dump} have no 'video_id' and 'timestamp': add both "
                'to the meta_keys of PackActionInputs in the test pipeline.'
            )
        keys.append((str(sample['video_id']), float(sample['timestamp'])))
    metrics = {name: metrics[name] for name in metrics if name not in TIMES}
    predictions = {key: dict(_predicted(sample)) for key, sample in zip(keys, samples)}
    return Result(Counter(keys), predictions, metrics)


def _predicted(values: dict, prefix: str = '') -> Iterator[tuple]:
    """Every tensor in a sample that was not given to the model."""
    import torch

    for name, value in sorted(values.items()):
        if name.startswith(GIVEN):
            continue
        if isinstance(value, dict):
            yield from _predicted(value, f'{prefix}{name}.')
        elif isinstance(value, torch.Tensor):
            yield prefix + name, value.detach().cpu().numpy()


def difference(a: dict, b: dict) -> tuple[bool, float]:
    """Whether two predictions are the same bits, and their largest difference.

    Examples:
        >>> import numpy as np
        >>> difference({'score': np.float32([1, 2])}, {'score': np.float32([1, 2.5])})
        (False, 0.5)
    """
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return False, float('inf')
    same, largest = True, 0.0
    for name in a:
        same = same and a[name].tobytes() == b[name].tobytes()
        for x, y in zip(a[name].ravel().tolist(), b[name].ravel().tolist()):
            largest = max(largest, _gap(x, y))
    return same, largest


def _gap(x: float, y: float) -> float:
    gap = 0.0 if x == y or (x != x and y != y) else abs(x - y)
    return gap if gap == gap else float('inf')


def compare(result: Result, first: Result, same_batch: Result, size: int) -> dict:
    """How a run differs from the first one, and from the first of its batch size.

    Args:
        result (Result): The run.
        first (Result): The first run of all.
        same_batch (Result): The first run with this batch size.
        size (int): Samples in the dataset.

    Returns:
        dict: ``samples``, ``lost``, ``twice`` (how many), ``same_bits`` (as
        ``same_batch``), ``score_diff`` and ``metric_diff`` (largest, to ``first``),
        and ``ok``.
    """
    pairs = [
        difference(prediction, first.predictions[key])
        for key, prediction in result.predictions.items()
        if key in first.predictions
    ]
    same_bits = all(
        difference(prediction, same_batch.predictions[key])[0]
        for key, prediction in result.predictions.items()
        if key in same_batch.predictions
    )
    metric_diff = float('inf')
    if result.metrics.keys() == first.metrics.keys():
        gaps = (
            _gap(value, first.metrics[name])
            for name, value in result.metrics.items()
            if isinstance(value, (int, float))
        )
        metric_diff = max(gaps, default=0.0)
    row = dict(
        samples=sum(result.samples.values()),
        lost=max(size - len(result.samples), len(first.samples - result.samples)),
        twice=sum(result.samples.values()) - len(result.samples),
        same_bits=same_bits,
        score_diff=max((gap for _, gap in pairs), default=float('inf')),
        metric_diff=metric_diff,
    )
    row['ok'] = (
        row['lost'] == row['twice'] == 0
        and same_bits
        and row['score_diff'] <= SCORE_LIMIT
        and metric_diff <= METRIC_LIMIT
    )
    return row
