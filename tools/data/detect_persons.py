#!/usr/bin/env python
"""Find the people in videos, and write AVA's person proposals.

python tools/data/detect_persons.py VIDEOS --config DETECTOR.py \\
    --checkpoint DETECTOR.pth --out proposals.pkl
torchrun --nproc_per_node 4 tools/data/detect_persons.py VIDEOS ...

VIDEOS are files, and folders of them. People are sought at every whole second of a
video. If it is killed, the same command goes on where it stopped. Under torchrun or
srun each process takes its share of the videos; the one that ends last writes the file.
"""

import argparse
import hashlib
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import add_cfg_options, import_package, require_checkpoint, run


def parse_args():
    parser = argparse.ArgumentParser(
        description="Find the people in videos, and write AVA's person proposals",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('videos', nargs='+', help='video files, and folders of them')
    add('--config', required=True, help="mmdet's: a file, or mmdet::NAME of its own")
    add('--checkpoint', required=True, help='the weights of the detector')
    add('--out', required=True, help='the file to write, such as proposals.pkl')
    add('--score-thr', type=float, default=0.05, help='lowest score of a box (0.05)')
    add(
        '--max-boxes',
        type=int,
        default=100,
        help='largest number of boxes in a keyframe (100)',
    )
    add('--person', default='person', help='name or number of the class (person)')
    add(
        '--timestamp-start',
        type=int,
        default=900,
        help="the second, in the file's keys, at which each video begins (900): so for "
        "AVA's videos, which are cut; 0 for whole ones",
    )
    add('--first', type=int, help='first keyframe; else a second after the beginning')
    add('--last', type=int, help='last keyframe, if it is not the end (AVA: 1798)')
    add(
        '--timing',
        choices=['frames', 'timestamps', 'auto'],
        default='frames',
        help='the times of frames where the frame rate varies: counted, as data sets '
        'do (frames), or those of the file, as streams do (auto)',
    )
    add(
        '--on-damage',
        choices=['stop', 'go_on'],
        default='stop',
        help='leave damaged videos out (stop), or read over the damage',
    )
    add('--batch-size', type=int, default=8, help='keyframes at a time (8)')
    add('--device', help='such as cuda:1 or cpu; else a GPU for each process')
    add('--overwrite', action='store_true', help='remove the file, and begin anew')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.max_boxes < 1:
        parser.error(f'--max-boxes must be at least 1, got {args.max_boxes}')
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must be from 0 to 1, got {args.score_thr}')
    if args.first is None:
        args.first = args.timestamp_start + 1
    if args.first < args.timestamp_start:
        parser.error(
            f'--first {args.first} is before the videos begin, '
            f'--timestamp-start {args.timestamp_start}'
        )
    if args.last is not None and args.last < args.first:
        parser.error(f'--last {args.last} is before the first keyframe, {args.first}')
    if args.person.isdigit():
        args.person = int(args.person)
    return args


def place() -> tuple:
    """Rank, number of processes and rank on this machine, as torchrun or srun say."""
    for names in (
        ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
        ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),
    ):
        if all(name in os.environ for name in names):
            return tuple(int(os.environ[name]) for name in names)
    return 0, 1, 0


def detect(args, videos: list, rank: int, world: int, local_rank: int) -> int:
    """Find the people in this process's share of the videos; returns the exit code."""
    import torch
    from rich.progress import Console, Progress

    from memvit_mm.apis import PersonDetector
    from memvit_mm.apis.people.load_detector import load_detector_config
    from memvit_mm.apis.proposals.parts import ProposalParts, is_complete

    share = ProposalParts.share(videos, rank, world)
    if not share:
        return 0
    cfg = load_detector_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    gpus = torch.cuda.device_count()
    detector = PersonDetector(
        cfg,
        args.checkpoint,
        args.device or (f'cuda:{local_rank % gpus}' if gpus else 'cpu'),
        score_thr=args.score_thr,
        person=args.person,
        batch_size=args.batch_size,
    )
    start = args.timestamp_start
    which = dict(
        first=args.first - start,
        last=None if args.last is None else args.last - start,
        timing=args.timing,
        on_damage=args.on_damage,
    )
    settings = dict(
        which,
        config=digest(cfg.dump().encode()),
        checkpoint=args.checkpoint,
        score_thr=args.score_thr,
        max_boxes=args.max_boxes,
        person=args.person,
    )
    weights = Path(args.checkpoint).expanduser()
    if weights.is_file():
        settings['checkpoint'] = digest(weights.read_bytes())
    if rank and is_complete(args.out):
        # Another process has joined what there was while this one loaded its model.
        return 0
    parts = ProposalParts(args.out, settings, start)
    with Progress(console=Console(stderr=True), disable=rank > 0) as bar:
        task = bar.add_task(f'{len(share)} videos', total=len(share))
        for number, video in enumerate(share):

            def progress(read, number=number):
                bar.update(task, completed=number + read)

            error = parts.detect(detector, video, args.max_boxes, progress, **which)
            progress(1)
            if error is not None:
                print(error, file=sys.stderr)
    joined = parts.join(videos)
    return 0 if joined is None else report(args, joined)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def report(args, joined) -> int:
    """Say what was written; returns 1 if a video could not be read."""
    print(
        f'{args.out}: {joined.boxes} boxes in {joined.keyframes} keyframes of '
        f'{joined.videos} videos'
    )
    if not joined.boxes:
        print(
            f'Nobody was found: lower --score-thr {args.score_thr:g}, or check that '
            f"--person {args.person} is the detector's class of people.",
            file=sys.stderr,
        )
    if joined.errors:
        count = len(joined.errors)
        print(
            f'{count} of {count + joined.videos} videos could not be read, and are not '
            'in it:',
            *joined.errors,
            sep='\n  ',
            file=sys.stderr,
        )
    return 1 if joined.errors else 0


def main() -> None:
    args = parse_args()
    import_package()
    from memvit_mm.apis.proposals.keyframes import find_videos
    from memvit_mm.apis.proposals.parts import is_complete, remove_proposals

    rank, world, local_rank = place()
    if args.overwrite and world > 1:
        raise ValueError(
            f'--overwrite is for one process: remove {args.out} and {args.out}.parts '
            'yourself before several are started.'
        )
    if rank and is_complete(args.out):
        # The other processes have written everything.
        sys.exit(0)
    require_checkpoint(args.checkpoint)
    if os.path.isdir(args.out):
        raise ValueError(f'--out {args.out} is a folder: name a file, such as p.pkl.')
    # A warning of mmdet about its own code.
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    videos = find_videos(args.videos)
    if args.overwrite:
        remove_proposals(args.out)
    try:
        sys.exit(detect(args, videos, rank, world, local_rank))
    except KeyboardInterrupt:
        print('Interrupted: the same command goes on.', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    run(main)
