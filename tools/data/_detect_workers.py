"""The processes of detect_persons.py --workers, and how far they are."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

# Set in the processes that --workers starts: they tell how far they are on stdout.
TELL = 'MEMVIT_DETECT_WORKER'
# Seconds after which a process tells that, and after which a log gets a line.
TELL_EVERY, PRINT_EVERY = 0.5, 30


def run_workers(args, videos: list) -> int:
    """Start processes, each with its share, and show how far they are together.

    Returns:
        int: 1 if one of them failed, else 0.
    """
    count = min(args.workers, len(videos))
    threads = max(1, (os.cpu_count() or 1) // count)
    env = {'OMP_NUM_THREADS': str(threads), **os.environ, TELL: '1'}
    command = [sys.executable, *sys.argv]
    if args.overwrite:
        command.remove('--overwrite')
    ranks = [
        dict(env, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
        for rank in range(count)
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = [subprocess.Popen(command, env=one, **pipes) for one in ranks]
    with Bar(videos) as show:
        said: set = set()
        reading = [None] * count
        threads = [
            threading.Thread(target=follow, args=(worker, rank, show, reading, said))
            for rank, worker in enumerate(workers)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            for worker in workers:
                worker.terminate()
            raise
    codes = [worker.wait() for worker in workers]
    for rank, code in enumerate(codes):
        if code < 0:
            print(
                f'Error: process {rank} was killed ({signal.Signals(-code).name}) '
                f'while it read {reading[rank] or "nothing"}: if memory ran out, take '
                'fewer --workers; the same command goes on.',
                file=sys.stderr,
            )
    return 1 if any(codes) else 0


def follow(worker, rank: int, show, reading: list, said: set) -> None:
    """Show what a process tells, and repeat what it says, once."""

    def repeat():
        for line in worker.stderr:
            if line not in said:
                said.add(line)
                show.say(line.rstrip('\n'))

    other = threading.Thread(target=repeat)
    other.start()
    for line in worker.stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        video = Path(told['video'])
        if 'looks' in told:
            reading[rank] = video
            show.look(video, told['read'], told['looks'])
        else:
            show.done(video, told['error'])
    other.join()


class Teller:
    """Tells the process that started this one how far it is."""

    def __init__(self) -> None:
        self.looks, self.told = 0, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def look(self, video: Path, read: float) -> None:
        """A keyframe has been looked at."""
        self.looks += 1
        if time.monotonic() - self.told > TELL_EVERY:
            self._tell(video=str(video), read=read, looks=self.looks)
            self.looks, self.told = 0, time.monotonic()

    def done(self, video: Path, error) -> None:
        """A video is done with."""
        if self.looks:
            self._tell(video=str(video), read=1.0, looks=self.looks)
            self.looks = 0
        self._tell(video=str(video), error=error)

    @staticmethod
    def _tell(**told) -> None:
        print(json.dumps(told), flush=True)


class Bar:
    """How far it is and how long it will take, as a bar or as lines in a log.

    Args:
        videos (list[Path]): What there is to do; it counts by the size of the files.
        quiet (bool): Say nothing, but what is wrong.
    """

    def __init__(self, videos: list, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.sizes = {video: video.stat().st_size or 1 for video in videos}
        self.read = dict.fromkeys(videos, 0.0)
        self.videos = self.looks = 0
        self.begin = self.printed = time.monotonic()
        self.lock = threading.Lock()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.lines = not quiet and not self.console.is_terminal
        self.bar = Progress(
            TextColumn('{task.percentage:3.0f} %'),
            BarColumn(),
            TextColumn('{task.description}'),
            TimeRemainingColumn(),
            TextColumn('left'),
            console=self.console,
            disable=quiet or self.lines,
        )
        self.task = self.bar.add_task('', total=sum(self.sizes.values()))

    def __enter__(self) -> 'Bar':
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def look(self, video: Path, read: float, looks: int = 1) -> None:
        """So much of a video has been read, and so many keyframes looked at."""
        with self.lock:
            self.looks += looks
            self._show(video, read)

    def done(self, video: Path, error) -> None:
        """A video is done with."""
        with self.lock:
            self.videos += 1
            self._show(video, 1.0)
        if error is not None:
            self.say(error)

    def say(self, line: str) -> None:
        """Print a line, above the bar."""
        self.console.print(line, markup=False)

    def _show(self, video: Path, read: float) -> None:
        self.read[video] = max(self.read[video], read)
        done = sum(self.sizes[one] * part for one, part in self.read.items())
        rate = self.looks / (time.monotonic() - self.begin + 1e-9)
        text = (
            f'{self.videos} of {len(self.sizes)} videos, {self.looks} keyframes, '
            f'{rate:.1f}/s'
        )
        self.bar.update(self.task, completed=done, description=text)
        now = time.monotonic()
        if self.lines and now - self.printed > PRINT_EVERY:
            self.printed = now
            total = self.bar.tasks[0].total
            left = (now - self.begin) * (total - done) / max(done, 1)
            self.say(
                f'{100 * done / total:.0f} %, {text}, {left / 60:.1f} minutes left'
            )
