"""Drawn streams that ask for what was seen some clips ago.

In the *cue* clip a person shows one of four colours; ``delay`` clips later that person
is shown with a question mark, once: which colour was it? All other clips show people
without colours, or, with distractors, also other people with other colours. Who it is
is told by a pattern, not by the place, and nothing in the question's clip gives the
colour away: it can only be known from memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from mmaction.structures import ActionDataSample
from torch import Tensor

COLOURS = ('red', 'green', 'blue', 'yellow')
PEOPLE = 8
LONGEST = 32
"""The longest delay, in clips."""
FRAMES, SIZE = 2, 16
"""Frames of a clip, and their height and width in pixels."""
# What a person holds, after the colours.
QUESTION, NOTHING = len(COLOURS), len(COLOURS) + 1
CELL = SIZE // 2


class Clips(NamedTuple):
    """The next clip of each of some streams."""

    inputs: Tensor
    """[B, 1, 3, T, H, W], as a recognizer takes them."""
    samples: list[ActionDataSample]
    """Their videos and times; where a colour can be told, with its label."""
    colours: Tensor
    """[B]: the colour that is shown or asked for; -1 where there is none."""
    delays: Tensor
    """[B]: clips since the colour was shown, where it is asked for; else 0."""


class _Shown(NamedTuple):
    person: int
    sign: int
    colour: int = -1
    delay: int = 0


def draw_people() -> Tensor:
    """A picture of each person with each sign: [people, signs, 3, 8, 16], in -1 … 1.

    On the left a pattern of 4 x 4 fields tells who it is: rows of a Hadamard matrix,
    any two of which differ in half of the fields. On the right is a colour, a question
    mark, or nothing.
    """
    hadamard = torch.ones(1, 1)
    while len(hadamard) < 16:
        upper, lower = torch.cat([hadamard] * 2, 1), torch.cat([hadamard, -hadamard], 1)
        hadamard = torch.cat([upper, lower])
    # The first row is the same everywhere. (people, 16) -> (people, 8, 8)
    patterns = torch.kron(
        hadamard[1 : PEOPLE + 1].view(PEOPLE, 4, 4), torch.ones(1, 2, 2)
    )
    mark = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    mark = torch.kron(mark.float(), torch.ones(2, 2))
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]).float()
    pictures = torch.zeros(PEOPLE, NOTHING + 1, 3, CELL, 2 * CELL)
    pictures[..., :CELL] = patterns[:, None, None]
    pictures[:, :QUESTION, :, :, CELL:] = colours[None, :, :, None, None]
    pictures[:, QUESTION, :, :, CELL:] = mark
    return pictures


class RecallStreams:
    """Streams side by side, clip by clip; where one ends, the next begins.

    A plain stream has one cue and ends with its question. In a stream with distractors
    there is a cue wherever nothing is asked, so that about half of the clips show a
    colour, and ten or more other colours may lie between a cue and its question. A
    person has one cue in 32 clips.

    Args:
        plain (int): Rows of plain streams.
        crowded (int): Rows of streams with distractors, after those.
        seed (int): Of all draws.
        name (str): Begins the ``video_id`` of each stream.
        longest (int): Delays are drawn from 1 to this; it may be changed at any time
            for the streams that begin after.

    Examples:
        >>> streams = RecallStreams(plain=2, crowded=1, seed=0)
        >>> clips = streams.next_clips()
        >>> tuple(clips.inputs.shape)
        (3, 1, 3, 2, 16, 16)
        >>> [sample.video_id for sample in clips.samples]
        ['0', '1', '2']
    """

    def __init__(
        self,
        plain: int,
        crowded: int,
        seed: int,
        name: str = '',
        longest: int = LONGEST,
    ) -> None:
        self.longest = longest
        self._plain, self._name, self._begun = plain, name, 0
        self._random = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._people = draw_people()
        self._delays = self._draw_delays()
        self._rows = [iter(()) for _ in range(plain + crowded)]

    def next_clips(self) -> Clips:
        """The next clip of each row."""
        shown, samples = [], []
        for row in range(len(self._rows)):
            try:
                video, time, what = next(self._rows[row])
            except StopIteration:
                self._rows[row] = self._stream(crowded=row >= self._plain)
                video, time, what = next(self._rows[row])
            sample = ActionDataSample(metainfo=dict(video_id=video, timestamp=time))
            if what.colour >= 0:
                sample.set_gt_label(what.colour)
            shown.append(what)
            samples.append(sample)
        columns = torch.tensor(shown).unbind(1)
        return Clips(self._draw(*columns[:2])[:, None], samples, *columns[2:])

    def _stream(self, crowded: bool) -> Iterator[tuple[str, int, _Shown]]:
        """One stream: its name, times, and what is shown."""
        name = f'{self._name}{self._begun}'
        self._begun += 1
        length, plan = self._plan_crowded() if crowded else self._plan_plain()
        for time in range(length):
            nobody = _Shown(int(self._random.integers(PEOPLE)), NOTHING)
            yield name, time, plan.get(time, nobody)

    def _plan_plain(self) -> tuple[int, dict[int, _Shown]]:
        begin, delay = int(self._random.integers(3)), next(self._delays)
        person = int(self._random.integers(PEOPLE))
        return begin + delay + 1, self._ask(person, begin, delay)

    def _plan_crowded(self) -> tuple[int, dict[int, _Shown]]:
        length = int(self._random.integers(self.longest + 1, 3 * self.longest + 1))
        plan: dict[int, _Shown] = {}
        rested = dict.fromkeys(self._random.permutation(PEOPLE).tolist(), 0)
        for time in range(length):
            free = [person for person, since in rested.items() if since <= time]
            ends = [time + d for d in range(1, self.longest + 1)]
            ends = [end for end in ends if end < length and end not in plan]
            if time not in plan and free and ends:
                delay = int(self._random.choice(ends)) - time
                plan.update(self._ask(free[0], time, delay))
                # To the end of the queue.
                del rested[free[0]]
                rested[free[0]] = time + LONGEST + 1
        return length, plan

    def _ask(self, person: int, time: int, delay: int) -> dict[int, _Shown]:
        colour = int(self._random.integers(len(COLOURS)))
        return {
            time: _Shown(person, colour, colour),
            time + delay: _Shown(person, QUESTION, colour, delay),
        }

    def _draw_delays(self) -> Iterator[int]:
        """Each delay once, in any order, and again."""
        while True:
            yield from (1 + self._random.permutation(self.longest)).tolist()

    def _draw(self, person: Tensor, sign: Tensor) -> Tensor:
        """[B] and [B] -> [B, 3, T, H, W]: in each frame in the upper or lower half."""
        size = (len(person), 3, FRAMES, SIZE, SIZE)
        # On a grey ground, with a little noise.
        clips = torch.randn(size, generator=self._noise) * 0.03 - 0.5
        lower = torch.rand(len(person), FRAMES, generator=self._noise) < 0.5
        lower = lower[:, None, :, None, None]
        picture = self._people[person, sign][:, :, None]
        clips[..., :CELL, :] += picture * ~lower
        clips[..., CELL:, :] += picture * lower
        return clips
