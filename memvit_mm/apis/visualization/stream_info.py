"""StreamInfo: the facts about a model that whoever shows its predictions needs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np

from memvit_mm.apis.models.classes import ClassScores
from memvit_mm.apis.models.results import Prediction
from memvit_mm.apis.streams.clip_grid import ClipGrid
from memvit_mm.apis.streams.predictor import Predictor
from memvit_mm.datasets.clip_recipe import test_dataset


@dataclass
class StreamInfo:
    """The kind of model, its classes, and its clips' times."""

    kind: str
    """'actions' of whole clips, 'verbs and nouns' of them, or 'people' and theirs."""
    classes: dict[str, list[str]]
    """Names by class number: of 'actions', or of 'verbs' and 'nouns'. Those of 'people'
    are 'actions'."""
    stride: float
    """Seconds from one clip to the next."""
    clip_seconds: float
    """Seconds from a clip's first frame to its last."""
    memory_seconds: Optional[float]
    """How far back a clip attends directly, in seconds; None for models without a
    memory. Earlier clips may pass on what came before them."""
    ahead: float = 0.0
    """How many seconds after its time a prediction is about; above 0 for models that
    anticipate."""
    centered: bool = False
    """Whether a clip's time is that of its middle frame, or of its last one."""
    reserved: bool = False
    """Whether class 0 stands for no action, as in AVA."""

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
    """
    grid = ClipGrid(predictor.recipe, fps, stride)
    sampler = predictor.recipe.sampler
    # MMAction2's own sampler has the attribute, and nothing in it.
    rate = getattr(sampler, 'target_fps', None) or fps
    dataset = test_dataset(predictor.cfg)
    anticipates = dataset.get('task') == 'anticipation'
    classes = predictor.classes
    return StreamInfo(
        kind='people' if predictor.detects else ' and '.join(classes.names),
        classes=classes.names,
        stride=grid.stride,
        clip_seconds=(sampler.clip_len - 1) * sampler.frame_interval / rate,
        memory_seconds=predictor.memory_steps * grid.stride or None,
        ahead=float(dataset.get('tau_a', 1.0)) if anticipates else 0.0,
        centered=predictor.recipe.centered,
        reserved=classes.reserved,
    )


# ------------------------------------------------------------ scores to be shown


def rows_of(predictions: Sequence[Prediction]) -> list[ClassScores]:
    """Scores ``[clips, classes]`` of predictions of one model.

    Of people those are the highest that anybody has; nan where nobody was there.
    """
    return [
        groups[0]._replace(scores=np.stack([_highest(g.scores) for g in groups]))
        for groups in zip(*(prediction.groups for prediction in predictions))
    ]


def _highest(scores: np.ndarray) -> np.ndarray:
    if scores.ndim == 1:
        return scores
    if not len(scores):
        return np.full(scores.shape[1], np.nan, dtype=np.float32)
    return scores.max(axis=0)


def alone(predictions: Iterable[Prediction]) -> Optional[list[Prediction]]:
    """The same clips' predictions without memory, None if they were not made."""
    found = [p.without_memory for p in predictions]
    return None if any(one is None for one in found) else found
