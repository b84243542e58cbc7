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

    A plain stream begins with its one cue and ends with its question. In a stream with
    distractors two to eight people show a colour each; then they are asked, in any
    order.

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

    def draw_cues(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Single clips, each of anybody with any colour.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Clips [B, 1, 3, T, H, W], who it is [B], and
            the colour [B].
        """
        person = torch.randint(PEOPLE, (count,), generator=self._noise)
        colour = torch.randint(len(COLOURS), (count,), generator=self._noise)
        return self._draw(person, colour)[:, None], person, colour

    def _stream(self, crowded: bool) -> Iterator[tuple[str, int, _Shown]]:
        """One stream: its name, times, and what is shown."""
        name = f'{self._name}{self._begun}'
        self._begun += 1
        length, plan = self._plan(crowded)
        for time in range(length):
            nobody = _Shown(int(self._random.integers(PEOPLE)), NOTHING)
            yield name, time, plan.get(time, nobody)

    def _plan(self, crowded: bool) -> tuple[int, dict[int, _Shown]]:
        """How long a stream is, and what is shown at which time."""
        length = 1 + next(self._delays)
        most = min(PEOPLE, length // 2) if crowded else 1
        count = int(self._random.integers(min(2, most), most + 1))
        # All cues first, at any times, then all questions: the first and the last clip
        # are among them.
        half = int(self._random.integers(count, length - count + 1))
        cues = [0, *self._some(1, half, count - 1)]
        questions = [*self._some(half, length - 1, count - 1), length - 1]
        people = self._random.permutation(PEOPLE)[:count].tolist()
        # When somebody is asked tells nothing about when the cue was. Only that half of
        # the time the first one is the last to be asked, for the sake of long delays.
        asked = self._random.permutation(people).tolist()
        if self._random.random() < 0.5:
            asked.remove(people[0])
            asked.append(people[0])
        plan: dict[int, _Shown] = {}
        for cue, person in zip(cues, people):
            colour = int(self._random.integers(len(COLOURS)))
            question = questions[asked.index(person)]
            plan[cue] = _Shown(person, colour, colour)
            plan[question] = _Shown(person, QUESTION, colour, question - cue)
        return length, plan

    def _some(self, begin: int, end: int, count: int) -> list[int]:
        """Some of the times from ``begin`` to before ``end``, in order."""
        times = begin + self._random.permutation(end - begin)[:count]
        return sorted(times.tolist())

    def _draw_delays(self) -> Iterator[int]:
        """Each delay once, in any order, and again."""
        while True:
            yield from (1 + self._random.permutation(self.longest)).tolist()

    def _draw(self, person: Tensor, sign: Tensor) -> Tensor:
        """[B] and [B] -> [B, 3, T, H, W]."""
        # Twice, one above the other. (B, 3, 8, 16) -> (B, 3, 1, 16, 16)
        picture = self._people[person, sign].repeat(1, 1, 2, 1)[:, :, None]
        size = (len(person), 3, FRAMES, SIZE, SIZE)
        # On a grey ground, with a little noise.
        return picture - 0.5 + 0.03 * torch.randn(size, generator=self._noise)
