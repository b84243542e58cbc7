"""Run a model over a video, and see what it says, when, and what memory is worth.

python tools/stream_video.py kitchen.mp4 \\
    --config memvit_epic_cls.py --checkpoint K.pth \\
    --out out.mp4 --json out.jsonl --timeline out.png --report out.html
python tools/stream_video.py street.mp4 \\
    --config memvit_ava.py --checkpoint K.pth \\
    --det-config mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_ms-1x_coco-person.py \\
    --det-checkpoint E.pth --out out.mp4

Ctrl-C leaves files that are complete up to there.
"""

import argparse
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from _common import import_package, require_checkpoint, run

# What decoders say about damaged videos, we say in words.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Annotate a video with predictions as they are made',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__.split('\n\n', 1)[1],
    )
    parser.add_argument('video', help='the video file')
    parser.add_argument(
        '--config', required=True, help="the model's config, or the name of one of ours"
    )
    parser.add_argument('--checkpoint', help='its weights; random without')
    parser.add_argument('--device', help='by default a GPU if there is one')

    people = parser.add_argument_group('people, for action detectors such as AVA')
    people.add_argument(
        '--det-config', help="config of an mmdet detector, 'mmdet::...'"
    )
    people.add_argument('--det-checkpoint', help='its weights')
    people.add_argument(
        '--det-score-thr', type=float, default=0.5, help='least score of a person (0.5)'
    )
    people.add_argument(
        '--boxes', help='AVA proposals of this video in place of a detector (.pkl)'
    )
    people.add_argument('--video-id', help="the video's name there (file name)")
    people.add_argument(
        '--min-score', type=float, default=0.3, help='least score of an action (0.3)'
    )

    made = parser.add_argument_group('what to make')
    made.add_argument('--out', help='annotated video: .mp4, or .webm for browsers')
    made.add_argument('--json', help='a line of JSON per prediction, as it is made')
    made.add_argument('--timeline', help='picture of the classes over time (.png)')
    made.add_argument('--report', help='page of HTML, in one file')
    made.add_argument('--show', action='store_true', help='on the screen; q ends it')
    made.add_argument(
        '--no-comparison',
        action='store_true',
        help='do not run the model without memory, too (which takes twice the time)',
    )

    how = parser.add_argument_group('how')
    how.add_argument(
        '--label-map',
        nargs='+',
        metavar='FILE',
        help='names of the classes (.pbtxt, .csv, .txt); two files: verbs and nouns',
    )
    how.add_argument('--stride', type=float, help='seconds from one clip to the next')
    how.add_argument('--top', type=int, default=5, help='classes to name (5)')
    how.add_argument(
        '--max-side', type=int, default=1280, help="the picture's longer side at most"
    )
    how.add_argument('--codec', help="four letters, such as avc1 (default by --out's)")
    how.add_argument(
        '--on-damage',
        choices=['go_on', 'stop'],
        default='go_on',
        help='where frames cannot be decoded (go_on)',
    )
    args = parser.parse_args()
    if args.label_map and len(args.label_map) > 2:
        parser.error('--label-map takes one file, or two: of verbs and of nouns')
    return args


def short_stride(predictor, file):
    """For a video that is too short for a clip, a stride that gives one."""
    from memvit_mm.apis.streams.clip_grid import ClipGrid

    usual = ClipGrid(predictor.recipe, file.fps).stride
    if file.count is None or usual * file.fps < file.count:
        return None
    # At its end; a keyframe is at its middle.
    seconds = file.count / file.fps
    return min(usual, seconds / 2 if predictor.recipe.centered else seconds)


class Interrupts:
    """Ctrl-C and SIGTERM end the run once; while files are finished they wait."""

    def __init__(self) -> None:
        self.number = signal.SIGINT
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number, frame) -> None:
        self.count += 1
        if self.count == 1:
            self.number = number
            raise KeyboardInterrupt
        print('Finishing the files, a moment.', file=sys.stderr)


