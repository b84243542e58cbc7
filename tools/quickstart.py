"""Train the demo with and without memory, and compare; quickstart.sh calls this.

Draws data/memvit_demo, trains configs/memvit_demo.py and memvit_demo_no_memory.py side
by side, tests both, and the first once more with its memory cleared before every clip.
What the steps print goes to files in work_dirs. In the end the first predicts one more
video, and leaves demo.html, demo.mp4 and demo.png there.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

DATA = Path('data/memvit_demo')
RUNS = {'with memory': 'memvit_demo', 'without memory': 'memvit_demo_no_memory'}
# Whole batches are validated, which is twice as fast; one by one, the default on a CPU,
# results do not depend on the batch to the last bit.
OPTIONS = ('--cfg-options', 'model.test_cfg.one_by_one=False')
TRAINED = re.compile(r'Epoch\(train\) +\[(\d+)\].*? eta: ([\d:]+)')
VALIDATED = re.compile(r'Epoch\(val\) +\[\d+\].*?mAP/overall: ([\d.]+)')


class Step:
    """A command on one core, whose output goes to a file."""

    def __init__(self, log: Path, *command: object, name: str = '') -> None:
        self.name, self.log, self.start = name, log, time.monotonic()
        self.command = [sys.executable, *map(str, command)]
        self.seconds = None
        self.validations = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            self.command,
            stdout=log.open('w'),
            stderr=subprocess.STDOUT,
            env=dict(os.environ, OMP_NUM_THREADS='1'),
        )

    def poll(self) -> bool:
        """Whether it is done. Ends this program if it failed."""
        code = self.process.poll()
        if code:
            lines = self.log.read_text().split('\n')
            told = next((line for line in lines if line.startswith('Error: ')), '')
            sys.exit(
                f'{told}\nError: `{" ".join(self.command)}` failed: see {self.log}.'
            )
        if code == 0 and self.seconds is None:
            self.seconds = time.monotonic() - self.start
        return code == 0

    def progress(self) -> str:
        """Epoch, mAP of the last validation and time left, of a training."""
        text = self.log.read_text()
        epoch, left = (TRAINED.findall(text) or [('1', 'not known yet')])[-1]
        means = VALIDATED.findall(text)
        self.validations = len(means)
        mean = f'{float(means[-1]):.3f}' if means else '-'
        left = 'done' if self.seconds else f'time left {left}'
        return f'  {self.name:14}  epoch {epoch}  mAP {mean:5}  {left}'


def wait(*steps: Step, show: bool = False) -> None:
    """Until all are done; with a line of progress for each.

    A terminal's lines are redrawn; else there is a new one for each validation.
    """
    lines, told = {}, {}
    try:
        while not all([step.poll() for step in steps]) or lines != texts(steps, show):
            before, lines = lines, texts(steps, show)
            if show and sys.stdout.isatty():
                up = f'\033[{len(before)}A' if before else ''
                print(up + '\n'.join('\033[2K' + line for line in lines.values()))
            elif show:
                for step, line in lines.items():
                    is_new = step.validations > told.get(step, 0)
                    if is_new or (step.seconds and before.get(step) != line):
                        print(line)
                    told[step] = step.validations
            sys.stdout.flush()
            time.sleep(1)
    finally:
        for step in steps:
            step.process.terminate()


def texts(steps: tuple, show: bool) -> dict:
    return {step: step.progress() for step in steps} if show else {}


def checkpoint(run: str) -> str:
    """The last one of a training."""
    return Path(f'work_dirs/{run}/last_checkpoint').read_text().strip()


def test(run: str, folder: str, *options: str) -> Step:
    work_dir = Path('work_dirs', run, folder)
    config = f'configs/{run}.py'
    return Step(
        Path(f'{work_dir}.log'),
        *('tools/test.py', config, checkpoint(run), '--work-dir', work_dir),
        *(*OPTIONS, *options),
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    start = time.monotonic()
    print(f'Drawing videos in {DATA}')
    wait(Step(Path('work_dirs/demo_data.log'), 'tools/data/make_demo_dataset.py', DATA))
    print('Training on one core each (log: work_dirs/*/train.log)')
    trainings = [
        Step(
            Path(f'work_dirs/{run}/train.log'),
            *('tools/train.py', f'configs/{run}.py', '--work-dir', f'work_dirs/{run}'),
            *(*OPTIONS, 'train_cfg.val_interval=2'),
            name=name,
        )
        for name, run in RUNS.items()
    ]
    wait(*trainings, show=True)
    print('Testing, also with the memory cleared before every clip\n')
    first, second = RUNS.values()
    wait(
        test(first, 'test'),
        test(first, 'test_cleared', 'custom_hooks.0.every_clip=True'),
        test(second, 'test'),
    )
    subprocess.run(
        [
            *(sys.executable, 'tools/analysis_tools/plot_demo.py'),
            *(f'work_dirs/{run}' for run in RUNS.values()),
            *('--seconds', *(f'{step.seconds:.0f}' for step in trainings)),
            *('--cleared', f'work_dirs/{first}/test_cleared'),
            *('--out', 'work_dirs/memvit_demo.png'),
        ],
        check=True,
    )
    print('\nA video that is in neither set, with the trained model:', flush=True)
    subprocess.run(
        [
            *(sys.executable, '-m', 'memvit_mm', 'demo'),
            *('--checkpoint', checkpoint(first)),
        ],
        check=True,
    )
    print(
        f'\nData: {DATA.resolve()}; logs, checkpoints and results: '
        f'{Path("work_dirs").resolve()} ({time.monotonic() - start:.0f} s).'
    )


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nStopped.')
