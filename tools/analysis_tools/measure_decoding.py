"""Measure how videos are read: clips in order against MMAction2's random access.

python tools/analysis_tools/measure_decoding.py      # makes a video with ffmpeg
python tools/analysis_tools/measure_decoding.py VIDEO --json result.json
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, run


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
    import_package()
    from memvit_mm.benchmark.decoding import make_video, measure

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
