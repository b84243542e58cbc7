#!/usr/bin/env python
"""Find the people in videos, and write AVA's person proposals.

python tools/data/detect_persons.py VIDEOS --config DETECTOR.py \\
    --checkpoint DETECTOR.pth --out proposals.pkl --workers 4

VIDEOS are files, and folders of them. Every whole second of a video is looked at.
Whenever it is killed, the same command goes on. Under torchrun, or srun, each process
takes its share of the videos; the one that ends last writes the file.
"""

import argparse
import hashlib
import os
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, require_checkpoint, run
from _detect_workers import TELL, Bar, Teller, run_workers

# Seconds after which what has been found in a video is saved.
SAVE_EVERY = 30


class UnreadableVideo(Exception):
    """A video, not the detector, is at fault."""


def parse_args():
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description="Find the people in videos, and write AVA's person proposals",
        allow_abbrev=False,
    )
    parser.add_argument('videos', nargs='+', help='video files, and folders of them')
    parser.add_argument(
        '--config',
        required=True,
        help="mmdet's, of the detector: a file, or mmdet::NAME of an installed one",
    )
    parser.add_argument('--checkpoint', required=True, help='its weights')
    parser.add_argument(
        '--out', required=True, help='the proposal file to write, such as proposals.pkl'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.05,
        help='least score of a person; whoever reads the file may ask for more '
        '(default: 0.05)',
    )
    parser.add_argument(
        '--max-boxes',
        type=int,
        default=100,
        help='boxes of a keyframe at most, the best (default: 100)',
    )
    parser.add_argument(
        '--person',
        default='person',
        help='name, or number, of the class that is a person (default: person)',
    )
    parser.add_argument(
        '--timestamp-start',
        type=int,
        default=900,
        help="the second, in the file's keys, at which each video begins (default: "
        "900, as for AVA's videos, which are cut; 0 for whole ones)",
    )
    parser.add_argument(
        '--first',
        type=int,
        help='first keyframe, counted alike (default: a second after the beginning; '
        'AVA has labels from 902 on)',
    )
    parser.add_argument(
        '--last', type=int, help='last keyframe (default: to the end; AVA: 1798)'
    )
    parser.add_argument(
        '--timing',
        choices=['frames', 'timestamps', 'auto'],
        default='frames',
        help='when the frames of videos of variable frame rate are: as data sets '
        'count, or as the file says, as streams do (auto) (default: frames)',
    )
    parser.add_argument(
        '--on-damage',
        choices=['stop', 'go_on'],
        default='stop',
        help='leave damaged videos out, or read over the damage (default: stop)',
    )
    parser.add_argument(
        '--batch-size', type=int, default=8, help='keyframes at a time (default: 8)'
    )
    parser.add_argument(
        '--workers', type=int, default=1, help='processes to start (default: 1)'
    )
    parser.add_argument(
        '--device', help='such as cuda:1 or cpu (default: a GPU for each process)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='remove what is there, and begin anew'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help="override settings of the detector's config",
    )
    args = parser.parse_args()
    check_args(parser, args)
    return args


def check_args(parser, args) -> None:
    """Refuse what is out of range, in one sentence."""
    for name in ('max_boxes', 'batch_size', 'workers'):
        if getattr(args, name) < 1:
            option = name.replace('_', '-')
            parser.error(f'--{option} must be at least 1, got {getattr(args, name)}')
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


def place() -> tuple:
    """Rank, number of processes and rank on this machine, as torchrun or srun say."""
    for names in (
        ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
        ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),
    ):
        if all(name in os.environ for name in names):
            return tuple(int(os.environ[name]) for name in names)
    return 0, 1, 0


# ------------------------------------------------------------------------- one process


def work(args, videos: list, rank: int, world: int, local_rank: int) -> int:
    """Detect the people in this process's share of the videos."""
    from memvit_mm.apis import PersonDetector
    from memvit_mm.apis.people.load_detector import load_detector_config
    from memvit_mm.apis.people.proposal_parts import ProposalParts, is_finished

    started = TELL in os.environ
    if rank and not started and is_finished(args.out):
        # The others have finished, of which none needed this process.
        return 0
    cfg = load_detector_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    detector = PersonDetector(
        cfg,
        args.checkpoint,
        args.device or device_of(local_rank),
        score_thr=args.score_thr,
        person=args.person,
        batch_size=args.batch_size,
    )
    parts = ProposalParts(args.out, settings_of(args, cfg))
    share = parts.share(videos, rank, world)
    show = Teller() if started else Bar(share, quiet=rank > 0)
    with show:
        for video in share:
            error = detect(args, detector, parts, video, show)
            show.done(video, error)
        merged = None if started else parts.merge(videos, args.timestamp_start)
    if merged is not None:
        return report(args, merged)
    # Whoever merges says what is wrong: torchrun ends all when one of them fails.
    return 0


