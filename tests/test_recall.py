"""tools/analysis_tools/measure_recall.py, its streams, and a training of seconds."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import measure_recall as tool
import pytest
import torch
from fork_server import python

from memvit_mm.benchmark import recall
from memvit_mm.benchmark.recall_streams import (
    COLOURS,
    LONGEST,
    PEOPLE,
    QUESTION,
    RecallStreams,
    draw_people,
)

TOOL = Path(tool.__file__)


def read(streams: RecallStreams, count: int) -> dict:
    """All clips by video: (time, label or None, colour, delay, picture) each."""
    videos: dict = {}
    for _ in range(count):
        clips = streams.next_clips()
        for row, sample in enumerate(clips.samples):
            label = sample.gt_label.item() if 'gt_label' in sample else None
            videos.setdefault(sample.video_id, []).append(
                (
                    sample.timestamp,
                    label,
                    int(clips.colours[row]),
                    int(clips.delays[row]),
                    clips.inputs[row],
                )
            )
    return videos


def questions_of(video: list):
    """(first clip, last clip, colour) of each cue and its question."""
    for end, (_, _, colour, delay, _) in enumerate(video):
        if delay:
            yield end - delay, end, colour


def test_a_plain_stream_is_a_cue_and_its_question():
    videos = list(read(RecallStreams(4, 0, seed=0), 200).values())
    ended = [video for video in videos if video[-1][3]]
    assert len(ended) > 20
    for video in ended:
        times, labels, colours, _, _ = zip(*video)
        last = len(video) - 1
        assert times == tuple(range(len(video)))
        assert list(questions_of(video)) == [(0, last, colours[0])]
        shown = [i for i, colour in enumerate(colours) if colour >= 0]
        assert shown == [0, last]
        assert labels[0] == labels[last] == colours[0]
        assert [label is None for label in labels] == [c < 0 for c in colours]
    asked = [len(video) - 1 for video in ended]
    assert min(asked) <= 4 and max(asked) >= LONGEST - 3


def test_in_a_crowded_stream_others_show_colours_between_cue_and_question():
    between = []
    for video in read(RecallStreams(0, 4, seed=0), 400).values():
        for begin, end, colour in questions_of(video):
            assert (video[begin][2], video[begin][3]) == (colour, 0)
            inside = [c for _, _, c, d, _ in video[begin + 1 : end] if c >= 0 == d]
            between.append((end - begin, len(inside)))
    assert max(count for _, count in between) == PEOPLE - 1
    assert {delay for delay, _ in between} >= set(range(1, LONGEST - 2))
    long = [count for delay, count in between if delay >= 16]
    assert len(long) > 50 and sum(long) / len(long) > 2


def test_nothing_in_the_clip_of_the_question_tells_the_colour():
    """What is drawn with a question mark is one picture per person."""
    pictures = draw_people()
    marked = pictures[:, QUESTION]
    # Grey: the same in all three colour channels.
    assert torch.equal(marked[:, :1].expand_as(marked), marked)
    # In the streams: the mean of the questions is the same, whatever the colour was.
    means = [[] for _ in COLOURS]
    for video in read(RecallStreams(8, 8, seed=3), 300).values():
        for _, _, colour, delay, picture in video:
            if delay:
                means[colour].append(picture.mean(dim=(0, 2, 3, 4)))
    means = torch.stack([torch.stack(one).mean(dim=0) for one in means])
    assert (means - means.mean(dim=0)).abs().max() < 0.02
    assert (means - means[:, :1]).abs().max() < 0.002


def test_each_person_has_a_pattern():
    patterns = draw_people()[:, 0, 0, :, :8].flatten(1)
    # Any two differ in half of their fields.
    assert torch.equal(patterns @ patterns.T, 64 * torch.eye(PEOPLE))


def test_streams_are_drawn_alike_from_one_seed():
    first, second = (RecallStreams(2, 2, seed=5) for _ in range(2))
    for _ in range(5):
        assert torch.equal(first.next_clips().inputs, second.next_clips().inputs)
    other = RecallStreams(2, 2, seed=6)
    assert not torch.equal(first.next_clips().inputs, other.next_clips().inputs)


def train_on_one_delay(schedule: dict, steps: int, monkeypatch) -> float:
    """Recall one clip later, after a training of seconds on plain streams."""
    monkeypatch.setattr(recall, 'LONGEST', 1)
    monkeypatch.setattr(recall, 'FIRST_DELAYS', 1)
    monkeypatch.setattr(recall, 'PLAIN', 32)
    monkeypatch.setattr(recall, 'CROWDED', 0)
    torch.manual_seed(0)
    model = recall.build_recognizer(schedule)
    recall.train(model, steps, seed=0)
    assert len(model.memory) == 0
    model.eval()
    streams = RecallStreams(64, 0, seed=1, longest=1)
    hits = []
    for _ in range(8):
        clips = streams.next_clips()
        with torch.no_grad():
            scores = model(clips.inputs, clips.samples, mode='tensor', stage='head')
        hits.append((scores.argmax(dim=1) == clips.colours)[clips.delays > 0])
    return torch.cat(hits).float().mean().item()


def test_what_is_read_directly_is_learned_in_seconds(monkeypatch):
    level = dict(type='pool', ages=(1, 2), tokens=2)
    assert train_on_one_delay(dict(memory_levels=[level]), 120, monkeypatch) > 0.9
    # Without memory there is nothing to learn it from, however long.
    assert train_on_one_delay(recall.SCHEDULES['none'], 40, monkeypatch) < 0.45


def test_the_tool_prints_tables_and_writes_its_files(tmp_path, capsys, monkeypatch):
    multiprocessing.set_executable(python())
    out, file = tmp_path / 'recall.png', tmp_path / 'recall.json'
    argv = ['measure_recall.py', '--processes', '1']
    monkeypatch.setattr(sys, 'argv', [*argv, '--out', str(out), '--json', str(file)])
    job = dict(schedule='none', seed=3, steps=2, test_steps=66)
    monkeypatch.setattr(tool, 'jobs_of', lambda args: [('none', job)])
    tool.main()
    printed = capsys.readouterr().out
    assert 'none, seed 3: lowest recall' in printed
    assert 'with distractors, clips later' in printed and 'lowest of all' in printed
    (run,) = json.loads(file.read_text())['runs']['none']
    assert run['seed'] == 3 and run['questions'] >= 1
    assert len(run['plain']) == len(run['distractors']) == LONGEST
    # No memory: chance.
    assert abs(sum(run['plain']) / LONGEST - 1 / len(COLOURS)) < 0.1
    assert out.stat().st_size < 200_000


def test_unlabelled_cues_are_measured_from_two_starts(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['measure_recall.py', '--unlabelled-cues'])
    jobs = tool.jobs_of(tool.parse_args())
    names = ['long, random start'] * 3 + ['long, pretrained'] * 3
    assert [name for name, _ in jobs] == names
    assert [job['seed'] for _, job in jobs] == 2 * [0, 1, 2]
    for name, job in jobs:
        assert not job['labelled_cues']
        assert job.get('pretrained', False) == ('pre' in name)


@pytest.mark.parametrize(
    'options, sentence',
    [
        (['--steps', '0'], '--steps must be at least 1, got 0'),
        (['--processes', '0'], '--processes must be at least 1, got 0'),
        (['--schedules', 'short'], "invalid choice: 'short'"),
        (['--out', 'no/where.png'], '--out no/where.png: there is no folder'),
        (['--out', 'recall.foo'], '--out recall.foo: use one of .png, .svg, .pdf'),
        (['--json', '.'], '--json . is a folder: name a file in it'),
        (['--seeds', '0', '0'], '--seeds must be different numbers >= 0'),
        (['--json', 'no/where.json'], '--json no/where.json: there is no folder'),
    ],
)
def test_mistakes(options, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['measure_recall.py', *options])
    with pytest.raises(SystemExit):
        tool.parse_args()
    assert sentence in capsys.readouterr().err


def test_help():
    command = [python(), str(TOOL), '--help']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and '--unlabelled-cues' in result.stdout
