"""Prediction and its kinds: what a model says about one clip of a stream."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np
from mmaction.structures import ActionDataSample

from .classes import ClassScores, Names


@dataclass
class Prediction:
    """What the model says about one clip of one stream."""

    stream: Any
    """The stream's name."""
    number: int
    """Number of the clip in its stream, from 0. Dropped and skipped clips count."""
    time: float
    """The time of the clip in seconds, on the clock of the stream's frames: that of its
    middle frame for models as AVA's, of its last frame for others."""
    start: float
    """When its first frame is, in seconds."""
    end: float
    """When its last frame is, in seconds."""
    scores: np.ndarray = field(repr=False)
    """Scores of the classes, ``[classes]`` float32."""
    names: Names = field(default=None, repr=False)
    """Names of the classes. Those that are not known are made up."""
    data_sample: Optional[ActionDataSample] = field(default=None, repr=False)
    """The model's whole answer, on the CPU."""
    without_memory: Optional['Prediction'] = field(default=None, repr=False)
    """The prediction of the same clip with an empty memory, if it was made
    (:class:`ComparingPredictor`)."""

    @property
    def groups(self) -> list[ClassScores]:
        """The classes of each kind, with their names and scores."""
        return [ClassScores.of('actions', self.names, self.scores)]

    def top(self, k: int = 5, threshold: float = -math.inf) -> list[tuple[str, float]]:
        """The best classes and their scores, see :meth:`ClassScores.best`."""
        return self.groups[0].best(k, threshold)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values that can be written as JSON."""
        return dict(
            stream=str(self.stream),
            number=self.number,
            time=self.time,
            start=self.start,
            end=self.end,
            scores=self.scores.tolist(),
        )


@dataclass
class EpicPrediction(Prediction):
    """A prediction of verbs and nouns; ``scores`` has the verbs' first."""

    verb_scores: np.ndarray = field(default=None, repr=False)
    """``[verbs]`` float32, which sum to 1."""
    noun_scores: np.ndarray = field(default=None, repr=False)
    """``[nouns]`` float32, which sum to 1."""
    verbs: Names = field(default=None, repr=False)
    nouns: Names = field(default=None, repr=False)

    @property
    def groups(self) -> list[ClassScores]:
        """The verbs and the nouns, with their names and scores."""
        return [
            ClassScores.of('verbs', self.verbs, self.verb_scores),
            ClassScores.of('nouns', self.nouns, self.noun_scores),
        ]

    def top_verbs(
        self, k: int = 5, threshold: float = -math.inf
    ) -> list[tuple[str, float]]:
        """The best verbs and their scores."""
        return self.groups[0].best(k, threshold)

    def top_nouns(
        self, k: int = 5, threshold: float = -math.inf
    ) -> list[tuple[str, float]]:
        """The best nouns and their scores."""
        return self.groups[1].best(k, threshold)

    def top_actions(
        self, k: int = 5, threshold: float = -math.inf
    ) -> list[tuple[str, str, float]]:
        """The best actions: verb, noun, and the product of their scores.

        Examples:
            >>> scores = dict(verb_scores=np.array([0.9, 0.1]))
            >>> scores['noun_scores'] = np.array([0.2, 0.8])
            >>> names = dict(verbs=['cut', 'wash'], nouns=['egg', 'leek'])
            >>> one = EpicPrediction('P01', 0, 1.0, 0.0, 1.0, None, **scores, **names)
            >>> [(verb, noun) for verb, noun, _ in one.top_actions(2)]
            [('cut', 'leek'), ('cut', 'egg')]
        """
        verbs, nouns = self.groups
        scores = np.outer(verbs.scores, nouns.scores)
        order = np.argsort(-scores, axis=None, kind='stable')[:k]
        pairs = np.stack(np.unravel_index(order, scores.shape), axis=1).tolist()
        return [
            (verbs.names[verb], nouns.names[noun], float(scores[verb, noun]))
            for verb, noun in pairs
            if scores[verb, noun] >= threshold
        ]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values that can be written as JSON."""
        plain = super().to_dict()
        del plain['scores']
        plain['verb_scores'] = self.verb_scores.tolist()
        plain['noun_scores'] = self.noun_scores.tolist()
        return plain


@dataclass
class PeoplePrediction(Prediction):
    """A detector's prediction: ``scores`` are ``[people, classes]``."""

    boxes: np.ndarray = field(default=None)
    """x1, y1, x2, y2 in pixels of the source's frames, ``[people, 4]`` float32."""
    box_scores: np.ndarray = field(default=None, repr=False)
    """Scores of the boxes, ``[people]`` float32."""
    track_ids: Optional[np.ndarray] = field(default=None, repr=False)
    """Numbers of the people, which stay theirs from keyframe to keyframe, int64
    ``[people]``. None where people are not tracked."""
    reserved: bool = field(default=True, repr=False)
    """Whether class 0 stands for no action, as in AVA. Then ``scores`` has it, and no
    list of classes."""

    @property
    def groups(self) -> list[ClassScores]:
        """The actions, with their names and everybody's scores."""
        return [ClassScores.of('actions', self.names, self.scores, self.reserved)]

    def top(
        self, k: int = 5, threshold: float = -math.inf
    ) -> list[list[tuple[str, float]]]:
        """The best classes of each person and their scores."""
        (group,) = self.groups
        return [group.best(k, threshold, row) for row in range(len(group.scores))]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values that can be written as JSON."""
        plain = super().to_dict()
        plain['boxes'] = self.boxes.tolist()
        plain['box_scores'] = self.box_scores.tolist()
        if self.track_ids is not None:
            plain['track_ids'] = self.track_ids.tolist()
        return plain


class StreamCounts(NamedTuple):
    """What became of a stream's frames and clips so far."""

    frames: int
    """Frames taken."""
    predictions: int
    """Clips predicted."""
    dropped: int
    """Clips dropped, because the model was slower than the source."""
    skipped: int
    """Clips left out, because frames were missing for more than ``max_gap`` seconds."""