class Progress:
    """A bar with the speed in x real time, where there is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True)
        self.bar = Bar(
            BarColumn(),
            TextColumn('{task.percentage:>3.0f} %'),
            TextColumn('{task.fields[told]}'),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task('video', total=None, told='first clip ...')
        self.said: set = set()
        self.begin = time.monotonic()
        warnings.showwarning = self.warn

    def __call__(self, seconds: float, duration) -> None:
        wall = max(time.monotonic() - self.begin, 1e-6)
        told = f'{seconds:.1f} s'
        if duration is not None:
            left = max(duration - seconds, 0.0) * wall / seconds
            told = f'{seconds:.1f} of {duration:.1f} s, {_minutes(left)} left'
        told = f'{told}, {seconds / wall:.2f} x real time'
        self.bar.update(self.task, completed=seconds, total=duration, told=told)

    def warn(self, message, category, filename, lineno, file=None, line=None) -> None:
        """Each warning once, without the line of code that it comes from."""
        text = str(message)
        if category is UserWarning and text not in self.said:
            self.said.add(text)
            self.console.print(f'Warning: {text}', markup=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(round(seconds)), 60)
    return f'{minutes}:{rest:02d}'


def check(args, cfg) -> None:
    """Refuse what can be told to be wrong before a model is built."""
    import torch

    from memvit_mm.apis.models.classes import read_names
    from memvit_mm.apis.models.load_model import kind_of
    from memvit_mm.apis.streams.clip_grid import check_stride
    from memvit_mm.apis.visualization.window import check_display
    from memvit_mm.video.writer import VideoWriter

    if args.out:
        VideoWriter(args.out, 1.0, args.codec)
    if args.show:
        check_display()
    check_stride(args.stride)
    for path in args.label_map or ():
        read_names(path)
    try:
        torch.device(args.device or 'cpu')
    except RuntimeError:
        raise ValueError(
            f'--device {args.device} is no device: cpu, cuda or cuda:1, say.'
        ) from None
    if args.device and 'cuda' in args.device and not torch.cuda.is_available():
        raise ValueError(
            f'--device {args.device} is a GPU, and there is none that torch can use: '
            'leave it out, or take cpu.'
        )
    for checkpoint in (args.checkpoint, args.det_checkpoint):
        if checkpoint:
            require_checkpoint(checkpoint)
    detects = kind_of(cfg) == 'detector'
    if not detects and (args.det_config or args.boxes):
        raise ValueError(
            f'{args.config} classifies whole clips: leave --det-config and --boxes out.'
        )
    if detects and bool(args.det_config) == bool(args.boxes):
        told = 'both were given' if args.boxes else 'neither was given'
        raise ValueError(
            f'{args.config} says what each person does: give --det-config and '
            '--det-checkpoint of a detector that finds people, or --boxes with '
            f'proposals ({told}).'
        )
    if args.det_config and not args.det_checkpoint:
        raise ValueError(
            '--det-config needs --det-checkpoint: a detector without weights finds '
            'nobody.'
        )
    if args.boxes and not os.path.isfile(args.boxes):
        raise FileNotFoundError(f'There is no file of proposals {args.boxes}.')
    if not args.checkpoint:
        warnings.warn(
            'There is no --checkpoint: the weights are random, and so is what is said.',
            stacklevel=2,
        )


def build(args, cfg, file):
    """The model, and what makes predictions with it.

    Args:
        args: The options.
        cfg (Config): The model's.
        file (VideoFile): What it is for.
    """
    from memvit_mm.apis import VideoStream, init_detector_model, init_recognizer
    from memvit_mm.apis.models.load_model import kind_of
    from memvit_mm.apis.streams.memory_effect import ComparingPredictor
    from memvit_mm.apis.streams.predictor import Predictor

    detects = kind_of(cfg) == 'detector'
    make = init_detector_model if detects else init_recognizer
    model = make(cfg, args.checkpoint, args.device)
    boxes = args.boxes
    if args.det_config:
        from memvit_mm.apis.people.detector import PersonDetector

        boxes = PersonDetector(
            args.det_config,
            args.det_checkpoint,
            device=args.device,
            score_thr=args.det_score_thr,
        )
    labels = args.label_map
    if labels:
        labels = dict(zip(('verbs', 'nouns'), labels)) if labels[1:] else labels[0]
    kind = Predictor if args.no_comparison else ComparingPredictor
    predictor = kind(model, boxes=boxes, labels=labels)
    name = args.video_id or Path(args.video).stem
    if args.boxes:
        known = list(dict.fromkeys(video for video, _ in predictor.boxes.table))
        if name not in known:
            told = ', '.join(known[:5]) + (', ...' if known[5:] else '')
            raise ValueError(
                f'{args.boxes} has no boxes of {name!r}, but of {told}: say what the '
                'video is called there with --video-id.'
            )
    return VideoStream(
        predictor,
        stride=args.stride or short_stride(predictor, file),
        name=name,
        on_damage=args.on_damage,
        track=True if detects else None,
    )


def main():
    args = parse_args()
    interrupts = Interrupts()
    try:
        sys.exit(annotate(args, interrupts))
    except KeyboardInterrupt:
        print('Interrupted before the first clip.', file=sys.stderr)
        sys.exit(128 + interrupts.number)


def annotate(args, interrupts) -> int:
    """Make everything; returns the exit code."""
    import_package()
    from memvit_mm.apis.models.load_model import load_config
    from memvit_mm.apis.streams.sources import VideoFile
    from memvit_mm.apis.visualization.annotate import (
        Interrupted,
        Outputs,
        annotate_video,
    )
    from memvit_mm.apis.visualization.draw import Look, check_look
    from memvit_mm.video.decord_errors import silence_decord

    silence_decord()
    look = Look(args.top, args.min_score, args.max_side)
    outputs = Outputs(args.out, args.json, args.timeline, args.report, args.show)
    # What is wrong with these is said before a model is loaded.
    check_look(look)
    if '://' in args.video or (args.video.isdigit() and not Path(args.video).exists()):
        raise ValueError(
            f'{args.video} is a camera, it seems, and this tool reads files: for '
            'cameras there is VideoStream of memvit_mm.apis.'
        )
    file = VideoFile(args.video)
    file.close()
    outputs.check(os.path.expanduser(args.video))
    progress, ended = Progress(), 0
    cfg = load_config(args.config)
    check(args, cfg)
    stream = build(args, cfg, file)
    progress.begin = time.monotonic()
    about = dict(config=args.config, checkpoint=args.checkpoint)
    try:
        with progress.bar:
            made = annotate_video(
                stream, args.video, outputs, look, args.codec, about, progress
            )
    except Interrupted as error:
        made, ended = error.made, 128 + interrupts.number
    report(made, time.monotonic() - progress.begin, ended != 0)
    return ended


def report(made, wall: float, interrupted: bool) -> None:
    """Say what was made."""
    skipped = made.counts.skipped
    print(
        f'{"Interrupted: " if interrupted else ""}{len(made.predictions)} predictions '
        f'of {made.duration:.1f} s of video in {wall:.1f} s '
        f'({made.duration / max(wall, 1e-6):.2f} x real time)'
        f'{f", {skipped} clips left out" if skipped else ""}.'
    )
    for path in made.files.values():
        print(f'Wrote {path}')


if __name__ == '__main__':
    run(main)
