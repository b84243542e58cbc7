"""Which prediction, and which people, are shown at a moment between two predictions."""

from typing import NamedTuple, Optional

import numpy as np

from memvit_mm.apis.models.results import PeoplePrediction, Prediction

from .stream_info import StreamInfo

# Times are sums of floating-point numbers.
TOLERANCE = 1e-6


class Person(NamedTuple):
    """A person in a frame."""

    box: np.ndarray
    """x1, y1, x2, y2 in pixels of the source, ``[4]``."""
    prediction: PeoplePrediction
    row: int
    """The person's row in the prediction's arrays."""

    @property
    def number(self) -> int:
        """The track id, or the row where people are not tracked."""
        ids = self.prediction.track_ids
        return self.row if ids is None else int(ids[self.row])


def shown_at(
    time: float,
    before: Optional[Prediction],
    after: Optional[Prediction],
    info: StreamInfo,
) -> Optional[Prediction]:
    """The prediction that is shown at a time, or None.

    A frame between two clips belongs to the clip that ends with it; of a model that
    anticipates, to the clip that begins to be shown there.
    """
    for one in (after, before) if info.ahead else (before, after):
        if one is not None:
            begin = info.shown_from(one.time)
            if begin - TOLERANCE <= time <= begin + info.stride + TOLERANCE:
                return one
    return None


def people_at(
    time: float,
    before: Optional[PeoplePrediction],
    after: Optional[PeoplePrediction],
    info: StreamInfo,
) -> list[Person]:
    """The people of a moment between two keyframes, in the order of their numbers.

    The box of a person who is tracked in both keyframes moves from one to the other,
    with the actions of the nearer keyframe. Other people are shown for half a stride
    before and after their keyframe.
    """
    people = []
    keyframes = [one for one in (before, after) if one is not None]
    tracked = all(one.track_ids is not None for one in keyframes)
    near = len(keyframes) == 2 and after.time - before.time <= 1.5 * info.stride
    if tracked and near:
        part = (time - before.time) / (after.time - before.time)
        same = before.track_ids[:, None] == after.track_ids
        for first, second in zip(*np.nonzero(same)):
            box = before.boxes[first] * (1 - part) + after.boxes[second] * part
            shown = (before, first) if part < 0.5 else (after, second)
            people.append(Person(box, *shown))
    moving = {person.number for person in people}
    for one in keyframes:
        if abs(one.time - time) <= info.stride / 2 + TOLERANCE:
            found = (Person(box, one, row) for row, box in enumerate(one.boxes))
            people += [person for person in found if person.number not in moving]
    return sorted(people, key=lambda person: person.number)
