"""EPIC-KITCHENS-100's official numbers, as pure functions of scores and labels.

Recognition is counted per segment, anticipation per class. Equal scores are ranked by
class id, the lower one first, of actions by verb and then by noun; the official code
leaves their order to numpy's version.
"""

from typing import NamedTuple, Optional

import numpy as np

from .labels import PARTS, EpicLabels
from .predictions import EpicPredictions, match

TASKS = {
    'recognition': (
        ('all', 1, 'all_{}_accuracy_at_1'),
        ('all', 5, 'all_{}_accuracy_at_5'),
        ('unseen', 1, 'unseen_{}_accuracy_at_1'),
        ('tail', 1, 'tail_{}_accuracy_at_1'),
    ),
    'anticipation': (
        ('all', 5, 'overall_{}_mt5r'),
        ('unseen', 5, 'unseen_{}_mt5r'),
        ('tail', 5, 'tail_{}_mt5r'),
    ),
}
"""The numbers of each task: their subset, how many ranks count, the official name."""


class EpicResult(NamedTuple):
    """The numbers of one evaluation."""

    task: str
    """``'recognition'`` or ``'anticipation'``."""
    values: dict[str, float]
    """Percent, by the official name; nan for a subset without segments."""
    segments: dict[str, dict[str, int]]
    """How many segments counted, by subset and part."""
    classes: dict[str, dict[str, int]]
    """How many classes they have."""