def detect(args, detector, parts, video: Path, show):
    """Detect the people in one video, from where it stopped; say what is wrong."""
    from memvit_mm.apis.people.proposals import detect_keyframes, keyframes

    part = parts.load(video)
    if part.finished:
        return None
    start = args.timestamp_start
    last = None if args.last is None else args.last - start
    frames = keyframes(video, args.first - start, last, args.timing, args.on_damage)
    saved = time.monotonic()
    try:
        rest = (f for f in guarded(frames) if f.second > part.second)
        for keyframe, boxes in detect_keyframes(detector, rest, args.max_boxes):
            part.second = keyframe.second
            if len(boxes):
                part.boxes[keyframe.second] = boxes
            show.look(video, keyframe.read)
            if time.monotonic() - saved > SAVE_EVERY:
                parts.save(video, part)
                saved = time.monotonic()
        part.finished = True
    except UnreadableVideo as error:
        part.error = str(error)
    finally:
        # Also when interrupted.
        parts.save(video, part)
    return part.error


def guarded(frames):
    """Keyframes; what goes wrong in reading them is the video's fault."""
    try:
        yield from frames
    except (ValueError, OSError) as error:
        raise UnreadableVideo(str(error)) from error


def device_of(local_rank: int) -> str:
    """A GPU for each process, if there is one."""
    import torch

    count = torch.cuda.device_count()
    return f'cuda:{local_rank % count}' if count else 'cpu'


def settings_of(args, cfg) -> dict:
    """What boxes depend on."""
    weights = args.checkpoint
    if os.path.isfile(os.path.expanduser(weights)):
        with open(os.path.expanduser(weights), 'rb') as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        weights = f'{Path(weights).name} ({digest.hexdigest()[:16]})'
    text = hashlib.sha256(cfg.dump().encode()).hexdigest()[:16]
    start = args.timestamp_start
    return dict(
        config=f'{Path(args.config).name} ({text})',
        checkpoint=weights,
        score_thr=args.score_thr,
        max_boxes=args.max_boxes,
        person=args.person,
        first=args.first - start,
        last=None if args.last is None else args.last - start,
        timing=args.timing,
        on_damage=args.on_damage,
    )


def report(args, merged) -> int:
    """Say what was written; 1 if a video could not be read."""
    print(
        f'{args.out}: {merged.boxes} boxes in {merged.keyframes} keyframes of '
        f'{merged.videos} videos'
    )
    if not merged.boxes:
        print(
            f'Nobody was found: lower --score-thr {args.score_thr:g}, or see whether '
            f'--person {args.person} is the class that people are.',
            file=sys.stderr,
        )
    if not merged.errors:
        return 0
    print(
        f'{len(merged.errors)} of {len(merged.errors) + merged.videos} videos could '
        'not be read, and are not in it:',
        file=sys.stderr,
    )
    for error in merged.errors.values():
        print(f'  {error}', file=sys.stderr)
    return 1


def main() -> None:
    args = parse_args()
    import_package()
    from memvit_mm.apis.people.proposal_parts import ProposalParts, remove_proposals
    from memvit_mm.apis.people.proposals import find_videos

    rank, world, local_rank = place()
    if args.overwrite and world > 1:
        raise ValueError(
            f'--overwrite is for one process: remove {args.out} and {args.out}.parts '
            'yourself before several are started.'
        )
    require_checkpoint(args.checkpoint)
    if os.path.isdir(args.out):
        raise ValueError(f'--out {args.out} is a folder: name a file, such as p.pkl.')
    # mmdet's, about itself.
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    videos = find_videos(args.videos)
    if args.overwrite:
        remove_proposals(args.out)
    try:
        if args.workers > 1 and world == 1 and TELL not in os.environ:
            code = run_workers(args, videos)
            if code == 0:
                merged = ProposalParts(args.out).merge(videos, args.timestamp_start)
                code = report(args, merged)
            sys.exit(code)
        sys.exit(work(args, videos, rank, world, local_rank))
    except KeyboardInterrupt:
        if TELL not in os.environ:
            print('Interrupted: the same command goes on.', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever started this process is gone.
        os._exit(1)


if __name__ == '__main__':
    run(main)
