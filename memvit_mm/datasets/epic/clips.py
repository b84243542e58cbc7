"""When the clips of a kitchen video end: one per segment, and those in between."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from memvit_mm.datasets.transforms.clips import stable_seed

from .files import Segment

TASKS = ('recognition', 'anticipation')


class Clip(NamedTuple):
    """When one clip of a video ends."""

    timestamp: float
    """The latest moment that the clip may show, in seconds."""
    jitter: float
    """How much earlier it may end in training, in seconds."""
    segment: Optional[Segment]
    """What it is a clip of, None for one in between."""


@dataclass(frozen=True)
class ClipRule:
    """Where the clips of a video end, so that they can be read in that order.

    The clip of a segment ends

    - in anticipation ``tau_a`` seconds before the segment starts;
    - in recognition within the segment: in a test so that the clip lies in its middle,
      in training anywhere; where the segment is shorter than the clip, at its stop.

    The order of a video's clips must be known before they are drawn at random. So in
    training a segment has a fixed range of at most ``jitter`` seconds for the end of
    its clip, at a place that its id decides (over all segments, any place is as likely
    as another), and no range begins before the clip before it ends. Whatever is drawn,
    then, no clip ends before the one that comes before it.

    ``context_stride`` adds clips of no segment wherever 1.5 strides or more lie between
    the ends of two clips, and before the first: one every ``context_stride`` seconds,
    counted back from the later clip, so that its memory lies at regular distances.

    Clips that end together are ordered by start, stop and number of their segments, and
    each gets the next larger float as its timestamp: a memory takes a clip that is not
    later than the one before as the beginning of another video.

    Args:
        task (str): ``'recognition'`` or ``'anticipation'``.
        tau_a (float): Seconds between what is observed and the action.
        clip_seconds (float): Seconds from the first frame of a clip to its last.
        jitter (float): Seconds, infinity for as long as the segment is. 0 in a test.
        context_stride (float): Seconds, 0 for no clips in between.

    Examples:
        >>> segment = Segment('P01_1_0', 'P01', 'P01_1', 8.0, 14.0, 3, 4, line=2)
        >>> rule = ClipRule('recognition', clip_seconds=2.0, context_stride=4.0)
        >>> [(clip.timestamp, clip.segment is None) for clip in rule.clips([segment])]
        [(4.0, True), (8.0, True), (12.0, False)]
        >>> ClipRule('anticipation', tau_a=1.5).clips([segment])[0].timestamp
        6.5
    """

    task: str
    tau_a: float = 1.0
    clip_seconds: float = 2.0
    jitter: float = 0.0
    context_stride: float = 0.0

    def end(self, segment: Segment) -> tuple[float, float]:
        """When a segment's clip ends at the latest, and by how much it may be earlier.

        Both in seconds, as far as the segment alone decides.
        """
        if self.task == 'anticipation':
            return segment.start - self.tau_a, 0.0
        earliest = min(segment.start + self.clip_seconds, segment.stop)
        room = segment.stop - earliest
        if not self.jitter:
            return earliest + room / 2, 0.0
        jitter = min(self.jitter, room)
        place = stable_seed(segment.narration_id) / 2**32
        return segment.stop - place * (room - jitter), jitter

    def clips(self, segments: Sequence[Segment]) -> list[Clip]:
        """All clips of one video, each later than the one before."""
        planned = sorted(
            ((*self.end(segment), segment) for segment in segments),
            key=lambda p: (p[0], p[2].start, p[2].stop, p[2].number, p[2].line),
        )
        clips: list[Clip] = []
        last = -math.inf
        for end, jitter, segment in planned:
            for between in self._between(max(last, 0.0), end):
                clips.append(Clip(between, 0.0, None))
                last = between
            end = max(end, math.nextafter(last, math.inf))
            clips.append(Clip(end, min(jitter, end - last), segment))
            last = end
        return clips

    def _between(self, last: float, end: float) -> Iterator[float]:
        """Ends of the clips between two that end at ``last`` and ``end``."""
        if self.context_stride:
            room = (end - last) / self.context_stride - 0.5
            for back in range(math.floor(room), 0, -1):
                yield end - back * self.context_stride
