"""What reading a video's clips in order costs, beside MMAction2's random access."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mmaction.datasets.transforms import DecordDecode, DecordInit
from mmengine.dataset import BaseDataset, DefaultSampler
from torch.utils.data import DataLoader, get_worker_info

from memvit_mm.datasets.sampling.lane_loader import by_lanes
from memvit_mm.datasets.sampling.sampler import SequentialClipSampler
from memvit_mm.datasets.transforms.clips import SampleClipFrames
from memvit_mm.datasets.transforms.video import VideoDecode, VideoInit
from memvit_mm.video.open_video import open_video

KINDS = ('in order', 'random access')


def make_video(path: str, seconds: int, size: str = '340x256', gop: int = 250) -> None:
    """Write an H.264 video with ffmpeg: 30 frames a second, B-frames, noise.

    Args:
        path (str): Where.
        seconds (int): How long.
        size (str): Width and height in pixels.
        gop (int): Frames from one key frame to the next.

    Raises:
        FileNotFoundError: If there is no ffmpeg.
        ValueError: If it fails.
    """
    if shutil.which('ffmpeg') is None:
        raise FileNotFoundError(
            'ffmpeg, which makes the video, is not installed: install it, or name a '
            'video of your own.'
        )
    picture = f'testsrc2=size={size}:rate=30:duration={seconds},noise=alls=6:allf=t'
    made = subprocess.run(
        ['ffmpeg', '-v', 'error', '-y', '-f', 'lavfi', '-i', picture]
        + ['-pix_fmt', 'yuv420p', '-c:v', 'libx264', '-g', str(gop)]
        + ['-keyint_min', str(gop), '-sc_threshold', '0', '-bf', '3', path],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ValueError(f'ffmpeg could not make {path}: {made.stderr.strip()}')


class ClipReader:
    """Clips of one video, one by one.

    Args:
        path (str): The video.
        kind (str): One of ``KINDS``: ours, or MMAction2's transforms.
        clip_len (int): Frames in a clip.
        frame_interval (int): From one to the next.
    """

    def __init__(
        self, path: str, kind: str, clip_len: int, frame_interval: int
    ) -> None:
        self.path = path
        in_order = kind == 'in order'
        self.init = VideoInit(keep_open=1) if in_order else DecordInit()
        sample = SampleClipFrames(clip_len, frame_interval, test_mode=True)
        decode = VideoDecode() if in_order else DecordDecode()
        self.steps: Sequence[Callable] = (self.init, sample, decode)

    def read(self, second: float) -> list[np.ndarray]:
        """The frames of the clip around a second."""
        results: Any = dict(
            filename=self.path, timestamp=second, timestamp_start=0, fps=30
        )
        for step in self.steps:
            results = step(results)
        return results['imgs']

    @property
    def reader(self) -> Any:
        """The video that is open, in order."""
        (reader,) = self.init._readers.here().values()
        return reader


def clip_seconds(path: str, span: float, stride: float) -> list[float]:
    """When the clips of a video are that do not run over its ends."""
    reader = open_video(path)
    seconds = len(reader) / reader.get_avg_fps()
    count = int((seconds - span) // stride)
    if count < 4:
        raise ValueError(
            f'{path} lasts {seconds:.1f} s, too short for clips of {span:.1f} s: name '
            'a longer video.'
        )
    return [span / 2 + number * stride for number in range(count)]


def measure_speed(
    path: str, times: Sequence[float], clip: dict, rounds: int, clips: int
) -> dict:
    """Clips per second of one worker, both ways in turn, medians of rounds.

    Each round reads ``clips`` clips in order, and some of the same at random. What
    opening the file costs is in the latter, for every clip, and not in the former.
    """
    ours, theirs = (ClipReader(path, kind, **clip) for kind in KINDS)
    ours.read(times[0])
    found: dict = {kind: dict(wall=[], cpu=[]) for kind in KINDS}
    position, identical, compared = 1, 0, 0
    first = ours.reader.decoded
    for _ in range(rounds):
        chosen = times[position : position + clips]
        if not chosen:
            break
        position += len(chosen)
        some = chosen[:: max(len(chosen) // 8, 1)]
        with _Clock(found['in order'], len(chosen)):
            kept = {second: ours.read(second) for second in chosen}
        with _Clock(found['random access'], len(some)):
            for second in some:
                kept[second, 0] = theirs.read(second)
        for second in some:
            compared += 1
            identical += np.array_equal(kept[second], kept[second, 0])
    reader = ours.reader
    new = (times[position - 1] - times[0]) * reader.get_avg_fps()
    speeds = {
        kind: dict(
            clips_per_second=1 / statistics.median(found[kind]['wall']),
            cpu_seconds_per_clip=statistics.median(found[kind]['cpu']),
        )
        for kind in KINDS
    }
    return dict(
        speeds,
        ratio=speeds['in order']['clips_per_second']
        / speeds['random access']['clips_per_second'],
        read_in_order=reader.in_order,
        decoded_per_new_frame=(reader.decoded - first) / new,
        identical_clips=f'{identical} of {compared}',
        frames_kept=reader.frames_kept,
        kept_megabytes=reader.num_bytes / 2**20,
    )


class _Clock:
    """Appends seconds per clip, on the wall and of all threads."""

    def __init__(self, found: dict, clips: int) -> None:
        self.found, self.clips = found, clips

    def __enter__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: Any) -> None:
        now = time.perf_counter(), time.process_time()
        for name, begin, end in zip(('wall', 'cpu'), self.start, now):
            self.found[name].append((end - begin) / self.clips)


def measure_ram(path: str, times: Sequence[float], clip: dict, kind: str) -> dict:
    """Megabytes that a fresh process takes while it reads clips.

    Returns:
        dict: ``peak``, and ``growth`` from a quarter of the clips to the end; both
        beyond what the process held before.
    """
    script = (
        'import json, sys\n'
        'from memvit_mm.benchmark.decoding import watch_ram\n'
        'print(json.dumps(watch_ram(*json.loads(sys.argv[1]))))\n'
    )
    arguments = json.dumps([path, list(times), clip, kind])
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [sys.executable, '-c', script, arguments],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))),
    )
    return json.loads(done.stdout.splitlines()[-1])


def watch_ram(path: str, times: Sequence[float], clip: dict, kind: str) -> dict:
    """What :func:`measure_ram` runs."""
    clips = ClipReader(path, kind, **clip)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # forget the peak that imports have reached
    start, held = _resident(), []
    for second in times:
        clips.read(second)
        held.append(_resident() - start)
    with open('/proc/self/status') as file:
        (peak,) = [line.split()[1] for line in file if line.startswith('VmHWM')]
    return dict(peak=int(peak) / 1024 - start, growth=held[-1] - held[len(held) // 4])


def _resident() -> float:
    """Megabytes that this process holds."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


