#!/usr/bin/env python
"""Measure how videos are read: clips in order against MMAction2's random access.

python tests/reference/measure_decoding.py      # makes a video with ffmpeg
python tests/reference/measure_decoding.py VIDEO --json result.json
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
# The checkout's package, where none is installed.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from _common import run

from memvit_mm.datasets.transforms.clips import SampleClipFrames
from memvit_mm.datasets.transforms.video import VideoDecode, VideoInit
from memvit_mm.video.open_video import open_video

from mmaction.datasets.transforms import DecordDecode, DecordInit  # isort: skip

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


def measure(
    path: str,
    clip_len: int = 16,
    frame_interval: int = 4,
    stride: float = 1.0,
    rounds: int = 5,
    clips: int = 40,
) -> dict:
    """Speed and memory of both ways to read the clips of a video.

    Args:
        path (str): The video.
        clip_len (int): Frames in a clip.
        frame_interval (int): From one to the next.
        stride (float): Seconds from a clip to the next.
        rounds (int): Rounds of the speed, both ways in turn.
        clips (int): Clips of a round in order.

    Raises:
        ValueError: If the video is too short.
    """
    reader = open_video(path)
    fps, keys = reader.get_avg_fps(), reader.get_key_indices()
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
    span = (clip_len * frame_interval + 1) / fps
    count = int((video['seconds'] - span) // stride)
    if count < 4:
        raise ValueError(
            f'{path} lasts {video["seconds"]:.1f} s, too short for clips of '
            f'{span:.1f} s: name a longer video.'
        )
    # When the clips are that do not run over the video's ends.
    times = [span / 2 + number * stride for number in range(count)]
    clip = dict(clip_len=clip_len, frame_interval=frame_interval)
    return dict(
        video=video,
        clip=dict(clip, stride=stride),
        speed=measure_speed(path, times, clip, rounds, clips),
        ram={
            kind: measure_ram(path, some, clip, kind)
            for kind, some in zip(KINDS, (times, times[:20]))
        },
    )


def measure_speed(
    path: str, times: Sequence[float], clip: dict, rounds: int, clips: int
) -> dict:
    """Clips per second of one process, both ways in turn, medians of rounds.

    Each round reads ``clips`` clips in order, and some of the same at random. What
    opening the file costs is in the latter, for every clip, and not in the former.
    """
    ours, theirs = (ClipReader(path, kind, **clip) for kind in KINDS)
    ours.read(times[0])
    wall: dict = {kind: [] for kind in KINDS}
    cpu: dict = {kind: [] for kind in KINDS}

    @contextmanager
    def timed(kind: str, clips: int) -> Iterator[None]:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        yield
        wall[kind].append((time.perf_counter() - begin) / clips)
        cpu[kind].append((time.process_time() - cpu_begin) / clips)

    first, position = ours.reader.decoded, 1
    same = []
    for _ in range(rounds):
        chosen = times[position : position + clips]
        if not chosen:
            break
        position += len(chosen)
        some = chosen[:: max(len(chosen) // 8, 1)]
        with timed('in order', len(chosen)):
            in_order = {second: ours.read(second) for second in chosen}
        with timed('random access', len(some)):
            at_random = {second: theirs.read(second) for second in some}
        same += [np.array_equal(in_order[second], at_random[second]) for second in some]
    reader = ours.reader
    new = (times[position - 1] - times[0]) * reader.get_avg_fps()
    speeds = {
        kind: dict(
            clips_per_second=1 / statistics.median(wall[kind]),
            cpu_seconds_per_clip=statistics.median(cpu[kind]),
        )
        for kind in KINDS
    }
    return dict(
        speeds,
        ratio=speeds['in order']['clips_per_second']
        / speeds['random access']['clips_per_second'],
        read_in_order=reader.in_order,
        decoded_per_new_frame=(reader.decoded - first) / new,
        identical_clips=f'{sum(same)} of {len(same)}',
        frames_kept=reader.frames_kept,
        kept_megabytes=reader.num_bytes / 2**20,
    )


def measure_ram(path: str, times: Sequence[float], clip: dict, kind: str) -> dict:
    """Megabytes that a fresh process takes while it reads clips.

    Returns:
        dict: ``peak``, and ``growth`` from a quarter of the clips to the end; both
        beyond what the process held before.
    """
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(watch_ram, path, times, clip, kind).result()


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


def parse_args():
    parser = argparse.ArgumentParser(description='Measure how videos are read')
    parser.add_argument('video', nargs='?', help='by default one is made with ffmpeg')
    parser.add_argument(
        '--seconds', type=int, default=600, help='length of the one that is made'
    )
    parser.add_argument('--size', default='340x256', help='its width and height')
    parser.add_argument(
        '--gop', type=int, default=250, help='its frames from key frame to key frame'
    )
    parser.add_argument('--clip-len', type=int, default=16, help='frames in a clip')
    parser.add_argument(
        '--frame-interval', type=int, default=4, help='from one of them to the next'
    )
    parser.add_argument(
        '--stride', type=float, default=1.0, help='seconds from clip to clip'
    )
    parser.add_argument('--rounds', type=int, default=5, help='both ways in turn')
    parser.add_argument('--clips', type=int, default=40, help='clips of a round')
    parser.add_argument('--json', help='write the figures to this file, too')
    args = parser.parse_args()
    names = ('seconds', 'gop', 'clip_len', 'frame_interval', 'stride', 'rounds')
    for name in (*names, 'clips'):
        if not getattr(args, name) > 0:
            option = name.replace('_', '-')
            parser.error(f'--{option} must be above 0, got {getattr(args, name)}')
    if args.video is not None and not os.path.isfile(args.video):
        parser.error(f'there is no video {args.video}')
    return args


def show(result: dict) -> None:
    video, speed = result['video'], result['speed']
    print(
        f'{video["path"]}: {video["width"]} x {video["height"]}, '
        f'{video["seconds"]:.0f} s at {video["fps"]:g} frames a second, a key frame '
        f'every {video["frames_per_key_frame"]:.0f}'
    )
    for kind in ('in order', 'random access'):
        of_kind, ram = speed[kind], result['ram'][kind]
        print(
            f'{kind:14}{of_kind["clips_per_second"]:8.1f} clips/s'
            f'{1000 * of_kind["cpu_seconds_per_clip"]:8.1f} ms of CPU a clip'
            f'{ram["peak"]:8.0f} MB at most, {ram["growth"]:+.0f} MB while reading on'
        )
    if not speed['read_in_order']:
        print("OpenCV's frames are not decord's here: the file is read clip by clip.")
    print(
        f'{speed["ratio"]:.1f} x; {speed["decoded_per_new_frame"]:.3f} frames decoded '
        f'per new frame; {speed["frames_kept"]} frames kept '
        f'({speed["kept_megabytes"]:.1f} MB); {speed["identical_clips"]} clips '
        'identical'
    )


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.video
        if path is None:
            path = os.path.join(folder, 'made.mp4')
            make_video(path, args.seconds, args.size, args.gop)
        result = measure(
            path,
            clip_len=args.clip_len,
            frame_interval=args.frame_interval,
            stride=args.stride,
            rounds=args.rounds,
            clips=args.clips,
        )
    show(result)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(result, file, indent=2)


if __name__ == '__main__':
    run(main)
