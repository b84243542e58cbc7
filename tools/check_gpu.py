#!/usr/bin/env python
"""Is it right and fast on this GPU? Tests, benchmark and a real training, in one go.

python tools/check_gpu.py --out gpu.json

Within 8 minutes, without network and without mmcv's compiled operators: the tests
marked `gpu`; our backbones against MMAction2's in bfloat16; and some training steps of
configs/memvit_ava.py under --amp at its real size, on a set that is drawn for it. A
part that fails or takes too long leaves the others. The exit code is 1 if a test failed
or a part did; a goal of speed that is missed is said, and no failure.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from _common import import_package, run

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / 'tests' / 'gpu'
# Seconds that each part may take, on a GPU and in a rehearsal on a CPU. On a GPU they
# are less than 8 minutes together.
LIMITS = dict(tests=(195, 1500), bench=(190, 300), step=(60, 300))
CONFIG = """
_base_ = {config!r}

train_dataloader = dict(
    num_workers={workers},
    dataset=dict(
        ann_file={notes!r} + '/train.csv',
        exclude_file=None,
        label_file={notes!r} + '/action_list.pbtxt',
        proposal_file={notes!r} + '/proposals_train.pkl',
        data_prefix=dict(img={frames!r}),
        fps={fps},
        indices={indices},
    ),
)
train_cfg = dict(max_epochs=1)
param_scheduler = []
default_hooks = dict(checkpoint=None, logger=dict(interval=1))
# Each step's own time, not the mean of the last ones.
log_processor = dict(window_size=1)
"""


def parse_args():
    parser = argparse.ArgumentParser(description='Check everything on this GPU')
    parser.add_argument(
        '--out', metavar='FILE', default='gpu.json', help='JSON (default: gpu.json)'
    )
    parser.add_argument(
        '--device',
        default='cuda',
        help='cuda, cuda:1 ..., or cpu for a rehearsal of small sizes (default: cuda)',
    )
    parser.add_argument(
        '--only', nargs='+', choices=list(LIMITS), help='run these parts alone'
    )
    args = parser.parse_args()
    folder = os.path.dirname(os.path.abspath(args.out))
    if not os.path.isdir(folder):
        parser.error(f'--out {args.out}: there is no folder {folder}')
    return args


def environment(device: str) -> dict:
    """What the figures depend on."""
    import torch

    from memvit_mm.version import __version__

    cuda = device.startswith('cuda')
    if cuda and not torch.cuda.is_available():
        raise ValueError(
            f'--device {device}, but torch {torch.__version__} finds no GPU here: '
            'use --device cpu for a rehearsal.'
        )
    commit = None
    if shutil.which('git'):
        command = ['git', '-C', str(HERE), 'describe', '--always', '--dirty']
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return dict(
        device=torch.cuda.get_device_name(device) if cuda else platform.machine(),
        gpus=torch.cuda.device_count() if cuda else 0,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if cuda else None,
        python=platform.python_version(),
        cores=os.cpu_count(),
        dtype='bfloat16 (autocast)',
        memvit_mm=__version__,
        commit=commit or None,
    )


def variables(device: str) -> dict:
    """Environment of the processes: this package, one device, a share of the cores."""
    import memvit_mm

    package = Path(memvit_mm.__file__).resolve().parents[1]
    paths = [str(package), *filter(None, [os.environ.get('PYTHONPATH')])]
    found = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    found.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // 4, 1)))
    if not device.startswith('cuda'):
        found['CUDA_VISIBLE_DEVICES'] = ''
    elif ':' in device:
        found['CUDA_VISIBLE_DEVICES'] = device.split(':')[1]
    return found


def finish(process, seconds: float) -> bool:
    """Wait for a process and all that it started; False if it took too long.

    It is asked to stop first, so that pytest writes what it has.
    """
    for signal_, patience in ((None, seconds), (signal.SIGINT, 20)):
        if signal_ is not None:
            os.killpg(process.pid, signal_)
        try:
            process.wait(timeout=patience)
            return signal_ is None
        except subprocess.TimeoutExpired:
            continue
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return False


def run_tests(args, folder: Path, seconds: float) -> dict:
    """The tests marked gpu: how many passed, which failed."""
    if not TESTS.is_dir():
        return dict(error=f'there is no {TESTS}: run this in a checkout')
    if importlib.util.find_spec('pytest') is None:
        return dict(error="pytest is not installed: pip install '.[tests]'")
    report = folder / 'tests.xml'
    command = [sys.executable, '-m', 'pytest', str(TESTS), '-m', 'gpu', '-q']
    command += ['--device', 'cuda' if args.device.startswith('cuda') else 'cpu']
    command += [f'--junitxml={report}', '-p', 'no:cacheprovider']
    if importlib.util.find_spec('xdist') and args.device.startswith('cuda'):
        command += ['-n', '4']
    process = subprocess.Popen(
        command, cwd=HERE.parent, env=variables(args.device), start_new_session=True
    )
    in_time = finish(process, seconds)
    if not report.is_file():
        return dict(error=f'pytest left no report (exit code {process.returncode})')
    found = read_report(report)
    if not in_time:
        found['error'] = f'stopped after {seconds:.0f} s'
    elif process.returncode not in (0, 1):
        found['error'] = f'pytest ended with exit code {process.returncode}'
    return found


def read_report(path: Path) -> dict:
    """What a JUnit file says."""
    root = ElementTree.parse(path).getroot()
    # One that was interrupted has no name.
    cases = [case for case in root.iter('testcase') if case.get('name')]
    found = dict(passed=0, failed=[], skipped=[])
    for case in cases:
        name = f'{case.get("classname", "").split(".")[-1]}::{case.get("name")}'
        bad = [part for part in case if part.tag in ('failure', 'error')]
        if bad:
            words = (bad[0].get('message') or '').strip().splitlines()
            found['failed'].append(f'{name}: {words[0] if words else ""}')
        elif case.find('skipped') is not None:
            found['skipped'].append(f'{name}: {case.find("skipped").get("message")}')
        else:
            found['passed'] += 1
    slowest = sorted(cases, key=lambda case: -float(case.get('time', 0)))[:5]
    found['slowest'] = {c.get('name'): float(c.get('time', 0)) for c in slowest}
    return found


def run_bench(args, folder: Path, seconds: float) -> dict:
    """The benchmark, in a process of its own: it may hang, or break the GPU for us."""
    from memvit_mm.benchmark.gpu import goals_of, measure_gpu

    out = folder / 'bench.json'
    # A row that is begun takes some time still.
    keywords = dict(out=str(out), device=args.device, seconds=0.75 * seconds)
    process = multiprocessing.get_context('spawn').Process(
        target=measure_gpu, kwargs=keywords
    )
    process.start()
    process.join(seconds)
    stopped = process.is_alive()
    if stopped:
        process.kill()
        process.join()
    try:
        found = json.loads(out.read_text())
    except (OSError, ValueError):
        found = {}
    if stopped:
        found['error'] = f'stopped after {seconds:.0f} s'
    elif process.exitcode:
        found['error'] = f'ended with exit code {process.exitcode}'
    parts = [*found.get('rows', {}).items(), *found.get('profile', {}).items()]
    parts.append(('card', found.get('card', {})))
    errors = {name: part['error'] for name, part in parts if 'error' in part}
    return dict(
        found,
        # MMAction2's backbone may fail, ours may not.
        failed=[k for k, why in errors.items() if not why.startswith('left out')],
        goals=goals_of(found.get('rows', {})),
    )


def run_step(args, folder: Path, seconds: float) -> dict:
    """Training steps of configs/memvit_ava.py, by tools/train.py --amp."""
    from memvit_mm.demo.ava import DemoSettings, make_demo_dataset
    from memvit_mm.paths import get_config_path, get_tool_path

    begin = time.perf_counter()
    cuda = args.device.startswith('cuda')
    # The recipe crops 224 pixels of frames whose shorter side is 256 at least.
    settings = DemoSettings(num_train=4, num_val=1, seconds=18, size=256)
    make_demo_dataset(folder / 'set', settings, rawframes=True)
    drawn = time.perf_counter() - begin
    config = folder / 'memvit_ava_drawn.py'
    config.write_text(
        CONFIG.format(
            config=get_config_path('memvit_ava.py'),
            notes=str(folder / 'set' / 'annotations'),
            frames=str(folder / 'set' / 'rawframes'),
            fps=settings.fps,
            workers=8 if cuda else 2,
            indices=None if cuda else 4,
        )
    )
    command = [sys.executable, get_tool_path('train.py'), str(config), '--amp']
    command += ['--no-validate', '--work-dir', str(folder / 'work')]
    log = folder / 'train.log'
    with open(log, 'w') as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables(args.device),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        in_time = finish(process, seconds - drawn)
    if not in_time:
        return dict(error=f'stopped after {seconds:.0f} s')
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return dict(error=f'exit code {process.returncode}: {" / ".join(lines[-3:])}')
    (scalars,) = (folder / 'work').glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in scalars.read_text().splitlines()]
    # The first ones compile, allocate and start the loader's processes.
    warm = steps[len(steps) // 2 :]
    return dict(
        steps=len(steps),
        batch=2,
        seconds=statistics.median(step['time'] for step in warm),
        data_seconds=statistics.median(step['data_time'] for step in warm),
        peak_bytes=max(step.get('memory', 0) for step in steps) * 2**20,
        loss=[steps[0]['loss'], steps[-1]['loss']],
        drawing_seconds=drawn,
    )


PARTS = dict(tests=run_tests, bench=run_bench, step=run_step)


def table(found: dict) -> str:
    """All of it, as lines."""
    about = ', '.join(f'{k} {v}' for k, v in found['environment'].items() if v)
    lines = ['', about]
    if 'tests' in found:
        tests = found['tests']
        if 'passed' in tests:
            counts = f'{tests["passed"]} passed, {len(tests["failed"])} failed'
            lines.append(f'tests: {counts}, {len(tests["skipped"])} skipped')
            lines += [f'  FAILED {name}' for name in tests['failed']]
            reasons = {entry.split(': ', 1)[1] for entry in tests['skipped']}
            lines += [f'  skipped: {reason}' for reason in sorted(reasons)]
    bench = found.get('bench', {})
    card = bench.get('card', {})
    if 'tflops' in card:
        lines.append(
            f'card: {card["tflops"]:.0f} TFLOP/s in a bfloat16 product, '
            f'{card["copy_gb_s"]:.0f} GB/s in a copy'
        )
    if 'rows' in bench:
        lines.append(
            f'{"clips/s, peak MB; ours against theirs":48}{"theirs":>14}{"ours":>14}'
            f'{"speed":>7}{"peak":>6}{"on/off":>7}{"TFLOP/s":>9}{"share":>7}'
        )
        lines += [row_line(name, row) for name, row in bench['rows'].items()]
    for name, row in bench.get('profile', {}).items():
        if 'kernels' in row:
            lines.append(
                f'{name}, {row["row"]}: {row["launches"]} launches, '
                f'{row["busy"] * 1000:.1f} ms of kernels, the slowest:'
            )
            lines += [
                f'  {k["seconds"] * 1000:8.2f} ms {k["calls"]:5} x {k["name"][:90]}'
                for k in row['kernels']
            ]
    for goal in bench.get('goals', []):
        word = 'met' if goal['met'] else 'MISSED'
        lines.append(f'{goal["name"]:62}{goal["value"]:7.2f} {goal["goal"]:>8}  {word}')
    step = found.get('step', {})
    if 'seconds' in step:
        times = [1000 * step[key] for key in ('seconds', 'data_seconds')]
        lines.append(
            f'configs/memvit_ava.py --amp, batch {step["batch"]}: {times[0]:.0f} ms a '
            f'step ({times[1]:.0f} ms of it waiting for clips), peak '
            f'{step["peak_bytes"] / 2**20:.0f} MB, loss {step["loss"][0]:.2f} to '
            f'{step["loss"][1]:.2f} in {step["steps"]} steps'
        )
    if bench.get('failed'):
        lines.append(f'bench: FAILED {"; ".join(bench["failed"])}')
    for part in PARTS:
        if 'error' in found.get(part, {}):
            lines.append(f'{part}: NOT COMPLETE, {found[part]["error"]}')
    seconds = ', '.join(
        f'{part} {found[part]["took"]:.0f} s' for part in found['parts']
    )
    return '\n'.join([*lines, f'took: {seconds}'])


def row_line(name: str, row: dict) -> str:
    """One comparison."""
    if 'error' in row:
        return f'{name:48}  {row["error"]}'

    def cell(key: str) -> str:
        one = row[key]
        if 'error' in one:
            return 'failed'
        return f'{one["clips_per_second"]:.1f}, {one["peak_bytes"] / 2**20:.0f}'

    ratios, ours = row['ratios'], row['ours']
    values = [
        f'{ratios[key]:.2f}' if key in ratios else '-'
        for key in ('speed', 'peak memory', 'memory on / off')
    ]
    share = f'{ours["share"]:.0%}' if ours['share'] else '-'
    line = (
        f'{name:48}{cell("theirs"):>14}{cell("ours"):>14}{values[0]:>7}{values[1]:>6}'
        f'{values[2]:>7}{ours["tflops"]:9.1f}{share:>7}'
    )
    return line + (f'  {row["theirs"]["error"]}' if 'error' in row['theirs'] else '')


def main():
    args = parse_args()
    import_package()
    found = dict(environment=environment(args.device), parts=[])
    for part, work in PARTS.items():
        if args.only and part not in args.only:
            continue
        begin, limit = time.perf_counter(), LIMITS[part]
        with tempfile.TemporaryDirectory(prefix=f'check_gpu_{part}_') as folder:
            try:
                seconds = limit[not args.device.startswith('cuda')]
                found[part] = work(args, Path(folder), seconds)
            except Exception as error:  # the other parts go on
                found[part] = dict(error=f'{type(error).__name__}: {error}')
        found[part]['took'] = time.perf_counter() - begin
        found['parts'].append(part)
        with open(args.out, 'w') as file:
            json.dump(found, file, indent=2)
    print(table(found), flush=True)
    if any(
        found[part].get('failed') or 'error' in found[part] for part in found['parts']
    ):
        sys.exit(1)


if __name__ == '__main__':
    run(main)