class _Lanes(BaseDataset):
    """Each of some videos, a clip every so many seconds."""

    def load_data_list(self) -> list[dict]:
        paths, times = self.metainfo['paths'], self.metainfo['times']
        return [
            dict(
                filename=path,
                video_id=path,
                timestamp=second,
                timestamp_start=0,
                fps=30,
            )
            for path in paths
            for second in times
        ]


class _Report:
    def __init__(self, init: VideoInit) -> None:
        self.init = init

    def __call__(self, results: dict) -> tuple:
        path = results['filename']
        count = self.init._readers.here()[path, 0].decoded
        worker = get_worker_info()
        frames = np.stack(results['imgs'])
        last = int(results['frame_inds'].max())
        return frames, path, worker.id if worker else 0, count, last


def measure_workers(
    paths: Sequence[str],
    times: Sequence[float],
    clip: dict,
    num_workers: int,
    lanes: bool = True,
) -> dict:
    """Frames decoded per new frame with workers, one lane for every video.

    Args:
        paths (sequence[str]): The videos, files of their own.
        times (sequence[float]): When the clips of each are, in seconds.
        clip (dict): ``clip_len`` and ``frame_interval``.
        num_workers (int): Workers of the dataloader.
        lanes (bool): Whether each reads lanes of its own; else batches in turn, as
            torch deals them.

    Raises:
        ValueError: If there are fewer than three clips a worker.
    """
    if len(times) < 3 * num_workers:
        raise ValueError(
            f'{len(times)} clips of a video are too few to measure {num_workers} '
            f'workers: read at least {3 * num_workers} of a longer video.'
        )
    init = VideoInit(keep_open=len(paths))
    sample = SampleClipFrames(**clip, test_mode=True)
    dataset = _Lanes(
        metainfo=dict(paths=list(paths), times=list(times)),
        pipeline=[init, sample, VideoDecode(), _Report(init)],
    )
    sampler = DefaultSampler(dataset, shuffle=False, seed=0)
    loader = DataLoader(
        dataset,
        batch_sampler=SequentialClipSampler(sampler, len(paths), shuffle=False),
        num_workers=num_workers,
        collate_fn=list,
    )
    if lanes:
        loader = by_lanes(loader)
    counts: dict[tuple, list[int]] = {}
    frames: dict[str, list[int]] = {}
    start, warm = 0.0, num_workers
    for step, batch in enumerate(loader):
        for _, path, worker, count, last in batch:
            if step >= warm:
                counts.setdefault((path, worker), []).append(count)
                frames.setdefault(path, []).append(last)
        if step == warm:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    # What each decoded from its first clip to its last, over the frames in between
    # from its video, which with W workers on a video are seen W times.
    decoded = sum(of_one[-1] - of_one[0] for of_one in counts.values())
    new = sum(of_one[-1] - of_one[0] for of_one in frames.values())
    return dict(
        workers=loader.num_workers,
        decoded_per_new_frame=decoded / new,
        clips_per_second=len(paths) * (step - warm) / seconds,
    )


