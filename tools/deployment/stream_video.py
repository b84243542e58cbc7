"""Run a model over a video, and see its predictions with memory and without.

python tools/deployment/stream_video.py kitchen.mp4 \\
    --config memvit_epic_cls.py --checkpoint K.pth \\
    --out out.mp4 --json out.jsonl --timeline out.png --report out.html
python tools/deployment/stream_video.py street.mp4 \\
    --config memvit_ava.py --checkpoint K.pth \\
    --det-config mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_ms-1x_coco-person.py \\
    --det-checkpoint E.pth --out out.mp4

--onnx model.onnx in the place of --checkpoint runs what export_onnx.py made of it.
Ctrl-C leaves files that are complete up to there.
"""

import argparse
import os
import signal
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, require_checkpoint, run

# Damaged videos are reported in whole sentences; decoders need not add theirs.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Annotate a video with predictions as they are made',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__.split('\n\n', 1)[1],
    )
    add = parser.add_argument
    add('video', help='the video file')
    add(
        '--config', required=True, help="the model's config, or the name of one of ours"
    )
    add('--checkpoint', help='its weights; random without')
    add('--onnx', help='what export_onnx.py made of it, to be run in its place')
    add('--device', help='by default a GPU if there is one')
    add('--stride', type=float, help='seconds from one clip to the next')
    add(
        '--label-map',
        nargs='+',
        metavar='FILE',
        help='names of the classes (.pbtxt, .csv, .txt); two files: verbs and nouns',
    )
    add(
        '--on-damage',
        choices=['go_on', 'stop'],
        default='go_on',
        help='where frames cannot be decoded (go_on)',
    )
    add(
        '--no-comparison',
        action='store_true',
        help='do not run the model without memory, too (which takes twice the time)',
    )

    add = parser.add_argument_group('files to write').add_argument
    add('--out', help='annotated video: .mp4, or .webm for browsers')
    add('--json', help='a line of JSON per prediction, as it is made')
    add('--timeline', help='picture of the classes over time (.png)')
    add('--report', help='page of HTML, in one file')
    add('--top', type=int, default=5, help='classes to name (5)')
    add(
        '--max-side',
        type=int,
        default=1280,
        help='longer side of the picture, at most, in pixels (1280)',
    )
    add('--codec', help="four letters, such as avc1 (default by --out's)")

    add = parser.add_argument_group('people, for detectors of actions').add_argument
    add('--det-config', help="config of an mmdet detector, 'mmdet::...'")
    add('--det-checkpoint', help='its weights')
    add('--det-score-thr', type=float, default=0.5, help='lowest score of a box (0.5)')
    add('--boxes', help='AVA proposals of this video instead of a detector (.pkl)')
    add('--video-id', help="the video's name in the proposals (file name)")
    add('--min-score', type=float, default=0.3, help='lowest score of an action (0.3)')
    args = parser.parse_args()
    if args.label_map and len(args.label_map) > 2:
        parser.error('--label-map takes one file, or two: of verbs and of nouns')
    return args


def check(args, cfg) -> None:
    """Refuse mistakes that can be found before a model is built."""
    import torch

    from memvit_mm.apis.models.classes import read_names
    from memvit_mm.apis.models.load_model import kind_of
    from memvit_mm.apis.streams.clip_grid import check_stride
    from memvit_mm.video.writer import VideoWriter

    if args.out:
        VideoWriter(args.out, 1.0, args.codec)
    check_stride(args.stride)
    for path in args.label_map or ():
        read_names(path)
    try:
        torch.zeros(1, device=args.device or 'cpu')
    except (AssertionError, RuntimeError):
        raise ValueError(
            f'--device {args.device} is no device that torch can use here: leave '
            '--device out, or give cpu.'
        ) from None
    for checkpoint in filter(None, (args.checkpoint, args.det_checkpoint)):
        require_checkpoint(checkpoint)
    sources = bool(args.det_config) + bool(args.boxes)
    if kind_of(cfg) != 'detector' and sources:
        raise ValueError(
            f'{args.config} classifies whole clips: leave --det-config and --boxes out.'
        )
    if kind_of(cfg) == 'detector' and sources != 1:
        raise ValueError(
            f'{args.config} predicts what each person does: give --det-config and '
            '--det-checkpoint of a detector that finds people, or --boxes with '
            f'proposals ({"both" if sources else "neither"} given).'
        )
    if args.det_config and not args.det_checkpoint:
        raise ValueError(
            '--det-config needs --det-checkpoint: a detector without weights finds '
            'nobody.'
        )
    if args.boxes and not os.path.isfile(args.boxes):
        raise FileNotFoundError(f'There is no file of proposals {args.boxes}.')
    if args.onnx and args.checkpoint:
        raise ValueError('--onnx has the weights in it: leave --checkpoint out.')
    if not args.checkpoint and not args.onnx:
        warnings.warn('Without --checkpoint the weights are random.', stacklevel=2)


