"""SequentialClipSampler.position and start_from: an epoch in several parts."""

import json

import pytest
from mmengine.dataset import InfiniteSampler
from test_sampler import Clips, build

LENGTHS = dict(a=17, b=1, c=9, d=30, e=5, f=2)
DATASET = Clips(''.join(video * length for video, length in LENGTHS.items()))
TOTAL = sum(LENGTHS.values())


def part(world_size, batch_size, position, steps=None, epoch=3):
    """Batches of all ranks after a position, and the position after those."""
    ranks, after = [], None
    for rank in range(world_size):
        sampler = build(DATASET, batch_size, True, (rank, world_size), seed=5)
        start = sampler.start_from(position) if position else None
        if position is None:
            sampler.set_epoch(epoch)
        batches = list(sampler)[:steps]
        done = (start.done if start else 0) + len(batches)
        assert steps is not None or done == len(sampler)
        after = sampler.position(done, epoch, start)
        ranks.append(batches)
    # through a file, as plain numbers
    return ranks, json.loads(json.dumps(after))


@pytest.mark.parametrize('done', [0, 1, 7, 16])
def test_on_as_many_lanes_the_same_clips_follow(done):
    whole, _ = part(2, 2, None)
    first, position = part(2, 2, None, done)
    assert position['played'] == [[4, done]]
    for processes, rows in ((2, 2), (1, 4), (4, 1)):
        rest, _ = part(processes, rows, position)
        # [ranks][steps][rows] -> [steps][lanes]
        lanes = [sum(step, []) for step in zip(*rest)]
        assert lanes == [sum(step, []) for step in zip(*whole)][done:]
        runs = [[clip.run for clip in step] for step in lanes]
        assert runs == [[0, 1, 2, 3]] * len(lanes)


@pytest.mark.parametrize(
    'parts',
    [
        [(2, 2, 7), (1, 3, None)],
        [(1, 1, 30), (3, 4, None)],
        [(1, 4, 3), (2, 1, 9), (1, 3, 2), (1, 4, None)],
        [(2, 2, 16), (1, 4, None)],  # nothing is left
        [(2, 2, 15), (8, 1, None)],  # less than a step is left
    ],
)
def test_on_other_lanes_every_clip_still_comes_once(parts):
    position, seen, dropped = None, [], 0
    for processes, rows, steps in parts:
        ranks, position = part(processes, rows, position, steps)
        clips = [clip for rank in ranks for batch in rank for clip in batch]
        seen += clips
        if steps is None:
            dropped = TOTAL - len(seen)
            assert dropped < processes * rows
        assert len({len(rank) for rank in ranks}) == 1  # as many steps on all ranks
        # Within a run a video goes on without a gap that this epoch has played.
        runs = {}
        for clip in sorted(clips, key=lambda clip: clip.run):
            runs.setdefault((clip.run, DATASET.videos[clip]), []).append(int(clip))
        for played in runs.values():
            assert played == list(range(played[0], played[0] + len(played)))
    assert len(set(seen)) == len(seen) == TOTAL - dropped


def test_the_epoch_after_is_a_whole_one():
    for inner in (None, InfiniteSampler(DATASET, seed=5)):
        sampler = build(DATASET, 4, True, seed=5)
        if inner is not None:
            sampler.sampler = inner
        sampler.start_from(sampler.position(10, 0))
        assert len(list(sampler)) == len(sampler) - 10
        sampler.set_epoch(1)
        again = build(DATASET, 4, True, seed=5)
        again.set_epoch(1)
        assert list(sampler) == list(again) and len(list(again)) == len(again)


def test_what_cannot_be_resumed():
    sampler = build(DATASET, 4, True)
    with pytest.raises(ValueError, match='the dataset has 64 clips, and had 63 when'):
        sampler.start_from(dict(sampler.position(1, 0), num_clips=63))
    with pytest.raises(ValueError, match='Only a sampler with shuffle=True'):
        build(DATASET, 4, False).start_from(sampler.position(1, 0))