def measure(
    path: str,
    clip_len: int = 16,
    frame_interval: int = 4,
    stride: float = 1.0,
    rounds: int = 5,
    clips: int = 40,
    workers: Sequence[int] = (1, 2, 4),
    lanes: int = 4,
    folder: Optional[str] = None,
) -> dict:
    """All of it, for one video.

    Args:
        path (str): The video.
        clip_len (int): Frames in a clip.
        frame_interval (int): From one to the next.
        stride (float): Seconds from a clip to the next.
        rounds (int): Rounds of the speed, both ways in turn.
        clips (int): Clips of a round in order, and of each lane with workers.
        workers (sequence[int]): Numbers of workers to try.
        lanes (int): Videos that are read at a time then.
        folder (str, optional): Where links to the video may be made for that.
    """
    reader = open_video(path)
    fps, keys = reader.get_avg_fps(), reader.get_key_indices()
    span = (clip_len * frame_interval + 1) / fps
    shape = reader[0].shape
    video = dict(
        path=path,
        seconds=len(reader) / fps,
        fps=fps,
        width=shape[1],
        height=shape[0],
        frames_per_key_frame=len(reader) / len(keys),
    )
    del reader
    clip = dict(clip_len=clip_len, frame_interval=frame_interval)
    times = clip_seconds(path, span, stride)
    result = dict(
        video=video,
        clip=dict(clip, stride=stride),
        speed=measure_speed(path, times, clip, rounds, clips),
        ram={
            kind: measure_ram(path, some, clip, kind)
            for kind, some in zip(KINDS, (times, times[:20]))
        },
    )
    if workers and folder:
        paths = [str(Path(folder) / f'lane{number}.mp4') for number in range(lanes)]
        for link in paths:
            os.symlink(os.path.abspath(path), link)
        result['workers'] = [
            dict(
                num_workers=number,
                lanes=measure_workers(paths, times[:clips], clip, number),
                in_turn=measure_workers(paths, times[:clips], clip, number, False),
            )
            for number in workers
        ]
    return result
