"""What is known about a moment between two predictions."""

from typing import NamedTuple, Optional

import numpy as np

from memvit_mm.apis.models.stream_info import StreamInfo
from memvit_mm.apis.streams.results import PeoplePrediction, Prediction


class Person(NamedTuple):
    """Somebody in a frame."""

    box: np.ndarray
    """x1, y1, x2, y2 in pixels of the source, ``[4]``."""
    prediction: PeoplePrediction
    row: int
    """Which of the prediction's people."""

    @property
    def number(self) -> int:
        """The same from keyframe to keyframe, where people are tracked."""
        ids = self.prediction.track_ids
        return self.row if ids is None else int(ids[self.row])


def shown_at(
    time: float,
    before: Optional[Prediction],
    after: Optional[Prediction],
    info: StreamInfo,
) -> Optional[Prediction]:
    """The prediction of a clip that stands for a moment, if one does."""
    # Frames on the edge belong to the clip that ends with them; those of forecasts to
    # the clip that was foreseen then.
    order = ('after', 'before') if info.ahead else ('before', 'after')
    for name in order:
        prediction = before if name == 'before' else after
        if prediction is not None:
            begin = info.shown_from(prediction.time)
            if begin - 1e-6 <= time <= begin + info.stride + 1e-6:
                return prediction
    return None


def people_at(
    time: float,
    before: Optional[PeoplePrediction],
    after: Optional[PeoplePrediction],
    info: StreamInfo,
) -> list[Person]:
    """The people of a moment between two keyframes.

    Whoever is in both is on the way from one box to the other, with the actions of the
    nearer keyframe; others are there for half a stride.
    """
    people, half = [], info.stride / 2
    near = [
        p is not None and abs(p.time - time) <= half + 1e-6 for p in (before, after)
    ]
    met: dict[int, tuple[int, int]] = {}
    if before is not None and after is not None:
        tracked = before.track_ids is not None and after.track_ids is not None
        if tracked and after.time - before.time <= 1.5 * info.stride:
            rows = {int(number): row for row, number in enumerate(after.track_ids)}
            met = {
                int(number): (row, rows[int(number)])
                for row, number in enumerate(before.track_ids)
                if int(number) in rows
            }
    for first, second in met.values():
        part = (time - before.time) / (after.time - before.time)
        box = before.boxes[first] * (1 - part) + after.boxes[second] * part
        if part < 0.5:
            people.append(Person(box, before, first))
        else:
            people.append(Person(box, after, second))
    for place, prediction in enumerate((before, after)):
        if near[place]:
            both = {pair[place] for pair in met.values()}
            people += [
                Person(box, prediction, row)
                for row, box in enumerate(prediction.boxes)
                if row not in both
            ]
    return sorted(people, key=lambda person: person.number)
