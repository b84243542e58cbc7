"""EpicPredictions: scores of verbs, nouns and actions, checked and put in order."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch

from .labels import EpicLabels

ARRAYS = ('verb_logits', 'noun_logits')
SCORES = (*ARRAYS, 'action_scores', 'action_pairs')


@dataclass
class EpicPredictions:
    """Scores of N segments.

    Args:
        narration_ids (Sequence[str]): The N segments.
        verb (np.ndarray): ``[N, V]``, logits or log-probabilities.
        noun (np.ndarray): ``[N, C]``, the same.
        action_scores (np.ndarray, optional): Explicit scores ``[N, K]`` of actions.
            Without them an action's score is the sum of its verb's and its noun's.
        action_pairs (np.ndarray, optional): Which actions these are, verb and noun:
            int ``[K, 2]`` for all segments, or ``[N, K, 2]``.
        source (str): Where they come from, for messages.
        challenge (str, optional): The challenge that a submission was written for.
    """

    narration_ids: Sequence[str]
    verb: np.ndarray
    noun: np.ndarray
    action_scores: Optional[np.ndarray] = None
    action_pairs: Optional[np.ndarray] = None
    source: str = 'the predictions'
    challenge: Optional[str] = None

    def __len__(self) -> int:
        return len(self.narration_ids)

    def rows(self, rows: Sequence[int]) -> 'EpicPredictions':
        """Some of the segments, in the order given."""
        rows = np.asarray(rows, dtype=int)
        scores, pairs = self.action_scores, self.action_pairs
        if pairs is not None and pairs.ndim == 3:
            pairs = pairs[rows]
        return replace(
            self,
            narration_ids=[self.narration_ids[row] for row in rows],
            verb=self.verb[rows],
            noun=self.noun[rows],
            action_scores=None if scores is None else scores[rows],
            action_pairs=pairs,
        )

    def check(self, num_classes: Optional[Sequence[int]] = None) -> None:
        """Check shapes, classes and numbers.

        Args:
            num_classes (Sequence[int], optional): Numbers of verbs and of nouns.

        Raises:
            ValueError: In one sentence that names the segment, if an array has another
                shape, a segment comes twice, or a score is not finite.
        """
        count = len(self)
        arrays = dict(zip(ARRAYS, (self.verb, self.noun)))
        for (name, scores), number in zip(arrays.items(), num_classes or (None, None)):
            if scores.ndim != 2 or scores.shape != (count, number or scores.shape[1]):
                raise ValueError(
                    f'{self.source} has {name} of shape {list(scores.shape)}, expected '
                    f'[{count}, {number or "classes"}], a row for each segment and a '
                    'column for each class: take the head and the annotations of one '
                    'data set.'
                )
        if self.action_scores is not None or self.action_pairs is not None:
            self._check_actions(num_classes or (self.verb.shape[1], self.noun.shape[1]))
            arrays['action_scores'] = self.action_scores
        if len(set(self.narration_ids)) < count:
            twice = [n for n, c in Counter(self.narration_ids).items() if c > 1]
            raise ValueError(
                f'{self.source} predicts {some(twice)} more than once: every segment '
                'must come once.'
            )
        for name, scores in arrays.items():
            wrong = ~np.isfinite(scores)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise ValueError(
                    f'{self.source} has the {name} {scores[row, column]} for segment '
                    f'{self.narration_ids[row]!r}, entry {column} (and '
                    f'{wrong.any(1).sum() - 1} more such segments): scores must be '
                    'finite numbers, log-probabilities of 0 too.'
                )

    def _check_actions(self, limits: Sequence[int]) -> None:
        scores, pairs = self.action_scores, self.action_pairs
        if scores is None or pairs is None:
            raise ValueError(
                f'{self.source} has only one of action_scores and action_pairs: '
                'explicit scores need both.'
            )
        if scores.ndim != 2 or len(scores) != len(self):
            raise ValueError(
                f'{self.source} has action_scores of shape {list(scores.shape)}, '
                f'expected [{len(self)}, actions].'
            )
        shapes = ((scores.shape[1], 2), (*scores.shape, 2))
        if pairs.shape not in shapes or pairs.dtype.kind not in 'iu':
            raise ValueError(
                f'{self.source} has action_pairs of shape {list(pairs.shape)} and type '
                f'{pairs.dtype}, expected integers {list(shapes[0])} or '
                f'{list(shapes[1])}, verb and noun.'
            )
        # [N, K, 2], or [1, K, 2] if all segments have the same
        rows = (pairs if pairs.ndim == 3 else pairs[None]).astype(np.int64)
        outside = ((rows < 0) | (rows >= np.asarray(limits))).any(-1)
        ids = rows[..., 0] * (limits[1] + 1) + rows[..., 1]
        order = np.argsort(ids, axis=1)
        ids = np.take_along_axis(ids, order, 1)
        twice = np.zeros_like(outside)
        np.put_along_axis(twice, order[:, 1:], ids[:, 1:] == ids[:, :-1], 1)
        for faulty, what in (
            (outside, f'expected verbs below {limits[0]} and nouns below {limits[1]}'),
            (twice, 'twice in one segment'),
        ):
            for row, column in np.argwhere(faulty)[:1]:
                own = f'segment {self.narration_ids[row]!r}'
                raise ValueError(
                    f'{self.source} has the action {rows[row, column].tolist()} for '
                    f'{own if pairs.ndim == 3 else "all segments"}, {what}.'
                )


def some(names: Sequence[str]) -> str:
    """How many segments, and the first few.

    Examples:
        >>> some(['P01_11_0', 'P01_11_1'])
        '2 segments (P01_11_0, P01_11_1)'
    """
    count = f'{len(names)} segment{"s" * (len(names) != 1)}'
    shown = ', '.join(names[:5])
    return f'{count} ({shown}{", ..." if len(names) > 5 else ""})'


def match(
    predictions: EpicPredictions,
    labels: EpicLabels,
    allow_missing: bool = False,
    left_out: Iterable[str] = (),
) -> EpicPredictions:
    """The predictions in the annotations' order, with every segment there.

    Args:
        predictions (EpicPredictions): In any order.
        labels (EpicLabels): The segments that are expected.
        allow_missing (bool): Whether segments may lack a prediction.
        left_out (Iterable[str]): Segments of which it is known that they have none.

    Raises:
        ValueError: In one sentence that names the segments: those that are missing,
            come twice or are unknown, and scores that are not finite.
    """
    predictions.check(labels.num_classes)
    place = {name: row for row, name in enumerate(predictions.narration_ids)}
    expected = set(labels.narration_ids)
    unknown = [name for name in predictions.narration_ids if name not in expected]
    if unknown:
        raise ValueError(
            f'{predictions.source} predicts {some(unknown)} not in {labels.source}: '
            'take the annotations of the split that was predicted.'
        )
    left_out = set(left_out)
    missing = [
        name
        for name in labels.narration_ids
        if name not in place and name not in left_out
    ]
    if missing and not allow_missing:
        raise ValueError(
            f'{predictions.source} has no prediction for {some(missing)} of the '
            f'{len(labels.narration_ids)} in {labels.source}: predict all of them, or '
            'score those there are with allow_missing=True (--allow-missing).'
        )
    return predictions.rows(
        [place[name] for name in labels.narration_ids if name in place]
    )


def fill(predictions: EpicPredictions, names: Sequence[str]) -> EpicPredictions:
    """Add segments without a prediction: all their classes have the same score.

    Args:
        predictions (EpicPredictions): Of at least one segment.
        names (Sequence[str]): The segments to add, at the end.
    """
    count = len(predictions)
    filled = predictions.rows([*range(count), *[0] * len(names)])
    filled.narration_ids[count:] = names
    for scores in (filled.verb, filled.noun, filled.action_scores):
        if scores is not None:
            scores[count:] = 0
    return filled


def prediction_of(sample: Mapping[str, Any]) -> Optional[dict[str, Any]]:
    """The prediction in a data sample, as numpy arrays; None for a context clip.

    Args:
        sample (Mapping): A data sample as ``to_dict()`` gives it, with
            ``narration_id`` (None for a context clip), ``verb_logits`` ``[V]`` and
            ``noun_logits`` ``[C]``, perhaps ``action_scores`` ``[K]`` and
            ``action_pairs`` ``[K, 2]``.

    Raises:
        ValueError: If it has no ``narration_id``, or one without logits.
    """
    if 'narration_id' not in sample:
        raise ValueError(
            'A data sample has no narration_id, which says what was predicted: add '
            "'narration_id' to the meta_keys of PackActionInputs."
        )
    name = sample['narration_id']
    if name is None or 'skipped' in sample:
        return None
    for field in ARRAYS:
        if field not in sample:
            raise ValueError(
                f'The data sample of segment {name!r} has no {field}: the model needs '
                "a head that predicts verbs and nouns, cls_head=dict(type='EpicHead')."
            )
    found = {'narration_id': str(name)}
    for field in SCORES:
        if field in sample:
            found[field] = _array(sample[field])
    return found


def gather(found: Sequence[Mapping[str, Any]], source: str) -> EpicPredictions:
    """Join the predictions of many samples, as :func:`prediction_of` gives them.

    Raises:
        ValueError: If there is none, or they are not of one shape.
    """
    if not found:
        raise ValueError(
            f'{source} has no prediction of any segment: a sample with a narration_id '
            'has one.'
        )
    arrays = {}
    for field in SCORES:
        parts = [one[field] for one in found if field in one]
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1 or 0 < len(parts) < len(found):
            raise ValueError(
                f'{source} has {field} of shape {" or ".join(map(str, shapes))} for '
                f'{len(parts)} of {len(found)} segments: predict all with one head.'
            )
        if parts:
            arrays[field] = np.stack(parts)
    return as_predictions([one['narration_id'] for one in found], arrays, source)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    return np.asarray(value)


def as_predictions(
    names: Sequence[str], arrays: Mapping[str, np.ndarray], source: str
) -> EpicPredictions:
    """Predictions of arrays by their names in files, scores as float64.

    Raises:
        ValueError: If scores are no real numbers.
    """
    for field in (*ARRAYS, 'action_scores'):
        if field in arrays and arrays[field].dtype.kind not in 'fiu':
            raise ValueError(
                f'{source} has {field} of type {arrays[field].dtype}, expected real '
                'numbers.'
            )
    scores = arrays.get('action_scores')
    return EpicPredictions(
        names,
        arrays['verb_logits'].astype(np.float64),
        arrays['noun_logits'].astype(np.float64),
        None if scores is None else scores.astype(np.float64),
        arrays.get('action_pairs'),
        source,
    )
