"""StreamInfo: what must be known about a model to show its predictions."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

import numpy as np

from .clip_grid import ClipGrid, test_dataset
from .predictor import Predictor
from .results import EpicPrediction, Names, PeoplePrediction, Prediction


@dataclass
class StreamInfo:
    """The kind of model, its classes, and its clips' times."""

    kind: str
    """'actions' of whole clips, 'verbs and nouns' of them, or 'people' and theirs."""
    classes: dict[str, list[str]]
    """Names by class number: of 'actions', or of 'verbs' and 'nouns'. Those of 'people'
    are 'actions', of which number 0 stands for nothing, as in AVA."""
    stride: float
    """Seconds from one clip to the next."""
    clip_seconds: float
    """Seconds from a clip's first frame to its last."""
    memory_seconds: Optional[float]
    """How far back a clip attends directly, in seconds; None for models without a
    memory. Through earlier clips it may know more."""
    ahead: float = 0.0
    """How long after a prediction's time that is which it is about, in seconds: above 0
    for models that anticipate."""
    centered: bool = False
    """Whether a clip's time is that of its middle, or of its end."""

    def shown_from(self, time: float) -> float:
        """From when on a prediction is shown, in seconds; for a ``stride``.

        Recognized is what has happened since the clip before, anticipated what comes,
        and people's actions are those around the keyframe.
        """
        if self.ahead:
            return time
        return time - self.stride / (2 if self.centered else 1)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def info_of(
    predictor: Predictor, fps: float, stride: Optional[float] = None
) -> StreamInfo:
    """What a stream of this model is like.

    Args:
        predictor (Predictor): The model and its pipeline.
        fps (float): Frames per second of the stream.
        stride (float, optional): The stream's, if it is not the config's.

    Raises:
        ValueError: If there are fewer names than classes.
    """
    grid = ClipGrid(predictor.recipe, fps, stride)
    sampler = predictor.recipe.sampler
    # MMAction2's own sampler has the attribute, and nothing in it.
    rate = getattr(sampler, 'target_fps', None) or fps
    dataset = test_dataset(predictor.cfg)
    ahead = 0.0
    if dataset.get('task') == 'anticipation':
        ahead = float(dataset.get('tau_a', 1.0))
    classes = _classes(predictor)
    kind = 'verbs and nouns' if 'verbs' in classes else 'actions'
    return StreamInfo(
        'people' if predictor.detects else kind,
        classes,
        grid.stride,
        (sampler.clip_len - 1) * sampler.frame_interval / rate,
        memory_steps(predictor) * grid.stride or None,
        ahead,
        predictor.recipe.centered,
    )


def _classes(predictor: Predictor) -> dict[str, list[str]]:
    model, names = predictor.model, predictor.names
    if predictor.detects:
        parts = dict(actions=(names.actions, model.roi_head.bbox_head.num_classes))
    elif hasattr(model.cls_head, 'num_verbs'):
        head = model.cls_head
        parts = dict(
            verbs=(names.verbs, head.num_verbs), nouns=(names.nouns, head.num_nouns)
        )
    else:
        parts = dict(actions=(names.actions, model.cls_head.num_classes))
    files = 'two files, of verbs and of nouns' if 'verbs' in parts else 'one file'
    for part, known in names._asdict().items():
        if known is not None and part not in parts:
            raise ValueError(
                f'The label map has names of {part}, but the model tells '
                f'{" and ".join(parts)}: give {files}.'
            )
    for part, (known, count) in parts.items():
        if known is not None and len(known) < count:
            raise ValueError(
                f'There are {len(known)} names of {part}, but the model has {count}: '
                'give those of the classes that it was trained on as label map.'
            )
    return {part: named(*given) for part, given in parts.items()}


def named(names: Names, count: int) -> list[str]:
    """Names of all classes, made up where they are not known.

    Examples:
        >>> named(None, 2)
        ['class 0', 'class 1']
    """
    if names is None:
        return [f'class {number}' for number in range(count)]
    return [str(name) for name in names[:count]]


def memory_steps(predictor: Predictor) -> int:
    """Clips that the model looks back at most, in one layer; 0 without a memory."""
    if predictor.memory is None:
        return 0
    return max(
        (
            module.memory_length * module.memory_gap
            for module in predictor.model.modules()
            if hasattr(module, 'memory_length') and hasattr(module, 'memory_gap')
        ),
        default=0,
    )


# ------------------------------------------------------------ scores to be shown


class ScoreRows(NamedTuple):
    """One kind of classes over time."""

    kind: str
    """'actions', 'verbs' or 'nouns'."""
    names: list[str]
    scores: np.ndarray
    """``[clips, classes]`` float32; nan where nobody was there."""


def rows_of(predictions: Sequence[Prediction]) -> list[ScoreRows]:
    """Scores of predictions of one model; of people the highest anybody has."""
    first = predictions[0]
    if isinstance(first, EpicPrediction):
        verbs = np.stack([p.verb_scores for p in predictions])
        nouns = np.stack([p.noun_scores for p in predictions])
        return [
            ScoreRows('verbs', named(first.verbs, verbs.shape[1]), verbs),
            ScoreRows('nouns', named(first.nouns, nouns.shape[1]), nouns),
        ]
    if isinstance(first, PeoplePrediction):
        scores = np.stack([_highest(p.scores) for p in predictions])
        names = named(first.names, scores.shape[1])
        # Class 0 stands for nothing.
        return [ScoreRows('actions', names[1:], scores[:, 1:])]
    scores = np.stack([p.scores for p in predictions])
    return [ScoreRows('actions', named(first.names, scores.shape[1]), scores)]


def _highest(scores: np.ndarray) -> np.ndarray:
    if not len(scores):
        return np.full(scores.shape[1], np.nan, dtype=np.float32)
    return scores.max(axis=0)


def alone(predictions: Iterable[Prediction]) -> Optional[list[Prediction]]:
    """The same clips' predictions without memory, None if they were not made."""
    found = [p.without_memory for p in predictions]
    return None if any(one is None for one in found) else found


def top_scores(scores: np.ndarray, kind: str, k: int) -> list[int]:
    """Numbers of the best classes ``[classes]``, best first.

    Examples:
        >>> top_scores(np.array([0.9, 0.1, 0.3]), 'people', 2)
        [2, 1]
    """
    order = np.argsort(-scores, kind='stable').tolist()
    if kind == 'people':
        order.remove(0)
    return order[:k]