def build_stream(args, cfg, file):
    """The stream that predicts.

    Args:
        args: The options.
        cfg (Config): The model's.
        file (VideoFile): The video.
    """
    from memvit_mm.apis import (
        ComparingPredictor,
        PersonDetector,
        VideoStream,
        init_detector_model,
        init_recognizer,
    )
    from memvit_mm.apis.models.load_model import kind_of
    from memvit_mm.apis.streams.predictor import Predictor
    from memvit_mm.apis.visualization.annotate import short_stride

    detects = kind_of(cfg) == 'detector'
    if args.onnx:
        model = load_onnx(args.onnx, args.device)
        if model.detects != detects:
            raise ValueError(
                f'{args.onnx} is no model of {args.config}: give the config that it '
                'was exported with.'
            )
    else:
        make = init_detector_model if detects else init_recognizer
        model = make(cfg, args.checkpoint, args.device)
    boxes = args.boxes
    if args.det_config:
        options = dict(device=args.device, score_thr=args.det_score_thr)
        boxes = PersonDetector(args.det_config, args.det_checkpoint, **options)
    labels = args.label_map
    if labels:
        labels = dict(zip(('verbs', 'nouns'), labels)) if labels[1:] else labels[0]
    kind = Predictor if args.no_comparison else ComparingPredictor
    predictor = kind(model, cfg, boxes=boxes, labels=labels)
    name = args.video_id or Path(args.video).stem
    if args.boxes:
        known = list(dict.fromkeys(video for video, _ in predictor.boxes.table))
        if name not in known:
            raise ValueError(
                f'{args.boxes} has no boxes of {name!r}, but of '
                f'{", ".join(known[:5])}: give the name of the video there with '
                '--video-id.'
            )
    return VideoStream(
        predictor,
        stride=args.stride or short_stride(predictor, file),
        name=name,
        on_damage=args.on_damage,
        track=True if detects else None,
    )


def load_onnx(path, device):
    """An exported model on a device that torch would call so."""
    import torch

    from memvit_mm.deploy import OnnxModel
    from memvit_mm.deploy.model import find_onnxruntime

    # As many threads as torch would take, which do not spin while they wait.
    options = find_onnxruntime().SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    providers = None
    if device:
        kind, _, number = device.partition(':')
        cuda = ('CUDAExecutionProvider', dict(device_id=number or '0'))
        providers = [cuda] if kind == 'cuda' else []
        providers.append('CPUExecutionProvider')
    return OnnxModel(path, providers, options)


def annotate(args) -> None:
    """Make everything, and say what was made."""
    import_package()
    from rich.progress import Console, Progress

    from memvit_mm.apis import Interrupted, Look, Outputs, VideoFile, annotate_video
    from memvit_mm.apis.models.load_model import load_config
    from memvit_mm.apis.visualization.draw import check_look
    from memvit_mm.video.decord_errors import silence_decord

    silence_decord()
    warnings.showwarning = show_once
    look = Look(args.top, args.min_score, args.max_side)
    check_look(look)
    outputs = Outputs(args.out, args.json, args.timeline, args.report)
    if not outputs.files:
        raise ValueError('Give at least one of --out, --json, --timeline, --report.')
    if '://' in args.video or (args.video.isdigit() and not Path(args.video).exists()):
        raise ValueError(
            f'{args.video} is a camera, it seems, and this tool reads files: for '
            'cameras there is VideoStream of memvit_mm.apis.'
        )
    file = VideoFile(args.video)
    file.close()
    outputs.check(os.path.expanduser(args.video))
    cfg = load_config(args.config)
    check(args, cfg)
    stream = build_stream(args, cfg, file)
    about = dict(config=args.config, checkpoint=args.onnx or args.checkpoint)
    begin, told = time.monotonic(), ''
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(Path(args.video).name, total=None)

        def progress(seconds, duration):
            bar.update(task, completed=seconds, total=duration)

        try:
            made = annotate_video(
                stream, args.video, outputs, look, args.codec, about, progress
            )
        except Interrupted as error:
            made, told = error.made, 'Interrupted: '
    wall, skipped = time.monotonic() - begin, made.counts.skipped
    print(
        f'{told}{len(made.predictions)} predictions of {made.duration:.1f} s of video '
        f'in {wall:.1f} s ({made.duration / wall:.2f} x real time)'
        f'{f", {skipped} clips left out" if skipped else ""}.'
    )
    for path in made.files.values():
        print(f'Wrote {path}')


def show_once(message, category, *_, said=set(), **__) -> None:
    """Print a warning once, without the line of code that it comes from."""
    if category is UserWarning and str(message) not in said:
        said.add(str(message))
        print(f'Warning: {message}', file=sys.stderr)


def main():
    args, received = parse_args(), []

    def interrupt(number, frame):
        # Only the first signal interrupts: then the files are being completed.
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        annotate(args)
    except KeyboardInterrupt:
        print('Interrupted before the first clip.', file=sys.stderr)
    sys.exit(128 + received[0] if received else 0)


if __name__ == '__main__':
    run(main)