def epic_metrics(
    task: str, predictions: EpicPredictions, labels: EpicLabels
) -> EpicResult:
    """Score predictions as the official evaluation does.

    Recognition (C1-Action-Recognition): the share of the segments whose class is the
    first (``..._accuracy_at_1``) or among the first five (``all_..._accuracy_at_5``).
    Anticipation (C3-Action-Anticipation): the mean over classes of the share of a
    class's segments that have it among the first five (``..._mt5r``); a class without
    a segment in the subset is left out.

    An action's score is the sum of the log-probabilities of its verb and its noun,
    or what the predictions say explicitly.

    Args:
        task (str): ``'recognition'`` or ``'anticipation'``.
        predictions (EpicPredictions): Of any of the segments, each once; those without
            a prediction do not count.
        labels (EpicLabels): What is right.

    Returns:
        EpicResult: The official keys: ``all_verb_accuracy_at_1``, ...,
        ``overall_action_mt5r``. Those of a subset that nobody listed are left out, and
        ``unseen_..._accuracy_at_1`` if there is no such segment, as officially.

    Raises:
        ValueError: If a segment is unknown or comes twice, or a score is not finite.

    Examples:
        >>> labels = EpicLabels(('a', 'b'), ('P1', 'P1'), np.array([[0, 1], [2, 0]]),
        ...                     num_classes=(3, 2))
        >>> scores = EpicPredictions(['b', 'a'], verb=np.eye(3)[[1, 0]],
        ...                          noun=np.eye(2)[[0, 1]])
        >>> values = epic_metrics('recognition', scores, labels).values
        >>> values['all_verb_accuracy_at_1'], values['all_noun_accuracy_at_1']
        (50.0, 100.0)
    """
    if task not in TASKS:
        raise ValueError(f'task must be one of {", ".join(TASKS)}, got {task!r}.')
    predictions = match(predictions, labels, allow_missing=True)
    place = {name: row for row, name in enumerate(labels.narration_ids)}
    rows = np.array([place[name] for name in predictions.narration_ids], dtype=int)
    classes = labels.classes[rows]
    # Of actions one number, as the official one: verb * 1000 + noun, where it fits.
    ids = {
        'verb': classes[:, 0],
        'noun': classes[:, 1],
        'action': classes[:, 0] * max(1000, labels.num_classes[1]) + classes[:, 1],
    }
    subsets = labels.subsets(rows)
    hits = {k: _hits(predictions, classes, k) for k in (1, 5)}
    values: dict[str, float] = {}
    for subset, k, name in TASKS[task]:
        for part, within in subsets.get(subset, {}).items():
            counted = hits[k][part][within]
            if task == 'anticipation':
                values[name.format(part)] = class_mean(counted, ids[part][within])
            elif len(counted):
                values[name.format(part)] = float(counted.mean() * 100)
            elif subset != 'unseen':
                values[name.format(part)] = float('nan')
    return EpicResult(
        task,
        values,
        {
            subset: {part: int(within.sum()) for part, within in of_part.items()}
            for subset, of_part in subsets.items()
        },
        {
            subset: {
                part: len(np.unique(ids[part][within]))
                for part, within in of_part.items()
            }
            for subset, of_part in subsets.items()
        },
    )


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether each row's label is among its k best classes.

    Args:
        scores (np.ndarray): ``[N, C]``, bigger is better, finite.
        labels (np.ndarray): int ``[N]``; a negative one is no hit.
        k (int): How many are looked at.

    Returns:
        np.ndarray: bool ``[N]``.

    Examples:
        >>> top_k_hits(np.array([[2., 2., 1.]] * 3), np.array([0, 1, 2]), 1)
        array([ True, False, False])
    """
    known = labels >= 0
    own = np.take_along_axis(scores, np.where(known, labels, 0)[:, None], 1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return known & (before.sum(1) < k)


def action_hits(
    verb: np.ndarray, noun: np.ndarray, labels: np.ndarray, k: int
) -> np.ndarray:
    """Whether each row's verb and noun are one of its k best pairs.

    A pair's score is the sum of the two scores: the order of the product of the
    softmaxes, without its underflow. The k best are among the k best verbs and nouns.

    Args:
        verb (np.ndarray): ``[N, V]``, logits or log-probabilities.
        noun (np.ndarray): ``[N, C]``.
        labels (np.ndarray): int ``[N, 2]``; a negative one is no hit.
        k (int): How many are looked at.

    Returns:
        np.ndarray: bool ``[N]``.
    """
    parts = (verb.astype(np.float64), noun)
    best = [np.argsort(-part, axis=1, kind='stable')[:, :k] for part in parts]
    of_verb, of_noun = map(np.take_along_axis, parts, best, (1, 1))
    # [N, k], [N, k] -> [N, k, k] -> [N, k * k]
    verbs, nouns = np.broadcast_arrays(best[0][:, :, None], best[1][:, None])
    pairs = np.stack([verbs, nouns], axis=-1).reshape(len(labels), -1, 2)
    scores = (of_verb[:, :, None] + of_noun[:, None]).reshape(len(labels), -1)
    return explicit_action_hits(pairs, scores, labels, k)


def explicit_action_hits(
    pairs: np.ndarray, scores: np.ndarray, labels: np.ndarray, k: int
) -> np.ndarray:
    """Whether each row's verb and noun are one of its k best explicit pairs.

    Args:
        pairs (np.ndarray): int ``[K, 2]``, or ``[N, K, 2]``: verb and noun; no pair
            twice in a row.
        scores (np.ndarray): ``[N, K]``, bigger is better.
        labels (np.ndarray): int ``[N, 2]``; one that is no pair is no hit.
        k (int): How many are looked at.

    Returns:
        np.ndarray: bool ``[N]``.
    """
    verbs, nouns = pairs[..., 0], pairs[..., 1]  # [K] or [N, K]
    own_verb, own_noun = labels[:, :1], labels[:, 1:]
    own = (verbs == own_verb) & (nouns == own_noun)
    own_score = np.where(own, scores, -np.inf).max(1)[:, None]
    lower = (verbs < own_verb) | ((verbs == own_verb) & (nouns < own_noun))
    before = (scores > own_score) | ((scores == own_score) & lower)
    return own.any(1) & (before.sum(1) < k)


def class_mean(hits: np.ndarray, classes: np.ndarray) -> float:
    """The mean over the classes there are of each one's share of hits, in percent.

    Examples:
        >>> class_mean(np.array([True, False, True]), np.array([7, 7, 2]))
        75.0
    """
    if len(hits) == 0:
        return float('nan')
    _, place, count = np.unique(classes, return_inverse=True, return_counts=True)
    return float((np.bincount(place, weights=hits) / count).mean() * 100)


def format_table(result: EpicResult, labels: Optional[EpicLabels] = None) -> str:
    """The numbers of an evaluation as a table to be read."""
    recognition = result.task == 'recognition'
    what = 'accuracy' if recognition else 'class-mean recall@5'
    source = f' of {labels.source}' if labels is not None else ''
    lines = [
        f'EPIC-KITCHENS {result.task}: {what} in percent, '
        f'{result.segments["all"]["action"]} segments{source}',
        f'{"":14}  {"verb":>8}  {"noun":>8}  {"action":>8}  segments (classes) '
        'of verb, noun, action',
    ]
    for subset, k, name in TASKS[result.task]:
        if subset not in result.segments:
            continue
        values = [result.values.get(name.format(part), float('nan')) for part in PARTS]
        numbers = '  '.join(f'{"-" if v != v else format(v, ".2f"):>8}' for v in values)
        counts = ', '.join(
            f'{result.segments[subset][part]} ({result.classes[subset][part]})'
            for part in PARTS
        )
        label = f'top-{k}' if recognition else 'mt5r'
        lines.append(f'{name.split("_")[0]:<7}  {label:>5}  {numbers}  {counts}')
    if labels is not None:
        lines += labels.notes
    return '\n'.join(lines)


def _hits(
    predictions: EpicPredictions, classes: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """Whether the class is among the k best, by part: bool ``[N]`` each."""
    if predictions.action_scores is None:
        action = action_hits(predictions.verb, predictions.noun, classes, k)
    else:
        action = explicit_action_hits(
            predictions.action_pairs, predictions.action_scores, classes, k
        )
    return {
        'verb': top_k_hits(predictions.verb, classes[:, 0], k),
        'noun': top_k_hits(predictions.noun, classes[:, 1], k),
        'action': action,
    }
